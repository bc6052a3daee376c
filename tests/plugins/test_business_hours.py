from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plugins.business_hours import BusinessHoursPlugin
from sark_mw import ConfigurationError, PolicyDecision
from tests.policy.samples import a_context

FRIDAY = datetime(2026, 11, 20, tzinfo=UTC)


def ask(plugin: BusinessHoursPlugin, at: datetime) -> PolicyDecision:
    coroutine = plugin.evaluate(a_context(timestamp=at))
    with pytest.raises(StopIteration) as answered:
        coroutine.send(None)
    decision: PolicyDecision = answered.value.value
    return decision


def allowed(plugin: BusinessHoursPlugin, at: datetime) -> bool:
    return ask(plugin, at).allowed


def local(zone: str, *fields: int, fold: int = 0) -> datetime:
    return datetime(*fields, tzinfo=ZoneInfo(zone), fold=fold)  # type: ignore[misc,arg-type]


def test_nine_to_five_from_monday_to_friday_by_default() -> None:
    plugin = BusinessHoursPlugin()
    hours = [hour for hour in range(24) if allowed(plugin, FRIDAY.replace(hour=hour))]
    assert hours == list(range(9, 17))
    assert not allowed(plugin, FRIDAY.replace(hour=8, minute=59, second=59, microsecond=999_999))
    assert not allowed(plugin, FRIDAY.replace(hour=12) + timedelta(days=1))
    assert allowed(plugin, FRIDAY.replace(hour=12) + timedelta(days=3))


def test_a_range_over_midnight_belongs_to_the_day_it_began() -> None:
    plugin = BusinessHoursPlugin(22, 6, allowed_days=[4])
    assert not allowed(plugin, FRIDAY.replace(hour=3))
    assert not allowed(plugin, FRIDAY.replace(hour=21, minute=59))
    assert allowed(plugin, FRIDAY.replace(hour=22))
    assert allowed(plugin, FRIDAY + timedelta(days=1, hours=5, minutes=59))
    assert not allowed(plugin, FRIDAY + timedelta(days=1, hours=6))
    assert not allowed(plugin, FRIDAY + timedelta(days=1, hours=23))


def test_sundays_night_lasts_into_monday() -> None:
    plugin = BusinessHoursPlugin(22, 6, allowed_days=[6])
    assert allowed(plugin, FRIDAY + timedelta(days=3, hours=3))
    assert not allowed(plugin, FRIDAY + timedelta(days=2, hours=3))


def test_the_zone_decides_and_a_naive_time_is_utc() -> None:
    plugin = BusinessHoursPlugin(timezone="Asia/Tokyo")
    assert allowed(plugin, FRIDAY.replace(hour=0))
    assert allowed(plugin, FRIDAY.replace(hour=0, tzinfo=None))
    assert not allowed(plugin, FRIDAY.replace(hour=9))
    assert allowed(plugin, local("America/New_York", 2026, 11, 19, 19))


def test_hours_follow_the_wall_clock_over_a_change_of_clocks() -> None:
    plugin = BusinessHoursPlugin(9, 17, range(7), "Europe/Berlin")
    for day, opens_utc in ((28, 8), (29, 7)):
        assert allowed(plugin, datetime(2026, 3, day, opens_utc, tzinfo=UTC))
        assert not allowed(plugin, datetime(2026, 3, day, opens_utc - 1, 59, tzinfo=UTC))
    night = BusinessHoursPlugin(2, 3, range(7), "Europe/Berlin")
    assert allowed(night, local("Europe/Berlin", 2026, 10, 25, 2, 30, fold=0))
    assert allowed(night, local("Europe/Berlin", 2026, 10, 25, 2, 30, fold=1))


def test_an_opening_in_the_hour_that_does_not_exist_is_the_next_days() -> None:
    decision = ask(BusinessHoursPlugin(2, 3, range(7), "Europe/Berlin"), local("Europe/Berlin", 2026, 3, 29, 1, 59))
    assert decision.metadata["opens_at"] == "2026-03-30T02:00:00+02:00"


def test_a_denial_tells_when_it_opens() -> None:
    decision = ask(BusinessHoursPlugin(timezone="Europe/Berlin"), local("Europe/Berlin", 2026, 11, 20, 17, 0))
    assert decision.metadata["opens_at"] == "2026-11-23T09:00:00+01:00"
    assert decision.metadata["retry_after"] == 64 * 3600
    assert "09:00 to 17:00 Europe/Berlin" in decision.reason


@given(
    at=st.datetimes(datetime(2025, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC)),
    start=st.integers(0, 23),
    end=st.integers(0, 24),
    days=st.sets(st.integers(0, 6), min_size=1),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Santiago"]),
)
@example(at=datetime(2026, 4, 4, 14, tzinfo=UTC), start=1, end=2, days={6}, zone="Australia/Lord_Howe")
def test_it_opens_when_the_denial_said_and_not_before(at: datetime, start: int, end: int, days: set[int], zone: str) -> None:
    if start == end:
        return
    plugin = BusinessHoursPlugin(start, end, days, zone)
    decision = ask(plugin, at)
    if decision.allowed:
        return
    opens = datetime.fromisoformat(decision.metadata["opens_at"])
    assert opens > at and allowed(plugin, opens)
    assert 0 <= decision.metadata["retry_after"] - (opens - at).total_seconds() < 1
    quarters = int((opens - at) / timedelta(minutes=15))
    assert not any(allowed(plugin, at + timedelta(minutes=15) * step) for step in range(quarters))
    assert not allowed(plugin, opens.astimezone(UTC) - timedelta(seconds=1)) or opens - at < timedelta(seconds=1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"start_hour": 24}, "start_hour must be"),
        ({"start_hour": -1}, "start_hour must be"),
        ({"start_hour": "9"}, "start_hour must be"),
        ({"end_hour": 25}, "end_hour must be"),
        ({"end_hour": True}, "end_hour must be"),
        ({"end_hour": 9}, "both 9"),
        ({"allowed_days": [7]}, "allowed_days must be"),
        ({"allowed_days": ["Monday"]}, "allowed_days must be"),
        ({"allowed_days": []}, "allowed_days is empty"),
        ({"timezone": "Mars/Olympus"}, "unknown timezone 'Mars/Olympus'"),
        ({"timezone": "../etc/passwd"}, "unknown timezone"),
        ({"timezone": ""}, "unknown timezone"),
    ],
)
def test_hours_days_and_zones_that_do_not_exist_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        BusinessHoursPlugin(**options)


def christmas(hour: int = 12, day: int = 25) -> datetime:
    return datetime(2026, 12, day, hour, tzinfo=UTC)


def test_it_is_closed_on_public_holidays_of_the_country_and_its_parts() -> None:
    germany = BusinessHoursPlugin(country="DE")
    assert not allowed(germany, christmas()) and allowed(BusinessHoursPlugin(), christmas())
    epiphany = datetime(2026, 1, 6, 12, tzinfo=UTC)
    assert allowed(germany, epiphany) and not allowed(BusinessHoursPlugin(country="DE", subdivision="BY"), epiphany)
    assert ask(germany, christmas()).metadata["opens_at"] == "2026-12-28T09:00:00+00:00"


def test_dates_of_ones_own_close_it_or_keep_it_open() -> None:
    plugin = BusinessHoursPlugin(country="DE", closed_on=["2026-12-24", christmas(day=23).date()], open_on=["2026-12-25"])
    assert [allowed(plugin, christmas(day=day)) for day in (22, 23, 24, 25)] == [True, False, False, True]
    assert not allowed(BusinessHoursPlugin(open_on=["2026-12-26"]), christmas(day=26)), "a Saturday stays one"


def test_a_night_that_began_on_a_holiday_is_closed_to_its_end() -> None:
    plugin = BusinessHoursPlugin(22, 6, range(7), closed_on=["2026-12-25"])
    nights = [christmas(hour, day) for hour, day in ((3, 25), (23, 25), (3, 26), (23, 26))]
    assert [allowed(plugin, night) for night in nights] == [True, False, False, True]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"country": "ZZ"}, "no holidays are known"),
        ({"country": "DE", "subdivision": "Bavaria!"}, "no holidays are known"),
        ({"subdivision": "BY"}, "needs its country"),
        ({"closed_on": ["24.12.2026"]}, "closed_on must be dates"),
        ({"open_on": ["tomorrow"]}, "open_on must be dates"),
    ],
)
def test_holidays_that_are_not_known_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        BusinessHoursPlugin(**options)


def test_without_the_library_only_a_country_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "holidays", None)
    assert not allowed(BusinessHoursPlugin(closed_on=["2026-12-24"]), christmas(day=24))
    with pytest.raises(ConfigurationError, match=r"sark-mw\[holidays\]"):
        BusinessHoursPlugin(country="DE")


def test_a_day_that_is_closed_is_named_in_the_reason() -> None:
    plugin = BusinessHoursPlugin(closed_on=["2026-11-20"])
    assert "2026-11-20 is a holiday or closed" in ask(plugin, FRIDAY.replace(hour=12)).reason
    assert "holiday" not in ask(plugin, FRIDAY.replace(hour=12) + timedelta(days=1)).reason
