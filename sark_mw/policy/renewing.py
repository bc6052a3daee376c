"""A plugin's new version made, and an old one let go after the rounds that began with it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from sark_mw.errors import ConfigurationError
from sark_mw.policy.base import PolicyServices
from sark_mw.policy.entries import Entry, entry_of
from sark_mw.policy.files import PluginFile
from sark_mw.policy.loading import forget_module

logger = logging.getLogger(__name__)

#: How long an old version may serve the calls that were under way when it was replaced.
DRAIN_S = 60.0
_POLL_S = 0.01


def _accept(old: Entry, new: Entry, file: PluginFile) -> None:
    new.enabled = old.enabled
    if file.packages is not None:
        file.packages.accept_successor(old.name, new)


async def renewed(old: Entry, file: PluginFile, services: PolicyServices) -> Entry:
    """Load the file of a plugin anew; whatever it raises, nothing of the new version is left."""
    source = await asyncio.to_thread(file.read)
    plugin = await source.build()
    try:
        new = entry_of(plugin, old.enabled, source)
        if new.name != old.name:
            raise ConfigurationError(f"{file.path} is plugin {new.name!r} now, and not {old.name!r} any more")
        _accept(old, new, file)
        plugin.bind(services)
        await plugin.on_load()
        # Once more, with what was taken up and switched meanwhile: nothing is waited for between this and its taking up.
        _accept(old, new, file)
    except BaseException:
        with suppress(Exception):
            await plugin.on_unload()
        forget_module(type(plugin))
        raise
    return new


async def retire(entry: Entry, drain_s: float = DRAIN_S) -> None:
    """Unload a plugin that is in no chain any more, once the rounds are over that began with it, or `drain_s`."""
    try:
        if entry.rounds:
            await drained(entry, drain_s)
    finally:
        try:
            await entry.plugin.on_unload()
        except Exception:
            logger.exception("policy plugin %r failed to unload; it is gone all the same", entry.name)
        finally:
            forget_module(type(entry.plugin))


class Retiring:
    """Versions that were replaced, each unloaded in a task of its own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, entry: Entry) -> None:
        """Let a version go."""
        task = asyncio.ensure_future(retire(entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ended(self, drain_s: float) -> None:
        """Wait until all are unloaded; whose rounds are not over after `drain_s` is unloaded all the same."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=drain_s)
        for task in self._tasks:
            task.cancel()  # it unloads at its end
        while self._tasks:
            await asyncio.wait(set(self._tasks))


async def drained(entry: Entry, seconds: float = DRAIN_S) -> None:
    """Wait until no round asks this plugin any more but the one that this is part of, at most so long."""
    loop, here = asyncio.get_running_loop(), asyncio.current_task()
    ends = loop.time() + seconds
    # Rounds of several loops may hold it: none of them can wake all who wait.
    while any(not each.runs_in(here) for each in tuple(entry.rounds)) and loop.time() < ends:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
