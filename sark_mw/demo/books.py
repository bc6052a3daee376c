"""The books as the gateway's process knows them: counters and ledger, at a glance or compared when all is quiet."""

from __future__ import annotations

import asyncio
import time
from typing import TypedDict

from sark_mw.demo.cast import ROOT
from sark_mw.demo.probe import percentile
from sark_mw.instrumentation.base import NullInstrumentation, RequestFinished, RequestOutcome
from sark_mw.ledger.base import CostFilter
from sark_mw.reservation import Balance, lines_for
from sark_mw.sark import Sark


class Counter(TypedDict):
    """One budget: amount, spent and held in nano-dollars; `drift` is counter minus ledger."""

    scope: str
    window: str
    amount: int
    spent: int
    held: int
    drift: int


class OwnClock(TypedDict):
    """What the middleware itself says that it took before the gateway was asked, over all admitted calls under load."""

    p50_ms: float
    p99_ms: float
    requests: int


class Stopwatch(NullInstrumentation):
    """Keeps what the middleware says of its own time."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def request_finished(self, event: RequestFinished) -> None:
        """Note one admitted request."""
        if event.outcome is RequestOutcome.ADMITTED and event.added_seconds is not None:
            self._seconds.append(event.added_seconds)

    def read(self) -> OwnClock:
        """Sum up."""
        p50, p99 = (percentile(self._seconds, p) * 1000 for p in (50, 99))
        return OwnClock(p50_ms=p50, p99_ms=p99, requests=len(self._seconds))


class Books(TypedDict):
    """What counters and ledger say; `quiet`: nothing was in flight; `complete`: the ledger had every entry."""

    counters: list[Counter]
    ledger: dict[str, int]
    rows: int
    own_clock: OwnClock
    quiet: bool
    complete: bool


async def glance(sark: Sark) -> list[Counter]:
    """Read every budget's counter as it stands."""
    limits = await sark.limits.list(ROOT)
    lines = lines_for(limits, [limit.scope for limit in limits], sark.clock.now_ms())
    return [_counter(each, 0) for each in (await sark.store.balance(ROOT, lines)).balances]


async def read_books(sark: Sark, stopwatch: Stopwatch, deadline_s: float = 20.0) -> Books:
    """Wait until everything in flight is booked and flushed, then compare counters and ledger."""
    quiet = await _until_quiet(sark, deadline_s)
    compared = await sark.drift.compare(ROOT, await sark.limits.list(ROOT))
    total = await sark.ledger.total(CostFilter(root=ROOT), group_by="principal_id")
    return Books(
        counters=[_counter(each.balance, each.drift) for each in compared],
        ledger=dict(total.groups),
        rows=total.rows,
        own_clock=stopwatch.read(),
        quiet=quiet,
        complete=all(each.settled for each in compared),
    )


def _counter(balance: Balance, drift: int) -> Counter:
    limit = balance.line.limit
    assert limit is not None
    return Counter(
        scope=balance.line.scope,
        window=limit.window,
        amount=balance.line.amount,
        spent=balance.spent,
        held=balance.held,
        drift=drift,
    )


async def _until_quiet(sark: Sark, deadline_s: float) -> bool:
    ends = time.monotonic() + deadline_s
    while sark.enforcer.live or sark.settler.pending or await sark.store.backlog():
        if time.monotonic() > ends:
            return False
        await asyncio.sleep(0.05)
    return True
