"""The servers that the other tests stand on are real, and do what their handles say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
import redis.exceptions
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from tests.servers import lookup
from tests.servers.cluster import ValkeyCluster
from tests.servers.faketime import FaketimeServer
from tests.servers.fixtures import FreshCluster, FreshValkey, RunProcess
from tests.servers.postgres import AS_ORDINARY_USER, ExternalPostgres, PostgresServer
from tests.servers.process import ServerFailedError
from tests.servers.redis_server import RedisHandle, RedisServer
from tests.servers.sentinel import ValkeySentinel
from tests.servers.tls import TlsRedisServer

SPEND = "return redis.call('HINCRBY', KEYS[1], 'spent', ARGV[1])"


async def spend_once(client: Redis | RedisCluster, key: str, amount: int) -> object:
    sha = await client.script_load(SPEND)
    return await client.evalsha(sha, 1, key, amount)


async def test_the_shared_server_runs_scripts_and_streams_with_a_consumer_group(valkey_server: RedisHandle) -> None:
    async with valkey_server.client(decode_responses=True) as client:
        await spend_once(client, "sark:{0}", 2**53 + 1)
        assert await client.hget("sark:{0}", "spent") == "9007199254740993"
        await client.xgroup_create("outbox", "ledger", id="0", mkstream=True)
        entry = await client.xadd("outbox", {"amount_nanos": "5"})
        await client.xreadgroup("ledger", "one", {"outbox": ">"})
        assert (await client.xpending("outbox", "ledger"))["pending"] == 1
        assert await client.xack("outbox", "ledger", entry) == 1


@pytest.mark.parametrize("turn", ["first", "second"])
async def test_the_shared_server_is_empty_for_every_test(valkey_server: RedisHandle, turn: str) -> None:
    async with valkey_server.client() as client:
        assert await client.dbsize() == 0
        with pytest.raises(redis.exceptions.NoScriptError):
            await client.evalsha("0" * 40, 0)
        await client.set("left over", turn)


async def test_a_frozen_server_answers_late_what_it_was_sent(fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey()
    async with server.client(socket_timeout=0.05) as client:
        await client.set("spent", 1)
        server.pause()
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.incr("spent")
    assert server.running
    server.resume()
    assert server.command("GET", "spent") == "2"


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_killed_server_comes_back_at_the_same_address_with_its_data_or_empty(
    fresh_valkey: FreshValkey, tcp: bool
) -> None:
    server = fresh_valkey(tcp=tcp)
    async with server.client() as client:
        await client.set("spent", 41)
        server.kill()
        assert not server.running
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.incr("spent")
        server.start()
        assert await client.incr("spent") == 42
    server.restart(empty=True)
    assert server.command("DBSIZE") == 0


def test_a_server_that_cannot_start_says_why(fresh_valkey: FreshValkey) -> None:
    with pytest.raises(ServerFailedError, match="no-such-option"):
        fresh_valkey(no_such_option="1")


async def test_options_reach_the_server(fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey(maxmemory="3mb")
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        server.command("SET", "big", "x" * 4_000_000)
        server.command("SET", "more", "x")


async def test_a_server_started_in_another_thread_lives_on(fresh_valkey: FreshValkey) -> None:
    server = await asyncio.to_thread(fresh_valkey)
    await asyncio.get_running_loop().shutdown_default_executor()
    assert server.command("PING") is True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_a_server_does_not_outlive_a_killed_test_run(fresh_valkey: FreshValkey) -> None:
    fresh_valkey()  # skips where there is no binary
    source = (
        "import sys; from tests.servers import lookup; from tests.servers.redis_server import RedisServer\n"
        "server = RedisServer(lookup.valkey_binary()); server.start()\n"
        "print(server.process.pid, server.directory, flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", source], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        pid, directory = run.stdout.readline().split()
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(f"{directory}/redis.sock")
                run.kill()
                run.wait()
                connection.settimeout(10)
                with contextlib.suppress(ConnectionResetError):  # a connection that was never accepted ends so
                    assert connection.recv(1) == b""  # the kernel closed it: the server is gone
        finally:
            shutil.rmtree(directory)
    command_line = Path(f"/proc/{pid}/cmdline")
    assert not command_line.exists() or command_line.read_bytes() == b""  # nobody may have reaped it yet


async def test_redis_62_is_a_62_and_runs_scripts(redis62_server: RedisServer) -> None:
    assert redis62_server.version[:2] == (6, 2)
    async with redis62_server.client() as client:
        assert await spend_once(client, "sark:{0}", 7) == 7


@pytest.mark.slow
async def test_the_official_images_run_scripts(official_redis: RedisHandle) -> None:
    assert official_redis.version >= (7,)
    async with official_redis.client() as client:
        assert await spend_once(client, "sark:{0}", 7) == 7


async def test_the_cluster_sends_clients_to_the_owner_of_a_slot_and_after_it_when_it_moves(
    valkey_cluster: ValkeyCluster,
) -> None:
    key = "sark:1:{sark-0}:counters"
    async with valkey_cluster.client() as client:
        assert await spend_once(client, key, 5) == 5
        source = valkey_cluster.node_of(key)
        target = next(node for node in valkey_cluster.masters if node is not source)
        with pytest.raises(redis.exceptions.MovedError):
            target.command("HGET", key, "spent")
        valkey_cluster.move_slot(key, target)
        assert valkey_cluster.node_of(key) is target
        with pytest.raises(redis.exceptions.MovedError):
            source.command("HGET", key, "spent")
        assert await client.hincrby(key, "spent", 1) == 6


async def test_the_cluster_refuses_keys_of_two_slots_in_one_script(valkey_cluster: ValkeyCluster) -> None:
    node = valkey_cluster.node_of("{a}x")
    with pytest.raises(redis.exceptions.ResponseError, match="same slot"):
        node.command("EVAL", SPEND, 2, "{a}x", "{b}x", 1)


@pytest.mark.slow
async def test_a_replica_takes_over_from_a_killed_master(fresh_cluster: FreshCluster) -> None:
    cluster = fresh_cluster(replicas=True)
    master = cluster.node_of("{a}x")
    master.command("SET", "{a}x", 1)
    assert master.command("WAIT", 1, 5000) == 1
    master.kill()
    cluster.wait_for_failover(master)
    heir = cluster.node_of("{a}x")
    assert heir in cluster.replicas
    assert heir.command("INCR", "{a}x") == 2


async def test_the_sentinel_promotes_the_replica_when_the_master_dies(valkey_sentinel: ValkeySentinel) -> None:
    old = valkey_sentinel.current_master()
    assert old is valkey_sentinel.master
    async with valkey_sentinel.client() as client:
        await client.set("spent", 41)
        assert await client.wait(1, 5000) == 1
    old.kill()
    new = valkey_sentinel.wait_for_failover(old)
    assert new is valkey_sentinel.replica
    async with valkey_sentinel.client() as client:
        assert await client.incr("spent") == 42


async def test_the_tls_server_wants_its_own_authority_and_a_known_user(tls_redis: TlsRedisServer) -> None:
    async with tls_redis.client() as client:
        assert await client.acl_whoami() == "sark"
        assert await spend_once(client, "sark:{0}", 3) == 3
        with pytest.raises(redis.exceptions.NoPermissionError):
            await client.get("another application's key")
        with pytest.raises(redis.exceptions.NoPermissionError):
            await client.flushall()
    async with Redis.from_url(tls_redis.url) as stranger:
        with pytest.raises(redis.exceptions.ConnectionError, match=r"(?i)certificate"):
            await stranger.ping()
    assert tls_redis.command("ACL", "WHOAMI") == "admin"


async def test_rules_of_the_acl_user_can_be_narrowed(tls_redis: TlsRedisServer) -> None:
    tls_redis.set_user("~sark:* +get +hello +client")
    async with tls_redis.client() as client:
        assert await client.get("sark:{0}") is None
        with pytest.raises(redis.exceptions.NoPermissionError):
            await client.set("sark:{0}", 1)


async def test_the_servers_clock_goes_where_the_test_puts_it_and_runs_on(faketime_valkey: FaketimeServer) -> None:
    new_year = datetime(2027, 1, 1, tzinfo=UTC)
    faketime_valkey.set_time(new_year - timedelta(seconds=3600))
    assert timedelta(0) <= faketime_valkey.now() - (new_year - timedelta(hours=1)) < timedelta(minutes=5)
    faketime_valkey.command("SET", "hold", 1, "EX", 1800)
    faketime_valkey.advance(timedelta(seconds=3600))
    first = faketime_valkey.now()
    assert timedelta(0) <= first - new_year < timedelta(minutes=5)
    assert faketime_valkey.now() > first
    assert faketime_valkey.command("EXISTS", "hold") == 0
    entry = faketime_valkey.command("XADD", "outbox", "*", "amount_nanos", 1)
    assert int(entry.split("-")[0]) >= new_year.timestamp() * 1000
    in_script = faketime_valkey.command("EVAL", "return redis.call('TIME')[1]", 0)
    assert int(in_script) >= new_year.timestamp()
    faketime_valkey.advance(timedelta(days=-400))
    assert faketime_valkey.now() < new_year - timedelta(days=399)


async def test_a_moved_clock_survives_a_restart(faketime_valkey: FaketimeServer) -> None:
    faketime_valkey.set_offset(timedelta(days=30))
    faketime_valkey.restart()
    assert faketime_valkey.now() > datetime.now(UTC) + timedelta(days=29)


async def test_each_database_is_empty_and_takes_copy(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("create table entry (id text primary key, amount_nanos bigint not null)")
        rows = [(f"entry-{number}", number) for number in range(1000)]
        assert await connection.copy_records_to_table("entry", records=rows) == "COPY 1000"
        assert await connection.fetchval("select sum(amount_nanos) from entry") == 499_500
        assert await connection.fetchval("show timezone") == "UTC"
    finally:
        await connection.close()


def test_two_databases_of_one_server_do_not_see_each_other(postgres_server: PostgresServer | ExternalPostgres) -> None:
    one, other = postgres_server.create_database(), postgres_server.create_database()
    postgres_server.query("create table entry (id int)", dsn=one)
    assert postgres_server.query("select to_regclass('entry') as found", dsn=other)[0]["found"] is None
    for dsn in (one, other):
        postgres_server.drop_database(dsn)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_what_was_committed_is_there_when_the_database_is_back(
    postgres_server: PostgresServer, postgres_url: str, end: str
) -> None:
    postgres_server.query("create table entry as select 7 as amount", dsn=postgres_url)
    getattr(postgres_server, end)()
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await asyncpg.connect(postgres_url)
    postgres_server.start()
    assert postgres_server.query("select amount from entry", dsn=postgres_url)[0]["amount"] == 7


async def test_a_frozen_database_holds_open_connections_and_goes_on_later(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    connection = await asyncpg.connect(postgres_url)
    postgres_server.pause()
    query = asyncio.create_task(connection.fetchval("select 7"))
    done, _ = await asyncio.wait([query], timeout=0.05)
    assert not done
    postgres_server.resume()
    assert await query == 7
    await connection.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs the way round")
def test_postgres_runs_where_no_ordinary_user_can_read_its_binaries(monkeypatch: pytest.MonkeyPatch) -> None:
    binaries = lookup.postgres_directory() or lookup.unavailable("no PostgreSQL")
    monkeypatch.setattr("tests.servers.postgres._unprivileged", lambda binary: (None, AS_ORDINARY_USER))
    server = PostgresServer(binaries)
    try:
        server.start()
        assert server.query("select 7 as answer")[0]["answer"] == 7
    finally:
        server.close()


async def test_timescale_makes_hypertables(timescale_url: str) -> None:
    connection = await asyncpg.connect(timescale_url)
    try:
        await connection.execute("create extension if not exists timescaledb")
        await connection.execute("create table entry (at timestamptz not null, amount_nanos bigint)")
        assert await connection.fetchval("select create_hypertable('entry', 'at')::text")
    finally:
        await connection.close()


def test_a_process_of_the_tests_own_can_be_killed_and_started_again(
    run_process: RunProcess, free_port: Callable[[], int]
) -> None:
    port = free_port()

    def listens() -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", port)) == 0

    process = run_process(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port), ready=listens)
    assert process.running
    process.end(signal.SIGKILL)
    assert not listens()
    process.start(listens)
    assert listens()


def test_a_missing_server_skips_at_home_and_fails_where_servers_are_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("SARK_REQUIRE_SERVERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such server"):
        lookup.unavailable("no such server")
    for variable, value in (("CI", "true"), ("SARK_REQUIRE_SERVERS", "1")):
        with monkeypatch.context() as promised:
            promised.setenv(variable, value)
            with pytest.raises(pytest.fail.Exception, match="no such server"):
                lookup.unavailable("no such server")


def test_nothing_listens_beyond_loopback(fresh_valkey: FreshValkey, postgres_server: PostgresServer) -> None:
    server = fresh_valkey(tcp=True)
    assert server.command("CONFIG", "GET", "bind") == {"bind": "127.0.0.1"}
    assert postgres_server.query("show listen_addresses")[0]["listen_addresses"] == ""
