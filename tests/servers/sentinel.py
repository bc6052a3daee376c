"""A master, a replica of it and one Sentinel that watches them: for failovers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.backoff
from redis.asyncio.sentinel import Sentinel

from tests.servers.process import wait_until
from tests.servers.redis_server import RedisServer


class SentinelServer(RedisServer):
    """The Sentinel process itself."""

    def __init__(self, binary: Path, *, service_name: str, master_port: int) -> None:
        self._monitor = (
            f"sentinel monitor {service_name} 127.0.0.1 {master_port} 1\n"
            f"sentinel down-after-milliseconds {service_name} 300\n"
            f"sentinel failover-timeout {service_name} 5000\n"
        )
        super().__init__(binary, tcp=True, appendonly=False)

    def _configuration(self) -> list[str]:
        return [str(self.directory / "sentinel.conf"), "--sentinel"]

    def start(self, *, empty: bool = False) -> None:
        """Start the Sentinel; the file is its memory, so `empty` writes it anew."""
        configuration = self.directory / "sentinel.conf"
        if empty or not configuration.exists():
            configuration.write_text(self._monitor)
        super().start(empty=empty)


class ValkeySentinel:
    """`master` and `replica` are the first roles; after a failover ask `current_master()`."""

    service_name = "sark"

    def __init__(self, binary: Path) -> None:
        self.master = RedisServer(binary, tcp=True, repl_diskless_sync_delay=0)
        self.replica = RedisServer(binary, tcp=True, repl_diskless_sync_delay=0, replicaof=f"127.0.0.1 {self.master.port}")
        assert self.master.port is not None
        self.sentinel = SentinelServer(binary, service_name=self.service_name, master_port=self.master.port)
        try:
            self._form()
        except BaseException:
            self.close()
            raise

    @property
    def sentinels(self) -> list[tuple[str, int]]:
        """Return host and port of each Sentinel, as redis-py takes them."""
        assert self.sentinel.port is not None
        return [("127.0.0.1", self.sentinel.port)]

    @contextlib.asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[redis.asyncio.Redis]:
        """Open an asyncio client of whoever is master now, without retries: `async with servers.client() as client`."""
        retry = redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0)
        sentinel = Sentinel(self.sentinels, retry=retry)
        async with contextlib.AsyncExitStack() as stack:
            for watcher in sentinel.sentinels:
                stack.push_async_callback(watcher.aclose)
            yield await stack.enter_async_context(sentinel.master_for(self.service_name, retry=retry, **options))

    def current_master(self) -> RedisServer:
        """Return the server that the Sentinel names as master now."""
        # Not GET-MASTER-ADDR-BY-NAME: it names the new master before MASTERS does, which is what redis-py asks.
        answer = self.sentinel.command("SENTINEL", "MASTER", self.service_name)
        return self.master if int(_fields(answer)["port"]) == self.master.port else self.replica

    def wait_for_failover(self, old: RedisServer) -> RedisServer:
        """Return the new master when the Sentinel has promoted another one than `old` and it takes writes."""
        wait_until(lambda: self._replaced(old), lambda: "the Sentinel did not fail over")
        return self.current_master()

    def _replaced(self, old: RedisServer) -> bool:
        master = self.current_master()
        return master is not old and master.command("INFO", "replication")["role"] == "master"

    def close(self) -> None:
        """Kill all three and remove their files."""
        for server in (self.sentinel, self.replica, self.master):
            server.close()

    def _form(self) -> None:
        self.master.start()
        self.replica.start()
        wait_until(
            lambda: self.replica.command("INFO", "replication")["master_link_status"] == "up",
            lambda: "the replica did not reach its master",
        )
        # After the replica: the Sentinel asks a master for its replicas only every ten seconds.
        self.sentinel.start()
        wait_until(self._sees_the_replica, lambda: "the Sentinel did not find the replica")

    def _sees_the_replica(self) -> bool:
        with contextlib.suppress(redis.ResponseError):
            replicas = self.sentinel.command("SENTINEL", "REPLICAS", self.service_name)
            return len(replicas) == 1 and "s_down" not in str(replicas) and "disconnected" not in str(replicas)
        return False


def _fields(answer: Any) -> dict[str, str]:
    return answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
