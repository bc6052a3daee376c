"""What limits with rollover were given over periods, by a count of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from sark_mw.reservation import Line, base_of
from sark_mw.store.base import Grant


@dataclass
class Given:
    """One period of one limit and scope, and what was booked in it beyond any hold."""

    line: Line
    beyond: int = 0


class Carried:
    """What limits with rollover were given, by base and ordinal: `check` is the one rule that matters about carrying."""

    def __init__(self) -> None:
        self.periods: dict[str, dict[int, Given]] = defaultdict(dict)
        self.caps: dict[str, int] = {}
        self.amounts: dict[str, int] = {}
        #: Bases that something was admitted on by a limit that did not carry, or did not enforce: nothing holds those.
        self.loose: set[str] = set()
        self.top_ups: dict[str, int] = {}

    def granted(self, grant: Grant) -> None:
        """Note the largest amount, and the largest sum of top-ups, that were ever in force."""
        if grant.until_ms:
            self.amounts[grant.counter] = max(self.amounts.get(grant.counter, 0), grant.amount)
        else:
            self.top_ups[grant.counter] = max(self.top_ups.get(grant.counter, 0), grant.amount)

    def looked(self, lines: tuple[Line, ...], now: int) -> None:
        """Note that a period was asked about: from then on the limit carries, whatever the answer was."""
        for line in lines:
            if line.carry_cap and line.starts_ms <= now < (line.ends_ms or now + 1):
                base = base_of(line.counter)
                self.caps[base] = max(self.caps.get(base, 0), line.carry_cap)
                self.amounts[base] = max(self.amounts.get(base, 0), line.amount)
                self.periods[base].setdefault(line.ordinal, Given(line))

    def admitted(self, lines: tuple[Line, ...]) -> None:
        """Note the lines on which something was admitted that no amount holds."""
        for line in lines:
            base = base_of(line.counter)
            if not (line.carry_cap and line.enforce):
                self.loose.add(base)

    def beyond(self, lines: tuple[Line, ...], amounts: dict[str, int]) -> None:
        """Note what was booked above a hold, or after it was gone: it is counted, and no limit can hold it."""
        for line in lines:
            given = self.periods.get(base_of(line.counter), {}).get(line.ordinal)
            if given:
                given.beyond += max(amounts.get(line.unit, 0), 0)

    def check(self, sums: Callable[[str, str], tuple[int, int]]) -> None:
        """Raise AssertionError unless every run of periods has spent and holds no more than its amounts and top-ups."""
        for base in self.periods.keys() - self.loose:
            periods, amount = self.periods[base], self.amounts[base]
            ordinals = sorted(periods)
            for n, first in enumerate(ordinals):
                used = given = 0
                for last in ordinals[n:]:
                    period = periods[last]
                    spent, held = sums(period.line.counter, period.line.unit)
                    used += spent + held
                    given += self.top_ups.get(period.line.counter, 0) + period.beyond
                    # Periods between in which nobody asked are given their amounts too; into the first one comes the cap at most.
                    most = given + amount * (last - first + 1) + (self.caps[base] if n else 0)
                    assert used <= most, f"{base}, periods {first} to {last}: {used} of {most}"
