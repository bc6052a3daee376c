"""Drift: counters compared with the ledger, exactly, under traffic."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.instrumentation.base import Instrumentation
from sark_mw.ledger.base import CostFilter, CostTotal, Ledger
from sark_mw.limit import Limit, Unit
from sark_mw.reservation import Balance, Line, lines_for
from sark_mw.store.base import ReservationStore

_COLUMNS = {
    Unit.USD: "cost_nanos",
    Unit.REQUESTS: "requests",
    Unit.TOKENS: "tokens",
    Unit.INPUT_TOKENS: "booked_input_tokens",
    Unit.OUTPUT_TOKENS: "booked_output_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One counter and what the ledger says it must be, both at `seq`; `settled` is False while the ledger has not caught up."""

    balance: Balance
    shard: int
    epoch: str
    seq: int
    ledger: int
    settled: bool

    @property
    def drift(self) -> int:
        """Counter minus ledger."""
        return self.balance.spent - self.ledger


def _sum(total: CostTotal, unit: str) -> int:
    return int(getattr(total, _COLUMNS[Unit(unit)]))


def comparable(line: Line) -> bool:
    """Tell whether the ledger can say what a counter must be: not for concurrency, nor windows that roll or end when idle."""
    return line.unit in _COLUMNS and not line.rolling_ms and not line.idle_ms


#: Tells whether the ledger has every entry of a shard's epoch up to a sequence number.
CaughtUp = Callable[[int, str, int], Awaitable[bool]]


async def compare_lines(
    store: ReservationStore,
    ledger: Ledger,
    root: str,
    lines: Sequence[Line],
    *,
    clock: ServerClock,
    caught_up: CaughtUp | None = None,
) -> list[Comparison]:
    """Compare the counters of comparable lines with the ledger, all at one instant; `caught_up` may wait for the ledger."""
    snapshot = await store.balance(root, lines)
    clock.heard(snapshot.at_ms)
    settled = await (caught_up or ledger.complete_up_to)(snapshot.shard, snapshot.epoch, snapshot.seq)
    found = []
    for balance in snapshot.balances:
        line = balance.line
        total = await ledger.total(
            CostFilter(
                root=root,
                scope=line.scope,
                from_ms=line.starts_ms,
                until_ms=line.ends_ms or None,
                shard=snapshot.shard,
                max_shard_seq=snapshot.seq,
            )
        )
        found.append(
            Comparison(
                balance=balance,
                shard=snapshot.shard,
                epoch=snapshot.epoch,
                seq=snapshot.seq,
                ledger=_sum(total, line.unit),
                settled=settled,
            )
        )
    return found


class Drift:
    """Compare the counters of exact limits with the ledger; every process measures, the gauges agree."""

    def __init__(
        self,
        store: ReservationStore,
        ledger: Ledger,
        *,
        tables: LimitTables,
        clock: ServerClock,
        instrumentation: Instrumentation,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._tables = tables
        self._clock = clock
        self._instrumentation = instrumentation

    async def measure(self) -> None:
        """Compare all counters of exact scopes that this process knows, and set the gauges by shard and unit."""
        worst: dict[tuple[int, str], int] = {}
        for table in self._tables.known():
            for comparison in await self.compare(table.root, table.limits):
                if comparison.settled:
                    key = (comparison.shard, comparison.balance.line.unit)
                    if abs(comparison.drift) >= abs(worst.get(key, 0)):
                        worst[key] = comparison.drift
        for (shard, unit), drift in worst.items():
            self._instrumentation.drift_measured(shard, unit, drift)

    async def compare(self, root: str, limits: Sequence[Limit], scopes: Sequence[str] = ()) -> list[Comparison]:
        """Compare the counters of the limits on `scopes` (none: of the limits that name one scope)."""
        touched = scopes or [limit.scope for limit in limits if not limit.scope.endswith("*")]
        lines = [line for line in lines_for(limits, touched, self._clock.now_ms()) if comparable(line)]
        if not lines:
            return []
        return await compare_lines(self._store, self._ledger, root, lines, clock=self._clock)
