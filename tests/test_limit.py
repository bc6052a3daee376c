"""Limits: what is one, and which period an instant falls into, held against an independent calculation."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sark_mw.errors import ConfigurationError, MoneyError
from sark_mw.limit import Limit, clean_scope, is_window, period_of

ZONES = [
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",
    "America/New_York",
    "America/Havana",
    "America/Santiago",
    "America/St_Johns",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Pacific/Kiritimati",
]
CALENDAR = ["minute", "hour", "day", "week", "month"]
#: 2020 to 2037: the years of this program.
instants = st.integers(1_577_836_800_000, 2_114_380_800_000)


def local_date(at_ms: int, zone: str) -> date:
    """Tell the date on a calendar on the wall there."""
    return datetime.fromtimestamp(at_ms / 1000, ZoneInfo(zone)).date()


@given(instants, st.sampled_from(ZONES), st.sampled_from(CALENDAR))
def test_an_instant_lies_in_its_period(at_ms: int, zone: str, window: str) -> None:
    period = period_of(window, zone, at_ms)
    assert period.starts_ms <= at_ms < period.ends_ms


@given(instants, st.sampled_from(ZONES), st.sampled_from(CALENDAR))
def test_periods_follow_each_other_without_gap_or_overlap(at_ms: int, zone: str, window: str) -> None:
    period = period_of(window, zone, at_ms)
    assert period_of(window, zone, period.starts_ms) == period
    assert period_of(window, zone, period.ends_ms - 1) == period
    after, before = period_of(window, zone, period.ends_ms), period_of(window, zone, period.starts_ms - 1)
    assert (after.starts_ms, before.ends_ms) == (period.ends_ms, period.starts_ms)
    assert len({before.name, period.name, after.name}) == 3


@given(instants, st.sampled_from(ZONES))
def test_a_day_is_the_instants_that_show_its_date_on_the_wall(at_ms: int, zone: str) -> None:
    today = local_date(at_ms, zone)
    period = period_of("day", zone, at_ms)
    assert period.name == today.isoformat()
    assert local_date(period.starts_ms, zone) == local_date(period.ends_ms - 1, zone) == today
    assert local_date(period.starts_ms - 1, zone) == today - timedelta(days=1)
    assert local_date(period.ends_ms, zone) == today + timedelta(days=1)


@given(instants, st.sampled_from(ZONES))
def test_weeks_begin_on_monday_and_months_on_the_first(at_ms: int, zone: str) -> None:
    today = local_date(at_ms, zone)
    week, month = period_of("week", zone, at_ms), period_of("month", zone, at_ms)
    assert local_date(week.starts_ms, zone) == today - timedelta(days=today.weekday())
    assert local_date(week.ends_ms, zone) == today + timedelta(days=7 - today.weekday())
    assert local_date(month.starts_ms, zone) == today.replace(day=1)
    assert local_date(month.ends_ms, zone) == (today.replace(day=28) + timedelta(days=4)).replace(day=1)
    for period in (week, month):
        assert period_of("day", zone, period.starts_ms).starts_ms == period.starts_ms


@given(instants, st.sampled_from(ZONES), st.sampled_from([("minute", 60_000), ("hour", 3_600_000)]))
def test_minutes_and_hours_are_always_as_long(at_ms: int, zone: str, window: tuple[str, int]) -> None:
    period = period_of(window[0], zone, at_ms)
    assert period.ends_ms - period.starts_ms == window[1]


@pytest.mark.parametrize("turn", [datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2026, 10, 3, 15, 30, tzinfo=UTC)])
def test_hours_follow_each_other_where_clocks_change_by_half_an_hour(turn: datetime) -> None:
    at_ms = int(turn.timestamp() * 1000) - 7_200_000
    for _ in range(5):
        period = period_of("hour", "Australia/Lord_Howe", at_ms)
        at_ms = period.ends_ms
        assert period_of("hour", "Australia/Lord_Howe", at_ms).starts_ms == at_ms
        assert period_of("hour", "Australia/Lord_Howe", at_ms - 1) == period


@given(instants)
def test_hours_begin_where_the_clock_on_the_wall_shows_one(at_ms: int) -> None:
    for zone in ("Asia/Kathmandu", "Asia/Kolkata", "Europe/Berlin", "Pacific/Chatham"):
        period = period_of("hour", zone, at_ms)
        assert datetime.fromtimestamp(period.starts_ms / 1000, ZoneInfo(zone)).minute == 0


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("America/Havana", date(2026, 3, 8), 23),
        ("America/Havana", date(2026, 11, 1), 25),
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("UTC", date(2026, 3, 29), 24),
    ],
)
def test_days_are_as_long_as_the_zone_makes_them(zone: str, day: date, hours: float) -> None:
    noon = int(datetime(day.year, day.month, day.day, 12, tzinfo=ZoneInfo(zone)).timestamp() * 1000)
    period = period_of("day", zone, noon)
    assert (period.ends_ms - period.starts_ms) / 3_600_000 == hours


def test_the_total_never_ends_and_neither_does_a_rolling_window() -> None:
    total = Limit(scope="org:a", amount=Decimal(1), window="total")
    rolling = Limit(scope="org:a", amount=Decimal(1), window="rolling:90")
    assert (total.period(5).ends_ms, rolling.period(5).ends_ms) == (0, 0)
    assert (total.rolling_ms, rolling.rolling_ms) == (0, 90_000)


@pytest.mark.parametrize(
    ("window", "known"),
    [
        ("day", True),
        ("total", True),
        ("rolling:1", True),
        ("rolling:31622400", True),
        ("rolling:31622401", False),
        ("rolling:0", False),
        ("rolling:-1", False),
        ("rolling:1.5", False),
        ("rolling:", False),
        ("rolling", False),
        ("rolling:²", False),
        ("year", False),
        ("Day", False),
        ("", False),
    ],
)
def test_a_window_is_known_or_a_configuration_error(window: str, known: bool) -> None:
    assert is_window(window) is known
    if not known:
        with pytest.raises(ConfigurationError, match="unknown window"):
            Limit(scope="org:a", amount=Decimal(1), window=window)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "Europe", "\x00", "UTC+1"])
def test_an_unknown_zone_is_a_configuration_error(zone: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown timezone"):
        Limit(scope="org:a", amount=Decimal(1), timezone=zone)


@pytest.mark.parametrize(
    "fields", [{"scope": "org"}, {"scope": ":a"}, {"scope": "org:"}, {"scope": "org:a\nb"}, {"root": ""}, {"root": "a b"}]
)
def test_a_scope_or_root_that_is_no_name_is_a_configuration_error(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        Limit(**{"scope": "org:a", "amount": Decimal(1), **fields})


@pytest.mark.parametrize("fields", [{"unit": "eur"}, {"mode": "maybe"}])
def test_an_unknown_unit_or_mode_is_a_configuration_error(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        Limit(scope="org:a", amount=Decimal(1), **fields)


@pytest.mark.parametrize("amount", ["-1", "1.5", "NaN", "9200000000000000001"])
def test_a_limit_in_whole_units_takes_whole_numbers(amount: str) -> None:
    with pytest.raises(MoneyError):
        Limit(scope="org:a", unit="tokens", amount=Decimal(amount))


def test_the_largest_limits_are_taken_exactly() -> None:
    assert Limit(scope="org:a", unit="tokens", amount=Decimal("9200000000000000000")).amount_units == 9_200_000_000_000_000_000
    assert Limit(scope="org:a", amount=Decimal("9200000000")).amount_units == 9_200_000_000_000_000_000
    assert Limit(scope="org:a", amount=Decimal("0.0000000001")).amount_units == 1


def test_concurrency_is_over_no_window() -> None:
    assert Limit(scope="org:a", unit="concurrency", amount=Decimal(3), window="day").window == "total"


@given(st.text(max_size=300), st.text(max_size=300))
def test_two_scopes_never_meet_in_one_clean_name(one: str, other: str) -> None:
    assume(one != other)
    assert clean_scope(one) != clean_scope(other)


@given(st.text(max_size=400))
def test_a_clean_name_is_one_short_printable_word(scope: str) -> None:
    clean = clean_scope(scope)
    assert len(clean) <= 200
    assert clean.isprintable() or clean == ""
    assert not any(c.isspace() or c == "|" for c in clean)


@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_a_pattern_matches_by_its_words_and_never_by_wildcards_smuggled_in(prefix: str, name: str) -> None:
    assume(prefix.isprintable())
    limit = Limit(scope=f"user:{prefix}*", amount=Decimal(1))
    assert limit.matches(f"user:{prefix}{name}")
    assert limit.matches(f"user:{name}") == name.startswith(prefix) or f"user:{name}" == limit.scope
