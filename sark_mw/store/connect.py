"""Open a store from a URL: one server, Unix socket, TLS, Cluster, Sentinel, or embedded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit
from weakref import WeakValueDictionary

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from sark_mw.errors import ConfigurationError
from sark_mw.store.base import StoreObserver
from sark_mw.store.breaker import Breaker
from sark_mw.store.commands import Commands
from sark_mw.store.embedded import start_embedded
from sark_mw.store.redis_store import RedisStore

Close = Callable[[], Awaitable[None]]
# Named in-process servers, so that two stores of one process can share one: memory://name.
_memory_servers: WeakValueDictionary[str, Any] = WeakValueDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How to talk to the store; durations in the unit that the name ends with."""

    shards: int = 16
    prefix: str = "sark"
    retention_ms: int = 3_600_000
    deadline_s: float = 0.5
    max_connections: int = 32
    breaker_threshold: int = 5
    breaker_cooldown_s: float = 1.0
    wait_replicas: int = 0
    wait_timeout_ms: int = 100
    observer: StoreObserver | None = field(default=None, compare=False)


async def open_store(url: str, options: StoreOptions | None = None, **changes: Any) -> RedisStore:
    """Open the store that `url` names; nothing is sent yet. Raises `ConfigurationError` for a URL that cannot work.

    `memory://[name]`, `embedded:///directory`, `redis://`, `rediss://`, `unix://`, `redis+cluster://host:port[,host:port]`,
    `redis+sentinel://host:port[,host:port]/service[/db]` (`rediss+…` for TLS). User, password and redis-py's own query
    parameters (`ssl_ca_certs=…`) are understood in all of them. `changes` are fields of `StoreOptions`.
    """
    given = options or StoreOptions()
    chosen = StoreOptions(**{**{name: getattr(given, name) for name in StoreOptions.__slots__}, **changes})
    if not 1 <= chosen.shards <= 16_384 or chosen.deadline_s <= 0:
        raise ConfigurationError("a store needs 1 to 16384 shards and a deadline above 0")
    client, close = await _connect(url, chosen)
    observer = chosen.observer
    breaker = Breaker(threshold=chosen.breaker_threshold, cooldown_s=chosen.breaker_cooldown_s)
    if observer is not None:
        breaker = Breaker(threshold=chosen.breaker_threshold, cooldown_s=chosen.breaker_cooldown_s, on_change=observer.on_breaker)
    commands = Commands(
        client,
        # A cluster's slots are read before the first calls: cold ones would go to any node, and be moved all at once.
        prepare=client.initialize if isinstance(client, redis.RedisCluster) else None,
        deadline_s=chosen.deadline_s,
        breaker=breaker,
        max_in_flight=chosen.max_connections,
        observer=observer,
        wait_replicas=chosen.wait_replicas,
        wait_timeout_ms=chosen.wait_timeout_ms,
    )
    return RedisStore(commands, shards=chosen.shards, prefix=chosen.prefix, retention_ms=chosen.retention_ms, close=close)


async def _connect(url: str, options: StoreOptions) -> tuple[Any, Close]:
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return _memory(url)
    if scheme == "embedded":
        server = await start_embedded(url)
        client, close = _single(server.url, options)

        async def close_both() -> None:
            await close()
            await server.aclose()

        return client, close_both
    try:
        if scheme in ("redis", "rediss", "unix", "valkey", "valkeys"):
            return _single(url.replace("valkey", "redis", 1) if scheme.startswith("valkey") else url, options)
        if scheme in ("redis+cluster", "rediss+cluster"):
            return _cluster(url, options)
        if scheme in ("redis+sentinel", "rediss+sentinel"):
            return _sentinel(url, options)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"the store URL cannot be used: {error}") from error
    known = "memory, embedded, redis, rediss, unix, redis+cluster, redis+sentinel"
    raise ConfigurationError(f"unknown store URL scheme {scheme!r}: one of {known}")


def _memory(url: str) -> tuple[Any, Close]:
    try:
        import fakeredis
        import lupa  # noqa: F401
    except ImportError as error:
        raise ConfigurationError("memory:// needs the extra: pip install 'sark-mw[embedded]'") from error
    name = urlsplit(url).netloc
    server = _memory_servers.get(name) if name else None
    if server is None:
        server = fakeredis.FakeServer()
        if name:
            _memory_servers[name] = server
    client = fakeredis.FakeAsyncRedis(server=server, decode_responses=True)
    return client, client.aclose


def _common(options: StoreOptions) -> dict[str, Any]:
    # redis-py's own retries (10 with back-off) would outlive every deadline: Commands decides.
    return {
        "decode_responses": True,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": options.deadline_s,
        "socket_connect_timeout": options.deadline_s,
        "client_name": "sark-mw",
    }


def _single(url: str, options: StoreOptions) -> tuple[Any, Close]:
    pool = redis.BlockingConnectionPool.from_url(
        url, max_connections=options.max_connections, timeout=options.deadline_s, **_common(options)
    )
    client = redis.Redis(connection_pool=pool)

    async def close() -> None:
        await client.aclose()
        await pool.aclose()

    return client, close


def _cluster(url: str, options: StoreOptions) -> tuple[Any, Close]:
    if options.wait_replicas:
        raise ConfigurationError("wait_replicas does not work with a cluster: use min-replicas-to-write on its nodes")
    extra, nodes = _extra(url), _nodes(url, 6379)
    client = redis.RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in nodes],
        max_connections=options.max_connections,
        # MOVED mends the slot it names; reading all slots anew would close connections that are in use.
        reinitialize_steps=0,
        **extra,
        **(_common(options) | {"retry": Retry(NoBackoff(), 3)}),
    )
    return client, client.aclose


def _sentinel(url: str, options: StoreOptions) -> tuple[Any, Close]:
    extra = _extra(url)
    service, _, db = urlsplit(url).path.strip("/").partition("/")
    if not service:
        raise ConfigurationError("a Sentinel URL ends with the service: redis+sentinel://host:26379/mymaster")
    asking = {name: value for name, value in _common(options).items() if name != "client_name"}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        _nodes(url, 26_379), sentinel_kwargs=asking, **extra, **_common(options)
    )
    client = sentinel.master_for(service, db=int(db or 0), max_connections=options.max_connections)

    async def close() -> None:
        await client.aclose()
        for each in sentinel.sentinels:
            await each.aclose()

    return client, close


def _nodes(url: str, default_port: int) -> list[tuple[str, int]]:
    hosts = urlsplit(url).netloc.rpartition("@")[2]
    nodes = [urlsplit(f"//{host}") for host in hosts.split(",") if host]
    if not nodes:
        raise ConfigurationError("the store URL names no host")
    return [(node.hostname or "", node.port or default_port) for node in nodes]


def _extra(url: str) -> dict[str, Any]:
    """Read user, password, TLS and redis-py's query parameters off a URL of several hosts, by redis-py's own parser."""
    split = urlsplit(url)
    scheme = split.scheme.partition("+")[0]
    single = urlunsplit((scheme, "localhost", "", urlencode(parse_qsl(split.query)), ""))
    parsed = dict(redis.ConnectionPool.from_url(single).connection_kwargs)
    parsed.pop("host", None)
    user, _, password = split.netloc.rpartition("@")[0].partition(":")
    return {
        **({"ssl": True} if scheme == "rediss" else {}),
        **({"username": unquote(user)} if user else {}),
        **({"password": unquote(password)} if password else {}),
        **{name: value for name, value in parsed.items() if name.startswith("ssl_") or name == "db"},
    }
