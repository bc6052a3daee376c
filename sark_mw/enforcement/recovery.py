"""Begin the store, and rebuild it from the ledger after it has lost its data or went back to older ones.

Two steps, and no lock over both: the ledger puts up its fence for a new epoch and says what it has; then the store is restored
under that epoch. What the ledger takes after the fence is of the new epoch or is booked again (`sark_mw.enforcement.rebook`), so
counters and ledger agree whoever dies in between. Of several processes that rebuild at once the first to restore wins.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence

from sark_mw.enforcement.plan import RebuildPlan
from sark_mw.errors import LedgerError, StoreDataLostError, StoreError, StoreUnavailableError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import Adjustment, EventFilter, EventKind
from sark_mw.limit import Limit
from sark_mw.store.base import RestorableStore

_log = logging.getLogger(__name__)

_ATTEMPTS = 5
#: Changes of limits that are looked through when a root with rollover is rebuilt.
_MOST_CHANGES = 10_000
#: Batches moved from what is left of an outbox before its shard is rebuilt; what is there beyond is booked again.
_MOST_DRAINED = 64


class Recovery:
    """Give every shard without data what the ledger knows of it: limits, counters, and what was resolved lately.

    `drain` moves a batch from the outbox to the ledger and returns how many entries: after a partial loss the outbox may have
    survived. `on_rebuilt` hears that this process rebuilt shards.
    """

    def __init__(
        self,
        store: RestorableStore,
        ledger: Ledger,
        *,
        drain: Callable[[], Awaitable[int]] | None = None,
        on_rebuilt: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._drain = drain
        self._on_rebuilt = on_rebuilt
        self._running: asyncio.Task[int] | None = None
        self._suspects: set[tuple[int, str]] = set()

    async def rebuild(self) -> int:
        """Begin or rebuild the shards that have no data, once for all who ask at the same time; return how many.

        Raises `StoreUnavailableError`, or `LedgerError`: nothing can be decided then.
        """
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._rebuild())
        return await asyncio.shield(self._running)

    async def ensure(self) -> int:
        """Rebuild as `rebuild` does, for those to whom a ledger that is away means that the data are still lost."""
        try:
            return await self.rebuild()
        except LedgerError as error:
            raise StoreDataLostError(f"the store lost its data, and the ledger cannot say what they were: {error}") from error

    def suspect(self, shard: int, epoch: str) -> None:
        """Note that a shard's data went back to older ones: `watch` gives them up."""
        self._suspects.add((shard, epoch))

    async def watch(self) -> None:
        """Rebuild what is lost, and what fell behind the ledger: a failover to a replica that lacked the last writes."""
        for shard in range(self._store.shards):
            epoch = (await self._store.position(shard)).epoch
            # The ledger first: what it has by then the store must have too.
            known = await self._ledger.last_sequence(shard, epoch) if epoch else 0
            position = await self._store.position(shard)
            if position.epoch == epoch and position.seq < known:
                self.suspect(shard, epoch)
        for shard, epoch in sorted(self._suspects):
            _log.warning("store: shard %d went back to older data than the ledger's; it is rebuilt from the ledger", shard)
            await self._store.abandon(shard, epoch)
            self._suspects.discard((shard, epoch))
        await self.rebuild()

    async def _rebuild(self) -> int:
        lost = await self._store.lost_shards()
        if not lost:
            return 0
        await self._drain_outbox()
        limits = await self._ledger.load_limits()
        for shard in lost:
            await self._begin(shard, [limit for limit in limits if self._store.shard_of(limit.root) == shard])
        if self._on_rebuilt is not None:
            self._on_rebuilt(lost)
        return len(lost)

    async def _drain_outbox(self) -> None:
        """Move what is left in the outbox while the ledger still takes it; what cannot be is booked again later."""
        if self._drain is None:
            return
        try:
            for _ in range(_MOST_DRAINED):
                if not await self._drain():
                    return
        except StoreError as error:
            _log.warning("store: the outbox could not be emptied before the rebuild: %s", error)

    async def _adjustments(self, limits: Sequence[Limit]) -> list[Adjustment]:
        """Read the top-ups and overrides of these limits; later ones are sent by whoever makes them, and by the upkeep."""
        if not limits:
            return []
        since = {(limit.root, str(limit.since_ms)) for limit in limits}
        found = [each for root in {limit.root for limit in limits} for each in await self._ledger.adjustments(root)]
        # Of a limit that was dropped, or dropped and set again, nothing is left.
        return [each for each in found if (each.counter.partition("|")[0], each.counter.rpartition("|")[2]) in since]

    async def _changed(self, limits: Sequence[Limit]) -> dict[tuple[str, str], int]:
        """Tell when the limits that carry over were changed last; of changes too long ago to be told, none."""
        found: dict[tuple[str, str], int] = {}
        for root in {limit.root for limit in limits if limit.rollover_units}:
            for each in await self._ledger.events(EventFilter(root=root, kinds=(EventKind.SET,)), _MOST_CHANGES):
                if '"before"' in each.event.detail_json:
                    found.setdefault((root, each.event.limit_id), each.event.at_ms)
        return found

    async def _begin(self, shard: int, limits: Sequence[Limit]) -> None:
        for _ in range(_ATTEMPTS):
            position = await self._store.position(shard)
            if position.epoch:
                return  # somebody else was first
            plan = RebuildPlan(limits, position.at_ms, await self._adjustments(limits), await self._changed(limits))
            epoch = secrets.token_hex(8)
            books = await self._ledger.begin_epoch(shard, epoch, plan.query(self._store.retention_ms))
            in_force = await self._store.restore(
                shard,
                limits,
                plan.counters(books),
                books.fence.base_seq,
                plan.resolved(books),
                epoch=epoch,
                grants=plan.grants(books),
            )
            if in_force != epoch:
                await self._ledger.adopt_epoch(shard, epoch, in_force)
                return
            if not await self._ledger.is_overtaken(books.fence):
                # A ledger that knows nothing of the shard means a new installation, not a loss.
                level = logging.WARNING if books.fence.base_seq else logging.INFO
                _log.log(level, "store: shard %d was begun from the ledger, epoch %s", shard, epoch)
                return
            # This process stood still between its two steps while another epoch came and went: the sums are too old.
            await self._store.abandon(shard, epoch)
        raise StoreUnavailableError(f"shard {shard} was lost again and again while it was rebuilt")
