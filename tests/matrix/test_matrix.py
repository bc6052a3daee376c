"""Every scope kind × every unit × every window × every mode, on fakeredis, a real server and a cluster, under concurrency.

Each cell has its own scope, so all cells of a unit, a mode and a store share one table of limits; what differs is collected, and
named cell by cell. N reserves at once ask for 10 of a limit that allows M of them; a second limit, of another unit on another
scope, is touched by the same reserves and wide enough for all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal

import pytest

from sark_mw.limit import Limit, Mode, Unit
from sark_mw.reservation import Line, Need, Outcome, Reserve, ReserveReply, Resolution, Settle, lines_for
from sark_mw.store.base import LimitTable, OutboxEntry
from sark_mw.store.connect import open_store
from sark_mw.store.redis_store import RedisStore

ROOT = "acme"
KINDS = ("org", "team", "project", "user", "key", "run", "model", "provider", "tool", "resource", "tag", "end_user")
WINDOWS = (
    "minute",
    "hour",
    "day",
    "week",
    "week:sunday",
    "month",
    "month:31",
    "quarter",
    "quarter:02-01",
    "year",
    "year:04-06",
    "total",
    "rolling:60",
    "idle:600",
)
#: So many ask, so many fit; each asks for so much and then costs so much.
ASKING, FITTING, NEED, COST = 5, 3, 10, 7
LEASE_MS = 120_000
STORES = [
    pytest.param("fakeredis", marks=pytest.mark.fakeredis),
    pytest.param("redis", marks=pytest.mark.redis),
    pytest.param("cluster", marks=pytest.mark.cluster),
]


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination, exact or a pattern; its name is the member of its kind that is its scope."""

    kind: str
    window: str
    is_pattern: bool

    @property
    def scope(self) -> str:
        """The scope that the cell's reserves touch."""
        return f"{self.kind}:{self.window.replace(':', '-')}-{'each' if self.is_pattern else 'one'}"

    @property
    def beside(self) -> str:
        """The scope of the second limit."""
        return f"beside:{self.scope}"

    def limits(self, unit: str, mode: str) -> list[Limit]:
        """Make the limit of the cell, and the one beside it, which has room for all."""
        other = Unit.REQUESTS if unit != Unit.REQUESTS else Unit.TOKENS
        # A pattern of its own, so that what it counts is the cell's.
        scope = f"{self.scope[:-4]}*" if self.is_pattern else self.scope
        return [
            Limit(root=ROOT, scope=scope, unit=unit, amount=_written(unit, NEED * FITTING), window=self.window, mode=mode),
            Limit(root=ROOT, scope=self.beside, unit=other, amount=Decimal(1000), window="total"),
        ]


CELLS = [Cell(kind, window, is_pattern) for kind in KINDS for window in WINDOWS for is_pattern in (False, True)]


def _written(unit: str, amount: int) -> Decimal:
    return Decimal(amount).scaleb(-9) if unit == Unit.USD else Decimal(amount)


@dataclass
class Played:
    """What a cell's reserves were answered, and what they asked."""

    cell: Cell
    asked: list[Reserve]
    replies: list[ReserveReply]

    @property
    def admitted(self) -> list[Reserve]:
        """The reserves that were let through."""
        return [each for each, reply in zip(self.asked, self.replies, strict=True) if reply.admitted]

    @property
    def line(self) -> Line:
        """The line of the cell's own limit."""
        return next(line for line in self.asked[0].lines if line.scope == self.cell.scope)


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[RedisStore]:
    """An empty store of each kind, begun."""
    if request.param == "fakeredis":
        url = "memory://"
    elif request.param == "redis":
        url = request.getfixturevalue("valkey_server").url
    else:
        url = f"redis+cluster{request.getfixturevalue('valkey_cluster').url[5:]}"
    opened = await open_store(url, shards=2, deadline_s=30.0)
    await opened.begin()
    yield opened
    await opened.aclose()


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("unit", Unit)
async def test_every_scope_and_window_holds_what_it_says_under_concurrency(store: RedisStore, unit: Unit, mode: Mode) -> None:
    limits = [limit for cell in CELLS for limit in cell.limits(unit, mode)]
    table = await _in_force(store, list({limit.limit_id: limit for limit in limits}.values()))
    # Of a kind all windows are one limit in concurrency, which is always over `total`: each scope still has its own.
    played = await _play(store, table, unit, CELLS)
    wrong = [f"{each.cell}: {what}" for each in played for what in _wrong_answers(each, mode)]
    held = await _counters(store, played)
    wrong += [f"{each.cell}: {what}" for each in played for what in _wrong_holds(each, unit, mode, held)]
    await _end(store, unit, played)
    spent, entries = await _counters(store, played), await _outbox(store)
    wrong += [f"{each.cell}: {what}" for each in played for what in _wrong_books(each, unit, spent, entries)]
    wrong += _wrong_events(played, unit, mode, entries)
    assert wrong == [], f"{unit}, {mode}: {len(wrong)} things are wrong"


async def _in_force(store: RedisStore, limits: list[Limit]) -> LimitTable:
    """Set limits and wait until they count."""
    table = await store.set_limits(ROOT, limits)
    while table.at_ms < max(limit.since_ms for limit in table.limits):
        table = await store.limits(ROOT)
    return table


async def _play(store: RedisStore, table: LimitTable, unit: str, cells: list[Cell]) -> list[Played]:
    """Let the reserves of all cells run at once, those of one cell spread over the crowd."""
    by_scope: dict[str, list[Limit]] = {}
    for limit in table.limits:
        by_scope.setdefault(limit.scope, []).append(limit)
    at_ms = (await store.limits("clock")).at_ms
    played = []
    for cell in cells:
        own = [*by_scope.get(cell.limits(unit, Mode.ENFORCE)[0].scope, ()), *by_scope[cell.beside]]
        lines = lines_for(own, (cell.scope, cell.beside), at_ms)
        asked = [_reserve(f"{cell.scope}-{at_ms}-{n}", lines, table, unit) for n in range(ASKING)]
        played.append(Played(cell, asked, []))
    crowd = [(each, each.asked[n]) for n in range(ASKING) for each in played]
    replies = await asyncio.gather(*(store.reserve(request) for _, request in crowd))
    for (each, _), reply in zip(crowd, replies, strict=True):
        each.replies.append(reply)
    return await _again_where_a_period_ended(store, table, unit, played)


async def _again_where_a_period_ended(store: RedisStore, table: LimitTable, unit: str, played: list[Played]) -> list[Played]:
    """Give back and play anew the cells whose period ended between laying out and deciding; the others stand."""
    late = [each for each in played if any(reply.outcome is Outcome.WRONG_PERIOD for reply in each.replies)]
    if not late:
        return played
    for each in late:
        await asyncio.gather(*(store.settle(_settle(request, (), Resolution.RELEASE)) for request in each.admitted))
    again = {each.cell: each for each in await _play(store, table, unit, [each.cell for each in late])}
    return [again.get(each.cell, each) for each in played]


def _reserve(name: str, lines: tuple[Line, ...], table: LimitTable, unit: str) -> Reserve:
    needs = {Unit.REQUESTS: 1, Unit.TOKENS: 1, unit: NEED}
    return Reserve(
        reservation_id=name,
        root=ROOT,
        lines=lines,
        needs=tuple(Need(unit=each, held=amount, expected=amount) for each, amount in needs.items()),
        lease_ms=LEASE_MS,
        version=table.version,
        epoch=table.epoch,
    )


def _settle(request: Reserve, amounts: tuple[tuple[str, int], ...], kind: Resolution = Resolution.SETTLE) -> Settle:
    return Settle(reservation_id=request.reservation_id, root=ROOT, lines=request.lines, amounts=amounts, kind=kind)


def _wrong_answers(each: Played, mode: str) -> list[str]:
    """Say what is wrong with who was admitted: M of them, or all."""
    own = each.asked[0].lines.index(each.line)
    refused = [reply for reply in each.replies if not reply.admitted]
    shadowed = [reply for reply in each.replies if reply.shadowed]
    fitting = FITTING if mode == Mode.ENFORCE else ASKING
    reported = ASKING - FITTING if mode == Mode.SHADOW else 0
    wrong = [] if len(each.admitted) == fitting else [f"{len(each.admitted)} of {ASKING} admitted, not {fitting}"]
    wrong += [] if len(shadowed) == reported else [f"{len(shadowed)} shadowed, not {reported}"]
    wrong += [f"refused by {reply.outcome} {reply.exceeded}" for reply in refused if reply.exceeded != (own,)]
    return wrong + [f"shadowed {reply.shadowed}" for reply in shadowed if reply.shadowed != (own,)]


def _wrong_holds(each: Played, unit: str, mode: str, counters: dict[str, tuple[int, int]]) -> list[str]:
    """Say what is wrong with what is held: who was refused holds nothing, of the second limit neither."""
    wrong = []
    for line in each.asked[0].lines:
        need = NEED if line.unit == unit else 1
        if counters[line.counter] != (0, need * len(each.admitted)):
            wrong.append(f"{line.counter} is {counters[line.counter]} after {len(each.admitted)} holds of {need}")
    return wrong


async def _end(store: RedisStore, unit: str, played: list[Played]) -> None:
    """Settle all but the last of each cell at less than was held, and release the last."""
    calls = []
    for each in played:
        *settled, last = each.admitted
        costs = () if unit == Unit.CONCURRENCY else ((unit, COST),)
        counted = () if unit == Unit.REQUESTS else ((Unit.REQUESTS, 1),)
        calls += [_settle(request, (*costs, *counted)) for request in settled]
        calls.append(_settle(last, (), Resolution.RELEASE))
    replies = await asyncio.gather(*(store.settle(call) for call in calls))
    assert {reply.outcome for reply in replies} == {Outcome.SETTLED, Outcome.RELEASED}


async def _counters(store: RedisStore, played: list[Played]) -> dict[str, tuple[int, int]]:
    lines = [line for each in played for line in each.asked[0].lines]
    found = {}
    for first in range(0, len(lines), 500):
        snapshot = await store.balance(ROOT, lines[first : first + 500])
        found |= {balance.line.counter: (balance.spent, balance.held) for balance in snapshot.balances}
    return found


async def _outbox(store: RedisStore) -> list[OutboxEntry]:
    entries: list[OutboxEntry] = []
    while fresh := await store.read("matrix", 1000):
        await store.acknowledge(fresh)
        entries += fresh
    return entries


def _wrong_books(each: Played, unit: str, counters: dict[str, tuple[int, int]], entries: list[OutboxEntry]) -> list[str]:
    """Say where a counter, its ledger entries and what was settled disagree; nothing may be held any more."""
    own = {request.reservation_id for request in each.asked}
    settled = len(each.admitted) - 1
    wrong = []
    for line in each.asked[0].lines:
        cost = (0 if unit == Unit.CONCURRENCY else COST) if line.unit == unit else 1 if line.unit == Unit.REQUESTS else 0
        booked = sum(dict(entry.booked).get(line.unit, 0) for entry in entries if entry.reservation_id in own)
        if not counters[line.counter] == (booked, 0) == (cost * settled, 0):
            wrong.append(
                f"{line.counter} is {counters[line.counter]}, its entries sum up to {booked}, settled were {cost * settled}"
            )
    return wrong


def _wrong_events(played: list[Played], unit: str, mode: str, entries: list[OutboxEntry]) -> list[str]:
    """Say which thresholds of soft limits were not told once each: of 30 were spent 28, which is 93 %."""
    told = [json.loads(entry.entry_json) for entry in entries if entry.kind == "threshold"]
    found = sorted((event["counter"], event["percent"]) for event in told)
    fires = mode == Mode.SOFT and unit != Unit.CONCURRENCY
    expected = sorted((each.line.counter, percent) for each in played for percent in (50, 80) if fires)
    return [] if found == expected else [f"thresholds: {sorted(set(found) ^ set(expected))[:6]}, {len(found)} of {len(expected)}"]
