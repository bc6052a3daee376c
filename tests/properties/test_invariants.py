"""DESIGN.md §4 holds after every step, by the store's own books and by a second, naive count of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from sark_mw.limit import Limit
from sark_mw.reservation import Line, Need, Outcome, Reserve, Resolution, Settle, base_of, lines_for
from sark_mw.store.base import Grant
from tests.properties.carried import Carried
from tests.properties.driving import DAY, HOUR, MINUTE, RETENTION_MS, ROOT, SECOND, Call, budgeted, in_unit
from tests.properties.granting import Granting


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
    ended_ms: int = 0  # by the time that has passed in all

    def held(self, unit: str) -> int:
        """What it still holds of a unit."""
        ceilings = {need.unit: need.held for need in self.asked.needs}
        return ceilings.get(unit, 0) - self.freed.get(unit, 0) if self.state == "held" else 0

    def expire(self, passed_ms: int) -> None:
        """End it at the larger of known and expected."""
        for need in self.asked.needs:
            self.cost[need.unit] = max(self.cost.get(need.unit, 0), need.expected)
        self.state, self.ended_ms = "expired", passed_ms


def followed(line: Line) -> bool:
    """Tell whether the naive count can say what a line's counter must be: windows that roll or idle are left to the lockstep."""
    return not line.rolling_ms and not line.idle_ms


class Naive(Granting):
    """Counts by adding up all reservations ever made, at every look anew."""

    def __init__(self) -> None:
        super().__init__()
        self.cases: dict[str, Case] = {}
        self.latest_ms = 0
        #: What the store has been told of top-ups and overrides, by the field.
        self.in_force: dict[str, Grant] = {}
        self.keys: dict[str, tuple[str, str, int]] = {}
        self.carried = Carried()
        self.fired: dict[str, int] = {}
        self.looked_at = 0

    def sums(self, counter: str, unit: str) -> tuple[int, int]:
        """Add up (spent, held) of a counter."""
        own = [case for case in self.cases.values() if any(line.counter == counter for line in case.asked.lines)]
        spent = sum(case.cost.get(unit, 0) for case in own) + self.repaired.get(counter, 0)
        return spent, sum(case.held(unit) for case in own)

    def adjust(self, grants: list[Grant]) -> None:
        super().adjust(grants)
        for grant in grants:
            known = self.in_force.get(grant.field)
            if known is None or grant.count > known.count:
                self.in_force[grant.field] = grant
                self.carried.granted(grant)

    def repair_by(self, line: Line, change: int, ago: int) -> list[Outcome]:
        answer = super().repair_by(line, change, ago)
        if answer == [Outcome.REPAIRED]:
            self.carried.beyond((line,), {line.unit: change})
        return answer

    def allowed(self, line: Line) -> int:
        """Reckon the amount in effect of a line that carries nothing."""
        override = self.in_force.get(f"{base_of(line.counter)}|override")
        amount = override.amount if override and self.clock() < override.until_ms else line.amount
        top_up = self.in_force.get(line.counter)
        return max(amount + (top_up.amount if top_up else 0), 0)

    def expire_all(self) -> None:
        """End what is past its lease."""
        now = self.clock()
        for case in self.cases.values():
            if case.state == "held" and case.lease_ends_ms < now:
                case.expire(self.passed_ms)

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
        self.carried.looked(call.lines, now)
        if reply.outcome in (Outcome.IN_FLIGHT, Outcome.ALREADY_DONE, Outcome.KEY_REUSED):
            self.check_same_key(call, reply)
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
        for line, balance in zip(call.lines, reply.balances, strict=True):
            # What is carried is held to the sums over periods: here it is taken as it was answered.
            amount = balance.line.amount if line.carry_cap else self.allowed(line)
            assert balance.line.amount == amount or not followed(line)
            if followed(line) and line.enforce and need.get(line.unit, 0):
                spent, held = self.sums(line.counter, line.unit)
                if spent + held + need[line.unit] > amount:
                    refusing.append(line.counter)
        assert set(refusing) <= {call.lines[n].counter for n in reply.exceeded}
        if all(followed(line) for line in call.lines):
            assert reply.admitted == (not refusing)
        if not reply.admitted:
            return
        if call.key:
            known = self.keys.get(call.key)
            if known and self.passed_ms - known[2] < RETENTION_MS:
                assert self.cases[known[1]].state in ("expired", "released")
            self.keys[call.key] = (call.fingerprint, call.reservation_id, self.passed_ms)
        self.carried.admitted(call.lines)
        case = Case(call, now, now + call.lease_ms)
        if call.lease_ms == 0:
            case.state, case.cost, case.ended_ms, case.last_part = "settled", need, self.passed_ms, 1
        self.cases[call.reservation_id] = case

    def check_same_key(self, call: Reserve, reply: Any) -> None:
        """Hold an answer about another reservation with the same key to what is known of that."""
        fingerprint, name, _ = self.keys[call.key]
        assert not reply.repeated
        if reply.outcome is Outcome.KEY_REUSED:
            assert fingerprint != call.fingerprint
            return
        assert (reply.reservation_id, fingerprint) == (name, call.fingerprint)
        assert self.cases[name].state == ("held" if reply.outcome is Outcome.IN_FLIGHT else "settled")

    def check_settle(self, call: Settle, case: Case, reply: Any) -> None:
        final = call.kind is not Resolution.PARTIAL
        ended = "released" if call.kind is Resolution.RELEASE else "settled"
        done = case.state == "settled" or (case.state == "released" and call.kind is Resolution.RELEASE)
        by_hand = call.kind is Resolution.RELEASE and call.part == 0 and case.state == "held"
        if done or (call.part <= case.last_part and not by_hand):
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
        ceilings = {need.unit: need.held for need in case.asked.needs}
        if case.state == "held":
            for unit, amount in stated.items():
                more = amount - case.cost.get(unit, 0)
                if more > case.held(unit):
                    overrun[unit] = more - case.held(unit)
                # A cost that falls again is held again.
                case.freed[unit] = min(amount, ceilings.get(unit, 0))
        assert dict(reply.overrun) == overrun
        more = {unit: amount - case.cost.get(unit, 0) for unit, amount in stated.items()}
        self.carried.beyond(case.asked.lines, more if case.state != "held" else overrun)
        case.cost |= stated
        case.known |= stated
        case.last_part = max(call.part, case.last_part)
        if final:
            case.state, case.ended_ms = ended, self.passed_ms
        assert reply.outcome == (ended if final else "held")

    def may_repeat(self, call: Call) -> bool:
        """Not after the store may have forgotten a resolution: then the ledger answers, which is not here."""
        name = call.reservation_id
        case = self.cases.get(name)
        return case is None or case.state == "held" or self.passed_ms - case.ended_ms < RETENTION_MS

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
        lines = [line for line in self.lines.values() if followed(line)]
        snapshot = self.run(self.store.balance(ROOT, lines))
        self.expire_all()
        for balance in snapshot.balances:
            line = balance.line
            if line.ends_ms and line.ends_ms + RETENTION_MS <= self.latest_ms:
                continue  # the counter may have been dropped with its period
            assert (balance.spent, balance.held) == self.sums(line.counter, line.unit), line.counter
        assert snapshot.seq == sum(1 for entry in self.store.ledger if entry.shard_seq)

    @invariant()
    def periods_spend_no_more_than_they_were_given(self) -> None:
        """Hold what was admitted over any run of periods with rollover to what those periods were given."""
        self.carried.check(self.sums)

    @invariant()
    def events_come_once(self) -> None:
        """Hold every threshold and every carry to once per period, for as long as its counter is kept."""
        fresh, self.looked_at = self.store.ledger[self.looked_at :], len(self.store.ledger)
        for event in (entry for entry in fresh if not entry.shard_seq):
            line = self.lines[json.loads(event.entry_json)["counter"]]
            gone_ms = line.ends_ms + RETENTION_MS if line.ends_ms else None
            before = self.fired.get(event.reservation_id)
            assert before is None or not followed(line) or (gone_ms and gone_ms <= self.latest_ms), event
            self.fired[event.reservation_id] = event.booked_ms


TestNaive = pytest.mark.memory(Naive.TestCase)
TestNaive.settings = budgeted(examples=150, steps=50)


class Carrying(Naive):
    """The same moves on one small limit with rollover: periods are filled to the brim, and what is left of them is carried."""

    limits_change = False

    @initialize(
        amount=st.integers(40, 160),
        cap=st.sampled_from([20, 90, 400]),
        window=st.sampled_from(["minute", "hour", "day"]),
        scope=st.sampled_from(["user:*", "user:a"]),
    )
    def begin(self, amount: int, cap: int, window: str, scope: str) -> None:
        """Begin with a limit that enforces."""
        limit = Limit(root=ROOT, scope=scope, amount=in_unit("usd", amount), rollover=in_unit("usd", cap), window=window)
        self.change(lambda store: store.restore(0))
        self.table = self.change(lambda store: store.set_limits(ROOT, put=[limit]))
        self.clock.advance(1)

    @rule(late_ms=st.sampled_from([0, 0, 1, SECOND, HOUR]))
    def period_turns(self, late_ms: int) -> None:
        """Let the period end."""
        assert self.table
        (line,) = lines_for(self.table.limits, ["user:a"], self.clock())
        ms = line.ends_ms - self.clock() + late_ms
        self.clock.advance(ms)
        self.passed_ms += ms
        self.moved_clock = True

    @rule(
        user=st.sampled_from(["user:a", "user:a", "user:b"]),
        share=st.sampled_from([1, 2, 4, 4]),
        lease_ms=st.sampled_from([1, MINUTE, HOUR, DAY]),
        settles=st.booleans(),
    )
    def fill(self, user: str, share: int, lease_ms: int, settles: bool) -> None:
        """Take what is left, or some of it, and perhaps spend it at once."""
        self.table = table = self.change(lambda store: store.limits(ROOT))
        lines = lines_for(table.limits, [user], self.clock())
        left = [balance.remaining for balance in self.run(self.store.balance(ROOT, lines)).balances]
        self.expire_all()
        usd = max(min(left, default=0), 0) * share // 4
        name = f"f{len(self.calls)}"
        need = Need(unit="usd", held=usd, expected=usd // 2)
        asked = Reserve(
            reservation_id=name,
            root=ROOT,
            lines=lines,
            needs=(need,),
            lease_ms=lease_ms,
            version=table.version,
            epoch=table.epoch,
        )
        self.submit([asked])
        if settles and name in self.asked:
            made_ms = self.made_ms[name]
            self.submit(
                [Settle(reservation_id=name, root=ROOT, lines=lines, amounts=(("usd", usd),), made_ms=made_ms, entry='{"s":1}')]
            )


TestCarrying = pytest.mark.memory(Carrying.TestCase)
TestCarrying.settings = budgeted(examples=300, steps=50)
