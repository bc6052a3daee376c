"""Timezones: which there are, and at which instant a day begins in one."""

from __future__ import annotations

from bisect import bisect_left
from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sark_mw.errors import ConfigurationError

#: The day of the Unix epoch, as Python numbers days.
EPOCH = date(1970, 1, 1).toordinal()


@lru_cache(maxsize=512)
def zone(name: str) -> ZoneInfo:
    """Return the IANA timezone `name`; raise `ConfigurationError` for one that is unknown."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(f"unknown timezone {name!r}: an IANA name such as 'Europe/Berlin' is needed") from None


@lru_cache(maxsize=512)
def hour_shift_ms(timezone: str) -> int:
    """Tell by how much hours of a zone are off from UTC's, by the standard time of the last rule known for it.

    One grid for all instants: minutes and hours neither repeat nor stretch, not even on Lord Howe Island, where summer
    time is half an hour. Hours from before a zone moved by a part of an hour (Caracas in 2016) are not those on the wall.
    """
    settled = datetime(2100, 1, 1, tzinfo=zone(timezone))
    offset = (settled.utcoffset() or timedelta()) - (settled.dst() or timedelta())
    return round(offset.total_seconds() * 1000) % 3_600_000


def opening(timezone: str, day: date) -> tuple[int, date]:
    """Find the first instant, in Unix seconds, at which clocks show `day` or later, and the date that they show then."""
    local = zone(timezone)
    midnight = datetime(day.year, day.month, day.day, tzinfo=local)
    wall = (day.toordinal() - EPOCH) * 86_400
    first, second = _offset_s(midnight), _offset_s(midnight.replace(fold=1))
    if first >= second:
        return wall - first, day  # one midnight, or the first of two
    # Midnight is skipped: somewhere between these two the offset jumps from `first` to `second`.
    earliest, latest = wall - second, wall - first
    instants = range(earliest, latest + 1)
    jump = earliest + bisect_left(instants, wall, key=lambda t: t + _offset_s(datetime.fromtimestamp(t, local)))
    return jump, datetime.fromtimestamp(jump, local).date()


def _offset_s(moment: datetime) -> int:
    return round((moment.utcoffset() or timedelta()).total_seconds())
