"""Reservations: holds on every limit that a request touches, and how they resolve."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sark_mw.limit import ROLLING_BUCKETS, Limit, Mode

UNLIMITED = -1


class Outcome(StrEnum):
    """What a store answered; the codes are those of the Lua scripts."""

    HELD = "held"
    BOOKED = "booked"
    EXCEEDS_LIMIT = "exceeds_limit"
    WRONG_PERIOD = "wrong_period"
    STALE_LIMITS = "stale_limits"
    NO_EPOCH = "no_epoch"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"
    EXTENDED = "extended"
    FORGOTTEN = "forgotten"
    OUT_OF_RANGE = "out_of_range"


class Resolution(StrEnum):
    """How (a part of) a reservation is resolved; also the kind of its ledger entry (with `expire`)."""

    SETTLE = "settle"
    PARTIAL = "partial"
    RELEASE = "release"
    EXPIRE = "expire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One limit as one request touches it: a counter in one period.

    `amount` in the unit's integer (nanos for usd), `UNLIMITED` counts without refusing. `starts_ms <= now < ends_ms` must hold
    by the server's clock when it is reserved (`ends_ms` 0: never ends). `rolling_ms` > 0 makes it a rolling window.
    """

    counter: str
    unit: str
    amount: int
    starts_ms: int = 0
    ends_ms: int = 0
    rolling_ms: int = 0
    enforce: bool = True
    limit: Limit | None = None
    scope: str = ""

    @property
    def bucket_ms(self) -> int:
        """Width of one bucket of a rolling window; 0 for a calendar window."""
        return max(1, -(-self.rolling_ms // ROLLING_BUCKETS)) if self.rolling_ms else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a reservation takes of one unit: `held` (the ceiling) and `expected` (booked if the truth is never known)."""

    unit: str
    held: int
    expected: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Ask for a hold of every need on every line of its unit, all or nothing.

    `lease_ms` 0 books the needs at once, without a hold. `entry` is a JSON object without newlines that goes into the ledger
    if the hold expires. `version` is the version of the limits that `lines` were made from.
    """

    reservation_id: str
    root: str
    lines: tuple[Line, ...]
    needs: tuple[Need, ...]
    lease_ms: int
    version: int
    entry: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """A counter at one instant, in the unit's integer."""

    line: Line
    spent: int
    held: int

    @property
    def remaining(self) -> int | None:
        """What is left; None where nothing limits; negative after an overrun."""
        return None if self.line.amount == UNLIMITED else self.line.amount - self.spent - self.held


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveReply:
    """The answer to a reserve.

    `outcome` is HELD (or BOOKED for a lease of 0), EXCEEDS_LIMIT, WRONG_PERIOD (look at `at_ms`, the server's clock), STALE_LIMITS,
    or the resolution (SETTLED, RELEASED, EXPIRED) of a reservation that was made and resolved before. `repeated`: it had
    been answered before. `balances` are those after the decision, in the order of the lines; `exceeded` are indices into
    them: the enforced limits that refused; `shadowed`: the shadow limits that would have.
    """

    reservation_id: str
    outcome: Outcome
    at_ms: int
    repeated: bool = False
    balances: tuple[Balance, ...] = ()
    exceeded: tuple[int, ...] = ()
    shadowed: tuple[int, ...] = ()

    @property
    def admitted(self) -> bool:
        """True when the request may go on."""
        return self.outcome in (Outcome.HELD, Outcome.BOOKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Book `amounts` (unit, integer: increments beyond earlier partial settles) and, unless PARTIAL, end the reservation.

    `part` numbers the caller's settles of this reservation from 1; a repeated number changes nothing. `made_ms` is the
    `at_ms` of the reserve's answer, `lines` are the reserve's: with both, a settle whose reservation is gone from
    the store is still booked, in the period it belongs to. RELEASE books nothing.
    """

    reservation_id: str
    root: str
    lines: tuple[Line, ...]
    amounts: tuple[tuple[str, int], ...]
    part: int = 1
    kind: Resolution = Resolution.SETTLE
    made_ms: int = 0
    estimated: bool = False
    entry: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleReply:
    """The answer to a settle or release.

    `outcome`: SETTLED or RELEASED (done, now or before: `repeated`), HELD after a PARTIAL, FORGOTTEN (too old to be booked safely: look in the
    ledger), OUT_OF_RANGE. `late`: the reservation had expired or been released before, so the entry is a correction.
    `overrun` is what was booked above the hold, per unit.
    """

    reservation_id: str
    outcome: Outcome
    at_ms: int
    repeated: bool = False
    late: bool = False
    overrun: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendReply:
    """The answer to an extend: EXTENDED, or how the reservation was resolved, or FORGOTTEN (never heard of)."""

    reservation_id: str
    outcome: Outcome
    at_ms: int


def new_reservation_id() -> str:
    """Make an id that sorts by time and cannot be guessed: 12 hex digits of milliseconds, 20 random ones."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def lines_for(limits: Iterable[Limit], scopes: Iterable[str], at_ms: int) -> tuple[Line, ...]:
    """Lay out the limits that a request touching `scopes` touches at the server time `at_ms`: budgets first.

    A limit counts from `since_ms`, so its first period starts there: the ledger's sum from then on is the counter.
    """
    touched = tuple(dict.fromkeys(scopes))
    lines = [_line(limit, scope, at_ms) for limit in limits for scope in touched if limit.matches(scope)]
    # An exact scope and a pattern may name the same counter: the exact one comes later, so it wins.
    lines.sort(key=lambda line: (line.unit != "usd", line.limit is not None and not line.limit.scope.endswith("*")))
    unique = {line.counter: line for line in lines}
    return tuple(unique.values())


def _line(limit: Limit, scope: str, at_ms: int) -> Line:
    period = limit.period(at_ms)
    name = limit.limit_id.replace(limit.scope, scope, 1)
    return Line(
        counter=f"{limit.root}|{name}|{period.name}",
        unit=limit.unit,
        amount=limit.amount_units,
        starts_ms=max(period.starts_ms, limit.since_ms),
        ends_ms=period.ends_ms,
        rolling_ms=limit.rolling_ms,
        enforce=limit.mode == Mode.ENFORCE,
        limit=limit,
        scope=scope,
    )
