"""The flusher: moves entries from the outbox into the ledger, each counted once.

The outbox gives an entry at least once and the ledger takes it at most once, so the order is all that matters: append, commit,
acknowledge. Whatever dies in between is done again.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

from sark_mw.errors import LedgerError, StoreError
from sark_mw.ledger.base import CountsRejected, Ledger, LedgerEntry
from sark_mw.ledger.entries import ledger_entry
from sark_mw.ledger.events import EVENT_KINDS, event_of
from sark_mw.ledger.outbox import LedgerOutbox, RecordT

_FAULTS = (LedgerError, StoreError)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushReport:
    """Where a flusher stands; the counts are since it was made.

    `flushed` entries were acknowledged, of which `new_rows` and `new_events` (of limits) were not in the ledger before and
    `rejected` went to `ledger_rejected`. `failures` are those in a row: 0 means that the last attempt went well. `lag_ms` is the
    age of the oldest entry in hand that could not be written yet, or 0. `backlog` is what waits in the outbox, None where it
    could not be asked.
    """

    flushed: int = 0
    new_rows: int = 0
    new_events: int = 0
    rejected: int = 0
    batches: int = 0
    failures: int = 0
    last_error: str | None = None
    lag_ms: int = 0
    backlog: int | None = None


class FlushEvents(Protocol):
    """Whom a flusher tells; any `sark_mw.instrumentation.base.Instrumentation` fits."""

    def backlog_measured(self, entries: int, oldest_seconds: float) -> None:
        """Hear how many entries are not in the ledger yet, and the age of the oldest that is in hand."""

    def ledger_flushed(self, rows: int, seconds: float) -> None:
        """Hear that a batch was committed, with how many new rows."""

    def ledger_failed(self, reason: str) -> None:
        """Hear that a batch was not committed, and the class of the error."""

    def expiry_booked(self, provider: str, model: str | None, unit: str, amount: int) -> None:
        """Hear what an expired hold was booked at."""

    def limit_event(self, kind: str, unit: str, scope: str, limit_id: str, root: str, detail: str) -> None:
        """Hear of an event of a limit that was new to the ledger; `detail` is its JSON."""


class FenceKeeper(Protocol[RecordT]):
    """Who sees to entries of data that were lost: see `sark_mw.enforcement.rebook`."""

    async def rebook(self, records: Sequence[RecordT]) -> Sequence[RecordT]:
        """Book what the fence refused into the data of today, and acknowledge it; return what the ledger must take after all."""

    def suspect(self, shard: int, epoch: str) -> None:
        """Hear that a shard numbers entries twice: its data went back. Must not block or raise."""


class Flusher(Generic[RecordT]):
    """Read an outbox in batches and append them to a ledger, for as long as `run` runs.

    `consumer` names this process towards the outbox: what a process of the same name took and did not acknowledge is taken over
    at once, what others took after `reclaim_idle_s`. While the database is away entries stay in the outbox, and attempts come
    further apart, up to `max_backoff_s`. Several flushers may share an outbox. Without a
    `keeper` the ledger's fence is not heeded.
    """

    def __init__(
        self,
        outbox: LedgerOutbox[RecordT],
        ledger: Ledger,
        *,
        batch: int = 500,
        interval_s: float = 1.0,
        consumer: str | None = None,
        reclaim_idle_s: float = 60.0,
        max_backoff_s: float = 30.0,
        events: FlushEvents | None = None,
        keeper: FenceKeeper[RecordT] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbox = outbox
        self._ledger = ledger
        self._batch = batch
        self._interval_s = interval_s
        self._consumer = consumer or f"{socket.gethostname()}:{os.getpid()}"
        self._reclaim_idle_s = reclaim_idle_s
        self._max_backoff_s = max_backoff_s
        self._events = events
        self._keeper = keeper
        self._clock = clock
        self._lock = asyncio.Lock()
        self._stopping = asyncio.Event()
        #: Taken from the outbox and not acknowledged yet: tried again as it is, so that the order stays.
        self._taken: list[RecordT] = []
        self._reclaim_at = self._measure_at = 0.0
        self._flushed = self._new_rows = self._new_events = self._batches = self._failures = 0
        self._last_error: str | None = None
        self._backlog: int | None = None

    async def run(self) -> None:
        """Move entries until `stop`; a ledger or a store that is away is waited for."""
        while not self._stopping.is_set():
            moved = await self._attempt()
            if time.monotonic() >= self._measure_at:
                await self._measure()
            if moved < self._batch:
                await self._pause(self._interval_s if self._failures == 0 else self._backoff_s())

    def stop(self) -> None:
        """Let `run` end after the batch under way."""
        self._stopping.set()

    async def drain(self, deadline_s: float) -> FlushReport:
        """Stop `run` and move what is left, for at most `deadline_s`; what remains then stays in the outbox, safely."""
        self.stop()
        try:
            async with asyncio.timeout(deadline_s):
                while await self._attempt() or self._failures:
                    if self._failures:
                        await asyncio.sleep(self._backoff_s())
        except TimeoutError:
            self._last_error = self._last_error or f"not drained within {deadline_s} s"
        await self._measure()
        return self.report

    async def flush_once(self) -> int:
        """Move what the outbox gives at once; return how many entries.

        Raises `LedgerError` or `StoreError`, and then keeps the batch for the next time.
        """
        async with self._lock:
            if not self._taken:
                self._taken = await self._take()
            if not self._taken:
                return 0
            # An outbox may give a batch of each shard at once: the database gets one batch at a time.
            moved = len(self._taken)
            while self._taken:
                await self._move(self._taken[: self._batch])
                self._taken = self._taken[self._batch :]
            return moved

    async def _move(self, records: list[RecordT]) -> None:
        started = time.perf_counter()
        events = [record for record in records if record.kind in EVENT_KINDS]
        booked = [record for record in records if record.kind not in EVENT_KINDS]
        entries = [ledger_entry(record) for record in booked]
        # Events first: what they tell is told even if the entries have to wait, and what entries tell is told when they are in.
        await self._record(events)
        new, written = await self._append(booked, entries) if booked else (0, booked)
        seconds = time.perf_counter() - started
        await self._outbox.acknowledge([*written, *events])
        self._flushed += len(records)
        self._new_rows += new
        self._batches += 1
        self._tell(entries, new, seconds)

    async def _record(self, records: Sequence[RecordT]) -> None:
        """Keep events of limits: they are no entries, so the fence does not concern them."""
        new = await self._ledger.record_new([event_of(record) for record in records]) if records else []
        self._new_events += len(new)
        if self._events is not None:
            for event in new:
                self._events.limit_event(event.kind, event.unit, event.scope, event.limit_id, event.root, event.detail_json)

    async def _append(self, records: Sequence[RecordT], entries: Sequence[LedgerEntry]) -> tuple[int, Sequence[RecordT]]:
        """Return how many rows were new, and what is in the ledger now: all but what was booked again."""
        if self._keeper is None:
            return await self._ledger.append(entries), records
        done = await self._ledger.append_fenced(entries)
        for shard, epoch in done.forked:
            self._keeper.suspect(shard, epoch)
        if not done.refused:
            return done.new, records
        refused = {id(entry) for entry in done.refused}
        written = [record for record, entry in zip(records, entries, strict=True) if id(entry) not in refused]
        again = await self._keeper.rebook(
            [record for record, entry in zip(records, entries, strict=True) if id(entry) in refused]
        )
        if not again:
            return done.new, written
        # The keeper has moved the fence for these.
        new, more = await self._append(again, [ledger_entry(record) for record in again])
        return done.new + new, [*written, *more]

    @property
    def report(self) -> FlushReport:
        """Tell where it stands."""
        oldest_ms = min((record.booked_ms for record in self._taken), default=None)
        return FlushReport(
            flushed=self._flushed,
            new_rows=self._new_rows,
            new_events=self._new_events,
            rejected=self._ledger.rejected_rows if isinstance(self._ledger, CountsRejected) else 0,
            batches=self._batches,
            failures=self._failures,
            last_error=self._last_error,
            lag_ms=0 if oldest_ms is None else max(0, int(self._clock() * 1000) - oldest_ms),
            backlog=self._backlog,
        )

    async def _take(self) -> list[RecordT]:
        # Only while nothing is in hand: reclaiming returns this consumer's own unacknowledged entries too.
        if time.monotonic() >= self._reclaim_at:
            left_behind = await self._outbox.reclaim(self._consumer, int(self._reclaim_idle_s * 1000), self._batch)
            if left_behind:
                return left_behind
            self._reclaim_at = time.monotonic() + self._reclaim_idle_s / 2
        return await self._outbox.read(self._consumer, self._batch)

    async def _attempt(self) -> int:
        try:
            moved = await self.flush_once()
        except _FAULTS as error:
            self._failures += 1
            self._last_error = f"{type(error).__name__}: {error}"
            if self._events is not None:
                self._events.ledger_failed(type(error).__name__)
            return 0
        self._failures = 0
        self._last_error = None
        return moved

    async def _measure(self) -> None:
        self._measure_at = time.monotonic() + self._interval_s
        try:
            self._backlog = await self._outbox.backlog()
        except StoreError:
            self._backlog = None
            return
        if self._events is not None:
            self._events.backlog_measured(self._backlog, self.report.lag_ms / 1000)

    def _backoff_s(self) -> float:
        longest = min(self._max_backoff_s, self._interval_s * 2.0 ** min(self._failures, 20))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  # spreads the attempts of many processes, nothing secret

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    def _tell(self, entries: list[LedgerEntry], new: int, seconds: float) -> None:
        if self._events is None:
            return
        self._events.ledger_flushed(new, seconds)
        # Nobody settles what expired: here it is first heard of. A batch that was there before was told before.
        for entry in entries if new else ():
            if entry.kind == "expire":
                for unit, amount in (("usd", entry.cost_nanos), ("requests", entry.requests), ("tokens", entry.tokens)):
                    if amount:
                        self._events.expiry_booked(entry.provider or "unknown", entry.model, unit, amount)
