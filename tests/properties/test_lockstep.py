"""The Lua scripts answer as the executable specification does, whatever is done to both, with one clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import is_dataclass, replace
from typing import Any

import pytest
from hypothesis.stateful import invariant, rule

from sark_mw.reservation import ExtendReply, ReserveReply, SettleReply
from sark_mw.store.base import LimitTable, OutboxEntry, Snapshot
from sark_mw.store.connect import open_store
from tests.conformance.clocks import fakeredis_time
from tests.properties.driving import RETENTION_MS, ROOT, Call, budgeted, in_other_epoch, one_call
from tests.properties.granting import Granting


class Lockstep(Granting):
    """A memory store and the Lua store on fakeredis, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        self.patches.enter_context(fakeredis_time(self.clock))
        self.lua = self.run(open_store("memory://", shards=1, retention_ms=RETENTION_MS, deadline_s=60.0))
        self.epochs: dict[str, str] = {}

    def teardown(self) -> None:
        self.run(self.lua.aclose())
        self.patches.close()
        super().teardown()

    def perform(self, calls: list[Call]) -> list[Any]:
        async def together(store: Any, own: list[Call]) -> list[Any]:
            return await asyncio.gather(*(one_call(store, call) for call in own))

        expected = self.run(together(self.store, calls))
        found = self.run(together(self.lua, [in_other_epoch(call, self.epochs) for call in calls]))
        assert [plain(reply) for reply in found] == [plain(reply) for reply in expected], calls
        return expected

    def change(self, act: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        expected, found = super().change(act), self.run(act(self.lua))
        if isinstance(expected, str):
            self.epochs[expected] = found
        else:
            ours, theirs = plain(found), plain(expected)
            assert ours == theirs, different(ours, theirs)
        return expected

    @rule()
    def lose_and_rebuild(self) -> None:
        """Redis is restarted empty; both are rebuilt from what the ledger knows."""
        limits = self.change(lambda store: store.limits(ROOT)).limits
        self.read_outbox()
        counters, resolved, last_seq = self.what_the_ledger_knows()
        self.store.lose_data()
        self.run(self.lua._commands.client.flushall())
        grants = self.grants_in_the_ledger()
        self.change(lambda store: store.restore(0, limits, counters, last_seq, resolved, grants=grants))

    @invariant()
    def counters_agree(self) -> None:
        """Compare every counter that was ever touched; not right after the clock moved, since to look is to sweep."""
        if self.table and not self.moved_clock:
            lines = list(self.lines.values())
            self.change(lambda store: store.balance(ROOT, lines))
            self.store.assert_invariants()
            self.read_outbox()

    def read_outbox(self) -> None:
        """Compare the entries that came since."""

        async def take(store: Any) -> list[OutboxEntry]:
            entries: list[OutboxEntry] = []
            while fresh := await store.read("ledger", 50):
                await store.acknowledge(fresh)
                entries += fresh
            # What a call tells of limits may come before or after what it books.
            events = {entry.reservation_id: entry for entry in entries if not entry.shard_seq}
            return [*(entry for entry in entries if entry.shard_seq), *(events[name] for name in sorted(events))]

        self.change(take)


def different(found: Any, expected: Any) -> Any:
    """Name what differs: of two lists, the members that only one has."""
    if isinstance(found, list) and isinstance(expected, list):
        return [each for each in found if each not in expected], [each for each in expected if each not in found]
    if isinstance(found, Snapshot) and isinstance(expected, Snapshot):
        pairs = zip(found.balances, expected.balances, strict=True)
        return found.seq, expected.seq, [pair for pair in pairs if pair[0] != pair[1]]
    return found, expected


def plain(answer: Any) -> Any:
    """Take off an answer what two stores may differ in: names they make up, and the order of units."""
    if isinstance(answer, list):
        return [plain(each) for each in answer]
    if isinstance(answer, OutboxEntry):
        booked = tuple(sorted((unit, amount) for unit, amount in answer.booked if amount))
        # Of a group of calls the scripts tell once, with what was spent after the last of them.
        told = {name: each for name, each in json.loads(answer.entry_json).items() if answer.shard_seq or name != "spent"}
        entry = json.dumps(told, sort_keys=True)
        return replace(answer, stream_id="", epoch="", booked=booked, entry_json=entry)
    if isinstance(answer, (Snapshot, LimitTable)):
        return replace(answer, epoch="")
    if isinstance(answer, SettleReply):
        return replace(answer, overrun=tuple(sorted(answer.overrun)))
    assert not is_dataclass(answer) or isinstance(answer, (ReserveReply, ExtendReply))
    return answer


TestLockstep = pytest.mark.fakeredis(Lockstep.TestCase)
TestLockstep.settings = budgeted(examples=100, steps=40)
