"""The rate limit over the in-memory store that is the executable specification: two plugins stand for two processes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from plugins.rate_limit import RateLimitPlugin
from sark_mw import PolicyPluginManager, PolicyServices
from sark_mw._memory_store import ManualClock, MemoryStore
from sark_mw.limit import Limit
from tests.policy.samples import a_context


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(clock: ManualClock) -> MemoryStore:
    store = MemoryStore(clock)
    await store.begin()
    return store


async def gateway(store: MemoryStore, **options: Any) -> PolicyPluginManager:
    manager = PolicyPluginManager(services=PolicyServices(store=store))
    await manager.register_plugin(RateLimitPlugin(**options))
    return manager


async def test_two_processes_share_one_count_exactly(store: MemoryStore) -> None:
    gateways = [await gateway(store, max_requests=50), await gateway(store, max_requests=50)]
    answers = await asyncio.gather(*(gateways[number % 2].evaluate_all(a_context()) for number in range(200)))
    assert sum(decisions[0].allowed for decisions in answers) == 50
    denied = next(decisions[0] for decisions in answers if not decisions[0].allowed)
    assert denied.metadata["shared"] is True and denied.metadata["remaining"] == 0
    assert 0 < denied.metadata["retry_after"] <= 3600
    other = (await gateways[0].evaluate_all(a_context(principal_id="user:bob")))[0]
    assert other.allowed and other.metadata["remaining"] == 49


async def test_the_window_slides_by_the_stores_clock(store: MemoryStore, clock: ManualClock) -> None:
    manager = await gateway(store, max_requests=2, window_seconds=100)

    async def allowed() -> bool:
        return (await manager.evaluate_all(a_context()))[0].allowed

    assert [await allowed() for _ in range(3)] == [True, True, False]
    clock.advance(90_000)
    assert not await allowed()
    clock.advance(12_000)
    assert [await allowed() for _ in range(3)] == [True, True, False]


async def test_it_goes_on_counting_when_the_limits_change_and_writes_no_ledger_entry(store: MemoryStore) -> None:
    manager = await gateway(store, max_requests=2)
    assert (await manager.evaluate_all(a_context()))[0].allowed
    await store.set_limits("default", put=[Limit(scope="user:alice", amount="5")])  # type: ignore[arg-type]
    assert [(await manager.evaluate_all(a_context()))[0].allowed for _ in range(2)] == [True, False]
    assert store.ledger == []
