"""Every kind of address that a store may have; each is used for a whole life: limits, hold, settle, outbox."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.exceptions import MaxConnectionsError

from sark_mw.errors import ConfigurationError, StoreUnavailableError
from sark_mw.store.connect import open_store
from tests.servers.cluster import ValkeyCluster
from tests.servers.fixtures import FreshValkey
from tests.servers.redis_server import RedisHandle, RedisServer
from tests.servers.sentinel import ValkeySentinel
from tests.servers.tls import TlsRedisServer
from tests.store.calls import Watch, budget, opened


@pytest.fixture
def refused_by_the_pool(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hear of every time that a pool of redis-py refused a connection for having too many."""
    heard: list[str] = []

    def init(self: MaxConnectionsError, *words: object) -> None:
        heard.append("refused")
        super(MaxConnectionsError, self).__init__(*words)

    monkeypatch.setattr(MaxConnectionsError, "__init__", init)
    return heard


async def live_once(url: str, **options: object) -> None:
    """Hold, settle and read the outbox in two ways."""
    async with opened(url, **options) as store:
        caller = await budget(store, 100)
        assert await caller.outbox() == []  # there is no stream, and no group, yet
        for name in ("a", "b"):
            reply = await caller.reserve(name)
            await caller.settle(name, 7, reply.made_ms)
        await caller.release("c")
        assert await caller.counted() == (14, 0)
        first = await store.read("me", 1)
        rest = await store.read("me", 10)
        assert [(e.reservation_id, e.booked, e.kind, e.shard_seq) for e in (*first, *rest)] == [
            ("a", (("usd", 7),), "settle", 1),
            ("b", (("usd", 7),), "settle", 2),
        ]
        assert await store.reclaim("me", 10_000_000, 10) == [*first, *rest]
        assert await store.reclaim("another", 0, 10) == [*first, *rest]
        assert await store.backlog() == 2
        await store.acknowledge(first)
        assert await store.backlog() == 1
        assert await store.reclaim("another", 10_000_000, 10) == rest
        await store.acknowledge(rest)
        assert (await store.backlog(), await store.reclaim("another", 0, 10)) == (0, [])


@pytest.mark.parametrize("protocol", ["", "?protocol=2", "?protocol=3"])
async def test_a_unix_socket_in_both_protocols(fresh_valkey: FreshValkey, protocol: str) -> None:
    await live_once(fresh_valkey().url + protocol)


async def test_redis_6_2(redis62_server: RedisServer) -> None:
    await live_once(redis62_server.url)


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_a_port_by_either_name(fresh_valkey: FreshValkey, scheme: str) -> None:
    await live_once(fresh_valkey(tcp=True).url.replace("redis:", f"{scheme}:") + "/3")


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
async def test_tls_as_a_user_who_may_touch_nothing_but_the_stores_keys(tls_redis: TlsRedisServer, scheme: str) -> None:
    tls_redis.set_user("~sark:* +@all -@admin -@dangerous")
    await live_once(f"{tls_redis.url.replace('rediss:', f'{scheme}:')}?ssl_ca_certs={tls_redis.ca_file}")


@pytest.mark.parametrize("protocol", ["", "?protocol=2", "?protocol=3"])
async def test_a_cluster_in_both_protocols(valkey_cluster: ValkeyCluster, protocol: str) -> None:
    await live_once(f"redis+cluster{valkey_cluster.url[5:]}{protocol}")


async def test_a_cluster_is_found_through_any_node_that_lives(valkey_cluster: ValkeyCluster) -> None:
    hosts = ",".join(["127.0.0.1:1", *(node.url[8:] for node in valkey_cluster.masters[1:])])
    await live_once(f"redis+cluster://{hosts}", shards=8)


@pytest.mark.parametrize("protocol", ["", "?protocol=2"])
async def test_sentinel(valkey_sentinel: ValkeySentinel, protocol: str) -> None:
    await live_once(f"redis+sentinel://127.0.0.1:1,{_sentinel(valkey_sentinel)}/sark{protocol}")


async def test_a_sentinel_url_may_name_a_database(valkey_sentinel: ValkeySentinel) -> None:
    await live_once(f"redis+sentinel://{_sentinel(valkey_sentinel)}/sark/2")
    assert "db2" in valkey_sentinel.master.command("INFO", "keyspace")


async def test_a_name_that_no_sentinel_knows_is_an_unavailable_store(valkey_sentinel: ValkeySentinel) -> None:
    async with opened(f"redis+sentinel://{_sentinel(valkey_sentinel)}/other", deadline_s=0.5) as store:
        with pytest.raises(StoreUnavailableError):
            await store.limits("acme")


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/sark", "unix:///nowhere/redis.sock"],
)
async def test_nobody_at_home_is_an_unavailable_store(url: str) -> None:
    async with opened(url, deadline_s=0.2) as store:
        for call in (lambda: store.limits("acme"), lambda: store.read("me", 1), store.backlog, store.sweep):
            with pytest.raises(StoreUnavailableError):
                await call()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://localhost",
        "redis://localhost:no",
        "redis+cluster://",
        "redis+cluster://localhost:no",
        "redis+sentinel://localhost:26379",
        "redis+sentinel://localhost:26379/sark/no",
        "redis://localhost/?socket_timeout=soon",
    ],
)
async def test_an_address_that_cannot_work_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        await open_store(url)


@pytest.mark.parametrize("options", [{"shards": 0}, {"shards": 16_385}, {"deadline_s": 0}])
async def test_numbers_that_cannot_work_are_a_configuration_error(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        await open_store("memory://", **options)


async def test_a_cluster_cannot_wait_for_replicas(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="wait_replicas"):
        await open_store("redis+cluster://localhost", wait_replicas=1)


async def test_a_burst_of_calls_to_a_cluster_waits_for_connections_and_opens_no_breaker(
    valkey_cluster: ValkeyCluster, refused_by_the_pool: list[str]
) -> None:
    watch = Watch()
    url = f"redis+cluster{valkey_cluster.url[5:]}"
    async with opened(url, max_connections=4, breaker_threshold=1, observer=watch) as store:
        caller = await budget(store, 100)
        counted = await asyncio.gather(*(caller.counted() for _ in range(500)))
        assert counted == [(0, 0)] * 500
        for node in valkey_cluster.masters:
            assert _connections(node) <= 4 + 1
    assert watch.states == []
    assert refused_by_the_pool == []


async def test_a_burst_of_calls_through_sentinel_waits_for_connections_and_opens_no_breaker(
    valkey_sentinel: ValkeySentinel, refused_by_the_pool: list[str]
) -> None:
    watch = Watch()
    url = f"redis+sentinel://{_sentinel(valkey_sentinel)}/sark"
    async with opened(url, max_connections=4, breaker_threshold=1, observer=watch) as store:
        caller = await budget(store, 100)
        counted = await asyncio.gather(*(caller.counted() for _ in range(500)))
        assert counted == [(0, 0)] * 500
        assert _connections(valkey_sentinel.master) <= 4 + 1
    assert watch.states == []
    assert refused_by_the_pool == []


def _sentinel(servers: ValkeySentinel) -> str:
    return f"127.0.0.1:{servers.sentinel.port}"


def _connections(server: RedisHandle) -> int:
    listed = server.command("CLIENT", "LIST")
    clients = listed if isinstance(listed, list) else str(listed).splitlines()
    return sum("sark-mw" in str(client) for client in clients)
