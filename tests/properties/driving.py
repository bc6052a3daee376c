"""The moves of the state machines: whatever callers, clocks and operators may do to a store, in any order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sark_mw._memory_store import ManualClock, MemoryStore
from sark_mw.limit import Limit
from sark_mw.reservation import Line, Need, Reserve, Resolution, Settle, lines_for
from sark_mw.store.base import LimitTable, RestoredCounter, RestoredReservation

ROOT = "acme"
RETENTION_MS = 3_600_000
SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
SCOPES = ("org:x", "user:a", "user:b")
#: SARK_PROPERTIES=long looks for an hour; CI for some seconds a machine.
LONG = os.environ.get("SARK_PROPERTIES") == "long"

amounts = st.one_of(st.integers(0, 120), st.sampled_from([0, 1, 10, 99, 100, 101, 2**53 - 1]))
small = st.integers(0, 60)


def budgeted(examples: int, steps: int) -> settings:
    """Bound a machine for CI, or let it look long."""
    return settings(
        max_examples=20_000 if LONG else examples,
        stateful_step_count=80 if LONG else steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def a_limit(draw: st.DrawFn) -> Limit:
    """Some limit on some scope: scope, unit, window and mode from few, so that they meet; options often enough."""
    unit = draw(st.sampled_from(["usd", "usd", "tokens", "concurrency"]))
    amount = draw(st.one_of(st.integers(0, 300), st.integers(500, 5000)))
    window = draw(st.sampled_from(["minute", "hour", "day", "day", "total", "rolling:60", "idle:600"]))
    rollover = draw(st.sampled_from([0, 0, 40, 300])) if unit != "concurrency" and window in ("minute", "hour", "day") else 0
    return Limit(
        root=ROOT,
        scope=draw(st.sampled_from(["org:x", "user:*", "user:a"])),
        unit=unit,
        amount=in_unit(unit, amount),
        window=window,
        timezone=draw(st.sampled_from(["UTC", "Europe/Berlin"])),
        mode=draw(st.sampled_from(["enforce", "enforce", "enforce", "shadow", "soft"])),
        thresholds=draw(st.sampled_from([(), (), (50,), (50, 80, 100), (1, 100, 300)])) if unit != "concurrency" else (),
        rollover=in_unit(unit, rollover),
    )


def in_unit(unit: str, amount: int) -> Decimal:
    """Write an amount as limits have it: dollars for nanos."""
    return Decimal(amount).scaleb(-9) if unit == "usd" else Decimal(amount)


@dataclass(frozen=True, slots=True)
class Extend:
    """One call of extend, to be made again later."""

    reservation_id: str
    lease_ms: int


Call = Reserve | Settle | Extend


class Driver(RuleBasedStateMachine):
    """Drives a `MemoryStore`; machines override the hooks to compare it with something."""

    #: Whether limits are set, dropped and overridden on the way.
    limits_change = True

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = ManualClock(1_792_000_050_000)
        self.store = MemoryStore(self.clock, RETENTION_MS, shards=1)
        self.table: LimitTable | None = None
        self.calls: list[Call] = []
        self.asked: dict[str, Reserve] = {}
        self.made_ms: dict[str, int] = {}
        self.parts: dict[str, int] = {}
        self.lines: dict[str, Line] = {}
        self.moved_clock = False
        #: How much time has passed in all, whatever the clock was put back by.
        self.passed_ms = 0

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Wait for a coroutine."""
        return self.runner.run(call)

    def teardown(self) -> None:
        """Close the loop."""
        self.runner.close()

    # What a machine may override.

    def perform(self, calls: list[Call]) -> list[Any]:
        """Make calls in one turn of the loop, in order."""
        return [self.run(one_call(self.store, call)) for call in calls]

    def change(self, act: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Do something else to the store: limits, sweep, loss, restore."""
        return self.run(act(self.store))

    def may_repeat(self, call: Call) -> bool:
        """Tell whether the machine can say what a repeated call must answer."""
        return True

    # The moves.

    @initialize(limits=st.lists(a_limit(), min_size=1, max_size=5))
    def begin(self, limits: list[Limit]) -> None:
        """Begin the shard with some limits, and let them count."""
        self.change(lambda store: store.restore(0))
        self.table = self.change(lambda store: store.set_limits(ROOT, put=limits))
        self.clock.advance(1)

    @rule(
        name=st.sampled_from([f"r{n}" for n in range(12)]),
        scopes=st.sets(st.sampled_from(SCOPES), min_size=1),
        usd=amounts,
        tokens=small,
        slots=st.integers(0, 2),
        share=st.integers(0, 4),
        lease_ms=st.sampled_from([0, 1, 50, 5 * SECOND, MINUTE, HOUR, DAY]),
        fresh=st.sampled_from([True, True, True, False]),
        key=st.sampled_from([("", "")] * 4 + [("a1" * 4, "0f" * 4), ("a1" * 4, "1e" * 4), ("b2" * 4, "0f" * 4)]),
    )
    def reserve(
        self,
        name: str,
        scopes: set[str],
        usd: int,
        tokens: int,
        slots: int,
        share: int,
        lease_ms: int,
        fresh: bool,
        key: tuple[str, str],
    ) -> None:
        """Ask for a hold, on limits as they are or as they were."""
        if fresh or self.table is None:
            self.table = self.change(lambda store: store.limits(ROOT))
        assert self.table
        at_ms = self.clock() if fresh else self.table.at_ms
        request = Reserve(
            reservation_id=name,
            root=ROOT,
            lines=lines_for(self.table.limits, sorted(scopes), at_ms),
            needs=(
                Need(unit="usd", held=usd, expected=usd * share // 4),
                Need(unit="tokens", held=tokens, expected=tokens // 2),
                Need(unit="concurrency", held=slots),
            ),
            lease_ms=lease_ms,
            version=self.table.version,
            epoch=self.table.epoch,
            entry=f'{{"for":"{name}"}}',
            key=key[0],
            fingerprint=key[1],
        )
        self.submit([request])

    @rule(
        names=st.lists(st.sampled_from([f"g{n}" for n in range(8)]), min_size=2, max_size=8),
        scope=st.sampled_from(SCOPES),
        usd=st.lists(small, min_size=8, max_size=8),
    )
    def reserve_together(self, names: list[str], scope: str, usd: list[int]) -> None:
        """Several reserves in one turn, perhaps the same id twice."""
        self.table = table = self.change(lambda store: store.limits(ROOT))
        lines = lines_for(table.limits, ["org:x", scope], self.clock())
        self.submit(
            [
                Reserve(
                    reservation_id=name,
                    root=ROOT,
                    lines=lines,
                    needs=(Need(unit="usd", held=need, expected=need // 2), Need(unit="concurrency", held=1)),
                    lease_ms=MINUTE,
                    version=table.version,
                    epoch=table.epoch,
                )
                for name, need in zip(names, usd, strict=False)
            ]
        )

    @precondition(lambda self: self.asked)
    @rule(
        data=st.data(),
        kind=st.sampled_from([Resolution.SETTLE, Resolution.PARTIAL, Resolution.RELEASE]),
        usd=amounts,
        tokens=small,
        units=st.sampled_from(["both", "usd", "none"]),
        skip=st.sampled_from([-1, 0, 1, 1, 1, 2]),
    )
    def settle(self, data: st.DataObject, kind: Resolution, usd: int, tokens: int, units: str, skip: int) -> None:
        """Settle, wholly or in part, or release: mostly the next part, sometimes one that was or is yet to come."""
        name = data.draw(st.sampled_from(sorted(self.asked)))
        part = max(self.parts.get(name, 0) + skip, 1)
        self.parts[name] = max(part, self.parts.get(name, 0))
        stated = {"both": (("usd", usd), ("tokens", tokens)), "usd": (("usd", usd),), "none": ()}[units]
        request = Settle(
            reservation_id=name,
            root=ROOT,
            lines=self.asked[name].lines,
            amounts=() if kind is Resolution.RELEASE else stated,
            part=part,
            kind=kind,
            made_ms=self.made_ms[name],
            entry='{"s":1}',
        )
        self.submit([request])

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), lease_ms=st.sampled_from([1, 50, MINUTE, DAY]))
    def extend(self, data: st.DataObject, lease_ms: int) -> None:
        """Renew a lease."""
        self.submit([Extend(data.draw(st.sampled_from(sorted(self.asked))), lease_ms)])

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), times=st.integers(1, 2))
    def repeat(self, data: st.DataObject, times: int) -> None:
        """Make an earlier call again, word for word: its answer was lost."""
        call = self.calls[data.draw(st.integers(0, len(self.calls) - 1))]
        if self.may_repeat(call):
            self.submit([call] * times, again=True)

    @rule(ms=st.sampled_from([1, 2, 50, 51, SECOND, 5 * SECOND, 61 * SECOND, 20 * MINUTE, HOUR, HOUR + 1, DAY]))
    def time_passes(self, ms: int) -> None:
        """Let time pass."""
        self.clock.advance(ms)
        self.passed_ms += ms
        self.moved_clock = True

    @rule(ms=st.sampled_from([1, SECOND, 61 * SECOND, 20 * MINUTE]))
    def clock_steps_back(self, ms: int) -> None:
        """Put the clock back."""
        self.clock.step(-ms)
        self.moved_clock = True

    @precondition(lambda self: self.limits_change)
    @rule(put=st.lists(a_limit(), max_size=2), data=st.data())
    def change_limits(self, put: list[Limit], data: st.DataObject) -> None:
        """Set some limits and drop some."""
        now = self.change(lambda store: store.limits(ROOT))
        ids = [limit.limit_id for limit in now.limits]
        drop = data.draw(st.lists(st.sampled_from(ids), max_size=2)) if ids else []
        self.change(lambda store: store.set_limits(ROOT, put=put, drop=drop))

    @rule()
    def sweep(self) -> None:
        """Sweep in the background."""
        self.change(lambda store: store.sweep())

    def submit(self, calls: list[Call], *, again: bool = False) -> None:
        """Make calls and remember them."""
        self.moved_clock = False
        replies = self.perform(calls)
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(call, Reserve):
                self.lines |= {line.counter: line for line in call.lines}
                if reply.admitted and not reply.repeated:
                    self.asked[call.reservation_id] = call
                    self.made_ms[call.reservation_id] = reply.made_ms
                    self.parts[call.reservation_id] = 0
            if not again:
                self.calls.append(call)

    def what_the_ledger_knows(self) -> tuple[list[RestoredCounter], list[RestoredReservation], int]:
        """Sum the ledger as the flusher would have it, for a rebuild."""
        totals: dict[str, dict[str, int]] = {}
        made, entries, last, guessed = {}, {}, {}, {}
        numbered = [entry for entry in self.store.ledger if entry.shard_seq]  # events move no counter
        for entry in numbered:
            name = entry.reservation_id
            sums = totals.setdefault(name, {})
            for unit, amount in entry.booked:
                sums[unit] = sums.get(unit, 0) + amount
            guessed[name] = dict(entry.booked) if entry.kind == "expire" else {}
            made[name], entries[name], last[name] = entry.reserved_ms, entry.part, entry.kind
        counters: dict[str, int] = {}
        for name, sums in totals.items():
            for line in self.asked[name].lines:
                gone = line.rolling_ms and made[name] + line.rolling_ms <= self.clock()
                counters[line.counter] = counters.get(line.counter, 0) + (0 if gone else sums.get(line.unit, 0))
        ended = {"settle": "settled", "expire": "expired"}
        resolved = [
            RestoredReservation(
                reservation_id=name,
                resolution=ended.get(last[name], "released"),
                entries=entries[name],
                made_ms=made[name],
                known=tuple((unit, amount - guessed[name].get(unit, 0)) for unit, amount in sums.items()),
                estimated=tuple(guessed[name].items()),
            )
            for name, sums in totals.items()
        ]
        restored = [RestoredCounter(line=self.lines[name], spent=spent) for name, spent in counters.items()]
        last_seq = max((entry.shard_seq for entry in numbered), default=0)
        return restored, resolved, last_seq + 1_000_000


async def one_call(store: Any, call: Call) -> Any:
    """Make one call on a store."""
    if isinstance(call, Reserve):
        return await store.reserve(call)
    if isinstance(call, Settle):
        return await store.settle(call)
    return await store.extend(ROOT, call.reservation_id, call.lease_ms)


def in_other_epoch(call: Call, epochs: dict[str, str]) -> Call:
    """Translate a call's epoch between two stores that each made up their own."""
    return replace(call, epoch=epochs.get(call.epoch, "")) if isinstance(call, Reserve) else call
