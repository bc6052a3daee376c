"""Look at the processes of a plugin from outside."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sark_mw.policy.base import LimitFigures
from sark_mw.policy.engines.plugin import EnginePlugin
from tests.rules.requests import lending


@asynccontextmanager
async def loaded(plugin: EnginePlugin, *figures: LimitFigures) -> AsyncIterator[EnginePlugin]:
    """Load a plugin and unload it."""
    plugin.bind(lending(*figures))
    await plugin.on_load()
    try:
        yield plugin
    finally:
        await plugin.on_unload()


def children() -> set[int]:
    """List the child processes of this one, zombies included."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(entry.parent.name))
    return found


def descriptors() -> int:
    """Count the open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def status(pid: int) -> dict[str, str]:
    """Read what the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def until_new(plugin: EnginePlugin, old: list[int]) -> list[int]:
    """Wait until a process has taken the place of the old ones."""
    while True:
        new = [pid for pid in plugin.pids if pid not in old]
        if new:
            return new
        await asyncio.sleep(0.01)
