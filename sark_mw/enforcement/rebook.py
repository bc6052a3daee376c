"""Entries of data that were lost before the ledger had them: booked again into the data of today, once.

When a shard is rebuilt, the ledger's fence names its new epoch, and the counters are the sums of what the ledger had then. An
entry of the epoch before that comes later (a flusher had it in hand) would be in the ledger and not in the counters. So it is
settled again under its own id: counter and a new ledger entry in one call. What its process states later is the total cost, so
that either call may come first and neither counts twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from sark_mw.enforcement.recovery import Recovery
from sark_mw.errors import StoreDataLostError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.entries import ledger_entry, parse_entry
from sark_mw.limit import run_limit
from sark_mw.limit_index import Touched
from sark_mw.reservation import Line, Outcome, Resolution, Settle
from sark_mw.store.base import OutboxEntry, ReservationStore, RestorableStore

_log = logging.getLogger(__name__)


class RebookStore(ReservationStore, RestorableStore, Protocol):
    """What rebooking needs of a store."""


class Rebooker:
    """Keep the fence for a flusher: implements `sark_mw.ledger.flusher.FenceKeeper`."""

    def __init__(self, store: RebookStore, ledger: Ledger, recovery: Recovery) -> None:
        self._store = store
        self._ledger = ledger
        self._recovery = recovery

    def suspect(self, shard: int, epoch: str) -> None:
        """Let the recovery look at a shard whose data went back."""
        self._recovery.suspect(shard, epoch)

    async def rebook(self, records: Sequence[OutboxEntry]) -> Sequence[OutboxEntry]:
        """Book what the fence refused into the data of today; return what it must take after all.

        Raises `StoreDataLostError` while a shard is not rebuilt: the entries stay with the flusher.
        """
        in_force: dict[int, str] = {}
        for shard in {record.shard for record in records}:
            in_force[shard] = (await self._store.position(shard)).epoch
            if not in_force[shard]:
                raise StoreDataLostError("the store has no data for this shard: its last entries wait until it is rebuilt")
        for shard, epoch in {(record.shard, record.epoch) for record in records}:
            if in_force[shard] == epoch:
                await self._adopt(shard, epoch)
        for record in records:
            if record.epoch != in_force[record.shard]:
                await self._book(record)
                await self._store.discard([record])
        return [record for record in records if record.epoch == in_force[record.shard]]

    async def _adopt(self, shard: int, epoch: str) -> None:
        """Name the epoch in force: of two processes that rebuilt at once one put up the fence last, the other was first."""
        fence = await self._ledger.fence(shard)
        if fence is not None and fence.epoch != epoch:
            await self._ledger.adopt_epoch(shard, fence.epoch, epoch)

    async def _book(self, record: OutboxEntry) -> None:
        booked = tuple((unit, amount) for unit, amount in record.booked if amount)
        if not booked:
            await self._insert(record)
            return
        reply = await self._store.settle(
            Settle(
                reservation_id=record.reservation_id,
                root=record.root,
                lines=await self._lines(record),
                amounts=booked,
                part=_part(record),
                kind=Resolution.PARTIAL if record.kind in (Resolution.PARTIAL, Resolution.EXPIRE) else Resolution.SETTLE,
                made_ms=record.reserved_ms,
                estimated=record.estimated,
                entry=record.entry_json,
                relative=True,
            )
        )
        if reply.outcome in (Outcome.FORGOTTEN, Outcome.OUT_OF_RANGE):
            _log.warning(
                "ledger: reservation %s of a lost epoch could not be booked again (%s): the ledger has it, the counters of its "
                "period do not",
                record.reservation_id,
                reply.outcome,
            )
            await self._insert(record)

    async def _lines(self, record: OutboxEntry) -> tuple[Line, ...]:
        """Lay out the limits of today as they count at the time of the reservation."""
        limits = (await self._store.limits(record.root)).limits
        since = [limit for limit in limits if limit.since_ms <= record.reserved_ms]
        scopes = parse_entry(record.entry_json)[0].scopes
        runs = [run_limit(record.root, scope) for scope in scopes if scope.startswith("run:")]
        return Touched(tuple(scopes), tuple(since), tuple(runs)).lines(record.reserved_ms)

    async def _insert(self, record: OutboxEntry) -> None:
        """Put a row past the fence, under a name of its own: the reservation's next part may take this one's number."""
        entry = ledger_entry(record)
        await self._ledger.append(
            [
                replace(
                    entry,
                    reservation_id=f"{record.reservation_id}~{record.part}~{record.epoch}",
                    metadata_json=json.dumps({**json.loads(entry.metadata_json), "past_fence": True}, separators=(",", ":")),
                )
            ]
        )


def _part(record: OutboxEntry) -> int:
    """Number the part as its caller would: an expiry alone is none, so that the caller's first one corrects it."""
    return 0 if record.kind == Resolution.EXPIRE and record.part == 1 else record.part
