"""Groups of calls: what goes into one script call, its bounds, and what they never do to anybody's decision."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sark_mw.limit import Limit
from sark_mw.reservation import Outcome, Settle
from sark_mw.store.redis_store import MAX_GROUP, MAX_LINES
from tests.servers.redis_server import RedisHandle
from tests.store.calls import ROOT, Watch, another, budget, opened, reserve_of, synthetic


async def test_two_stores_with_two_hundred_calls_on_a_budget_for_fifty_admit_exactly_fifty(valkey_server: RedisHandle) -> None:
    async with opened(valkey_server.url) as one, opened(valkey_server.url) as two:
        first = await budget(one, 500)
        second = await another(first, two)
        replies = await asyncio.gather(*((first, second)[n % 2].reserve(f"r{n}", 10) for n in range(200)))
        assert sum(reply.admitted for reply in replies) == 50
        assert {reply.outcome for reply in replies} == {Outcome.HELD, Outcome.EXCEEDS_LIMIT}
        assert await first.counted() == (0, 500)
        left = sorted(reply.balances[0].remaining for reply in replies if reply.admitted)
        assert left == list(range(0, 500, 10))


async def test_one_turns_reservations_go_in_one_call_of_at_most_64(valkey_server: RedisHandle) -> None:
    watch = Watch()
    async with opened(valkey_server.url, observer=watch) as store:
        caller = await budget(store, 1_000_000)
        await asyncio.gather(*(caller.reserve(f"r{n}") for n in range(150)))
        assert [items for name, _, items in watch.calls if name == "reserve"] == [64, 64, 22]


async def test_a_group_is_split_where_requests_were_made_from_other_limits(valkey_server: RedisHandle) -> None:
    watch = Watch()
    async with opened(valkey_server.url, observer=watch) as store:
        old = await budget(store, 1_000)
        new = await budget(store, 20)
        assert new.table.version == old.table.version + 1
        asked = zip("abcdef", (old, new, new, old, new, new), strict=True)
        replies = await asyncio.gather(*(caller.reserve(name) for name, caller in asked))
        stale, held, exceeds = Outcome.STALE_LIMITS, Outcome.HELD, Outcome.EXCEEDS_LIMIT
        assert [reply.outcome for reply in replies] == [stale, held, held, stale, exceeds, exceeds]
        assert [items for name, _, items in watch.calls if name == "reserve"] == [1, 2, 1, 2]


async def test_requests_that_say_different_things_of_one_counter_never_share_a_call(valkey_server: RedisHandle) -> None:
    watch = Watch()
    async with opened(valkey_server.url, observer=watch) as store:
        caller = await budget(store, 1_000)
        (line,) = caller.lines
        tighter = (replace(line, amount=25),)
        replies = await asyncio.gather(
            caller.reserve("a"),
            store.reserve(reserve_of("b", tighter, caller.table)),
            store.reserve(reserve_of("c", tighter, caller.table)),
            caller.reserve("d"),
        )
        assert [reply.admitted for reply in replies] == [True, True, False, True]
        assert [items for name, _, items in watch.calls if name == "reserve"] == [1, 2, 1]
        assert await caller.counted() == (0, 30)


async def test_a_call_carries_no_more_than_512_distinct_lines_and_one_request_may_have_more(valkey_server: RedisHandle) -> None:
    watch = Watch()
    async with opened(valkey_server.url, observer=watch) as store:
        caller = await budget(store, 1_000)
        sets = [synthetic(200, f"set-{n}") for n in range(5)]
        requests = [reserve_of(f"r{n}", lines, caller.table) for n, lines in enumerate(sets)]
        requests.append(reserve_of("large", synthetic(MAX_LINES + 1, "large"), caller.table))
        replies = await asyncio.gather(*(store.reserve(request) for request in requests))
        assert all(reply.outcome is Outcome.HELD for reply in replies)
        assert [items for name, _, items in watch.calls if name == "reserve"] == [2, 2, 1, 1]
        assert {balance.held for reply in replies for balance in reply.balances} == {10}


@pytest.mark.parametrize("width", [12, 64])
async def test_a_full_group_of_requests_without_a_line_in_common_is_held_and_booked_whole(
    valkey_server: RedisHandle, width: int
) -> None:
    """Lua cannot unpack 8,000 words: 64 requests of 64 lines touch 4,096 counters, each with its name and its amount."""
    async with opened(valkey_server.url, shards=1) as store:
        caller = await budget(store, 1_000)
        sets = [synthetic(width, f"set-{n}") for n in range(MAX_GROUP)]
        held = await asyncio.gather(*(store.reserve(reserve_of(f"r{n}", lines, caller.table)) for n, lines in enumerate(sets)))
        assert all(reply.admitted for reply in held)
        settles = [
            Settle(reservation_id=f"r{n}", root=ROOT, lines=lines, amounts=(("usd", 7),), made_ms=held[n].made_ms)
            for n, lines in enumerate(sets)
        ]
        replies = await asyncio.gather(*(store.settle(settle) for settle in settles))
        assert {reply.outcome for reply in replies} == {Outcome.SETTLED}
        for lines in sets:
            counted = await store.balance(ROOT, lines)
            assert {(balance.spent, balance.held) for balance in counted.balances} == {(7, 0)}
        assert await caller.booked() == 7 * MAX_GROUP


async def test_dead_holds_without_a_line_in_common_are_swept_whole(valkey_server: RedisHandle) -> None:
    async with opened(valkey_server.url, shards=1) as store:
        caller = await budget(store, 1_000)
        sets = [synthetic(64, f"set-{n}") for n in range(MAX_GROUP)]
        requests = [reserve_of(f"r{n}", lines, caller.table, lease_ms=1) for n, lines in enumerate(sets)]
        await asyncio.gather(*(store.reserve(request) for request in requests))
        while await caller.store.sweep():
            await asyncio.sleep(0)
        for lines in sets:
            counted = await store.balance(ROOT, lines)
            assert {(balance.spent, balance.held) for balance in counted.balances} == {(4, 0)}


async def test_one_request_with_ten_thousand_lines_is_held_and_booked_whole(valkey_server: RedisHandle) -> None:
    async with opened(valkey_server.url) as store:
        caller = await budget(store, 1_000)
        lines = synthetic(10_000)
        reply = await store.reserve(reserve_of("a", lines, caller.table))
        assert {balance.held for balance in (await store.balance(ROOT, lines)).balances} == {10}
        await store.settle(Settle(reservation_id="a", root=ROOT, lines=lines, amounts=(("usd", 7),), made_ms=reply.made_ms))
        counted = (await store.balance(ROOT, lines)).balances
        assert {(balance.spent, balance.held) for balance in counted} == {(7, 0)}


async def test_two_hundred_dead_holds_refuse_nobody(valkey_server: RedisHandle) -> None:
    async with opened(valkey_server.url) as store:
        caller = await budget(store, 2_000)
        dead = await asyncio.gather(*(caller.reserve(f"dead-{n}", 10, expected=0, lease_ms=1) for n in range(200)))
        assert all(reply.admitted for reply in dead)
        while (await store.limits(ROOT)).at_ms <= max(reply.at_ms for reply in dead) + 1:  # reading limits sweeps nothing
            await asyncio.sleep(0)
        replies = await asyncio.gather(*(caller.reserve(f"r{n}", 10) for n in range(200)))
        assert all(reply.admitted for reply in replies)
        assert await caller.counted() == (0, 2_000)


async def test_thousands_of_shards_can_be_begun_within_the_usual_deadline_of_each_call(valkey_server: RedisHandle) -> None:
    async with opened(valkey_server.url, shards=3_000, deadline_s=0.5) as store:
        assert len(await store.lost_shards()) == 3_000


async def test_limits_set_by_one_store_make_the_other_read_them_anew(valkey_server: RedisHandle) -> None:
    async with opened(valkey_server.url) as one, opened(valkey_server.url) as two:
        first = await budget(one, 100)
        second = await another(first, two)
        await one.set_limits(ROOT, put=[Limit(scope="team:ml", unit="usd", amount=0, window="total", root=ROOT)])
        reply = await second.reserve("a")
        assert reply.outcome is Outcome.STALE_LIMITS
        assert reply.balances == ()
