"""Reservations: holds on every limit that a request touches, and how they resolve."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from sark_mw.errors import MoneyError
from sark_mw.limit import ROLLING_BUCKETS, Limit, Mode
from sark_mw.money import MAX_HOLD

UNLIMITED = -1
_ID = re.compile(r"[!-~]{1,200}")
_HEX = re.compile(r"[0-9a-f]{8,64}")
#: The longest lease: a hold further ahead than twice this was made by a clock that was wrong.
MAX_LEASE_MS = 86_400_000


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
    IN_FLIGHT = "in_flight"
    ALREADY_DONE = "already_done"
    KEY_REUSED = "key_reused"
    STALE = "stale"
    REPAIRED = "repaired"


class Resolution(StrEnum):
    """How (a part of) a reservation is resolved; also the kind of its ledger entry (with `expire`)."""

    SETTLE = "settle"
    PARTIAL = "partial"
    RELEASE = "release"
    EXPIRE = "expire"


def _check_amount(unit: str, amount: int) -> None:
    if not 0 <= amount <= MAX_HOLD:
        raise MoneyError(f"an amount of {unit} must lie between 0 and {MAX_HOLD}: {amount}")


def _check_words(reservation_id: str, entry: str) -> None:
    if not _ID.fullmatch(reservation_id):
        raise ValueError(f"a reservation id must be 1 to 200 printable ASCII characters without spaces: {reservation_id!r}")
    if not entry.startswith("{") or "\n" in entry:
        raise ValueError("a ledger entry must be a JSON object on one line")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One limit as one request touches it: a counter in one period.

    `amount` in the unit's integer (nanos for usd), `UNLIMITED` counts without refusing. `starts_ms <= now < ends_ms` must hold
    by the server's clock when it is reserved (`ends_ms` 0: never ends). `rolling_ms` > 0 makes it a rolling window, `idle_ms` > 0
    one that begins anew after so long without any change. `soft` lines neither refuse nor report; `displaced` are those in whose
    place another limit on the same scope decides. `thresholds` are percents of the effective amount. `carry_cap` > 0 carries up
    to so much of the period before, `ordinal` numbers the periods, and nothing is carried from one before `carry_from`.
    """

    counter: str
    unit: str
    amount: int
    starts_ms: int = 0
    ends_ms: int = 0
    rolling_ms: int = 0
    enforce: bool = True
    soft: bool = False
    displaced: bool = False
    idle_ms: int = 0
    thresholds: tuple[int, ...] = ()
    carry_cap: int = 0
    ordinal: int = 0
    carry_from: int = 0
    limit: Limit | None = None
    scope: str = ""

    @property
    def options(self) -> str:
        """Say in one word what a booking must know of this line: `-`, or words joined by `;`."""
        words = [f"k{self.idle_ms}"] if self.idle_ms else []
        words += [f"c{self.carry_cap},{self.ordinal},{self.carry_from}:{self.amount}"] if self.carry_cap else []
        if self.thresholds:
            words.append(f"t{','.join(map(str, self.thresholds))}:{self.amount}")
        return ";".join(words) or "-"

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

    def __post_init__(self) -> None:
        _check_amount(self.unit, self.held)
        if not 0 <= self.expected <= self.held:
            raise MoneyError(f"expected {self.unit} must lie between 0 and what is held ({self.held}): {self.expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Ask for a hold of every need on every line of its unit, all or nothing.

    `lease_ms` is at most `MAX_LEASE_MS`; 0 books the needs at once, without a hold (with `entry` "{}" without a ledger entry
    either: for rate limits, not for usd). `key` and `fingerprint`: hashes of an idempotency key and of what it came with; while
    a reservation with this key is held or settled another is not made. `made_ms` above 0 is that of a hold which the store
    lost: it is held again whatever the limits say. `entry` is a JSON object without newlines that goes into the ledger if the
    hold expires. `version` and `epoch` are those of the `LimitTable` that `lines` were made from.
    """

    reservation_id: str
    root: str
    lines: tuple[Line, ...]
    needs: tuple[Need, ...]
    lease_ms: int
    version: int
    epoch: str = ""
    entry: str = "{}"
    made_ms: int = 0
    key: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        _check_words(self.reservation_id, self.entry)
        if self.key and not (_HEX.fullmatch(self.key) and _HEX.fullmatch(self.fingerprint)):
            raise ValueError("an idempotency key and its fingerprint are hashes of 8 to 64 hex digits each")
        if not 0 <= self.lease_ms <= MAX_LEASE_MS:
            raise ValueError(f"a lease must lie between 0 and {MAX_LEASE_MS} ms: {self.lease_ms}")
        if self.lease_ms == 0 and self.entry == "{}" and any(need.unit == "usd" for need in self.needs):
            raise ValueError("money that is booked at once needs a ledger entry")


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

    `outcome` is HELD (or BOOKED for a lease of 0), EXCEEDS_LIMIT, WRONG_PERIOD (look at `at_ms`, the server's clock),
    STALE_LIMITS, or the resolution (SETTLED, RELEASED, EXPIRED) of a reservation that was made and resolved before. Of another
    reservation with the same idempotency key: IN_FLIGHT, ALREADY_DONE (both name it in `reservation_id`) or KEY_REUSED.
    `made_ms` is when the reservation was made (for a repeated one: then, not now). `repeated`: it had been answered before.
    `balances` are those after the decision, in the order of the lines, with the amounts in effect; `exceeded` are indices into
    them: the enforced limits that refused; `shadowed`: the shadow limits that would have.
    """

    reservation_id: str
    outcome: Outcome
    at_ms: int
    made_ms: int = 0
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
    """Book `amounts` (unit, integer: all that the reservation has cost so far) and, unless PARTIAL, end the reservation.

    A RELEASE of part 0 is an administrator's: what the holder settles later is still booked. `part` numbers the caller's settles
    of this reservation from 1; a repeated or lower number changes nothing, and since
    amounts are cumulative a part that overtakes another loses nothing. A RELEASE without amounts books nothing more. With
    `relative` the amounts are what is added to (or, negative, taken from) all that is booked so far, never below 0. `made_ms`
    is that of the reserve's answer, `lines` are the reserve's: with both, a settle whose reservation is gone from the store
    is still booked, in the period it belongs to.
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
    relative: bool = False

    def __post_init__(self) -> None:
        _check_words(self.reservation_id, self.entry)
        for unit, amount in self.amounts:
            _check_amount(unit, abs(amount) if self.relative else amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleReply:
    """The answer to a settle or release.

    `outcome`: SETTLED or RELEASED (done, now or before: `repeated`), HELD after a PARTIAL, FORGOTTEN (too old to be booked
    safely: look in the ledger), OUT_OF_RANGE. `late`: the reservation had expired or been released before, so the entry is a
    correction. `overrun` is what was booked above the hold, per unit.
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

    Of several limits that would count the same thing on a scope, the exact one decides, then the longest pattern (an enforcing
    and a shadow limit both stand); the others only count, so that they are right when it goes. A limit counts from `since_ms`:
    the ledger's sum from then on is its counter.
    """
    best: dict[tuple[str, str], tuple[Limit, str]] = {}
    displaced: list[tuple[Limit, str]] = []
    touched = tuple(dict.fromkeys(scopes))
    for limit in limits:
        for scope in touched:
            if limit.matches(scope):
                name = (limit.name_for(scope), limit.mode)
                other = best.get(name)
                if other is None or _weight(limit) > _weight(other[0]):
                    best[name] = (limit, scope)
                    displaced += [other] if other else []
                else:
                    displaced.append((limit, scope))
    lines = [_line(limit, scope, at_ms) for limit, scope in best.values()]
    counting = {line.counter for line in lines}
    for limit, scope in displaced:
        line = _line(limit, scope, at_ms)
        if line.counter not in counting:
            counting.add(line.counter)
            lines.append(replace(line, enforce=False, soft=True, thresholds=(), displaced=True))
    return budgets_first(lines)


def budgets_first(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Put lines in money before the others."""
    return tuple(sorted(lines, key=lambda line: line.unit != "usd"))


def _weight(limit: Limit) -> tuple[bool, int]:
    return (not limit.scope.endswith("*"), len(limit.scope))


#: A limit that counts from further ahead than this was set before the server's clock went back: it counts at once.
_CLOCK_WENT_BACK_MS = 5_000


def base_of(counter: str) -> str:
    """Name a counter's limit and scope over all periods: its name without the period."""
    head, _, since = counter.rpartition("|")
    name, _, _ = head.rpartition("|")
    return f"{name}|{since}"


def _line(limit: Limit, scope: str, at_ms: int) -> Line:
    period = limit.period(at_ms)
    since = limit.since_ms if limit.since_ms <= at_ms + _CLOCK_WENT_BACK_MS else 0
    return Line(
        counter=limit.counter(scope, period),
        unit=limit.unit,
        amount=limit.amount_units,
        starts_ms=max(period.starts_ms, since),
        ends_ms=period.ends_ms,
        rolling_ms=limit.rolling_ms,
        idle_ms=limit.idle_ms,
        enforce=limit.mode == Mode.ENFORCE,
        soft=limit.mode == Mode.SOFT,
        thresholds=limit.thresholds,
        carry_cap=limit.rollover_units,
        ordinal=period.ordinal,
        carry_from=limit.period(limit.carries_since_ms).ordinal if limit.carries_since_ms else 0,
        limit=limit,
        scope=scope,
    )
