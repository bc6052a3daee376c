"""Changes of limits: many at once, by many at once, given up without a trace, and none that stops the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sark_mw.enforcement.changes import changes_between
from sark_mw.enforcement.delegation import check_delegation
from sark_mw.errors import ConfigurationError, LimitsChangedError
from sark_mw.ledger.events import EventFilter, LimitEvent
from sark_mw.limit import Limit
from sark_mw.limit_index import LimitIndex
from sark_mw.sark import Sark
from tests.enforcement.whole import settings_for

MANY = 1_200


def day(scope: str, amount: str = "1", **fields: Any) -> Limit:
    return Limit(scope=scope, amount=Decimal(amount), **fields)


@pytest.fixture
async def sark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sark]:
    monkeypatch.setattr("sark_mw.enforcement.limits._PAUSE_S", 0)
    async with Sark.open(settings_for(f"memory://{uuid4().hex}", tmp_path, budget=None)) as opened:
        yield opened


async def test_a_change_that_was_given_up_leaves_nothing_in_the_database(sark: Sark, monkeypatch: pytest.MonkeyPatch) -> None:
    await sark.limits.set(day("user:old", "1"))

    async def overtaken(*_: object) -> None:
        return None

    monkeypatch.setattr(sark.store, "change_limits", overtaken)
    with pytest.raises(LimitsChangedError, match="nothing was changed: repeat"):
        await sark.limits.set(day("user:old", "2"), day("user:new"))
    assert {limit.scope: limit.amount for limit in await sark.ledger.load_limits()} == {"user:old": 1}
    assert len(await sark.limits.history(EventFilter(kinds=("set",)))) == 1


async def test_changes_of_one_root_in_one_process_take_turns(sark: Sark, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, change = 0, sark.store.change_limits

    async def counted(*words: Any) -> Any:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return await change(*words)

    monkeypatch.setattr(sark.store, "change_limits", counted)
    await asyncio.gather(*(sark.limits.set(day(f"user:{n}")) for n in range(60)))
    assert (asked, len(await sark.limits.list()), len(await sark.ledger.load_limits())) == (60, 60, 60)


async def test_others_that_change_other_limits_all_the_time_do_not_keep_a_change_from_being_saved(
    sark: Sark, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = sark.ledger.save_limits
    others = iter(range(1000))

    async def saved(put: Any, drop: Any) -> None:
        await save(put, drop)
        if any(limit.since_ms for limit in put):  # what is in force: in between somebody sets another limit
            await sark.store.set_limits("default", [day(f"user:other-{next(others)}")])

    monkeypatch.setattr(sark.ledger, "save_limits", saved)
    await sark.limits.set(day("user:al"))
    assert next(others) == 1


def test_many_limits_are_compared_without_comparing_each_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def counting(one: Limit, other: object) -> bool:
        nonlocal compared
        compared += 1
        return one is other

    in_force = [day(f"user:{n}", "1" if n % 2 else "2") for n in range(MANY)]
    wanted = [day(f"user:{n}") for n in range(2 * MANY)]
    monkeypatch.setattr(Limit, "__eq__", counting)
    changes = changes_between(in_force, wanted, prune=True)
    assert (len(changes.put), len(changes.replaced), len(changes.unchanged)) == (MANY * 3 // 2, MANY // 2, MANY // 2)
    assert compared == 0


@pytest.mark.parametrize("circle", [False, True])
def test_a_long_chain_of_parents_is_checked_by_looking_at_each_once(monkeypatch: pytest.MonkeyPatch, circle: bool) -> None:
    looked: list[str] = []
    on = LimitIndex.on

    def counting(index: LimitIndex, scope: str) -> list[Limit]:
        looked.append(scope)
        return on(index, scope)

    monkeypatch.setattr(LimitIndex, "on", counting)
    chain = [day(f"team:{n}", overcommit=True, parent=f"team:{n + 1}") for n in range(MANY)]
    top = day(f"team:{MANY}", overcommit=True, parent=f"team:{MANY // 2}" if circle else "")
    if circle:
        with pytest.raises(ConfigurationError, match=f"circle: .*team:{MANY} -> team:{MANY // 2}"):
            check_delegation([*chain, top])
    else:
        check_delegation([*chain, top])
    assert len(looked) == len(set(looked)) == MANY


def test_the_parts_of_many_parents_are_each_added_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0

    def counting(limit: Limit) -> bool:
        nonlocal looked
        looked += 1
        return limit.scope.endswith("*")

    monkeypatch.setattr(Limit, "is_pattern", property(counting))
    wholes = [day(f"team:{n}") for n in range(MANY)]
    parts = [day(f"user:{n}", parent=f"team:{n}") for n in range(MANY)]
    check_delegation([*wholes, *parts])
    assert looked <= 6 * MANY


async def test_many_limits_are_checked_beside_the_loop(sark: Sark, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def noting(limits: Any) -> None:
        threads.append(threading.current_thread() is threading.main_thread())

    for module in ("limits", "changes"):
        monkeypatch.setattr(f"sark_mw.enforcement.{module}.check_delegation", noting)
    await sark.limits.set(*(day(f"user:{n}") for n in range(3)))
    await sark.limits.set(*(day(f"user:{n}") for n in range(MANY)))
    await sark.limits.plan("default", [], prune=True)
    assert threads == [True, False, False]


async def test_many_changes_are_told_with_turns_for_others_in_between(sark: Sark, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, told_at, recorded = 0, list[int](), list[int]()
    record = sark.ledger.record_new

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def recording(events: Any) -> list[LimitEvent]:
        recorded.append(len(events))
        return await record(events)

    monkeypatch.setattr(sark.limits, "_on_event", lambda event: told_at.append(turns))
    monkeypatch.setattr(sark.ledger, "record_new", recording)
    busy = asyncio.ensure_future(others())
    await sark.limits.set(*(day(f"user:{n}") for n in range(MANY)))
    busy.cancel()
    assert len(told_at) == MANY and len(set(told_at)) >= MANY // 100
    assert max(recorded) <= 500 and sum(recorded) == MANY


async def test_limits_of_many_roots_are_sorted_once(sark: Sark) -> None:
    await sark.limits.set(*(day("user:al", root=f"root-{n}") for n in range(20)))
    assert len(await sark.limits.roots()) == 20
