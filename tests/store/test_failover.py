"""Servers that change roles in the middle of traffic: slots move, masters die, replicas do not confirm."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sark_mw.errors import StoreUnavailableError
from sark_mw.reservation import Outcome, new_reservation_id
from sark_mw.store.keys import shard_keys
from tests.servers.cluster import ValkeyCluster
from tests.servers.fixtures import FreshCluster
from tests.servers.sentinel import ValkeySentinel
from tests.store.calls import Caller, another, budget, opened


class Traffic:
    """Calls that hold 10 and book 10, again and again, until told to stop; and the caller's own count of them."""

    def __init__(self, *callers: Caller) -> None:
        self._callers = callers
        self._stop = asyncio.Event()
        self.booked = 0
        self.unavailable = 0

    async def one(self, caller: Caller) -> None:
        """Make one call to its end, however often it must be repeated."""
        name = new_reservation_id()
        reply = await self._until_answered(lambda: caller.reserve(name, 10))
        if reply.admitted:
            await self._until_answered(lambda: caller.settle(name, 10, reply.made_ms))
            self.booked += 10

    async def _until_answered(self, call):  # type: ignore[no-untyped-def]
        while True:
            try:
                return await call()
            except StoreUnavailableError:
                self.unavailable += 1
                await asyncio.sleep(0.01)

    async def _run(self, caller: Caller) -> None:
        while not self._stop.is_set():
            await self.one(caller)
            await asyncio.sleep(0.001)

    @contextlib.asynccontextmanager
    async def running(self, at_once: int = 8):  # type: ignore[no-untyped-def]
        """Keep so many calls in flight, and finish them all at the end."""
        tasks = [asyncio.ensure_future(self._run(self._callers[n % len(self._callers)])) for n in range(at_once)]
        try:
            yield self
        finally:
            self._stop.set()
            await asyncio.gather(*tasks)

    async def after(self, more: int) -> None:
        """Return when so much more was booked."""
        goal = self.booked + more
        async with asyncio.timeout(60):
            while self.booked < goal:
                await asyncio.sleep(0.001)


async def test_a_slot_that_moves_in_the_middle_of_traffic_loses_and_doubles_nothing(valkey_cluster: ValkeyCluster) -> None:
    url = f"redis+cluster{valkey_cluster.url[5:]}"
    async with opened(url, breaker_threshold=1_000_000) as one, opened(url, breaker_threshold=1_000_000) as two:
        first = await budget(one, 10**12)
        second = await another(first, two)
        key = shard_keys("sark", one.shard_of("acme")).meta
        traffic = Traffic(first, second)
        async with traffic.running():
            for _ in range(3):
                await traffic.after(200)
                owner = valkey_cluster.node_of(key)
                other = next(node for node in valkey_cluster.masters if node is not owner)
                await asyncio.to_thread(valkey_cluster.move_slot, key, other)
            await traffic.after(200)
        assert await first.counted() == (traffic.booked, 0)
        assert await first.booked() == traffic.booked


async def test_a_store_that_learned_the_slots_before_they_moved_follows_them(valkey_cluster: ValkeyCluster) -> None:
    async with opened(f"redis+cluster{valkey_cluster.url[5:]}") as store:
        caller = await budget(store, 100)
        key = shard_keys("sark", store.shard_of("acme")).meta
        made = (await caller.reserve("a")).made_ms
        owner = valkey_cluster.node_of(key)
        valkey_cluster.move_slot(key, next(node for node in valkey_cluster.masters if node is not owner))
        await caller.settle("a", 7, made)
        entries = await caller.outbox()
        valkey_cluster.move_slot(key, owner)
        await store.acknowledge(entries)
        assert (len(entries), await store.backlog()) == (1, 0)
        assert await caller.counted() == (7, 0)


async def test_a_cluster_without_one_of_its_masters_is_unavailable_until_it_is_back(fresh_cluster: FreshCluster) -> None:
    cluster = fresh_cluster()
    options = {"shards": 1, "breaker_threshold": 1_000_000}
    async with opened(f"redis+cluster{cluster.url[5:]}", **options) as store:
        caller = await budget(store, 100)
        owner = cluster.node_of(shard_keys("sark", 0).meta)
        made = (await caller.reserve("a")).made_ms
        others = [node for node in cluster.masters if node is not owner]
        others[0].pause()
        await asyncio.to_thread(_until, lambda: "cluster_state:fail" in str(owner.command("CLUSTER", "INFO")))
        store._commands.deadline_s = 0.3
        with pytest.raises(StoreUnavailableError):
            await caller.settle("a", 7, made)
        others[0].resume()
        store._commands.deadline_s = 20.0
        assert (await caller.settle("a", 7, made)).outcome is Outcome.SETTLED
        assert await caller.counted() == (7, 0)


async def test_a_replica_takes_over_a_dead_master_of_a_cluster(fresh_cluster: FreshCluster) -> None:
    cluster = fresh_cluster(replicas=True)
    async with opened(f"redis+cluster{cluster.url[5:]}", breaker_threshold=1_000_000) as store:
        caller = await budget(store, 10**12)
        owner = cluster.node_of(shard_keys("sark", store.shard_of("acme")).meta)
        traffic = Traffic(caller)
        async with traffic.running():
            await traffic.after(200)
            await asyncio.to_thread(owner.kill)
            await asyncio.to_thread(cluster.wait_for_failover, owner)
            await traffic.after(200)
        # Replication is asynchronous: what the dead master had acknowledged last may be missing, and no more than that.
        spent, _ = await caller.counted()
        assert 0 <= traffic.booked - spent <= 8 * 10 * 2
        assert await caller.booked() == spent


async def test_a_sentinel_failover_in_the_middle_of_traffic(valkey_sentinel: ValkeySentinel) -> None:
    url = f"redis+sentinel://127.0.0.1:{valkey_sentinel.sentinel.port}/sark"
    async with opened(url, deadline_s=1.0, breaker_threshold=1_000_000, wait_replicas=0) as store:
        caller = await budget(store, 10**12)
        traffic = Traffic(caller)
        async with traffic.running():
            await traffic.after(200)
            valkey_sentinel.master.kill()
            await asyncio.to_thread(valkey_sentinel.wait_for_failover, valkey_sentinel.master)
            await traffic.after(200)
        spent, _ = await caller.counted()
        assert 0 <= traffic.booked - spent <= 8 * 10 * 2
        assert await caller.booked() == spent


async def test_a_master_that_froze_and_comes_back_as_a_replica_is_not_written_to(valkey_sentinel: ValkeySentinel) -> None:
    url = f"redis+sentinel://127.0.0.1:{valkey_sentinel.sentinel.port}/sark"
    async with opened(url, deadline_s=1.0, breaker_threshold=1_000_000) as store:
        caller = await budget(store, 10**12)
        traffic = Traffic(caller)
        async with traffic.running():
            await traffic.after(200)
            valkey_sentinel.master.pause()
            await asyncio.to_thread(valkey_sentinel.wait_for_failover, valkey_sentinel.master)
            await traffic.after(200)
            valkey_sentinel.master.resume()
            await traffic.after(200)
        spent, _ = await caller.counted()
        assert 0 <= traffic.booked - spent <= 8 * 10 * 2
        assert await caller.booked() == spent


async def test_with_a_dead_replica_nothing_is_promised_that_it_should_have_confirmed(valkey_sentinel: ValkeySentinel) -> None:
    url = valkey_sentinel.master.url
    async with opened(url, wait_replicas=1, wait_timeout_ms=2_000) as careful, opened(url) as plain:
        caller = await budget(careful, 100)
        assert (await caller.reserve("a")).outcome is Outcome.HELD
        valkey_sentinel.sentinel.kill()
        valkey_sentinel.replica.kill()
        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
            await caller.reserve("b")
        # The master has it all the same: what nobody was told of is given back by its id.
        watching = await another(caller, plain)
        assert await watching.counted() == (0, 20)
        await watching.release("b")
        valkey_sentinel.replica.start()
        await asyncio.to_thread(
            _until, lambda: valkey_sentinel.replica.command("INFO", "replication")["master_link_status"] == "up"
        )
        assert (await caller.reserve("c")).outcome is Outcome.HELD
        assert await caller.counted() == (0, 20)


async def test_a_repeated_call_waits_for_the_replicas_too(valkey_sentinel: ValkeySentinel) -> None:
    """The repetition changes nothing, so its own connection has nothing to wait for: the first one's write must be."""
    url = valkey_sentinel.master.url
    options = {"wait_replicas": 1, "wait_timeout_ms": 100}
    async with opened(url, **options) as first, opened(url, **options) as second:
        caller = await budget(first, 100)
        again = await another(caller, second)
        valkey_sentinel.sentinel.kill()
        valkey_sentinel.replica.pause()
        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
            await caller.reserve("a")
        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
            await again.reserve("a")
        valkey_sentinel.replica.resume()
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(StoreUnavailableError):
                    assert (await again.reserve("a")).repeated
                    break
        assert await caller.counted() == (0, 10)


def _until(condition) -> None:  # type: ignore[no-untyped-def]
    from tests.servers.process import wait_until

    wait_until(condition, lambda: "it did not come about")
