"""One server in every kind of trouble: the caller hears of it as one error, and nothing is counted twice or lost."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis

from sark_mw.errors import StoreUnavailableError
from sark_mw.reservation import Outcome
from tests.servers.fixtures import FreshValkey
from tests.servers.process import wait_until
from tests.servers.redis_server import RedisHandle, RedisServer
from tests.servers.tls import USER_RULES, TlsRedisServer
from tests.store.calls import ROOT, Watch, another, budget, opened, through

#: Long enough for any machine: no test waits for it to pass.
PATIENCE_S = 60.0
#: A deadline that nobody waits for: whoever repeats until then is never done.
NEVER_S = 36_000.0
IMPATIENT = {"deadline_s": 0.2, "breaker_threshold": 1_000_000}


async def test_a_paused_server_is_unavailable_to_every_call_and_then_itself_again(fresh_valkey: FreshValkey) -> None:
    server, watch = fresh_valkey(), Watch()
    async with opened(server.url) as patient, opened(server.url, **IMPATIENT, observer=watch) as store:
        caller = await another(await budget(patient, 1_000), store)
        reply = await caller.reserve("before")
        server.pause()
        async with asyncio.timeout(PATIENCE_S):
            for call in (
                caller.reserve("during"),
                caller.settle("before", 7, reply.made_ms),
                caller.counted(),
                caller.outbox(),
                store.extend(ROOT, "before", 1000),
                store.sweep(),
                store.limits(ROOT),
                store.lost_shards(),
                store.backlog(),
            ):
                with pytest.raises(StoreUnavailableError):
                    await call
        server.resume()
        assert set(watch.outcomes("reserve")) == {"ok", "timeout"}
        # What it was sent while it slept it has done, or not: by their ids, both come out the same.
        patient_caller = await another(caller, patient)
        assert (await patient_caller.settle("before", 7, reply.made_ms)).outcome is Outcome.SETTLED
        assert (await patient_caller.release("during")).outcome is Outcome.RELEASED
        assert await patient_caller.counted() == (7, 0)
        entries = await patient_caller.outbox()
        assert [(e.reservation_id, e.booked) for e in entries if e.booked] == [("before", (("usd", 7),))]


async def test_an_open_breaker_asks_nobody_until_a_probe_is_answered(fresh_valkey: FreshValkey) -> None:
    server, watch = fresh_valkey(), Watch()
    async with opened(server.url, breaker_threshold=2, breaker_cooldown_s=0.01, observer=watch) as store:
        await budget(store, 1_000)
        server.kill()
        store._commands.deadline_s = 0.05
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await store.limits(ROOT)
        assert watch.states == ["open"]
        with pytest.raises(StoreUnavailableError):
            await store.limits(ROOT)
        store._commands.deadline_s = 20.0
        server.start()
        async with asyncio.timeout(PATIENCE_S):
            while store.breaker_state != "closed":
                with contextlib.suppress(StoreUnavailableError):
                    await store.limits(ROOT)
                await asyncio.sleep(0.001)
        assert watch.states[-2:] == ["half_open", "closed"]
        assert "open" in watch.outcomes("limits")


async def test_the_script_cache_is_flushed_in_the_middle_of_traffic(valkey_server: RedisHandle) -> None:
    async with opened(valkey_server.url) as store:
        caller = await budget(store, 500)

        async def flush() -> None:
            for _ in range(20):
                await asyncio.to_thread(valkey_server.command, "SCRIPT", "FLUSH", "SYNC")

        async def spend(number: int) -> bool:
            await asyncio.sleep(number % 10 / 1000)
            reply = await caller.reserve(f"r{number}", 10)
            if reply.admitted:
                await caller.settle(f"r{number}", 10, reply.made_ms)
            return reply.admitted

        admitted, _ = await asyncio.gather(asyncio.gather(*(spend(n) for n in range(200))), flush())
        assert sum(admitted) == 50
        assert await caller.counted() == (500, 0)
        assert await caller.booked() == 500


async def test_a_user_who_may_not_evalsha_is_served_by_eval(tls_redis: TlsRedisServer) -> None:
    tls_redis.set_user(USER_RULES + " -evalsha -script")
    async with opened(f"{tls_redis.url}?ssl_ca_certs={tls_redis.ca_file}") as store:
        caller = await budget(store, 100)
        reply = await caller.reserve("a")
        await caller.settle("a", 3, reply.made_ms)
        assert await caller.counted() == (3, 0)
        assert await caller.booked() == 3


async def test_a_user_who_may_run_no_script_at_all_finds_the_store_unavailable(tls_redis: TlsRedisServer) -> None:
    tls_redis.set_user(USER_RULES + " -@scripting")
    async with opened(f"{tls_redis.url}?ssl_ca_certs={tls_redis.ca_file}") as store:
        with pytest.raises(StoreUnavailableError, match=r"(?i)permission"):
            await store.limits(ROOT)


async def test_a_user_who_may_not_touch_the_keys_finds_the_store_unavailable(tls_redis: TlsRedisServer) -> None:
    async with opened(f"{tls_redis.url}?ssl_ca_certs={tls_redis.ca_file}", prefix="other") as store:
        with pytest.raises(StoreUnavailableError, match=r"(?i)permission|acl"):
            await store.limits(ROOT)


def _addressed(server: TlsRedisServer, kind: str, password: str = "sark-password", *, known: bool = True) -> str:
    address = f"{kind}://sark:{password}@127.0.0.1:{server.tls_port}"
    return f"{address}?ssl_ca_certs={server.ca_file}" if known else address


_KINDS = pytest.mark.parametrize("kind", ["rediss", "rediss+cluster"])


async def _refused_at_once(url: str, match: str) -> None:
    async with opened(url, deadline_s=NEVER_S) as store:
        with pytest.raises(StoreUnavailableError, match=match):
            await asyncio.wait_for(store.limits(ROOT), PATIENCE_S)


@_KINDS
async def test_a_wrong_password_is_an_unavailable_store_at_once(tls_redis: TlsRedisServer, kind: str) -> None:
    await _refused_at_once(_addressed(tls_redis, kind, "wrong"), r"(?i)password")


@_KINDS
async def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(tls_redis: TlsRedisServer, kind: str) -> None:
    await _refused_at_once(_addressed(tls_redis, kind, known=False), r"(?i)certificate")


async def test_a_server_that_wants_to_see_a_certificate_refuses_at_once(tls_redis: TlsRedisServer) -> None:
    tls_redis.command("CONFIG", "SET", "tls-auth-clients", "yes")
    await _refused_at_once(_addressed(tls_redis, "rediss"), r"(?i)certificate")


async def test_a_server_busy_with_somebody_elses_script_is_unavailable(fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey(tcp=True, busy_reply_threshold=10)
    async with opened(server.url) as store, opened(server.url, **IMPATIENT) as impatient, server.client() as client:
        caller = await budget(store, 100)
        endless = asyncio.ensure_future(client.eval("while true do end", 0))
        await asyncio.to_thread(wait_until, lambda: _is_busy(server), lambda: "the script did not start")
        with pytest.raises(StoreUnavailableError):
            await through(caller, impatient).reserve("a")
        server.command("SCRIPT", "KILL")
        with pytest.raises(redis.ResponseError):
            await endless
        assert (await caller.reserve("a")).outcome is Outcome.HELD
        assert await caller.counted() == (0, 10)


async def test_a_server_that_loads_its_data_is_waited_for_within_the_deadline(fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey(appendonly=False, key_load_delay=10_000, loading_process_events_interval_bytes=1024)
    async with opened(server.url) as store, opened(server.url, **IMPATIENT) as impatient:
        caller = await budget(store, 100)
        await caller.reserve("a")
        with redis.Redis.from_url(server.url) as client:
            client.mset({f"ballast:{n}": "x" * 200 for n in range(200)})
        server.command("SAVE")
        server.kill()
        await asyncio.to_thread(server.process.start, lambda: _is_loading(server))
        with pytest.raises(StoreUnavailableError):
            await impatient.limits(ROOT)
        assert (await caller.reserve("a")).repeated
        assert await caller.counted() == (0, 10)


async def test_a_server_turned_replica_is_waited_for_until_it_may_write_again(fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey()
    async with opened(server.url) as store, opened(server.url, deadline_s=1.0) as impatient:
        caller = await budget(store, 100)
        await impatient.limits(ROOT)
        server.command("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(StoreUnavailableError, match=r"(?i)read only"):
            await through(caller, impatient).reserve("a")
        waiting = asyncio.ensure_future(caller.reserve("a"))
        await asyncio.sleep(0)
        server.command("REPLICAOF", "NO", "ONE")
        assert (await waiting).outcome is Outcome.HELD
        assert await caller.counted() == (0, 10)


async def test_a_full_server_is_unavailable_and_a_settle_is_booked_once_it_has_room(fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey()
    async with opened(server.url) as store:
        caller = await budget(store, 100)
        reply = await caller.reserve("a")
        server.command("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(StoreUnavailableError, match=r"(?i)oom|maxmemory"):
            await caller.reserve("b")
        with pytest.raises(StoreUnavailableError, match=r"(?i)oom|maxmemory"):
            await caller.settle("a", 7, reply.made_ms)
        server.command("CONFIG", "SET", "maxmemory", 0)
        assert await caller.counted() == (0, 10)
        assert not (await caller.settle("a", 7, reply.made_ms)).repeated
        assert await caller.counted() == (7, 0)
        assert await caller.booked() == 7


async def test_a_lease_that_ends_on_a_full_server_is_swept_once_it_has_room(fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey()
    async with opened(server.url) as store:
        caller = await budget(store, 100)
        await caller.reserve("a", lease_ms=1)
        server.command("CONFIG", "SET", "maxmemory", 1)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(StoreUnavailableError):
                while True:
                    await store.sweep()
        server.command("CONFIG", "SET", "maxmemory", 0)
        await store.sweep()
        assert await caller.counted() == (4, 0)
        assert await caller.booked() == 4


async def test_a_server_restarted_in_the_middle_of_traffic_keeps_what_it_answered(fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey(appendfsync="always")
    async with opened(server.url, breaker_threshold=1_000_000) as store:
        caller = await budget(store, 500)

        async def spend(number: int) -> bool:
            await asyncio.sleep(number / 500)
            reply = await caller.reserve(f"r{number}", 10)
            if reply.admitted:
                await caller.settle(f"r{number}", 9, reply.made_ms)
            return reply.admitted

        admitted, _ = await asyncio.gather(asyncio.gather(*(spend(n) for n in range(100))), asyncio.to_thread(server.restart))
        spent, held = await caller.counted()
        assert (spent, held) == (9 * sum(admitted), 0)
        assert await caller.booked() == spent
        assert 50 <= sum(admitted) <= 55


def _is_busy(server: RedisServer) -> bool:
    try:
        server.command("PING")
    except redis.RedisError as error:
        return "BUSY" in str(error)
    return False


def _is_loading(server: RedisServer) -> bool:
    try:
        server.command("PING")
    except redis.BusyLoadingError:
        return True
    except redis.RedisError:
        return False
    return False
