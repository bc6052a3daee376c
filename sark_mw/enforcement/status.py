"""Where limits stand: what is allowed, spent, held and left, on the scopes that somebody asks about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.errors import LedgerError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import Adjustment, EventKind
from sark_mw.limit import Limit, from_units
from sark_mw.reservation import Balance, base_of
from sark_mw.store.base import ReservationStore
from sark_mw.window import Period


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitStatus:
    """One limit on one scope at one instant. Amounts in the unit's integer (nanos for usd).

    `amount` is what is in effect: `base_amount` (an override's while one is in force, until `override_until_ms`, else 0), what
    was `topped_up`, and what was `carried` over from the period before.
    """

    limit: Limit
    scope: str
    period: Period
    counter: str
    amount: int
    base_amount: int
    topped_up: int
    carried: int
    override_until_ms: int
    spent: int
    held: int
    at_ms: int

    @property
    def remaining(self) -> int:
        """What is left; negative after an overrun."""
        return self.amount - self.spent - self.held

    @property
    def resets_at_ms(self) -> int:
        """When its period ends, 0 for never."""
        return self.period.ends_ms

    def shown(self, amount: int) -> Decimal:
        """Give an amount as people read it."""
        return from_units(self.limit.unit, amount)


class StatusReader:
    """Read where limits stand."""

    def __init__(self, store: ReservationStore, ledger: Ledger, *, tables: LimitTables, clock: ServerClock) -> None:
        self._store = store
        self._ledger = ledger
        self._tables = tables
        self._clock = clock

    async def status(self, root: str, scopes: Sequence[str], asserted: Sequence[str] = ()) -> tuple[LimitStatus, ...]:
        """Read every limit that these scopes touch, parents included."""
        layout = await self._tables.layout(root, tuple(scopes), tuple(asserted))
        if not layout.lines:
            return ()
        snapshot = await self._store.balance(root, layout.lines)
        self._clock.heard(snapshot.at_ms)
        adjusted = await self._adjustments(root, [balance.line.counter for balance in snapshot.balances])
        asked = zip(layout.lines, snapshot.balances, strict=True)
        deciding = ((line, balance) for line, balance in asked if line.limit and not line.displaced)
        return tuple(_status(line.amount, balance, snapshot.at_ms, adjusted) for line, balance in deciding)

    async def _adjustments(self, root: str, counters: Iterable[str]) -> dict[tuple[str, str], Adjustment]:
        names = [name for counter in counters for name in (counter, base_of(counter))]
        try:
            found = await self._ledger.adjustments(root, names)
        except LedgerError:
            # What is allowed is known all the same; only of what it is made is not.
            return {}
        return {(each.kind, each.counter): each for each in found}


def _status(defined: int, balance: Balance, at_ms: int, adjusted: dict[tuple[str, str], Adjustment]) -> LimitStatus:
    line = balance.line
    assert line.limit is not None
    override = adjusted.get((EventKind.OVERRIDE, base_of(line.counter)))
    in_force = override is not None and at_ms < override.until_ms
    base = override.amount if override and in_force else defined
    top_up = adjusted.get((EventKind.TOP_UP, line.counter))
    topped_up = top_up.amount if top_up else 0
    return LimitStatus(
        limit=line.limit,
        scope=line.scope,
        period=line.limit.period(at_ms),
        counter=line.counter,
        # The store allows no less than nothing; a balance that was taken back further is a debt all the same.
        amount=line.amount if line.amount > 0 else min(line.amount, base + topped_up),
        base_amount=base,
        topped_up=topped_up,
        carried=max(line.amount - base - topped_up, 0) if line.carry_cap else 0,
        override_until_ms=override.until_ms if override and in_force else 0,
        spent=balance.spent,
        held=balance.held,
        at_ms=at_ms,
    )
