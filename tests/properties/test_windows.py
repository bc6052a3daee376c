"""Every period of every window, in zones of every habit, agrees with a calculation that shares nothing with the code.

The calculation looks for the zone's changes of offset by walking through the days, and so has the wall clock as straight
pieces. A day begins at the first instant of any piece that shows its date or a later one. Which days begin a period is
asked of each date in turn.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sark_mw.window import Period, period_at, period_before, period_of

ZONES = [
    "UTC",
    "Africa/Cairo",
    "Africa/Casablanca",
    "America/Asuncion",
    "America/Havana",
    "America/New_York",
    "America/Santiago",
    "America/Scoresbysund",
    "America/St_Johns",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Asia/Pyongyang",
    "Asia/Tehran",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Europe/Dublin",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Pacific/Kiritimati",
    "Pacific/Kwajalein",
]
WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WINDOWS = {
    "day": ["day"],
    "week": ["week", *(f"week:{weekday}" for weekday in WEEKDAYS[1:])],
    "month": ["month", *(f"month:{day}" for day in range(2, 32))],
    "quarter": ["quarter", "quarter:02-29", "quarter:03-31", "quarter:04-06", "quarter:08-30", "quarter:11-30", "quarter:12-15"],
    "year": ["year", "year:02-28", "year:02-29", "year:03-01", "year:04-06", "year:07-31", "year:10-01", "year:12-31"],
}
DAY_S = 86_400
ONE_DAY = timedelta(days=1)
EPOCH = date(1970, 1, 1)
FIRST_S, LAST_S = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (1980, 2061))


class Piece(NamedTuple):
    """The wall clock is `offset_s` ahead of UTC from here to the next piece."""

    from_s: int
    offset_s: int


def offset_of(zone: ZoneInfo, at_s: int) -> int:
    offset = datetime.fromtimestamp(at_s, UTC).astimezone(zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


@lru_cache
def pieces(name: str) -> list[Piece]:
    """Walk through the days from two years before the first instant to two years after the last."""
    zone, begin = ZoneInfo(name), FIRST_S - 730 * DAY_S
    found = [Piece(begin, offset_of(zone, begin))]
    for day in range(begin, LAST_S + 730 * DAY_S, DAY_S):
        offset = offset_of(zone, day + DAY_S)
        if offset != found[-1].offset_s:
            before, after = day, day + DAY_S
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (before, middle) if offset_of(zone, middle) == offset else (middle, after)
            found.append(Piece(after, offset))
    return found


def beginning_of(name: str, day: date) -> int:
    """Find the first instant that shows the date or a later one."""
    midnight, zone = (day - EPOCH).days * DAY_S, pieces(name)
    ends = [*(piece.from_s for piece in zone[1:]), LAST_S * 2]
    return next(
        max(piece.from_s, midnight - piece.offset_s)
        for piece, end in zip(zone, ends, strict=True)
        if midnight - piece.offset_s < end
    )


def begins_on(window: str, day: date) -> bool:
    """Tell whether a period begins on this date, which may be the last of a month that lacks the day that is meant."""
    kind, _, start = window.partition(":")
    if kind == "week":
        return day.weekday() == WEEKDAYS.index(start or "monday")
    if kind == "day":
        return True
    month, number = (int(part) for part in (f"1-{start or 1}" if kind == "month" else start or "01-01").split("-"))
    if (day.month - month) % {"month": 1, "quarter": 3, "year": 12}[kind]:
        return False
    return day.day == number or (day.day < number and (day + ONE_DAY).month != day.month)


def expected(window: str, name: str, at_ms: int) -> tuple[int, int]:
    """Walk back from a day that has not begun to one that begins a period and has; its end is the beginning walked past."""
    longest = {"day": 1, "week": 7, "month": 31, "quarter": 92, "year": 366}[window.partition(":")[0]]
    day, ends = datetime.fromtimestamp(at_ms // 1000, UTC).date() + timedelta(days=longest + 3), 0
    while True:
        if begins_on(window, day):
            starts = beginning_of(name, day) * 1000
            if starts <= at_ms:
                assert ends, "the walk began too late"
                return starts, ends
            ends = starts
        day -= ONE_DAY


def date_on_the_wall(name: str, at_ms: int) -> date:
    return datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(ZoneInfo(name)).date()


@lru_cache
def standard_offset(name: str) -> int:
    """Find the lower of the offsets that are in force in the course of 2060."""
    return min(offset_of(ZoneInfo(name), LAST_S - day * DAY_S) for day in range(1, 366))


@st.composite
def places(draw: st.DrawFn) -> tuple[str, int]:
    """Draw a zone and an instant: half of them within two days of a change of its clocks."""
    name = draw(st.sampled_from(ZONES))
    changes = [piece.from_s for piece in pieces(name) if FIRST_S <= piece.from_s < LAST_S]
    if changes and draw(st.booleans()):
        around_ms = draw(st.sampled_from(changes)) * 1000
        return name, around_ms + draw(st.integers(-2 * DAY_S * 1000, 2 * DAY_S * 1000))
    return name, draw(st.integers(FIRST_S * 1000, LAST_S * 1000 - 1))


def assert_well_placed(window: str, name: str, period: Period) -> None:
    """Hold a period against its neighbours and its own ordinal."""
    assert period_of(window, name, period.starts_ms) == period
    assert period_of(window, name, period.ends_ms - 1) == period
    assert period_at(window, name, period.ordinal) == period
    after = period_of(window, name, period.ends_ms)
    assert after.starts_ms == period.ends_ms
    assert period_before(window, name, after) == period
    before = period_before(window, name, period)
    assert before is not None
    assert before.ends_ms == period.starts_ms
    assert before == period_of(window, name, period.starts_ms - 1)
    for earlier, later in ((before, period), (period, after)):
        between = [period_at(window, name, ordinal) for ordinal in range(earlier.ordinal + 1, later.ordinal)]
        assert all(empty.starts_ms == empty.ends_ms == later.starts_ms for empty in between)
        assert len(between) <= 1
        assert len({earlier.name, later.name, *(empty.name for empty in between)}) == 2 + len(between)


def assert_as_calculated(window: str, name: str, at_ms: int) -> Period:
    period = period_of(window, name, at_ms)
    assert period.starts_ms <= at_ms < period.ends_ms
    assert (period.starts_ms, period.ends_ms) == expected(window, name, at_ms)
    assert period.name == date_on_the_wall(name, period.starts_ms).isoformat()
    return period


@pytest.mark.parametrize("kind", WINDOWS)
@given(place=places(), data=st.data())
@settings(deadline=None, max_examples=300)
def test_the_period_of_an_instant_is_the_one_calculated_independently(
    kind: str, place: tuple[str, int], data: st.DataObject
) -> None:
    window = data.draw(st.sampled_from(WINDOWS[kind]))
    assert_as_calculated(window, *place)


@pytest.mark.parametrize("kind", WINDOWS)
@given(place=places(), data=st.data())
@settings(deadline=None, max_examples=300)
def test_periods_follow_each_other_and_are_found_again_by_ordinal(kind: str, place: tuple[str, int], data: st.DataObject) -> None:
    window = data.draw(st.sampled_from(WINDOWS[kind]))
    assert_well_placed(window, place[0], period_of(window, *place))


@pytest.mark.parametrize("window", ["month:15", "quarter:04-06", "week:sunday", "year:10-01", "day"])
@given(place=places(), length=st.integers(1, 40))
@settings(deadline=None, max_examples=300)
def test_ordinals_count_the_periods_between_two_instants(window: str, place: tuple[str, int], length: int) -> None:
    name, at_ms = place
    first = period = period_of(window, name, at_ms)
    skipped = 0
    for _ in range(length):
        following = period_of(window, name, period.ends_ms)
        skipped += following.ordinal - period.ordinal - 1
        period = following
    assert period.ordinal == first.ordinal + length + skipped
    assert skipped == 0 or (
        window == "day" and skipped == 1 and name in ("Pacific/Apia", "Pacific/Kiritimati", "Pacific/Kwajalein")
    )


@pytest.mark.parametrize("name", ZONES)
def test_days_are_as_calculated_around_every_change_of_the_clocks(name: str) -> None:
    for change in pieces(name)[1:]:
        for at_s in (change.from_s - DAY_S, change.from_s - 1, change.from_s, change.from_s + 3599, change.from_s + DAY_S):
            if FIRST_S <= at_s < LAST_S:
                period = assert_as_calculated("day", name, at_s * 1000)
                assert_well_placed("day", name, period)


@pytest.mark.parametrize(("window", "width_ms"), [("minute", 60_000), ("hour", 3_600_000)])
@given(place=places())
@settings(deadline=None, max_examples=300)
def test_minutes_and_hours_are_whole_ones_of_the_standard_time(window: str, width_ms: int, place: tuple[str, int]) -> None:
    name, at_ms = place
    period = period_of(window, name, at_ms)
    assert period.starts_ms <= at_ms < period.ends_ms
    standard_s = standard_offset(name)
    assert period.starts_ms == (at_ms + standard_s * 1000) // width_ms * width_ms - standard_s * 1000
    assert period.ends_ms == period.starts_ms + width_ms
    assert period.name == datetime.fromtimestamp(period.starts_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")
    assert_well_placed(window, name, period)
    assert period_of(window, name, period.ends_ms).ordinal == period.ordinal + 1
