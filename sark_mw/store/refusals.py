"""The last refusals of all processes: one capped stream a shard, for people to look at. No script and no limit depends on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from sark_mw.store.base import RecentRefusal
from sark_mw.store.commands import Commands
from sark_mw.store.keys import ShardKeys

#: Of a shard; roots share it. About a kilobyte each at most.
_KEPT = 2000
_READ_AT_ONCE = 500


class RefusalStream:
    """Add to and read the streams of recent refusals."""

    def __init__(self, commands: Commands, keys: Sequence[ShardKeys]) -> None:
        self._commands = commands
        self._streams = [key.refusals for key in keys]

    async def add(self, refusals: Sequence[tuple[int, RecentRefusal]]) -> None:
        """Add refusals, each to its shard's stream; raises `StoreUnavailableError`. A repeated call may list them twice."""
        by_shard: dict[int, list[RecentRefusal]] = {}
        for shard, refusal in refusals:
            by_shard.setdefault(shard, []).append(refusal)
        for shard, own in by_shard.items():
            await self._commands.run("note_refusals", partial(self._add, self._streams[shard], own), items=len(own))

    async def _add(self, stream: str, refusals: Sequence[RecentRefusal]) -> None:
        # The keys of one pipeline lie in one slot, so a cluster takes it too.
        async with self._commands.client.pipeline(transaction=False) as pipe:
            for refusal in refusals:
                fields = {"root": refusal.root, "refusal": json.dumps(asdict(refusal), separators=(",", ":"))}
                pipe.xadd(stream, fields, maxlen=_KEPT, approximate=True)
            await pipe.execute()

    async def last(self, shard: int, root: str, most: int) -> list[RecentRefusal]:
        """List the last refusals of a root, the newest first."""
        found: list[RecentRefusal] = []
        before = "+"
        while len(found) < most:
            call = partial(self._commands.client.xrevrange, self._streams[shard], before, "-", count=_READ_AT_ONCE)
            messages = await self._commands.run("recent_refusals", call)
            found += [_read(fields) for _, fields in messages if fields["root"] == root]
            if len(messages) < _READ_AT_ONCE:
                break
            before = f"({messages[-1][0]}"
        return found[:most]


def _read(fields: Mapping[str, str]) -> RecentRefusal:
    said: dict[str, Any] = json.loads(fields["refusal"])
    known = {name: said[name] for name in RecentRefusal.__dataclass_fields__ if name in said}
    return RecentRefusal(**{**known, "scopes": tuple(known.get("scopes", ()))})
