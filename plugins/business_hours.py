"""Allow requests only within business hours, by the wall clock of a timezone: holidays and ranges over midnight included."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from sark_mw import ConfigurationError, PolicyContext, PolicyDecision, PolicyPlugin

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
#: The next opening is looked for so far ahead: no row of holidays is longer.
_LOOK_AHEAD_DAYS = 30


class BusinessHoursPlugin(PolicyPlugin):
    """Allow from `start_hour` (0 to 23) until before `end_hour` (0 to 24) on `allowed_days` (0 is Monday) in `timezone`.

    A range over midnight (22 to 6) belongs to the day it began: Friday's lasts until Saturday at 6. It is closed on `closed_on`
    (dates, "2026-12-24") and, with the library `holidays`, on the public holidays of a `country` ("DE") and its `subdivision`
    ("BY"), but for those of `open_on`. Decides by the context's timestamp. Raises `ConfigurationError` for what does not exist.
    """

    version = "1.1.0"
    description = "Allow requests only within business hours"
    priority = 10
    needs = frozenset({"timestamp"})

    def __init__(
        self,
        start_hour: int = 9,
        end_hour: int = 17,
        allowed_days: Iterable[int] = (0, 1, 2, 3, 4),
        timezone: str = "UTC",
        country: str | None = None,
        subdivision: str | None = None,
        closed_on: Iterable[str | date] = (),
        open_on: Iterable[str | date] = (),
        *,
        name: str = "business_hours",
    ) -> None:
        self._name = name
        self._start = _hour("start_hour", start_hour, 23)
        self._end = _hour("end_hour", end_hour, 24)
        if self._start == self._end:
            raise ConfigurationError(f"start_hour and end_hour are both {start_hour}, no time at all; 0 and 24 is all day")
        self._days = _days(allowed_days)
        self._zone = _zone(timezone)
        self._closed = _dates("closed_on", closed_on)
        self._open_all_the_same = _dates("open_on", open_on)
        self._holidays = _holidays(country, subdivision)

    @property
    def name(self) -> str:
        return self._name

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        now = context.timestamp if context.timestamp.tzinfo else context.timestamp.replace(tzinfo=UTC)
        local = now.astimezone(self._zone)
        if self._open(local):
            return PolicyDecision(True, "within business hours")
        metadata: dict[str, object] = {"local_time": local.isoformat(timespec="seconds")}
        opens = self._next_opening(now)
        if opens is not None:
            metadata["opens_at"] = opens.astimezone(self._zone).isoformat(timespec="seconds")
            metadata["retry_after"] = max(1, -(-(opens - now) // timedelta(seconds=1)))
        closed = f"; {local:%Y-%m-%d} is a holiday or closed" if self._is_closed(local.date()) else ""
        return PolicyDecision(False, f"outside business hours ({self._described()}{closed})", metadata)

    def _open(self, local: datetime) -> bool:
        today = local.date()
        if self._start < self._end:
            return self._works_on(today) and self._start <= local.hour < self._end
        if local.hour >= self._start:
            return self._works_on(today)
        return local.hour < self._end and self._works_on(today - timedelta(days=1))

    def _works_on(self, day: date) -> bool:
        if day.weekday() not in self._days:
            return False
        return not self._is_closed(day)

    def _is_closed(self, day: date) -> bool:
        return day not in self._open_all_the_same and (day in self._closed or day in self._holidays)

    def _next_opening(self, now: datetime) -> datetime | None:
        # Where clocks go forward an opening may fall into the hour that does not exist, so each one is checked.
        for opens in self._openings(now):
            if opens > now and self._open(opens.astimezone(self._zone)):
                return opens
        return None

    def _openings(self, now: datetime) -> Iterator[datetime]:
        today = now.astimezone(self._zone).date()
        for days in range(-1, _LOOK_AHEAD_DAYS):
            yield datetime.combine(today + timedelta(days=days), time(self._start), self._zone).astimezone(UTC)

    def _described(self) -> str:
        days = ", ".join(_DAYS[day] for day in sorted(self._days))
        return f"{self._start:02}:00 to {self._end:02}:00 {self._zone.key}, {days}"


def _hour(field: str, value: object, last: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= last:
        raise ConfigurationError(f"{field} must be a whole hour from 0 to {last}, not {value!r}")
    return value


def _days(values: Iterable[int]) -> frozenset[int]:
    days = list(values)
    for day in days:
        if isinstance(day, bool) or not isinstance(day, int) or not 0 <= day <= 6:
            raise ConfigurationError(f"allowed_days must be days from 0 (Monday) to 6 (Sunday), not {day!r}")
    if not days:
        raise ConfigurationError("allowed_days is empty: no time would be allowed")
    return frozenset(days)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        raise ConfigurationError(f"unknown timezone {name!r}: an IANA name such as 'Europe/Berlin' is needed") from None


def _dates(field: str, values: Iterable[str | date]) -> frozenset[date]:
    try:
        return frozenset(value if type(value) is date else date.fromisoformat(str(value)) for value in values)
    except ValueError as error:
        raise ConfigurationError(f"{field} must be dates such as 2026-12-24: {error}") from None


def _holidays(country: str | None, subdivision: str | None) -> Collection[date]:
    if country is None:
        if subdivision is not None:
            raise ConfigurationError("a subdivision needs its country")
        return frozenset()
    try:
        from holidays import country_holidays

        # It works out each year when it is first asked about; the calendars are imported here, all with the first of them.
        return country_holidays(country, subdiv=subdivision)
    except ImportError:
        raise ConfigurationError(
            "the holidays of a country need an extra, pip install 'sark-mw[holidays]', and where the plugin runs isolated "
            'preload = ["holidays.countries"]'
        ) from None
    except NotImplementedError as error:
        raise ConfigurationError(f"no holidays are known: {error}") from None
