"""Limits: an amount of a unit on a scope over a window."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sark_mw.errors import ConfigurationError, MoneyError
from sark_mw.money import MAX_LIMIT_NANOS, to_decimal, to_nanos

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
    """`enforce` refuses; `shadow` counts and reports what it would have refused."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One instance of a window: `starts_ms <= t < ends_ms` in Unix milliseconds; `ends_ms` 0 never ends."""

    name: str
    starts_ms: int
    ends_ms: int


_CALENDAR = ("minute", "hour", "day", "week", "month", "total")


@lru_cache(maxsize=512)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(f"unknown timezone {name!r}: an IANA name such as 'Europe/Berlin' is needed") from None


def _floor(window: str, local: datetime) -> datetime:
    if window == "minute":
        return local.replace(second=0, microsecond=0)
    if window == "hour":
        return local.replace(minute=0, second=0, microsecond=0)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if window == "day":
        return midnight
    if window == "week":
        return midnight - timedelta(days=midnight.weekday())
    return midnight.replace(day=1)


def _next(window: str, start: datetime) -> datetime:
    if window == "day":
        return start + timedelta(days=1)
    if window == "week":
        return start + timedelta(days=7)
    return (start + timedelta(days=32)).replace(day=1)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


@lru_cache(maxsize=4096)
def _period_from(window: str, timezone: str, hour: int) -> Period:
    """Find the period of the instant `hour` (in whole quarter hours since the epoch: no zone changes within one)."""
    zone = _zone(timezone)
    at = datetime.fromtimestamp(hour * 900, UTC)
    # Wall-clock arithmetic on naive times, then back to the zone: days are 23 or 25 hours long where clocks change.
    start = _floor(window, at.astimezone(zone).replace(tzinfo=None))
    end = _next(window, start)
    return Period(
        name=start.strftime("%Y-%m-%d"),
        starts_ms=_ms(start.replace(tzinfo=zone)),
        ends_ms=_ms(end.replace(tzinfo=zone)),
    )


def period_of(window: str, timezone: str, at_ms: int) -> Period:
    """Return the period of a calendar window (`minute` … `month`, `total`) that holds the instant `at_ms`."""
    if window == "total":
        return Period(name="total", starts_ms=0, ends_ms=0)
    if window in ("minute", "hour"):
        # Whole minutes and hours of the zone's standard offset from UTC, so that they neither repeat nor stretch,
        # not even on Lord Howe Island, where summer time is half an hour.
        width = 60_000 if window == "minute" else 3_600_000
        local = datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(_zone(timezone))
        offset = (local.utcoffset() or timedelta()) - (local.dst() or timedelta())
        shift = round(offset.total_seconds() * 1000) % width
        start = (at_ms + shift) // width * width - shift
        stamp = datetime.fromtimestamp(start / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")
        return Period(name=stamp, starts_ms=start, ends_ms=start + width)
    return _period_from(window, timezone, at_ms // 900_000)


def is_window(window: str) -> bool:
    """Tell whether `window` is a known one: a calendar window or `rolling:<seconds>`."""
    if window in _CALENDAR:
        return True
    kind, _, seconds = window.partition(":")
    return kind == "rolling" and seconds.isascii() and seconds.isdigit() and 1 <= int(seconds) <= 366 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """An amount of a unit on a scope over a window; a budget is a limit in `usd`.

    `scope` is `kind:name` (`team:ml`); a name of `*` gives each member its own counter (`user:*`). `amount` is dollars
    for `usd` and a whole number otherwise. `window` is `minute`, `hour`, `day`, `week`, `month`, `total` or
    `rolling:<seconds>`; concurrency is always over `total`. Raises `ConfigurationError` (unknown window, unit, zone, bad
    scope) or `MoneyError` (bad amount).
    """

    scope: str
    unit: str = Unit.USD
    amount: Decimal
    window: str = "day"
    timezone: str = "UTC"
    mode: str = Mode.ENFORCE
    root: str = DEFAULT_ROOT
    #: Server time from which it counts, set by the store when the limit is made; 0 before that.
    since_ms: int = 0
    amount_units: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        kind, _, name = self.scope.partition(":")
        if not kind or not name or not self.scope.isprintable():
            raise ConfigurationError(f"a scope must read kind:name without control characters: {self.scope!r}")
        if not self.root or clean_scope(self.root) != self.root:
            raise ConfigurationError(f"a root must be a name without spaces or control characters: {self.root!r}")
        if self.unit not in set(Unit):
            raise ConfigurationError(f"unknown unit {self.unit!r}: one of {', '.join(Unit)}")
        if self.mode not in set(Mode):
            raise ConfigurationError(f"unknown mode {self.mode!r}: one of {', '.join(Mode)}")
        if not is_window(self.window):
            raise ConfigurationError(f"unknown window {self.window!r}: one of {', '.join(_CALENDAR)}, rolling:<seconds>")
        _zone(self.timezone)
        object.__setattr__(self, "amount", to_decimal(self.amount))
        if self.unit == Unit.CONCURRENCY:
            object.__setattr__(self, "window", "total")
        object.__setattr__(self, "amount_units", self._in_units())

    def _in_units(self) -> int:
        if self.unit == Unit.USD:
            return to_nanos(self.amount)
        if self.amount < 0 or self.amount != self.amount.to_integral_value() or self.amount > MAX_LIMIT_NANOS:
            raise MoneyError(f"a limit in {self.unit} must be a whole number from 0: {self.amount}")
        return int(self.amount)

    @property
    def limit_id(self) -> str:
        """Name the limit within its root: what it limits, not how much."""
        return self.name_for(self.scope)

    def name_for(self, scope: str) -> str:
        """Name what this limit counts on one scope that it matches."""
        zone = "" if self.window == "total" or self.window.startswith("rolling") else f"@{self.timezone}"
        return f"{clean_scope(scope)}/{self.unit}/{self.window}{zone}"

    def matches(self, scope: str) -> bool:
        """Tell whether a request that touches `scope` touches this limit."""
        return self.scope == scope or (self.scope.endswith("*") and scope.startswith(self.scope[:-1]))

    def period(self, at_ms: int) -> Period:
        """Return the period that holds `at_ms`; a rolling window has the one endless period."""
        if self.window.startswith("rolling"):
            return Period(name="rolling", starts_ms=0, ends_ms=0)
        return period_of(self.window, self.timezone, at_ms)

    @property
    def rolling_ms(self) -> int:
        """Width of a rolling window in milliseconds; 0 for a calendar window."""
        return int(self.window.partition(":")[2]) * 1000 if self.window.startswith("rolling") else 0


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
