"""Limits: an amount of a unit on a scope over a window."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b

from sark_mw.errors import ConfigurationError, MoneyError
from sark_mw.money import MAX_LIMIT_NANOS, from_nanos, to_decimal, to_nanos
from sark_mw.window import Period, canonical, idle_ms, is_calendar, period_of, rolling_ms, zone

#: A rolling window is kept in this many buckets, so it is accurate to 2 %.
ROLLING_BUCKETS = 50
DEFAULT_ROOT = "default"


class Unit(StrEnum):
    """What a limit counts; `usd` in nano-dollars, the rest in whole ones."""

    USD = "usd"
    REQUESTS = "requests"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"


class Mode(StrEnum):
    """`enforce` refuses; `shadow` counts and reports what it would have refused; `soft` only tells of its thresholds."""

    ENFORCE = "enforce"
    SHADOW = "shadow"
    SOFT = "soft"


#: Thresholds of a soft limit that names none, in percent.
SOFT_THRESHOLDS = (50, 80, 95)
_MAX_THRESHOLDS = 16
_MAX_PERCENT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """An amount of a unit on a scope over a window; a budget is a limit in `usd`.

    `scope` is `kind:name` (`team:ml`); a name of `*` gives each member its own counter (`user:*`). `amount` is dollars
    for `usd` and a whole number otherwise. `window` is `minute`, `hour`, `day`, `week[:sunday]`, `month[:15]`,
    `quarter[:02-01]`, `year[:04-06]`, `total`, `rolling:<seconds>` or `idle:<seconds>`; concurrency is always over `total`.
    `parent` is the scope that this one is a part of: whoever touches this limit touches the parent's limits. `overcommit` lets
    the parts of this scope sum up to more than its amount. `thresholds` are percents at which its period tells once.
    `rollover` is the most, in the unit, of what was not spent that is carried into the next period. Raises
    `ConfigurationError` (unknown window, unit, zone, bad scope) or `MoneyError` (bad amount).
    """

    scope: str
    unit: str = Unit.USD
    amount: Decimal
    window: str = "day"
    timezone: str = "UTC"
    mode: str = Mode.ENFORCE
    root: str = DEFAULT_ROOT
    parent: str = ""
    overcommit: bool = False
    thresholds: tuple[int, ...] = ()
    rollover: Decimal = Decimal(0)
    #: Server time from which it counts, set by the store when the limit is made; 0 before that.
    since_ms: int = 0
    #: Server time from which on it has carried over without a break, set by the store likewise.
    carries_since_ms: int = 0
    amount_units: int = field(init=False, default=0)
    rollover_units: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        _check_scope("a scope", self.scope)
        if not self.root or clean_scope(self.root) != self.root:
            raise ConfigurationError(f"a root must be a name without spaces or control characters: {self.root!r}")
        if self.unit not in set(Unit):
            raise ConfigurationError(f"unknown unit {self.unit!r}: one of {', '.join(Unit)}")
        if self.mode not in set(Mode):
            raise ConfigurationError(f"unknown mode {self.mode!r}: one of {', '.join(Mode)}")
        object.__setattr__(self, "window", canonical(self.window))
        zone(self.timezone)
        object.__setattr__(self, "amount", to_decimal(self.amount))
        object.__setattr__(self, "rollover", to_decimal(self.rollover))
        if self.unit == Unit.CONCURRENCY:
            object.__setattr__(self, "window", "total")
        object.__setattr__(self, "amount_units", in_units(self.unit, self.amount))
        object.__setattr__(self, "rollover_units", in_units(self.unit, self.rollover))
        self._check_options()

    def _check_options(self) -> None:
        if self.parent:
            _check_scope("a parent", self.parent)
            if self.parent == self.scope or self.parent.endswith("*"):
                raise ConfigurationError(f"a parent must be one other scope: {self.parent!r}")
        thresholds = tuple(sorted(set(self.thresholds))) or (SOFT_THRESHOLDS if self.mode == Mode.SOFT else ())
        if len(thresholds) > _MAX_THRESHOLDS or not all(type(t) is int and 1 <= t <= _MAX_PERCENT for t in thresholds):
            raise ConfigurationError(
                f"thresholds are up to {_MAX_THRESHOLDS} whole percents from 1 to {_MAX_PERCENT}: {self.thresholds}"
            )
        if self.unit == Unit.CONCURRENCY and self.thresholds:
            raise ConfigurationError("concurrency is given back, not spent: it has no thresholds")
        object.__setattr__(self, "thresholds", () if self.unit == Unit.CONCURRENCY else thresholds)
        if self.rollover and not self.is_calendar:
            raise ConfigurationError(f"only what has periods has a rest to carry over: not a window of {self.window!r}")

    @property
    def limit_id(self) -> str:
        """Name the limit within its root: what it limits, not how much."""
        return self.name_for(self.scope)

    @property
    def is_pattern(self) -> bool:
        """Tell whether each member of a scope has its own counter."""
        return self.scope.endswith("*")

    def base(self, scope: str) -> str:
        """Name this limit on one scope that it matches, over all periods."""
        return f"{self.root}|{self._counted(scope)}|{self.since_ms}"

    def counter(self, scope: str, period: Period) -> str:
        """Name what this limit counts on one scope in one period."""
        # `since_ms` is in the name: a limit that is dropped and made again starts a counter of its own.
        return f"{self.root}|{self._counted(scope)}|{period.name}|{self.since_ms}"

    def _counted(self, scope: str) -> str:
        # Of a pattern and an exact limit on one scope both may stand: they must not share a counter.
        return f"{self.name_for(scope)}<{clean_scope(self.scope)}" if self.is_pattern else self.name_for(scope)

    def name_for(self, scope: str) -> str:
        """Name what this limit counts on one scope that it matches."""
        zoned = f"@{self.timezone}" if self.is_calendar else ""
        return f"{clean_scope(scope)}/{self.unit}/{self.window}{zoned}"

    def matches(self, scope: str) -> bool:
        """Tell whether a request that touches `scope` touches this limit."""
        return self.scope == scope or (self.scope.endswith("*") and scope.startswith(self.scope[:-1]))

    def period(self, at_ms: int) -> Period:
        """Return the period that holds `at_ms`; `total`, rolling and idle windows have one endless period."""
        return period_of(self.window, self.timezone, at_ms)

    @property
    def is_calendar(self) -> bool:
        """Tell whether it has periods, in a zone."""
        return is_calendar(self.window)

    @property
    def rolling_ms(self) -> int:
        """Width of a rolling window in milliseconds; 0 for a calendar window."""
        return rolling_ms(self.window)

    @property
    def idle_ms(self) -> int:
        """After how long without any change an idle window begins anew, in milliseconds; 0 for any other."""
        return idle_ms(self.window)


#: A run's budget begins anew after a day without any call.
RUN_WINDOW = "idle:86400"


def run_limit(root: str, scope: str, amount: Decimal = Decimal(9_200_000_000)) -> Limit:
    """Make the limit that a run brings along: of the largest amount there is if it names none. The counter is the same."""
    return Limit(scope=scope, unit=Unit.USD, amount=amount, window=RUN_WINDOW, root=root)


def in_units(unit: str, amount: Decimal) -> int:
    """Convert an amount to the unit's integer (nanos for usd); raises `MoneyError` for a negative or broken one."""
    if unit == Unit.USD:
        return to_nanos(amount)
    if amount < 0 or amount != amount.to_integral_value() or amount > MAX_LIMIT_NANOS:
        raise MoneyError(f"a limit in {unit} must be a whole number from 0: {amount}")
    return int(amount)


def from_units(unit: str, amount: int) -> Decimal:
    """Convert a unit's integer to what people read: dollars, or whole ones."""
    return from_nanos(amount) if unit == Unit.USD else Decimal(amount)


def _check_scope(what: str, scope: str) -> None:
    kind, _, name = scope.partition(":")
    if not kind or not name or not scope.isprintable():
        raise ConfigurationError(f"{what} must read kind:name without control characters: {scope!r}")


@lru_cache(maxsize=65_536)
def clean_scope(scope: str) -> str:
    """Make a scope safe for counter names, without two scopes ever meeting in one name.

    Whitespace, control characters, `|` and `%` become the `%XX` of their UTF-8 bytes; beyond 200 characters a digest
    stands for the rest.
    """
    safe = "".join(c if c.isprintable() and not c.isspace() and c not in "|%" else _percent(c) for c in scope)
    if len(safe) <= 200:
        return safe
    return f"{safe[:160]}%~{blake2b(scope.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


def _percent(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
