"""A network that loses answers and cuts connections: every call comes out exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sark_mw.errors import StoreUnavailableError
from sark_mw.reservation import Outcome
from tests.servers.fixtures import FreshValkey
from tests.servers.redis_server import RedisHandle
from tests.servers.tcp_proxy import TcpProxy
from tests.store.calls import Watch, another, budget, opened

Proxy = Callable[[str], Awaitable[TcpProxy]]
BOTH_WAYS = pytest.mark.parametrize("then_cut", [True, False], ids=["cut", "silent"])


@BOTH_WAYS
async def test_a_reserve_whose_answer_is_lost_holds_once(valkey_server: RedisHandle, tcp_proxy: Proxy, then_cut: bool) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with opened(proxy.url, deadline_s=4.0) as store:
        caller = await budget(store, 100)
        await caller.reserve("first")
        proxy.lose_answers(containing=b"EVALSHA", then_cut=then_cut)
        reply = await caller.reserve("second")
        assert proxy.answers_lost == 1
        assert (reply.outcome, reply.repeated) == (Outcome.HELD, True)
        assert reply.made_ms > 0
        assert await caller.counted() == (0, 20)


@BOTH_WAYS
async def test_a_settle_whose_answer_is_lost_books_once(valkey_server: RedisHandle, tcp_proxy: Proxy, then_cut: bool) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with opened(proxy.url, deadline_s=4.0) as store:
        caller = await budget(store, 100)
        made = [(await caller.reserve(name)).made_ms for name in ("first", "second")]
        await caller.settle("first", 7, made[0])
        proxy.lose_answers(containing=b"EVALSHA", then_cut=then_cut)
        reply = await caller.settle("second", 7, made[1])
        assert proxy.answers_lost == 1
        assert (reply.outcome, reply.repeated) == (Outcome.SETTLED, True)
        assert await caller.counted() == (14, 0)
        assert await caller.booked() == 14


async def test_a_whole_group_whose_answer_is_lost_is_decided_as_it_was(valkey_server: RedisHandle, tcp_proxy: Proxy) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with opened(proxy.url) as store:
        caller = await budget(store, 100)
        await caller.reserve("first", 50)
        proxy.lose_answers(containing=b"EVALSHA")
        replies = await asyncio.gather(*(caller.reserve(f"r{n}", 10) for n in range(8)))
        assert [reply.outcome for reply in replies] == [Outcome.HELD] * 5 + [Outcome.EXCEEDS_LIMIT] * 3
        assert await caller.counted() == (0, 100)


async def test_a_request_that_never_arrived_is_sent_again(valkey_server: RedisHandle, tcp_proxy: Proxy) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with opened(proxy.url) as store:
        caller = await budget(store, 100)
        await caller.reserve("first")
        proxy.lose_requests(containing=b"EVALSHA")
        reply = await caller.reserve("second")
        assert proxy.requests_lost == 1
        assert (reply.outcome, reply.repeated) == (Outcome.HELD, False)
        assert await caller.counted() == (0, 20)


async def test_an_answer_that_comes_after_the_deadline_is_nobody_elses(valkey_server: RedisHandle, tcp_proxy: Proxy) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with (
        opened(valkey_server.url) as direct,
        opened(proxy.url, deadline_s=0.1, max_connections=1, breaker_threshold=1_000_000) as store,
    ):
        patient = await budget(direct, 1_000)
        caller = await another(patient, store)
        await caller.reserve("first")
        proxy.stall()
        with pytest.raises(StoreUnavailableError):
            await caller.reserve("second", 100)
        with pytest.raises(StoreUnavailableError):
            await caller.counted()
        proxy.resume()
        store._commands.deadline_s = 20.0
        replies = [await caller.reserve(f"r{n}") for n in range(5)]
        assert [reply.reservation_id for reply in replies] == [f"r{n}" for n in range(5)]
        assert all(reply.outcome is Outcome.HELD for reply in replies)
        assert (await caller.release("second")).outcome is Outcome.RELEASED
        assert await caller.counted() == (0, 60)


async def test_connections_cut_in_the_middle_of_traffic_cost_nobody_anything(
    valkey_server: RedisHandle, tcp_proxy: Proxy
) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with opened(proxy.url, breaker_threshold=1_000_000) as store:
        caller = await budget(store, 500)

        async def spend(number: int) -> bool:
            await asyncio.sleep(number % 40 / 200)
            reply = await caller.reserve(f"r{number}", 10)
            if reply.admitted:
                await caller.settle(f"r{number}", 10, reply.made_ms)
            return reply.admitted

        async def cut() -> None:
            for _ in range(40):
                await asyncio.sleep(0.005)
                proxy.cut()

        admitted, _ = await asyncio.gather(asyncio.gather(*(spend(n) for n in range(200))), cut())
        assert proxy.connections > 10
        assert sum(admitted) == 50
        assert await caller.counted() == (500, 0)
        assert await caller.booked() == 500


async def test_the_outbox_gives_again_what_was_read_and_lost_on_the_way(valkey_server: RedisHandle, tcp_proxy: Proxy) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with opened(proxy.url) as store:
        caller = await budget(store, 100)
        for name in ("a", "b"):
            await caller.settle(name, 3, (await caller.reserve(name)).made_ms)
        first = await store.read("me", 1)
        await store.acknowledge(first)
        proxy.lose_answers(containing=b"XREADGROUP")
        second = await store.read("me", 10)
        assert proxy.answers_lost == 1
        assert [entry.reservation_id for entry in (*first, *second)] == ["a", "b"]
        assert await store.read("me", 10) == []
        proxy.lose_answers(containing=b"XACK")
        await store.acknowledge(second)
        assert await store.backlog() == 0
        assert await store.reclaim("me", 0, 10) == []


async def test_what_one_shard_gave_is_given_again_when_the_read_of_another_failed(
    fresh_valkey: FreshValkey,
) -> None:
    server = fresh_valkey()
    async with opened(server.url, deadline_s=0.3) as store:
        callers = {store.shard_of(root): await budget(store, 100, root) for root in ("acme", "b", "c", "d", "e", "f")}
        assert sorted(callers) == [0, 1]
        for shard, caller in callers.items():
            await caller.reserve(f"r{shard}")
            await caller.release(f"r{shard}")
        healthy = store.keys_of(1).outbox
        server.command("RENAME", healthy, "elsewhere")
        server.command("SET", healthy, "in the way")
        with pytest.raises(StoreUnavailableError):
            await store.read("me", 10)
        server.command("RENAME", "elsewhere", healthy)
        assert [entry.reservation_id for entry in await store.read("me", 10)] == ["r0", "r1"]
        assert await store.read("me", 10) == []


async def test_five_hundred_calls_in_flight_share_two_connections(valkey_server: RedisHandle) -> None:
    watch = Watch()
    async with opened(valkey_server.url, shards=256, max_connections=2, observer=watch) as store:
        await store.begin()
        tables = await asyncio.gather(*(store.limits(f"root-{n}") for n in range(500)))
        assert len({table.epoch for table in tables}) > 100
        assert set(watch.outcomes("limits")) == {"ok"}
        listed = valkey_server.command("CLIENT", "LIST")
        clients = listed if isinstance(listed, list) else str(listed).splitlines()
        assert sum("sark-mw" in str(client) for client in clients) == 2
