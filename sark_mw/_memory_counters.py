"""The counters of the in-memory store: what each limit has spent and holds in one period, in plain Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sark_mw.money import MAX_LIMIT_NANOS
from sark_mw.reservation import UNLIMITED, Line


@dataclass(slots=True)
class Counter:
    """What one limit counted in one period, on one scope.

    A rolling window keeps `spent` by bucket too; buckets before `oldest` are no longer in `spent`. `written`: anything was ever
    spent, so that the counter must be kept, and forgotten, with its period. The last two fields exist
    for `check` alone: `granted` is the largest amount that an enforcing limit had when something was admitted (None: admitted
    without one), `excess` is what was booked above its hold.
    """

    spent: int = 0
    held: int = 0
    oldest: int | None = None
    buckets: dict[int, int] = field(default_factory=dict)
    written: bool = False
    granted: int | None = 0
    excess: int = 0

    def check(self, name: str, entries: int | None) -> None:
        """Raise AssertionError unless the counter is within its limit and is the sum of its ledger entries or buckets."""
        assert self.held >= 0, f"{name} holds {self.held}"
        if self.granted is not None:
            assert self.spent + self.held <= self.granted + self.excess, f"{name} is over its limit: {self}"
        if entries is None:
            assert self.spent == sum(self.buckets.values()), f"{name} is not the sum of its buckets: {self}"
        else:
            assert self.spent == entries, f"{name} is not the sum of its ledger entries, {entries}: {self}"


class Counters:
    """The counters of one shard, and until when each is kept."""

    def __init__(self, retention_ms: int) -> None:
        self._retention_ms = retention_ms
        self._looked_ms: int | None = None
        self._drop_after_ms = 0
        self._by_name: dict[str, Counter] = {}
        self._keep_until: dict[str, int] = {}
        self._rolling: set[str] = set()
        #: Counters with thresholds or rollover that have changed since somebody looked: by which line first, and by how much.
        self._watched: dict[str, tuple[Line, int]] = {}

    def take_watched(self) -> list[tuple[Line, int, int]]:
        """Return the lines that somebody watches whose counters have changed, what is spent on them, and the change."""
        watched, self._watched = self._watched, {}
        return [(line, self.amounts(name)[0], booked) for name, (line, booked) in watched.items() if name in self._by_name]

    def is_idle(self, line: Line, now: int) -> bool:
        """Tell whether nobody has used an idle window for so long that it begins anew."""
        spent, held = self.amounts(line.counter)
        return bool(line.idle_ms and spent and not held and self._keep_until.get(line.counter, now) < now)

    def amounts(self, name: str) -> tuple[int, int]:
        """Return (spent, held) of a counter as it was last written."""
        counter = self._by_name.get(name)
        return (counter.spent, counter.held) if counter else (0, 0)

    def spent(self) -> dict[str, int]:
        """Return what every counter has spent."""
        return {name: counter.spent for name, counter in self._by_name.items()}

    def add(self, name: str, change: int) -> None:
        """Add to what a counter has spent, whatever its limit."""
        counter = self._by_name.setdefault(name, Counter())
        counter.spent, counter.written = counter.spent + change, True
        counter.excess += max(change, 0)

    def read(self, line: Line, now: int) -> tuple[int, int]:
        """Return (spent, held) of a line, after taking off what left its rolling window."""
        counter = self._by_name.get(line.counter)
        if counter is None:
            return 0, 0
        if counter.oldest is not None:
            self._roll(counter, line, now)
        return counter.spent, counter.held

    def exceeds(self, line: Line, need: int, now: int) -> bool:
        """Tell whether a need would carry a line past its amount; a need of 0 never does."""
        spent, held = self.read(line, now)
        return need > 0 and line.amount != UNLIMITED and spent + held + need > line.amount

    def overflows(self, line: Line, need: int, now: int) -> bool:
        """Tell whether a need would carry a line past what any counter can count."""
        return need > 0 and sum(self.read(line, now)) + need > MAX_LIMIT_NANOS

    def can_book(self, lines: Iterable[Line], booked: Mapping[str, int]) -> bool:
        """Tell whether every line can take its booking without passing the largest total."""
        spent = [(line, self._by_name.get(line.counter, Counter()).spent) for line in lines]
        return all(so_far + booked.get(line.unit, 0) <= MAX_LIMIT_NANOS for line, so_far in spent)

    def hold(self, line: Line, need: int, now: int, *, again: bool = False) -> None:
        """Hold a need that was found not to exceed; `again` what was held before data was lost, whatever the limit says now."""
        if need > 0:
            counter = self._counter(line) if again else self._grant(line)
            counter.held += need
            counter.excess += need if again else 0
            if line.idle_ms or line.carry_cap:
                self._keep(line, now)

    def book_at_once(self, line: Line, need: int, now: int, asked: Line) -> None:
        """Spend a need that was found not to exceed; `asked` is the line without what changes its amount."""
        if need > 0:
            self._grant(line)
            self.book(asked, need, freed=0, made_ms=now, now=now)

    def book(self, line: Line, amount: int, *, freed: int, made_ms: int, now: int) -> None:
        """Add to what a line has spent, in the period or bucket of `made_ms`, and free what was held for it."""
        if line.idle_ms:
            # A correction may come after the counter was forgotten: it leaves no less than nothing.
            amount = max(amount, -self.amounts(line.counter)[0])
        if amount == 0 and freed == 0:
            return
        counter = self._counter(line)
        before = counter.spent + counter.held
        counter.held -= freed
        if not line.rolling_ms:
            counter.spent += amount
            self._wrote(counter, line, amount, now)
        elif made_ms + line.rolling_ms > now:
            if counter.oldest is None:
                counter.oldest = _first_bucket(line, now)
            elif counter.oldest > now // line.bucket_ms:
                # The clock went back since: what is booked now must not fall before the window.
                self._roll(counter, line, now)
            bucket = min(made_ms, now) // line.bucket_ms
            if bucket >= counter.oldest:
                counter.buckets[bucket] = counter.buckets.get(bucket, 0) + amount
                counter.spent += amount
                self._wrote(counter, line, amount, now)
        if line.idle_ms or line.carry_cap:
            self._keep(line, now)
        counter.excess += max(counter.spent + counter.held - before, 0)

    def book_late(self, line: Line, amount: int, *, made_ms: int, now: int) -> None:
        """Book without a hold, perhaps into a period so old that its counter was dropped."""
        self.book(line, amount, freed=0, made_ms=made_ms, now=now)

    def restore(self, line: Line, spent: int, now: int) -> None:
        """Set a counter to what the ledger knows; a rolling window is taken to have spent all of it just now."""
        self.book(line, spent, freed=0, made_ms=now, now=now)
        self._watched.pop(line.counter, None)
        self._keep(line, now)

    def due(self, now: int, also: Mapping[str, int]) -> list[str]:
        """Name the counters whose time to be kept is over, the oldest first; those that still hold something are kept on.

        `also` are overrides, and counters that were never spent on, and until when those are kept.
        """
        for name, until in also.items():
            known = self._keep_until.setdefault(name, until)
            if name.endswith("|override"):
                self._keep_until[name] = max(known, until)
        # After a jump of the clock nothing is dropped for a while: if the jump was wrong, today's counters must still be there.
        if self._looked_ms is not None and now - self._looked_ms > self._retention_ms:
            self._drop_after_ms = now + self._retention_ms
        self._looked_ms = now
        due = [name for name, until in self._keep_until.items() if until < now and now >= self._drop_after_ms]
        held = {name for name in due if name in self._by_name and self._by_name[name].held > 0}
        for name in held:
            self._keep_until[name] = now + self._retention_ms
        return sorted((name for name in due if name not in held), key=self._keep_until.__getitem__)

    def drop(self, name: str) -> None:
        """Forget a counter."""
        self._by_name.pop(name, None)
        self._keep_until.pop(name, None)

    def check(self, held: Mapping[str, int], entries: Mapping[str, int]) -> None:
        """Raise AssertionError unless every counter is sound, holds what live holds say and has spent what entries say."""
        for name, counter in self._by_name.items():
            counter.check(name, None if name in self._rolling else entries.get(name, 0))
            assert counter.held == held.get(name, 0), f"{name} holds {counter.held}, its holds {held.get(name, 0)}"
        for name, amount in held.items():
            assert amount == 0 or name in self._by_name, f"{name} was dropped while {amount} were held"

    def _roll(self, counter: Counter, line: Line, now: int) -> None:
        """Take off what left the window; what lies ahead of the clock (it went back) leaves a window from now."""
        first, current = _first_bucket(line, now), now // line.bucket_ms
        if counter.oldest is not None and counter.oldest > current:
            counter.buckets = {current: sum(counter.buckets.values())}
            counter.oldest = first
        for bucket in [bucket for bucket in counter.buckets if bucket < first]:
            gone = counter.buckets.pop(bucket)
            counter.spent -= gone
            self._wrote(counter, line, -gone, now)
        counter.oldest = max(counter.oldest or first, first)

    def _wrote(self, counter: Counter, line: Line, change: int, now: int) -> None:
        """Note that what is spent has changed: how long it is kept, and that its thresholds are to be looked at."""
        if change and (line.rolling_ms or not counter.written):
            self._keep(line, now)
            counter.written = True
        if change and (line.thresholds or line.carry_cap):
            first, booked = self._watched.get(line.counter, (line, 0))
            self._watched[line.counter] = first, booked + change

    def _grant(self, line: Line) -> Counter:
        counter = self._counter(line)
        if not line.enforce or line.amount == UNLIMITED:
            counter.granted = None
        elif counter.granted is not None:
            counter.granted = max(counter.granted, line.amount)
        return counter

    def _counter(self, line: Line) -> Counter:
        if line.counter not in self._by_name:
            self._by_name[line.counter] = Counter()
            if line.rolling_ms:
                self._rolling.add(line.counter)
        return self._by_name[line.counter]

    def _keep(self, line: Line, now: int) -> None:
        if line.rolling_ms:
            self._keep_until[line.counter] = now + line.rolling_ms + self._retention_ms
        elif line.idle_ms:
            self._keep_until[line.counter] = now + line.idle_ms
        elif line.carry_cap:
            # Its rest may be corrected for as long as reservations are remembered.
            self._keep_until[line.counter] = max(line.ends_ms, now + self._retention_ms) + self._retention_ms
        elif line.ends_ms:
            self._keep_until[line.counter] = line.ends_ms + self._retention_ms


def _first_bucket(line: Line, now: int) -> int:
    """Return the oldest bucket that lies wholly in the window that ends now."""
    return (now - line.rolling_ms) // line.bucket_ms + 1
