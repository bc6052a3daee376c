"""Windows as people write them, and the periods they would expect, by the dates of a calendar on the wall."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from sark_mw.errors import ConfigurationError
from sark_mw.window import Period, canonical, idle_ms, is_calendar, period_at, period_before, period_of, rolling_ms, zone

CALENDAR = ["minute", "hour", "day", "week", "week:sunday", "month", "month:31", "quarter", "quarter:11-30", "year", "year:02-29"]
ENDLESS = ["total", "rolling:60", "idle:3600"]


def at(*when: int, tz: str = "UTC", fold: int = 0) -> int:
    """Return the Unix milliseconds of a wall clock's time."""
    return int(datetime(*when, tzinfo=ZoneInfo(tz), fold=fold).timestamp()) * 1000  # type: ignore[arg-type, misc]


def span(window: str, at_ms: int, tz: str = "UTC") -> tuple[str, str]:
    """Return the period as what the wall clock there shows at its first instant and at the one it ends before."""
    period = period_of(window, tz, at_ms)
    assert period.starts_ms <= at_ms < period.ends_ms
    starts, ends = (datetime.fromtimestamp(ms // 1000, ZoneInfo(tz)) for ms in (period.starts_ms, period.ends_ms))
    assert period.name == starts.date().isoformat()
    assert (starts.time(), ends.time()) == (datetime.min.time(), datetime.min.time())
    return starts.date().isoformat(), ends.date().isoformat()


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        *((window, window) for window in ("minute", "hour", "day", "week", "month", "quarter", "year", "total")),
        ("week:monday", "week"),
        ("week:mon", "week"),
        ("week:sun", "week:sunday"),
        ("week:thursday", "week:thursday"),
        ("month:1", "month"),
        ("month:01", "month"),
        ("month:05", "month:5"),
        ("month:31", "month:31"),
        ("quarter:01-01", "quarter"),
        ("quarter:04-06", "quarter:04-06"),
        ("year:01-01", "year"),
        ("year:02-29", "year:02-29"),
        ("year:10-01", "year:10-01"),
        ("rolling:90", "rolling:90"),
        ("rolling:090s", "rolling:90"),
        ("rolling:5m", "rolling:300"),
        ("rolling:24h", "rolling:86400"),
        ("rolling:366d", "rolling:31622400"),
        ("idle:1h", "idle:3600"),
    ],
)
def test_what_means_the_same_has_one_normal_form(written: str, normal: str) -> None:
    assert canonical(written) == normal
    assert canonical(normal) == normal


@pytest.mark.parametrize(
    ("window", "says"),
    [
        *(
            (window, "one of minute, hour, day")
            for window in ("", "Day", "fortnight", "day:", "day:1", "total:1", "hour:0", " day", "day\n")
        ),
        *((f"week:{day}", "monday, tuesday") for day in ("", "moonday", "Monday", "0", "m", "sunday ")),
        *((f"month:{day}", "from 1 to 31") for day in ("", "0", "00", "32", "-1", "1.5", "²", "001", "1\n", "01-01")),
        *((f"year:{day}", "MM-DD") for day in ("", "1", "4-6", "13-01", "00-10", "02-30", "04-31", "04/06", "04-06\n", "٠٤-٠٦")),
        ("quarter:06-31", "MM-DD"),
        *(
            (f"rolling:{width}", "366 days")
            for width in ("", "0", "0s", "-1", "1.5", "1w", "²", "367d", "31622401", "9" * 5000, "1 h")
        ),
        ("rolling", "366 days"),
        ("idle", "366 days"),
        ("idle:0", "366 days"),
    ],
)
def test_what_is_no_window_is_an_error_that_says_what_is(window: str, says: str) -> None:
    for ask in (
        canonical,
        is_calendar,
        rolling_ms,
        idle_ms,
        lambda w: period_of(w, "UTC", 0),
        lambda w: period_at(w, "UTC", 0),
        lambda w: period_before(w, "UTC", Period(name="", starts_ms=0, ends_ms=0)),
    ):
        with pytest.raises(ConfigurationError, match="unknown window") as caught:
            ask(window)
        assert says in str(caught.value)


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Europe", "\x00", "UTC+1"])
def test_an_unknown_zone_is_an_error_for_every_window_that_has_one(name: str) -> None:
    for window in CALENDAR:
        with pytest.raises(ConfigurationError, match="unknown timezone"):
            period_of(window, name, 0)
    with pytest.raises(ConfigurationError, match="unknown timezone"):
        zone(name)


@pytest.mark.parametrize("window", ENDLESS)
def test_an_endless_window_has_one_period_and_none_before(window: str) -> None:
    period = period_of(window, "UTC", at(2026, 5, 1))
    assert period == Period(name=window.partition(":")[0], starts_ms=0, ends_ms=0, ordinal=0)
    assert period_at(window, "UTC", 7) == period
    assert period_before(window, "UTC", period) is None
    assert not is_calendar(window)


@pytest.mark.parametrize("window", CALENDAR)
def test_a_calendar_window_has_no_width(window: str) -> None:
    assert is_calendar(window)
    assert (rolling_ms(window), idle_ms(window)) == (0, 0)


def test_rolling_and_idle_windows_have_their_widths() -> None:
    assert (rolling_ms("rolling:90"), idle_ms("rolling:90")) == (90_000, 0)
    assert (rolling_ms("idle:3600"), idle_ms("idle:3600")) == (0, 3_600_000)


def test_a_period_is_the_same_however_its_window_is_written() -> None:
    now = at(2026, 5, 17, 12)
    for written in ("week:monday", "week:sun", "month:01", "quarter:01-01", "year:01-01"):
        assert period_of(written, "UTC", now) == period_of(canonical(written), "UTC", now)


@pytest.mark.parametrize(
    ("window", "day", "first", "after"),
    [
        # Weeks: 2026-05-17 is a Sunday.
        ("week", (2026, 5, 17), "2026-05-11", "2026-05-18"),
        ("week:sunday", (2026, 5, 17), "2026-05-17", "2026-05-24"),
        ("week:saturday", (2026, 5, 17), "2026-05-16", "2026-05-23"),
        ("week:thursday", (1970, 1, 1), "1970-01-01", "1970-01-08"),
        ("week:friday", (1970, 1, 1), "1969-12-26", "1970-01-02"),
        # Months that lack the day begin on their last one.
        ("month:15", (2026, 5, 14), "2026-04-15", "2026-05-15"),
        ("month:29", (2026, 2, 28), "2026-02-28", "2026-03-29"),
        ("month:29", (2028, 2, 28), "2028-01-29", "2028-02-29"),
        ("month:30", (2026, 3, 1), "2026-02-28", "2026-03-30"),
        ("month:30", (2028, 2, 29), "2028-02-29", "2028-03-30"),
        ("month:31", (2026, 2, 27), "2026-01-31", "2026-02-28"),
        ("month:31", (2026, 4, 30), "2026-04-30", "2026-05-31"),
        ("month:31", (2026, 12, 31), "2026-12-31", "2027-01-31"),
        ("month:31", (2100, 2, 28), "2100-02-28", "2100-03-31"),
        # Quarters.
        ("quarter", (2026, 6, 30), "2026-04-01", "2026-07-01"),
        ("quarter", (2026, 12, 31), "2026-10-01", "2027-01-01"),
        ("quarter:04-06", (2026, 4, 5), "2026-01-06", "2026-04-06"),
        ("quarter:04-06", (2026, 1, 5), "2025-10-06", "2026-01-06"),
        ("quarter:02-29", (2026, 3, 1), "2026-02-28", "2026-05-29"),
        ("quarter:11-30", (2028, 2, 29), "2028-02-29", "2028-05-30"),
        ("quarter:12-31", (2026, 7, 1), "2026-06-30", "2026-09-30"),
        # Years: the UK's tax year, the US government's, Australia's, and one that begins on a leap day.
        ("year", (2024, 12, 31), "2024-01-01", "2025-01-01"),
        ("year:04-06", (2026, 4, 5), "2025-04-06", "2026-04-06"),
        ("year:04-06", (2026, 4, 6), "2026-04-06", "2027-04-06"),
        ("year:10-01", (2026, 9, 30), "2025-10-01", "2026-10-01"),
        ("year:10-01", (2026, 10, 1), "2026-10-01", "2027-10-01"),
        ("year:07-01", (2026, 1, 1), "2025-07-01", "2026-07-01"),
        ("year:02-29", (2027, 2, 28), "2027-02-28", "2028-02-29"),
        ("year:02-29", (2028, 2, 28), "2027-02-28", "2028-02-29"),
        ("year:02-29", (2028, 2, 29), "2028-02-29", "2029-02-28"),
        ("day", (2028, 2, 29), "2028-02-29", "2028-03-01"),
    ],
)
def test_a_period_is_from_its_first_day_to_the_first_of_the_next(
    window: str, day: tuple[int, int, int], first: str, after: str
) -> None:
    for name in ("UTC", "Europe/London", "America/New_York", "Asia/Kathmandu"):
        assert span(window, at(*day, tz=name), name) == (first, after)
        assert span(window, at(*day, 23, 59, 59, tz=name) + 999, name) == (first, after)


@pytest.mark.parametrize(
    ("window", "at_ms", "ordinal"),
    [
        ("day", at(1970, 1, 1), 0),
        ("day", at(1969, 12, 31), -1),
        ("week", at(1970, 1, 5), 1),
        ("month", at(2026, 5, 17), 56 * 12 + 4),
        ("month:31", at(2026, 5, 17), 56 * 12 + 3),
        ("quarter", at(2026, 5, 17), 56 * 4 + 1),
        ("quarter:10-01", at(2026, 5, 17), 56 * 4 + 1),
        ("year", at(2026, 5, 17), 56),
        ("year:10-01", at(2026, 5, 17), 55),
        ("minute", at(1970, 1, 1, 1), 60),
        ("hour", at(1970, 1, 2), 24),
    ],
)
def test_an_ordinal_counts_from_1970(window: str, at_ms: int, ordinal: int) -> None:
    assert period_of(window, "UTC", at_ms).ordinal == ordinal


def first_instant_that_shows(name: str, day: date) -> int:
    """Look at the clock on the wall every half a minute, from before the day began anywhere."""
    now_s = (day - date(1970, 1, 1)).days * 86_400 - 16 * 3600
    while datetime.fromtimestamp(now_s, ZoneInfo(name)).date() < day:
        now_s += 30
    return now_s * 1000


@pytest.mark.parametrize(
    ("name", "day", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("Europe/Dublin", date(2026, 10, 25), 25),
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("Australia/Lord_Howe", date(2026, 10, 4), 23.5),
        # Midnight is skipped, so the day begins at 01:00.
        ("Africa/Cairo", date(2026, 4, 24), 23),
        ("Asia/Beirut", date(2026, 3, 29), 23),
        ("America/Havana", date(2026, 3, 8), 23),
        ("America/Asuncion", date(2023, 10, 1), 23),
        ("America/Santiago", date(2026, 9, 6), 23),
        # The clock goes back at midnight to the day before, or from 01:00 so that midnight comes twice.
        ("Africa/Cairo", date(2026, 10, 29), 25),
        ("America/Asuncion", date(2023, 3, 25), 25),
        ("America/Havana", date(2026, 11, 1), 25),
        # At 00:01 back to 23:01: the day has begun and stays so.
        ("America/St_Johns", date(2010, 11, 6), 24),
        ("America/St_Johns", date(2010, 11, 7), 25),
        ("America/St_Johns", date(2010, 3, 14), 23),
        # Half an hour across midnight, and a day that never was.
        ("Asia/Pyongyang", date(2018, 5, 5), 24),
        ("Asia/Pyongyang", date(2018, 5, 4), 23.5),
        ("America/Toronto", date(1919, 3, 31), 23.5),
        ("Pacific/Apia", date(2011, 12, 29), 24),
        ("Pacific/Apia", date(2011, 12, 31), 24),
        ("Pacific/Kwajalein", date(1993, 8, 20), 24),
        # 44 minutes and 30 seconds behind UTC: days begin within a quarter hour, and within a minute.
        ("Africa/Monrovia", date(1971, 6, 1), 24),
    ],
)
def test_a_day_is_from_the_first_instant_that_shows_its_date_to_the_first_of_a_later_one(
    name: str, day: date, hours: float
) -> None:
    starts, ends = first_instant_that_shows(name, day), first_instant_that_shows(name, day + timedelta(days=1))
    period = Period(name=day.isoformat(), starts_ms=starts, ends_ms=ends, ordinal=(day - date(1970, 1, 1)).days)
    assert (ends - starts) / 3_600_000 == hours
    for at_ms in range(starts, ends, 60_000):
        assert period_of("day", name, at_ms) == period
    assert period_of("day", name, ends - 1) == period
    assert period_of("day", name, starts - 1) == period_before("day", name, period)


def test_an_instant_that_st_johns_repeats_across_midnight_is_in_the_day_that_had_begun() -> None:
    first, repeated = at(2010, 11, 6, 23, 30, tz="America/St_Johns"), at(2010, 11, 6, 23, 30, tz="America/St_Johns", fold=1)
    assert repeated - first == 3_600_000
    assert period_of("day", "America/St_Johns", first).name == "2010-11-06"
    assert period_of("day", "America/St_Johns", repeated).name == "2010-11-07"


def test_the_day_that_apia_skipped_is_empty_and_stepped_over() -> None:
    tz, new_day = "Pacific/Apia", at(2011, 12, 31, tz="Pacific/Apia")
    after = period_of("day", tz, new_day)
    before = period_of("day", tz, new_day - 1)
    skipped = period_at("day", tz, after.ordinal - 1)
    assert (before.name, skipped.name, after.name) == ("2011-12-29", "2011-12-30", "2011-12-31")
    assert skipped.starts_ms == skipped.ends_ms == new_day
    assert after.ordinal == before.ordinal + 2
    assert period_before("day", tz, after) == before


@pytest.mark.parametrize("window", ["week:friday", "month:30", "quarter:12-30", "year:12-30"])
def test_what_would_begin_on_the_day_that_apia_skipped_begins_on_the_next(window: str) -> None:
    new_day = at(2011, 12, 31, tz="Pacific/Apia")
    period = period_of(window, "Pacific/Apia", new_day)
    assert (period.name, period.starts_ms) == ("2011-12-31", new_day)
    before = period_of(window, "Pacific/Apia", new_day - 1)
    assert (before.ends_ms, before.ordinal) == (new_day, period.ordinal - 1)


@pytest.mark.parametrize("turn", [datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2026, 10, 3, 15, 30, tzinfo=UTC)])
def test_hours_follow_each_other_where_clocks_change_by_half_an_hour(turn: datetime) -> None:
    at_ms = int(turn.timestamp()) * 1000 - 7_200_000
    for _ in range(5):
        period = period_of("hour", "Australia/Lord_Howe", at_ms)
        at_ms = period.ends_ms
        assert period_of("hour", "Australia/Lord_Howe", at_ms).starts_ms == at_ms
        assert period_before("hour", "Australia/Lord_Howe", period_of("hour", "Australia/Lord_Howe", at_ms)) == period


def test_hours_and_minutes_are_named_by_the_utc_instant_they_begin_at() -> None:
    now = at(2026, 5, 17, 12, 59, 59)
    assert period_of("minute", "UTC", now).name == "2026-05-17T12:59Z"
    assert period_of("hour", "Asia/Kathmandu", now).name == "2026-05-17T12:15Z"


@pytest.mark.parametrize("window", CALENDAR)
@pytest.mark.parametrize("name", ["UTC", "America/New_York", "Pacific/Kiritimati", "Etc/GMT+12"])
def test_instants_of_nine_thousand_years_have_periods(window: str, name: str) -> None:
    for year in (2, 3, 999, 1582, 9000, 9997):
        now = (date(year, 6, 1) - date(1970, 1, 1)).days * 86_400_000
        period = period_of(window, name, now)
        assert period.starts_ms <= now < period.ends_ms
        assert period_at(window, name, period.ordinal) == period
        assert period.name[:4] in (f"{year:04}", f"{year - 1:04}")


@pytest.mark.parametrize("window", CALENDAR)
@pytest.mark.parametrize("name", ["UTC", "America/New_York", "Pacific/Kiritimati", "Etc/GMT+12"])
def test_instants_and_ordinals_that_no_calendar_has_are_an_error(window: str, name: str) -> None:
    for now in (-62_135_596_800_000, 253_402_300_799_999, -(2**63), 2**63, 10**40):
        with pytest.raises(ConfigurationError, match="outside the years"):
            period_of(window, name, now)
    for ordinal in (-(10**13), 10**13):
        with pytest.raises(ConfigurationError, match="outside the years"):
            period_at(window, name, ordinal)
