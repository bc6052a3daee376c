"""The moves of administrators: top-ups, overrides, holds released and counters repaired by hand, in any order, some twice."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from sark_mw.reservation import Line, Outcome, Resolution, Settle, base_of, lines_for
from sark_mw.store.base import Grant
from tests.properties.driving import DAY, HOUR, MINUTE, ROOT, SCOPES, SECOND, Driver


class Granting(Driver):
    """A driver that also adjusts, releases and repairs."""

    def __init__(self) -> None:
        super().__init__()
        #: What the ledger's database has: the newest sum of top-ups by counter, the newest override by base.
        self.top_ups: dict[str, Grant] = {}
        self.overrides: dict[str, Grant] = {}
        self.sent: list[Grant] = []
        self.repaired: dict[str, int] = {}

    def lines_now(self) -> list[Line]:
        """Lay out everything that could be touched at this instant."""
        assert self.table
        return list(lines_for(self.table.limits, SCOPES, self.clock()))

    def adjust(self, grants: list[Grant]) -> None:
        """Put sums into force."""
        self.moved_clock = False

        async def act(store: Any) -> None:
            await store.adjust(grants)

        self.change(act)

    @precondition(lambda self: self.table)
    @rule(data=st.data(), amount=st.integers(-60, 400), reaches=st.sampled_from([True, True, True, False]))
    def top_up(self, data: st.DataObject, amount: int, reaches: bool) -> None:
        """Top up a counter of now; sometimes its call gets lost, or comes later than the next one."""
        lines = [line for line in self.lines_now() if line.unit != "concurrency" and not line.rolling_ms and not line.idle_ms]
        if not lines:
            return
        line = data.draw(st.sampled_from(lines))
        before = self.top_ups.get(line.counter)
        grant = Grant(
            root=ROOT,
            counter=line.counter,
            amount=amount + (before.amount if before else 0),
            count=(before.count if before else 0) + 1,
            keep_until_ms=line.ends_ms,
        )
        self.top_ups[line.counter] = grant
        self.sent.append(grant)
        if reaches:
            self.adjust([grant])

    @precondition(lambda self: self.table and self.limits_change)
    @rule(
        data=st.data(),
        amount=st.integers(0, 700),
        lasts_ms=st.sampled_from([-1, SECOND, MINUTE, HOUR, 2 * HOUR, DAY, 3 * DAY]),
        reaches=st.sampled_from([True, True, True, False]),
    )
    def override(self, data: st.DataObject, amount: int, lasts_ms: int, reaches: bool) -> None:
        """Put another amount in the place of a limit's for a while, or end that."""
        if not self.lines_now():
            return
        line = data.draw(st.sampled_from(self.lines_now()))
        base, until_ms = base_of(line.counter), self.clock() + lasts_ms if lasts_ms > 0 else 1
        before = self.overrides.get(base)
        grant = Grant(
            root=ROOT,
            counter=base,
            amount=amount,
            count=(before.count if before else 0) + 1,
            until_ms=until_ms,
            keep_until_ms=until_ms if lasts_ms > 0 else line.ends_ms,
        )
        self.overrides[base] = grant
        self.sent.append(grant)
        if reaches:
            self.adjust([grant])

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), times=st.integers(1, 2))
    def adjust_again(self, data: st.DataObject, times: int) -> None:
        """Send what was sent, or was to be sent, before: it may have been overtaken."""
        self.adjust([self.sent[data.draw(st.integers(0, len(self.sent) - 1))]] * times)

    @rule()
    def adjust_all(self) -> None:
        """Send the newest sums once more, as every process does from time to time."""
        newest = [*self.top_ups.values(), *self.overrides.values()]
        self.adjust([Grant(root=ROOT, counter=g.counter, amount=g.amount, count=g.count, until_ms=g.until_ms) for g in newest])

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def release_by_hand(self, data: st.DataObject) -> None:
        """Release a hold as an administrator does, whatever its holder does afterwards."""
        name = data.draw(st.sampled_from(sorted(self.asked)))
        by_hand = Settle(
            reservation_id=name, root=ROOT, lines=self.asked[name].lines, amounts=(), part=0, kind=Resolution.RELEASE
        )
        self.submit([by_hand])

    @precondition(lambda self: self.lines and self.table)
    @rule(data=st.data(), change=st.integers(-50, 50), ago=st.sampled_from([0, 0, 0, 1, 3]))
    def repair(self, data: st.DataObject, change: int, ago: int) -> None:
        """Add something to a counter; a repair that was measured before the last one is too late."""
        lines = [line for line in self.lines.values() if not (line.rolling_ms or line.idle_ms or line.unit == "concurrency")]
        if not lines:
            return
        line = data.draw(st.sampled_from(lines))
        self.moved_clock = False
        assert self.repair_by(line, change, ago) in ([Outcome.REPAIRED], [Outcome.STALE], [])

    def repair_by(self, line: Line, change: int, ago: int) -> list[Outcome]:
        """Measure and repair in one turn; nothing is taken that is not there."""

        async def act(store: Any) -> list[Outcome]:
            seen = await store.balance(ROOT, [line])
            if seen.balances[0].spent + change < 0:
                return []
            return [await store.repair(ROOT, seen.epoch, seen.seq - ago, line, change)]

        answer: list[Outcome] = self.change(act)
        if answer == [Outcome.REPAIRED]:
            self.repaired[line.counter] = self.repaired.get(line.counter, 0) + change
        return answer

    def grants_in_the_ledger(self) -> list[tuple[str, str]]:
        """Write what the database has as fields, for a rebuild."""
        return [(grant.field, grant.value) for grant in (*self.top_ups.values(), *self.overrides.values())]
