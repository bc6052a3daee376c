"""Windows and their periods: a window is what a limit writes (`month:15`), a period is one instance of it.

Calendar periods are delimited by instants. A period of days begins at the first instant at which clocks of the zone show
its first day or a later one: midnight, the first midnight of two, or the end of the gap where clocks skip midnight. It ends
where the next begins. An instant that the wall clock repeats across midnight (St John's turned back from 00:01 to 23:01)
therefore belongs to the period that had begun already, whatever date is on the wall. Nothing overlaps, nothing is left out.
"""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache

from sark_mw.errors import ConfigurationError
from sark_mw.timezone import EPOCH, hour_shift_ms, opening, zone

__all__ = ["Period", "canonical", "idle_ms", "is_calendar", "period_at", "period_before", "period_of", "rolling_ms", "zone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One instance of a window: `starts_ms <= t < ends_ms` in Unix milliseconds; `ends_ms` 0 never ends.

    `ordinal` grows by 1 from one period of a window to the next. A day that a zone skipped (Apia's 2011-12-30) keeps its
    ordinal as an empty period, `starts_ms == ends_ms`: only `period_at` returns it.
    """

    name: str
    starts_ms: int
    ends_ms: int
    ordinal: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """A window, parsed."""

    kind: str
    month: int = 1  # in which a quarter or a year begins
    day: int = 1  # of the month, from 1; of a week the weekday, from 0 for Monday
    seconds: int = 0  # of a rolling or idle window


_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_CLOCK_MS = {"minute": 60_000, "hour": 3_600_000}
_ENDLESS = {kind: Period(name=kind, starts_ms=0, ends_ms=0) for kind in ("total", "rolling", "idle")}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_KNOWN = (
    "minute, hour, day, week[:<weekday>], month[:<1-31>], quarter[:<MM-DD>], year[:<MM-DD>], "
    "total, rolling:<seconds>, idle:<seconds>"
)

#: 1970-01-01 was a Thursday.
_EPOCH_WEEKDAY = 3
_QUARTER_HOUR_MS = 900_000
# Beyond these a period's boundary could be no date of Python's.
_EARLIEST_MS = (date(2, 1, 1).toordinal() - EPOCH) * 86_400_000
_LATEST_MS = (date(9998, 1, 1).toordinal() - EPOCH) * 86_400_000


@lru_cache(maxsize=4096)
def _rule(window: str) -> _Rule:
    kind, colon, rest = window.partition(":")
    if kind in ("rolling", "idle"):
        return _Rule(kind=kind, seconds=_parse_seconds(window, rest))
    if not colon and kind in _MONTHS:
        return _Rule(kind=kind)
    if not colon and kind in (*_CLOCK_MS, "day", "week", "total"):
        return _Rule(kind=kind, day=0)
    if kind == "week":
        return _Rule(kind=kind, day=_parse_weekday(window, rest))
    if kind == "month":
        if not re.fullmatch("0?[1-9]|[12][0-9]|3[01]", rest):
            raise ConfigurationError(f"unknown window {window!r}: a month begins on a day from 1 to 31, as in month:15")
        return _Rule(kind=kind, day=int(rest))
    if kind in _MONTHS:
        month, day = _parse_month_and_day(window, rest)
        return _Rule(kind=kind, month=month, day=day)
    raise ConfigurationError(f"unknown window {window!r}: one of {_KNOWN}")


def _parse_seconds(window: str, text: str) -> int:
    match = re.fullmatch("([0-9]{1,9})([smhd]?)", text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 1 <= seconds <= 366 * 86_400:
        kind = window.partition(":")[0]
        raise ConfigurationError(
            f"unknown window {window!r}: {kind} takes seconds, or a whole number with s, m, h or d, "
            f"from 1 second to 366 days, as in {kind}:24h"
        )
    return seconds


def _parse_weekday(window: str, text: str) -> int:
    for number, weekday in enumerate(_WEEKDAYS):
        if text in (weekday, weekday[:3]):
            return number
    raise ConfigurationError(f"unknown window {window!r}: a week begins on one of {', '.join(_WEEKDAYS)}, as in week:sunday")


def _parse_month_and_day(window: str, text: str) -> tuple[int, int]:
    try:
        if not re.fullmatch("[0-9]{2}-[0-9]{2}", text):
            raise ValueError(text)
        first = date.fromisoformat(f"2000-{text}")  # a leap year, so 02-29 is a date
    except ValueError:
        kind = window.partition(":")[0]
        message = f"unknown window {window!r}: a {kind} begins on a date MM-DD, as in {kind}:04-06"
        raise ConfigurationError(message) from None
    return first.month, first.day


def canonical(window: str) -> str:
    """Return the normal form of a window; raise `ConfigurationError` for what is none.

    `week:monday` is `week`, `week:sun` `week:sunday`, `month:01` `month`, `year:01-01` `year`, `rolling:24h` `rolling:86400`.
    """
    rule = _rule(window)
    if rule.seconds:
        return f"{rule.kind}:{rule.seconds}"
    if rule.kind == "week":
        return f"week:{_WEEKDAYS[rule.day]}" if rule.day else "week"
    if (rule.month, rule.day) == (1, 1) or rule.kind not in _MONTHS:
        return rule.kind
    return f"month:{rule.day}" if rule.kind == "month" else f"{rule.kind}:{rule.month:02}-{rule.day:02}"


def is_calendar(window: str) -> bool:
    """Tell whether a window has a timezone and periods that follow each other: all but `total`, `rolling` and `idle`."""
    return _rule(window).kind not in _ENDLESS


def rolling_ms(window: str) -> int:
    """Return the width of a rolling window; 0 for any other."""
    rule = _rule(window)
    return rule.seconds * 1000 if rule.kind == "rolling" else 0


def idle_ms(window: str) -> int:
    """Return after how long without use an idle window is forgotten; 0 for any other window."""
    rule = _rule(window)
    return rule.seconds * 1000 if rule.kind == "idle" else 0


def period_of(window: str, timezone: str, at_ms: int) -> Period:
    """Return the period that holds the instant `at_ms`.

    Raises `ConfigurationError` for an unknown window or zone, and for instants outside the years 2 to 9997.
    """
    kind = _rule(window).kind
    if kind in _ENDLESS:
        return _ENDLESS[kind]
    if kind in _CLOCK_MS:
        shift_ms = hour_shift_ms(timezone)
        return _clock_period(kind, shift_ms, (at_ms + shift_ms) // _CLOCK_MS[kind])
    # Each request comes here for each of its limits, so what a quarter hour begins in is remembered. It may end within.
    period = _period_at_quarter(window, timezone, at_ms // _QUARTER_HOUR_MS)
    return period if period.starts_ms <= at_ms < period.ends_ms else _period_from(window, timezone, at_ms)


def period_at(window: str, timezone: str, ordinal: int) -> Period:
    """Return the period with this ordinal: an empty one for a day that the zone skipped."""
    kind = _rule(window).kind
    if kind in _ENDLESS:
        return _ENDLESS[kind]
    if kind in _CLOCK_MS:
        return _clock_period(kind, hour_shift_ms(timezone), ordinal)
    return _calendar_period(window, timezone, ordinal)


def period_before(window: str, timezone: str, period: Period) -> Period | None:
    """Return the period that ends where `period` starts, past a skipped day; None for a window of one endless period."""
    if not is_calendar(window):
        return None
    before = period_at(window, timezone, period.ordinal - 1)
    while before.starts_ms == before.ends_ms:
        before = period_at(window, timezone, before.ordinal - 1)
    return before


def _check_instant(at_ms: int) -> None:
    if not _EARLIEST_MS <= at_ms < _LATEST_MS:
        raise ConfigurationError(f"no period can be told for {at_ms} ms since 1970: it is outside the years 2 to 9997")


@lru_cache(maxsize=4096)
def _clock_period(kind: str, shift_ms: int, ordinal: int) -> Period:
    width = _CLOCK_MS[kind]
    start = ordinal * width - shift_ms
    _check_instant(start)
    name = f"{datetime.fromtimestamp(start // 1000, UTC).replace(tzinfo=None).isoformat(timespec='minutes')}Z"
    return Period(name=name, starts_ms=start, ends_ms=start + width, ordinal=ordinal)


@lru_cache(maxsize=4096)
def _period_at_quarter(window: str, timezone: str, quarter: int) -> Period:
    return _period_from(window, timezone, quarter * _QUARTER_HOUR_MS)


def _period_from(window: str, timezone: str, at_ms: int) -> Period:
    _check_instant(at_ms)
    on_the_wall = datetime.fromtimestamp(at_ms // 1000, zone(timezone)).date()
    period = _calendar_period(window, timezone, _ordinal(_rule(window), on_the_wall))
    # What has shown its first day has begun. Where clocks were set back over midnight since, a later one has too.
    while at_ms >= period.ends_ms:
        period = _calendar_period(window, timezone, period.ordinal + 1)
    return period


@lru_cache(maxsize=4096)
def _calendar_period(window: str, timezone: str, ordinal: int) -> Period:
    rule = _rule(window)
    try:
        first, after = _first_day(rule, ordinal), _first_day(rule, ordinal + 1)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"no {rule.kind} has the ordinal {ordinal}: it is outside the years 1 to 9999") from None
    (starts, shown), (ends, _) = opening(timezone, first), opening(timezone, after)
    name = (shown if starts < ends else first).isoformat()
    return Period(name=name, starts_ms=starts * 1000, ends_ms=ends * 1000, ordinal=ordinal)


def _first_day(rule: _Rule, ordinal: int) -> date:
    if rule.kind == "day":
        return date.fromordinal(EPOCH + ordinal)
    if rule.kind == "week":
        return date.fromordinal(EPOCH + 7 * ordinal + rule.day - _EPOCH_WEEKDAY)
    year, month = divmod(1970 * 12 + _MONTHS[rule.kind] * ordinal + _first_month(rule), 12)
    return date(year, month + 1, min(rule.day, monthrange(year, month + 1)[1]))


def _ordinal(rule: _Rule, day: date) -> int:
    """Tell which period of a rule a date is in: days, weeks, months, quarters or years from the one that begins in 1970."""
    days = day.toordinal() - EPOCH
    if rule.kind == "day":
        return days
    if rule.kind == "week":
        return (days + _EPOCH_WEEKDAY - rule.day) // 7
    ordinal = ((day.year - 1970) * 12 + day.month - 1 - _first_month(rule)) // _MONTHS[rule.kind]
    return ordinal if _first_day(rule, ordinal) <= day else ordinal - 1


def _first_month(rule: _Rule) -> int:
    """Tell, from 0, the first month in a year in which a period begins: quarters from July are quarters from January."""
    return (rule.month - 1) % _MONTHS[rule.kind]
