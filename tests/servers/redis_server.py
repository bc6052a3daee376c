"""Handles of Redis-protocol servers: one that is only reachable, and one whose life is in the test's hands."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.retry

from tests.servers.process import ServerProcess, new_directory, ports, remove_directory


class RedisHandle:
    """Reach a server at `url`. Nothing here is tied to an event loop."""

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self, **options: Any) -> redis.asyncio.Redis:
        """Return an asyncio client that never retries; the caller closes it (`async with server.client() as client`)."""
        return redis.asyncio.Redis.from_url(self.url, **{**_without_retries(redis.asyncio.retry.Retry), **options})

    def command(self, *words: str | bytes | int | float) -> Any:
        """Run one command over a connection of its own and return its answer, strings decoded."""
        options = _without_retries(redis.retry.Retry)
        with redis.Redis.from_url(self.url, decode_responses=True, **options) as client:
            return client.execute_command(*words)

    def reset(self) -> None:
        """Empty the database and the script cache."""
        self.command("FLUSHDB", "SYNC")
        self.command("SCRIPT", "FLUSH", "SYNC")

    @property
    def version(self) -> tuple[int, ...]:
        """Return the Redis version that the server says it has; Valkey says 7.2.4."""
        return tuple(int(part) for part in self.command("INFO", "server")["redis_version"].split("."))


class RedisServer(RedisHandle):
    """A server process on a Unix socket (`tcp=True`: also on a loopback port) with its files in a private directory.

    Options are those of redis.conf, underscores for dashes. Socket, port and options stay the same over restarts.
    """

    def __init__(
        self,
        binary: Path,
        *,
        tcp: bool = False,
        appendonly: bool = True,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        **options: str | int,
    ) -> None:
        self.directory = directory or new_directory()
        self.unix_socket = self.directory / "redis.sock"
        self.port = ports.claim() if tcp else None
        super().__init__(f"redis://127.0.0.1:{self.port}" if tcp else f"unix://{self.unix_socket}")
        settings: dict[str, str | int] = {
            "port": self.port or 0,
            "bind": "127.0.0.1",
            "unixsocket": str(self.unix_socket),
            "unixsocketperm": "700",
            "dir": str(self.data),
            "save": "",
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": "everysec",
            "maxmemory_policy": "noeviction",
            **options,
        }
        arguments = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        self.process = ServerProcess(
            [binary, *self._configuration(), *arguments], log=self.directory / "log", environment=environment
        )

    def _configuration(self) -> list[str]:
        """Return the words between the binary and its options."""
        return []

    @property
    def data(self) -> Path:
        """Return the directory of the append-only file and of the dumps."""
        return self.directory / "data"

    @property
    def running(self) -> bool:
        """Tell whether the process lives; a paused one does."""
        return self.process.running

    def start(self, *, empty: bool = False) -> None:
        """Start the server and return when it answers: from its append-only file, or `empty`."""
        if empty:
            shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(exist_ok=True)
        self.process.start(self._answers)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and are accepted, nothing answers."""
        self.process.pause()

    def resume(self) -> None:
        """SIGCONT: what was sent meanwhile is now executed."""
        self.process.resume()

    def kill(self) -> None:
        """SIGKILL: connections break; the append-only file has everything that was answered."""
        self.process.end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: a clean shutdown."""
        self.process.end(signal.SIGTERM)

    def restart(self, *, empty: bool = False) -> None:
        """Kill the server, then start it on the same socket and port: from its append-only file, or `empty`."""
        self.kill()
        self.start(empty=empty)

    def close(self) -> None:
        """Kill the server and remove its files."""
        self.kill()
        if self.port is not None:
            ports.release(self.port)
        remove_directory(self.directory)

    def recover(self) -> None:
        """Bring a server that a test left frozen, dead, paused or full back to an empty one."""
        if not self.running:
            self.start(empty=True)
        self.resume()
        try:
            self._clean()
        except redis.TimeoutError:  # CLIENT PAUSE holds even CLIENT UNPAUSE back
            self.restart(empty=True)

    def _clean(self) -> None:
        with redis.Redis.from_url(self.url, socket_timeout=1, **_without_retries(redis.retry.Retry)) as client:
            for words in (
                ("CONFIG", "SET", "maxmemory", "0"),
                ("CONFIG", "RESETSTAT"),
                ("FLUSHALL", "SYNC"),
                ("SCRIPT", "FLUSH", "SYNC"),
            ):
                client.execute_command(*words)

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(str(self.unix_socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


class ExternalRedis(RedisHandle):
    """A server of the user's (`SARK_TEST_REDIS_URL`) or of a container: its life is not in our hands.

    Every xdist worker has a database of its own; one that is not empty is not touched.
    """

    def __init__(self, url: str, *, worker: int = 0) -> None:
        super().__init__(url.rstrip("/") + f"/{worker}" if _names_no_database(url) else url)
        if self.command("DBSIZE") != 0:
            pytest.fail(f"{url}: the tests empty the database that they use, and this one is not empty", pytrace=False)

    def reset(self) -> None:
        """Empty this worker's database; the script cache belongs to all workers and stays."""
        self.command("FLUSHDB", "SYNC")


def _names_no_database(url: str) -> bool:
    return url.startswith(("redis://", "rediss://")) and url.rstrip("/").count("/") == 2 and "?" not in url


def _without_retries(retry: type) -> dict[str, Any]:
    return {"retry": retry(redis.backoff.NoBackoff(), 0)}
