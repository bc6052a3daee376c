"""Reconciling: what differs from the ledger is found, exactly, and mended while requests go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sark_mw._memory_store import ManualClock
from sark_mw.enforcement.grants import Why
from sark_mw.enforcement.reconcile import Reconciled, Reconciler, Reconciliation
from sark_mw.ledger.events import EventFilter
from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.reservation import Outcome
from sark_mw.sark import Sark
from tests.conformance.clocks import fakeredis_time
from tests.enforcement.whole import ALICE, TEAM, counted, settings_for

WHY = Why(actor="ops", reason="incident 7")
LIMITS = (
    {"scope": TEAM, "amount": "100", "window": "total"},
    {"scope": TEAM, "amount": 1000, "unit": "requests", "window": "month", "timezone": "Europe/Berlin"},
    {"scope": "user:*", "amount": "50", "window": "day", "timezone": "America/New_York"},
    {"scope": "user:*", "amount": 1000, "unit": "requests", "window": "rolling:60"},
    {"scope": TEAM, "amount": 50, "unit": "concurrency"},
)


@pytest.fixture(params=["fakeredis", "valkey"])
def url(request: pytest.FixtureRequest) -> str:
    return f"memory://{uuid4().hex}" if request.param == "fakeredis" else request.getfixturevalue("valkey_server").url


@pytest.fixture
async def sark(url: str, tmp_path: Path) -> AsyncIterator[Sark]:
    settings = settings_for(url, tmp_path, limits=LIMITS, ledger={"flush_interval_ms": 10})
    async with Sark.open(settings) as sark:
        yield sark


def reconciler(sark: Sark, **options: Any) -> Reconciler:
    options = {"drain": sark.flusher.flush_once, **options}
    return Reconciler(sark.store, sark.ledger, limits=sark.limits, clock=sark.clock, **options)


async def spend(sark: Sark, times: int, cost: str = "0.25", principal: str = ALICE) -> None:
    for _ in range(times):
        async with sark.reserve(principal=principal, scopes=[TEAM], estimate=Decimal(cost)) as reservation:
            reservation.settle(Decimal(cost))
    while sark.settler.pending:
        await asyncio.sleep(0.001)


async def tamper(sark: Sark, counter: str, change: int) -> None:
    """Change what a counter has spent behind everybody's back."""
    shard = sark.store.shard_of(DEFAULT_ROOT)
    await sark.store._commands.client.hincrby(sark.store.keys_of(shard).spent, counter, change)


def named(found: Reconciliation, limit_id: str) -> Reconciled:
    (one,) = [each for each in found.counters if each.line.limit and each.line.limit.limit_id == limit_id]
    return one


async def test_all_that_can_be_compared_agrees_and_the_rest_is_named_with_why(sark: Sark) -> None:
    await spend(sark, 3)
    found = await reconciler(sark).run(DEFAULT_ROOT)
    told = {(each.line.scope, each.line.unit, each.spent, each.ledger) for each in found.counters}
    assert told == {
        (TEAM, "usd", 750_000_000, 750_000_000),
        (TEAM, "requests", 3, 3),
        (ALICE, "usd", 750_000_000, 750_000_000),
    }
    assert found.balanced and all(each.settled for each in found.counters)
    assert {each.limit_id for each in found.not_compared} == {"user:*/requests/rolling:60", f"{TEAM}/concurrency/total"}


async def test_what_was_tampered_with_is_found_exactly_and_mended_with_who_and_why(sark: Sark) -> None:
    await spend(sark, 2)
    before = await reconciler(sark).run(DEFAULT_ROOT)
    pattern = named(before, "user:*/usd/day@America/New_York")
    await tamper(sark, pattern.line.counter, 123)
    found = await reconciler(sark).run(DEFAULT_ROOT)
    assert [(each.line.counter, each.drift) for each in found.counters if each.drift] == [(pattern.line.counter, 123)]
    assert not found.balanced
    mended = await reconciler(sark).run(DEFAULT_ROOT, WHY)
    assert named(mended, "user:*/usd/day@America/New_York").outcome is Outcome.REPAIRED and mended.balanced
    after = await reconciler(sark).run(DEFAULT_ROOT)
    assert after.balanced and not any(each.drift for each in after.counters)
    (recorded,) = await sark.limits.history(EventFilter(kinds=("repair",)))
    event = recorded.event
    assert (event.actor, event.reason, event.amount, event.scope) == ("ops", "incident 7", -123, ALICE)
    assert (event.counter, event.limit_id) == (pattern.line.counter, "user:*/usd/day@America/New_York")


async def test_a_counter_that_was_lost_is_found_by_the_ledger_and_comes_back(sark: Sark) -> None:
    await spend(sark, 2)
    for each in (await reconciler(sark).run(DEFAULT_ROOT)).counters:
        shard = sark.store.shard_of(DEFAULT_ROOT)
        await sark.store._commands.client.hdel(sark.store.keys_of(shard).spent, each.line.counter)
    found = await reconciler(sark).run(DEFAULT_ROOT, WHY)
    assert sorted(each.drift for each in found.counters) == [-500_000_000, -500_000_000, -2]
    assert [each.drift for each in (await reconciler(sark).run(DEFAULT_ROOT)).counters] == [0, 0, 0]
    assert await counted(sark) == (500_000_000, 0)


async def test_a_repair_holds_while_requests_go_on(sark: Sark) -> None:
    stop = asyncio.Event()

    async def keep_spending() -> int:
        times = 0
        while not stop.is_set():
            await spend(sark, 1, "0.001")
            times += 1
        return times

    task = asyncio.ensure_future(keep_spending())
    first = await reconciler(sark).run(DEFAULT_ROOT)
    counter = named(first, f"{TEAM}/usd/total").line.counter
    for change in (7_000, -5_000, 11):
        await tamper(sark, counter, change)
        found = await reconciler(sark).run(DEFAULT_ROOT, WHY)
        assert named(found, f"{TEAM}/usd/total").drift == change and found.balanced
        await spend(sark, 1, "0.001")
    stop.set()
    times = await task + 3
    after = named(await reconciler(sark).run(DEFAULT_ROOT), f"{TEAM}/usd/total")
    assert after.spent == after.ledger == times * 1_000_000


async def test_two_repairs_at_once_do_not_overshoot(sark: Sark) -> None:
    await spend(sark, 2)
    counter = named(await reconciler(sark).run(DEFAULT_ROOT), f"{TEAM}/usd/total").line.counter
    await tamper(sark, counter, 1_000)
    found = await asyncio.gather(*(reconciler(sark).run(DEFAULT_ROOT, WHY) for _ in range(4)))
    assert [each.outcome for one in found for each in one.counters if each.outcome] == [Outcome.REPAIRED]
    assert all(one.balanced for one in found)
    assert await counted(sark) == (500_000_000, 0)
    assert len(await sark.limits.history(EventFilter(kinds=("repair",)))) == 1


async def test_a_ledger_that_does_not_catch_up_is_told_and_nothing_is_mended(url: str, tmp_path: Path) -> None:
    settings = settings_for(url, tmp_path, limits=LIMITS, ledger={"flush": False})
    async with Sark.open(settings) as sark:
        await spend(sark, 1)
        found = await reconciler(sark, drain=None, patience_s=0.0).run(DEFAULT_ROOT, WHY)
        assert not found.balanced and {each.settled for each in found.counters} == {False}
        assert await counted(sark) == (250_000_000, 0)
        assert (await reconciler(sark).run(DEFAULT_ROOT)).balanced


async def test_counters_of_a_dropped_limit_are_named_and_left_alone(sark: Sark) -> None:
    await spend(sark, 1)
    await sark.limits.drop(DEFAULT_ROOT, f"{TEAM}/usd/total")
    await spend(sark, 1)
    found = await reconciler(sark).run(DEFAULT_ROOT)
    assert found.balanced
    gone = {each.limit_id: (each.why, each.counters) for each in found.not_compared if each.counters}
    assert gone == {f"{TEAM}/usd/total": ("no limit in force counts on it any more", 1)}


async def test_a_pattern_counts_on_where_an_exact_limit_decides(sark: Sark) -> None:
    await spend(sark, 1)
    await sark.limits.set(Limit(scope=ALICE, amount=Decimal(60), window="day", timezone="America/New_York"))
    await asyncio.sleep(0.01)
    await spend(sark, 1)
    found = await reconciler(sark).run(DEFAULT_ROOT)
    assert found.balanced and named(found, f"{ALICE}/usd/day@America/New_York").spent == 250_000_000
    await sark.limits.drop(DEFAULT_ROOT, f"{ALICE}/usd/day@America/New_York")
    found = await reconciler(sark).run(DEFAULT_ROOT)
    assert found.balanced
    assert [each.spent for each in found.counters if "<user:*" in each.line.counter and each.line.unit == "usd"] == [500_000_000]


async def test_periods_that_ended_are_compared_while_their_counters_are_kept(tmp_path: Path) -> None:
    clock = ManualClock(1_792_000_000_123)
    limits = (
        {"scope": TEAM, "amount": "100", "window": "day", "timezone": "Europe/Berlin"},
        {"scope": "user:*", "amount": 1000, "unit": "requests", "window": "hour"},
    )
    async with AsyncExitStack() as stack:
        stack.enter_context(fakeredis_time(clock))
        settings = settings_for(f"memory://{uuid4().hex}", tmp_path, limits=limits, ledger={"flush": False})
        sark = await stack.enter_async_context(Sark.open(settings))
        clock.advance(5)
        await spend(sark, 2)
        yesterday = {each.line.counter for each in (await reconciler(sark).run(DEFAULT_ROOT)).counters}
        clock.advance(24 * 3_600_000)
        await sark.tables.reload(DEFAULT_ROOT)
        await spend(sark, 1)
        found = await reconciler(sark).run(DEFAULT_ROOT)
        assert found.balanced and yesterday < {each.line.counter for each in found.counters} and len(found.counters) == 4
        (ended,) = [each for each in found.counters if each.line.counter in yesterday and each.line.unit == "usd"]
        assert ended.spent == 500_000_000
        await tamper(sark, ended.line.counter, 9)
        assert [each.drift for each in (await reconciler(sark).run(DEFAULT_ROOT, WHY)).counters if each.drift] == [9]
        assert not any(each.drift for each in (await reconciler(sark).run(DEFAULT_ROOT)).counters)


async def test_scopes_with_odd_names_are_told_from_their_counters(sark: Sark) -> None:
    odd = "user:a b|c%<d>/usd/day"
    await sark.limits.set(Limit(scope="user:*", amount=Decimal(9), window="total"))
    await asyncio.sleep(0.01)
    await spend(sark, 1, "0.5", principal=odd)
    found = await reconciler(sark).run(DEFAULT_ROOT)
    assert found.balanced and {each.line.scope for each in found.counters} == {odd, TEAM}
