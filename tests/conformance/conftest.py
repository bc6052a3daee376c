"""One store of each kind for every test of the suite, a mark each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from sark_mw._memory_store import MemoryStore
from sark_mw.store.connect import open_store
from sark_mw.store.redis_store import RedisStore
from tests.conformance.books import Books, Store
from tests.conformance.clocks import BEGINNING_MS, FaketimeClock, RealClock, ServerClock, StillClock, fakeredis_time

SHARDS = 4
RETENTION_MS = 3_600_000
SERVERS = {
    "redis": "valkey_server",
    "redis62": "redis62_server",
    "cluster": "valkey_cluster",
    "faketime": "faketime_valkey",
}

STILL = (pytest.param("memory", marks=pytest.mark.memory), pytest.param("fakeredis", marks=pytest.mark.fakeredis))
MOVING = (*STILL, pytest.param("faketime", marks=pytest.mark.faketime))
ALL = (*STILL, *(pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("redis", "redis62", "cluster")))


@pytest.fixture(params=ALL)
async def books(request: pytest.FixtureRequest) -> AsyncIterator[Books]:
    """A store of every kind; its time passes by itself on real servers, so tests let it pass in milliseconds only."""
    async with _open_books(request.param, request) as books:
        yield books


@pytest.fixture(params=MOVING)
async def moving_books(request: pytest.FixtureRequest) -> AsyncIterator[Books]:
    """A store whose clock the test moves; a real Valkey under libfaketime is among them."""
    async with _open_books(request.param, request) as books:
        yield books


@pytest.fixture(params=STILL)
async def still_books(request: pytest.FixtureRequest) -> AsyncIterator[Books]:
    """A store whose clock stands still between moves: for boundaries that are exact to the millisecond."""
    async with _open_books(request.param, request) as books:
        yield books


@contextlib.asynccontextmanager
async def _open_books(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[Books]:
    async with contextlib.AsyncExitStack() as stack:
        clock: ServerClock
        if kind == "memory":
            clock = StillClock()
            memory = MemoryStore(clock.manual, RETENTION_MS, shards=SHARDS)
            stack.callback(memory.assert_invariants)

            async def same() -> Store:
                return memory

            async def lose_memory() -> None:
                memory.lose_data()

            books = Books(kind, memory, clock, same, lose_memory)
        elif kind == "fakeredis":
            clock = StillClock()
            stack.enter_context(fakeredis_time(clock.manual))
            opened = _opener(stack, f"memory://{uuid4().hex}")
            store = await opened()

            async def lose_fake() -> None:
                await store._commands.client.flushall()

            books = Books(kind, store, clock, opened, lose_fake)
        else:
            server = request.getfixturevalue(SERVERS[kind])
            if kind == "faketime":
                server.set_time(datetime.fromtimestamp(BEGINNING_MS / 1000, UTC))
            opened = _opener(stack, f"redis+cluster{server.url[5:]}" if kind == "cluster" else server.url)
            store = await opened()
            clock = FaketimeClock(server) if kind == "faketime" else RealClock(store)

            async def lose_server() -> None:
                for node in server.masters if kind == "cluster" else [server]:
                    node.command("FLUSHDB", "SYNC")

            books = Books(kind, store, clock, opened, lose_server)
        for shard in range(SHARDS):
            await books.store.restore(shard)
        yield books


def _opener(stack: contextlib.AsyncExitStack, url: str) -> Callable[[], Awaitable[RedisStore]]:
    async def opened() -> RedisStore:
        # A deadline that a machine under load keeps; deadlines have tests of their own.
        store = await open_store(url, shards=SHARDS, retention_ms=RETENTION_MS, deadline_s=20.0)
        stack.push_async_callback(store.aclose)
        return store

    return opened
