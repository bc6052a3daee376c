"""DESIGN.md §4 holds after every step, by the store's own books and by a second, naive count of them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import assume
from hypothesis.stateful import invariant, rule

from sark_mw.reservation import Outcome, Reserve, Resolution, Settle
from tests.properties.driving import RETENTION_MS, ROOT, Call, Driver, budgeted


@dataclass
class Case:
    """One reservation as the naive count sees it: what it holds, what it is known or thought to cost, whether it lives."""

    asked: Reserve
    made_ms: int
    lease_ends_ms: int
    cost: dict[str, int] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    freed: dict[str, int] = field(default_factory=dict)
    state: str = "held"
    last_part: int = 0
    ended_ms: int = 0

    def held(self, unit: str) -> int:
        """What it still holds of a unit."""
        ceilings = {need.unit: need.held for need in self.asked.needs}
        return ceilings.get(unit, 0) - self.freed.get(unit, 0) if self.state == "held" else 0

    def expire(self, now: int) -> None:
        """End it at the larger of known and expected."""
        for need in self.asked.needs:
            self.cost[need.unit] = max(self.cost.get(need.unit, 0), need.expected)
        self.state, self.ended_ms = "expired", now


class Naive(Driver):
    """Counts by adding up all reservations ever made, at every look anew. Rolling windows are left to the lockstep."""

    def __init__(self) -> None:
        super().__init__()
        self.cases: dict[str, Case] = {}
        self.latest_ms = 0

    def sums(self, counter: str, unit: str) -> tuple[int, int]:
        """Add up (spent, held) of a counter."""
        own = [case for case in self.cases.values() if any(line.counter == counter for line in case.asked.lines)]
        return sum(case.cost.get(unit, 0) for case in own), sum(case.held(unit) for case in own)

    def expire_all(self) -> None:
        """End what is past its lease."""
        now = self.clock()
        for case in self.cases.values():
            if case.state == "held" and case.lease_ends_ms < now:
                case.expire(now)

    def perform(self, calls: list[Call]) -> list[Any]:
        return [self.check(call) for call in calls]

    def check(self, call: Call) -> Any:
        """Make one call and hold its answer to the count."""
        self.latest_ms = max(self.latest_ms, self.clock())
        if isinstance(call, Reserve):
            self.expire_all()
            reply = super().perform([call])[0]
            self.check_reserve(call, reply)
            return reply
        case = self.cases[call.reservation_id]
        reply = super().perform([call])[0]
        if isinstance(call, Settle):
            self.check_settle(call, case, reply)
        else:
            assert reply.outcome == ("extended" if case.state == "held" else case.state)
            if case.state == "held":
                case.lease_ends_ms = self.clock() + call.lease_ms
        self.expire_all()
        return reply

    def check_reserve(self, call: Reserve, reply: Any) -> None:
        now = self.clock()
        case = self.cases.get(call.reservation_id)
        if reply.outcome is Outcome.STALE_LIMITS:
            return
        if case is not None:
            booked = call.lease_ms == 0 and case.state == "settled"
            assert reply.repeated and reply.outcome == ("booked" if booked else case.state)
            return
        if reply.outcome is Outcome.WRONG_PERIOD:
            assert any(not line.starts_ms <= now < (line.ends_ms or now + 1) for line in call.lines)
            return
        need = {each.unit: each.held for each in call.needs}
        refusing = []
        for line in call.lines:
            if not line.rolling_ms and line.enforce and need.get(line.unit, 0):
                spent, held = self.sums(line.counter, line.unit)
                if spent + held + need[line.unit] > line.amount:
                    refusing.append(line.counter)
        assert set(refusing) <= {call.lines[n].counter for n in reply.exceeded}
        if not any(line.rolling_ms for line in call.lines):
            assert reply.admitted == (not refusing)
        if not reply.admitted:
            return
        case = Case(call, now, now + call.lease_ms)
        if call.lease_ms == 0:
            case.state, case.cost, case.ended_ms, case.last_part = "settled", need, now, 1
        self.cases[call.reservation_id] = case

    def check_settle(self, call: Settle, case: Case, reply: Any) -> None:
        final = call.kind is not Resolution.PARTIAL
        ended = "released" if call.kind is Resolution.RELEASE else "settled"
        done = case.state == "settled" or (case.state == "released" and call.kind is Resolution.RELEASE)
        if done or call.part <= case.last_part:
            assert reply.repeated
            return
        if reply.outcome is Outcome.OUT_OF_RANGE:
            return
        assert (reply.repeated, reply.late) == (False, case.state != "held")
        stated = dict(call.amounts)
        if case.state == "expired":
            for need in case.asked.needs:
                stated.setdefault(need.unit, case.known.get(need.unit, 0))
        overrun = {}
        if case.state == "held":
            for unit, amount in stated.items():
                more = amount - case.cost.get(unit, 0)
                if more > case.held(unit):
                    overrun[unit] = more - case.held(unit)
                case.freed[unit] = case.freed.get(unit, 0) + max(min(more, case.held(unit)), 0)
        assert dict(reply.overrun) == overrun
        case.cost |= stated
        case.known |= stated
        case.last_part = call.part
        if final:
            case.state, case.ended_ms = ended, self.clock()
        assert reply.outcome == (ended if final else "held")

    def may_repeat(self, call: Call) -> bool:
        """Not after the store may have forgotten a resolution: then the ledger answers, which is not here."""
        name = call.reservation_id
        case = self.cases.get(name)
        return case is None or case.state == "held" or max(self.latest_ms, self.clock()) - case.ended_ms < RETENTION_MS

    def submit(self, calls: list[Call], *, again: bool = False) -> None:
        assume(all(self.may_repeat(call) for call in calls))
        super().submit(calls, again=again)

    def change(self, act: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        self.latest_ms = max(self.latest_ms, self.clock())
        return super().change(act)

    @rule()
    def sweep(self) -> None:
        super().sweep()
        self.expire_all()

    @invariant()
    def books_balance(self) -> None:
        """Hold the store's books and counters to the count."""
        self.store.assert_invariants()
        if not self.table or self.moved_clock:
            return
        lines = [line for line in self.lines.values() if not line.rolling_ms]
        snapshot = self.run(self.store.balance(ROOT, lines))
        self.expire_all()
        for balance in snapshot.balances:
            line = balance.line
            if line.ends_ms and line.ends_ms + RETENTION_MS <= self.latest_ms:
                continue  # the counter may have been dropped with its period
            assert (balance.spent, balance.held) == self.sums(line.counter, line.unit), line.counter
        assert snapshot.seq == len(self.store.ledger)


TestNaive = pytest.mark.memory(Naive.TestCase)
TestNaive.settings = budgeted(examples=150, steps=50)
