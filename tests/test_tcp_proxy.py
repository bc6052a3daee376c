"""The faulty network between a client and a real server does exactly what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
import redis.exceptions
from redis.asyncio import Redis

from tests.servers.redis_server import RedisHandle
from tests.servers.tcp_proxy import TcpProxy

StartProxy = Callable[[str], Awaitable[TcpProxy]]
SPEND = "return redis.call('HINCRBY', KEYS[1], 'spent', ARGV[1])"


async def test_the_answer_is_lost_after_the_server_has_executed(tcp_proxy: StartProxy, valkey_server: RedisHandle) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with Redis.from_url(proxy.url) as direct:
        sha = await direct.script_load(SPEND)
    handle = RedisHandle(proxy.url)
    async with handle.client() as client:
        proxy.lose_answers(containing=b"evalsha")
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.evalsha(sha, 1, "sark:{0}", 5)
        assert (proxy.answers_lost, valkey_server.command("HGET", "sark:{0}", "spent")) == (1, "5")
        assert await client.evalsha(sha, 1, "sark:{0}", 5) == 10


async def test_the_lost_answer_can_be_silence(tcp_proxy: StartProxy, valkey_server: RedisHandle) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with RedisHandle(proxy.url).client(socket_timeout=0.2) as client:
        proxy.lose_answers(containing=b"INCR", then_cut=False)
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.incr("spent")
        assert await client.incr("spent") == 2


async def test_a_lost_request_is_never_executed(tcp_proxy: StartProxy, valkey_server: RedisHandle) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with RedisHandle(proxy.url).client() as client:
        proxy.lose_requests(containing=b"INCR")
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.incr("spent")
        assert (proxy.requests_lost, valkey_server.command("EXISTS", "spent")) == (1, 0)


async def test_a_stalled_network_delivers_later(tcp_proxy: StartProxy, valkey_server: RedisHandle) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with RedisHandle(proxy.url).client() as client:
        await client.ping()
        proxy.stall()
        answer = asyncio.ensure_future(client.incr("spent"))
        done, _ = await asyncio.wait([answer], timeout=0.05)
        assert not done
        proxy.resume()
        assert await answer == 1


async def test_a_slow_network_delays_answers(tcp_proxy: StartProxy, valkey_server: RedisHandle) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with RedisHandle(proxy.url).client(socket_timeout=0.05) as client:
        await client.ping()
        proxy.delay_s = 30
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.ping()


async def test_cut_connections_are_replaced_and_refused_ones_are_not(tcp_proxy: StartProxy, valkey_server: RedisHandle) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with RedisHandle(proxy.url).client() as client:
        await client.ping()
        proxy.refuse()
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.ping()
        proxy.resume()
        assert await client.ping()
        before = proxy.connections
        proxy.cut()
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.ping()
        assert await client.ping()
        assert proxy.connections == before + 1


async def test_the_proxy_stands_before_postgres_too(tcp_proxy: StartProxy, postgres_url: str) -> None:
    proxy = await tcp_proxy(postgres_url)
    connection = await asyncpg.connect(proxy.url)
    await connection.execute("create table entry (id int primary key)")
    proxy.lose_answers(containing=b"commit")
    await connection.execute("begin")
    await connection.execute("insert into entry values (1)")
    with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
        await connection.execute("commit")
    connection.terminate()
    again = await asyncpg.connect(proxy.url)
    assert await again.fetchval("select count(*) from entry") == 1
    await again.close()
