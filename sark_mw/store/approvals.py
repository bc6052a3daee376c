"""Requests that wait for an administrator: one hash a shard, for people to look at. No script and no limit depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sark_mw.store.commands import Commands
from sark_mw.store.keys import ShardKeys


class WaitingHash:
    """Set, list and drop the fields of the hashes of waiting requests; `raise`s `StoreUnavailableError`."""

    def __init__(self, commands: Commands, keys: Sequence[ShardKeys]) -> None:
        self._commands = commands
        self._hashes = [key.approvals for key in keys]

    async def put(self, shard: int, field: str, text: str, keep_ms: int) -> None:
        """Set a field; the hash goes by itself once none was set for so long."""
        await self._commands.run("ask_approval", partial(self._put, self._hashes[shard], field, text, keep_ms))

    async def _put(self, name: str, field: str, text: str, keep_ms: int) -> None:
        async with self._commands.client.pipeline(transaction=False) as pipe:
            pipe.hset(name, field, text)
            pipe.pexpire(name, keep_ms)
            await pipe.execute()

    async def get(self, shard: int, fields: Sequence[str] | None = None) -> dict[str, str]:
        """Return every field, or those of `fields` that are set."""
        name, client = self._hashes[shard], self._commands.client
        ask = partial(client.hgetall, name) if fields is None else partial(client.hmget, name, fields)
        found: Any = await self._commands.run("approvals", ask)
        pairs = found.items() if fields is None else zip(fields, found, strict=True)
        return {field: text for field, text in pairs if text is not None}

    async def drop(self, shard: int, fields: Sequence[str]) -> int:
        """Drop fields, and return how many were there; of several callers one is told that it was the one."""
        if not fields:
            return 0
        return int(await self._commands.run("drop_approval", partial(self._commands.client.hdel, self._hashes[shard], *fields)))
