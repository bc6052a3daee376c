"""Reconciling: every counter that the ledger can speak of, compared with it and, if asked, mended, while requests go on.

The drift gauge watches the limits on single scopes in their present periods; this looks at all that there is: members of
patterns, periods that ended and whose counters are still kept, counters that the store has lost.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from urllib.parse import unquote

from sark_mw.enforcement.drift import Comparison, comparable, compare_lines
from sark_mw.enforcement.grants import Why
from sark_mw.enforcement.limits import LimitRegistry
from sark_mw.enforcement.tables import ServerClock
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import EventKind, LimitEvent, read_counter
from sark_mw.limit import Limit, Unit, clean_scope
from sark_mw.limit_index import LimitIndex
from sark_mw.reservation import Line, Outcome, lines_for, new_reservation_id
from sark_mw.store.base import ReservationStore, RestorableStore
from sark_mw.window import Period, zone

#: Counters that are read at one instant: one script call.
_AT_ONCE = 100
_ATTEMPTS = 3
_PAUSE_S = 0.05
#: What a ledger has shortened (`clean_name`) is not the scope that was counted.
_WHOLE_NAME = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """One counter, in the unit's integer, and what the ledger has for it. `settled` is False where the ledger did not catch up.

    `outcome` of a repair: REPAIRED; STALE where another measurement was repaired since; None where nothing was to repair.
    """

    line: Line
    period: str
    spent: int
    ledger: int
    settled: bool
    outcome: Outcome | None = None

    @property
    def drift(self) -> int:
        """Counter minus ledger, as it was measured."""
        return self.spent - self.ledger

    @property
    def is_open(self) -> bool:
        """Tell whether there is a drift that was not mended, or nothing could be told."""
        return not self.settled or (self.drift != 0 and self.outcome is not Outcome.REPAIRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCompared:
    """A limit, or `counters` of one that is not in force, of which the ledger cannot say what they must be."""

    limit_id: str
    why: str
    counters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What was found in one root."""

    root: str
    counters: tuple[Reconciled, ...]
    not_compared: tuple[NotCompared, ...]

    @property
    def balanced(self) -> bool:
        """Tell whether all that can be compared agrees, or does now."""
        return not any(each.is_open for each in self.counters)


class _Store(ReservationStore, RestorableStore, Protocol):
    """A store that decides and that knows its shards."""


@dataclass(slots=True)
class _Lines:
    """What there is to compare in a root: lines by counter, and what cannot be."""

    lines: dict[str, Line] = field(default_factory=dict)
    gone: Counter[tuple[str, str]] = field(default_factory=Counter)


class Reconciler:
    """Compare a root's counters with the ledger, and mend them.

    `drain` moves a batch from the outbox to the ledger and returns how many entries it was; without it the gateways' flushers
    are waited for, up to `patience_s`. Raises what store and ledger raise.
    """

    def __init__(
        self,
        store: _Store,
        ledger: Ledger,
        *,
        limits: LimitRegistry,
        clock: ServerClock,
        drain: Callable[[], Awaitable[int]] | None = None,
        patience_s: float = 30.0,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._limits = limits
        self._clock = clock
        self._drain = drain
        self._patience_s = patience_s

    async def run(self, root: str, repair: Why | None = None) -> Reconciliation:
        """Compare all counters of a root; with `repair` mend those that differ, and record who did it and why."""
        limits = await self._limits.list(root)
        found = await self._lines(root, limits)
        counters = [
            each
            for lines in _chunks([*found.lines.values()])
            for each in await self._reconcile(root, lines, repair)
        ]  # fmt: skip
        counters.sort(key=lambda each: each.line.counter)
        gone = (NotCompared(limit_id=name, why=why, counters=count) for (name, why), count in sorted(found.gone.items()))
        return Reconciliation(root=root, counters=tuple(counters), not_compared=(*_incomparable(limits), *gone))

    async def _reconcile(self, root: str, lines: Sequence[Line], repair: Why | None) -> list[Reconciled]:
        done: list[Reconciled] = []
        for attempt in range(_ATTEMPTS):
            compared = await compare_lines(self._store, self._ledger, root, lines, clock=self._clock, caught_up=self._caught_up)
            told = [await self._mend(root, each, repair) if repair else _told(each) for each in compared]
            again = [each for each in told if each.outcome is Outcome.STALE and attempt < _ATTEMPTS - 1]
            done += [each for each in told if each not in again]
            lines = [each.line for each in again]
            if not lines:
                break
        return done

    async def _mend(self, root: str, each: Comparison, why: Why) -> Reconciled:
        if not each.settled or not each.drift:
            return _told(each)
        line = each.balance.line
        outcome = await self._store.repair(root, each.epoch, each.seq, line, -each.drift)
        if outcome is Outcome.REPAIRED:
            await self._limits.record(_repaired(root, each, why, self._clock.now_ms()))
        return _told(each, outcome)

    async def _caught_up(self, shard: int, epoch: str, seq: int) -> bool:
        """Wait until the ledger has all up to a number; where it was in vain once, nobody waits again."""
        ends = time.monotonic() + self._patience_s
        while not await self._ledger.complete_up_to(shard, epoch, seq):
            if not (self._drain and await self._drain()):
                if time.monotonic() >= ends:
                    self._patience_s = 0.0
                    return False
                await asyncio.sleep(_PAUSE_S)
        return True

    async def _lines(self, root: str, limits: Sequence[Limit]) -> _Lines:
        index, found = LimitIndex(limits), _Lines()
        now = self._clock.now_ms()
        scopes = [*(limit.scope for limit in limits if not limit.is_pattern), *await self._members(root, limits, now)]
        for scope in dict.fromkeys(scopes):
            for line in lines_for(index.on(scope), (scope,), now):
                if comparable(line):
                    found.lines[line.counter] = line
        raw = {clean_scope(scope): scope for scope in scopes}
        async for counter, _ in self._store.counters(root):
            if counter not in found.lines:
                self._find(counter, index, raw, found)
        return found

    async def _members(self, root: str, limits: Sequence[Limit], now: int) -> list[str]:
        """List the scopes for which a pattern counts and the ledger has something in its present period."""
        patterns = [limit for limit in limits if limit.is_pattern]
        lines = [line for limit in patterns for line in lines_for((limit,), (limit.scope,), now) if comparable(line)]
        members: dict[str, None] = {}
        for starts, ends in dict.fromkeys((line.starts_ms, line.ends_ms or None) for line in lines):
            for total in await self._ledger.scope_totals(self._store.shard_of(root), starts, ends):
                whole = len(total.scope) < _WHOLE_NAME and "\ufffd" not in total.scope
                if total.root == root and whole and any(limit.matches(total.scope) for limit in patterns):
                    members[total.scope] = None
        return [*members]

    def _find(self, counter: str, index: LimitIndex, raw: dict[str, str], found: _Lines) -> None:
        """Find the line of a counter that is in the store: of a period that ended, or of a member of a pattern."""
        if counter.partition("|")[2].startswith("plugin:"):
            return  # a policy's own count: no limit's, and in no ledger
        cleaned, _, limit_id = read_counter(counter)
        scope = raw.get(cleaned) or unquote(cleaned)
        if not limit_id or clean_scope(scope) != cleaned:
            found.gone[limit_id or counter, "its scope cannot be told from its name"] += 1
            return
        if scope.startswith("run:") and "/idle:" in limit_id:
            found.gone["run:*", "the budgets of runs end when idle"] += 1
            return
        line = next(_lines_named(counter, scope, index), None)
        if line is None:
            found.gone[limit_id, "no limit in force counts on it any more"] += 1
        elif comparable(line):
            found.lines[counter] = line


def _lines_named(counter: str, scope: str, index: LimitIndex) -> Iterator[Line]:
    _, _, name, since = counter.split("|")
    touching = index.on(scope)
    for limit in touching:
        period = _period_named(limit, name) if str(limit.since_ms) == since else None
        if period is not None and limit.counter(scope, period) == counter:
            at_ms = max(period.starts_ms, limit.since_ms)
            # Of several limits only one counts: see `lines_for`.
            yield from (line for line in lines_for(touching, (scope,), at_ms) if line.counter == counter)


def _period_named(limit: Limit, name: str) -> Period | None:
    if not limit.is_calendar:
        period = limit.period(limit.since_ms)
        return period if period.name == name else None
    try:
        inside = datetime.fromisoformat(name)
    except ValueError:
        return None
    if inside.tzinfo is None:
        inside = inside.replace(hour=12, tzinfo=zone(limit.timezone))
    period = limit.period(round(inside.timestamp() * 1000))
    return period if period.name == name else None


def _incomparable(limits: Sequence[Limit]) -> Iterator[NotCompared]:
    for limit in limits:
        if limit.unit == Unit.CONCURRENCY:
            yield NotCompared(limit_id=limit.limit_id, why="concurrency is given back, not booked")
        elif limit.rolling_ms:
            yield NotCompared(limit_id=limit.limit_id, why="the edge of a rolling window moves")
        elif limit.idle_ms:
            yield NotCompared(limit_id=limit.limit_id, why="when an idle window began is not in the ledger")


def _told(each: Comparison, outcome: Outcome | None = None) -> Reconciled:
    line = each.balance.line
    return Reconciled(
        line=line,
        period=line.counter.split("|")[2],
        spent=each.balance.spent,
        ledger=each.ledger,
        settled=each.settled,
        outcome=outcome,
    )


def _repaired(root: str, each: Comparison, why: Why, at_ms: int) -> LimitEvent:
    line = each.balance.line
    detail = {"spent": str(each.balance.spent), "ledger": str(each.ledger), "epoch": each.epoch, "seq": each.seq}
    return LimitEvent(
        event_id=new_reservation_id(),
        kind=EventKind.REPAIR,
        root=root,
        limit_id=line.limit.limit_id if line.limit else "",
        scope=line.scope,
        counter=line.counter,
        unit=line.unit,
        amount=-each.drift,
        at_ms=at_ms,
        actor=why.actor,
        reason=why.reason,
        detail_json=json.dumps(detail, separators=(",", ":")),
    )


def _chunks(lines: Sequence[Line]) -> Iterator[Sequence[Line]]:
    for first in range(0, len(lines), _AT_ONCE):
        yield lines[first : first + _AT_ONCE]
