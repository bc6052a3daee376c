"""Begin the store, and rebuild it from the ledger after it has lost its data."""

from __future__ import annotations

import asyncio

from sark_mw.ledger.base import Ledger
from sark_mw.store.base import RestorableStore


class Recovery:
    """Give every shard without data what the ledger knows of it: limits, counters, and what was resolved lately."""

    def __init__(self, store: RestorableStore, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        self._running: asyncio.Task[int] | None = None

    async def rebuild(self) -> int:
        """Begin or rebuild the shards that have no data, once for all who ask at the same time; return how many."""
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._rebuild())
        return await asyncio.shield(self._running)

    async def _rebuild(self) -> int:
        lost = await self._store.lost_shards()
        limits = await self._ledger.load_limits() if lost else []
        for shard in lost:
            own = [limit for limit in limits if self._store.shard_of(limit.root) == shard]
            last = await self._ledger.last_sequence(shard)
            await self._store.restore(shard, own, (), last + 1_000_000 if last else 0, ())
        return len(lost)
