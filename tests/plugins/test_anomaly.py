from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plugins.anomaly import AnomalyPlugin
from sark_mw import ConfigurationError, Outcomes, PolicyDecision, PolicyPluginManager, PolicyServices, RequestEnd
from sark_mw._fake_provider import FakeProvider
from sark_mw._memory_store import ManualClock, MemoryStore
from tests.asgi.conftest import MakeGateway
from tests.policy.samples import a_context

DOLLAR = 1_000_000_000
START = datetime(2026, 1, 1, 0, 30, tzinfo=UTC)


class Process:
    """A gateway's process on a store that others share, at an hour that the test chooses."""

    def __init__(self, store: MemoryStore, clock: ManualClock, **options: Any) -> None:
        self.outcomes = Outcomes()
        self.plugin = AnomalyPlugin(**options)
        self.plugin.bind(PolicyServices(store=store, outcomes=self.outcomes))
        self.clock = clock
        self.asked = 0

    async def spend(self, dollars: float, hour: int, principal: str = "user:alice") -> PolicyDecision:
        self.asked += 1
        self.clock.now_ms = max(self.clock.now_ms, round((START + timedelta(hours=hour)).timestamp() * 1000))
        environment = {"request_id": f"{id(self)}-{self.asked}", "expected_nanos": int(dollars * DOLLAR), "estimated_nanos": 0}
        moment = START + timedelta(hours=hour)
        return await self.plugin.evaluate(a_context(principal_id=principal, environment=environment, timestamp=moment))

    def refuse_last(self) -> None:
        self.outcomes.tell(RequestEnd(request_id=f"{id(self)}-{self.asked}", admitted=False))


@pytest.fixture
async def shared() -> tuple[MemoryStore, ManualClock]:
    clock = ManualClock(round(START.timestamp() * 1000))
    store = MemoryStore(clock)
    await store.begin()
    return store, clock


async def steady(process: Process, hours: int = 10, dollars: float = 2.0) -> None:
    for hour in range(hours):
        assert (await process.spend(dollars, hour)).allowed


async def test_a_steady_principal_may_vary_but_not_spend_ten_times_as_much(shared: Any) -> None:
    process = Process(*shared)
    await steady(process)
    usual = await process.spend(3, 10)
    assert usual.allowed and usual.metadata["usual_usd"] == "2.0000" and usual.metadata["threshold_usd"] == "4.0000"
    denied = await process.spend(17, 10)
    assert not denied.allowed and denied.reason == "this hour comes to more than $4.0000; usual is $2.0000"
    assert denied.metadata["retry_after"] == 1800 and denied.metadata["hours_seen"] == 10
    assert (await process.spend(1, 10)).allowed, "what was denied is not counted"
    assert not (await process.spend(1, 10)).allowed
    assert (await process.spend(1, 11)).allowed, "another hour begins anew"


async def test_one_that_varies_much_is_given_more_room(shared: Any) -> None:
    process = Process(*shared, hours=48)
    for hour in range(20):
        assert (await process.spend(1 if hour % 2 else 9, hour)).allowed
    assert (await process.spend(15, 20)).allowed
    assert not (await process.spend(50, 20)).allowed


async def test_before_there_is_a_history_nothing_is_judged(shared: Any) -> None:
    process = Process(*shared, cold_hours=8)
    await steady(process, hours=7)
    cold = await process.spend(1000, 7)
    assert cold.allowed and cold.metadata["cold_start"] is True
    assert (await process.spend(1, 7, principal="user:bob")).metadata["hours_seen"] == 0


async def test_small_sums_are_never_too_much_and_hours_without_any_use_do_not_count(shared: Any) -> None:
    process = Process(*shared, least_usd=5)
    for hour in range(0, 30, 3):
        assert (await process.spend(0.01, hour)).allowed
    assert (await process.spend(4.9, 31)).allowed
    assert not (await process.spend(0.2, 31)).allowed


async def test_an_mcp_batch_is_counted_once_since_its_amount_is_that_of_all_its_calls(shared: Any) -> None:
    process = Process(*shared)
    await steady(process)
    environment = {"request_id": "batch", "expected_nanos": 3 * DOLLAR, "estimated_nanos": 0}
    moment = START + timedelta(hours=10)
    for call in range(5):
        context = a_context(environment={**environment, "call": call}, timestamp=moment)
        decision = await process.plugin.evaluate(context)
        assert decision.allowed and decision.metadata["hour_usd"] == "3.0000"


async def test_it_may_only_warn(shared: Any) -> None:
    process = Process(*shared, action="warn")
    await steady(process)
    decision = await process.spend(500, 10)
    assert decision.allowed and "usual is $2.0000" in decision.metadata["warning"]


async def test_all_processes_count_together_and_a_new_one_knows_the_history(shared: Any) -> None:
    first, second = Process(*shared), Process(*shared)
    await steady(first)
    assert (await second.spend(2, 10)).metadata["hours_seen"] == 10
    assert (await first.spend(2, 10)).metadata["hour_usd"] == "4.0000"
    assert not (await second.spend(1, 10)).allowed


async def test_what_is_refused_afterwards_is_given_back(shared: Any) -> None:
    process = Process(*shared)
    await steady(process)
    await process.spend(4, 10)
    assert not (await process.spend(0.5, 10)).allowed
    process.asked -= 1
    process.refuse_last()
    await process.plugin._history.aclose()
    assert (await process.spend(4, 10)).allowed


async def test_it_forgets_what_is_older_than_its_hours(shared: Any) -> None:
    process = Process(*shared, hours=10, cold_hours=8)
    await steady(process)
    assert (await process.spend(1, 15)).metadata["hours_seen"] == 5


async def test_without_a_store_or_a_price_its_on_error_decides() -> None:
    for on_error, allowed in (("allow", True), ("deny", False)):
        manager = PolicyPluginManager()
        await manager.register_plugin(AnomalyPlugin(on_error=on_error))
        assert (await manager.evaluate_all(a_context()))[0].allowed is allowed
        assert (await manager.evaluate_all(a_context(environment={"estimated_nanos": 5})))[0].allowed is allowed


@pytest.mark.parametrize(
    "options", [{"deviations": 0}, {"weight": 2}, {"cold_hours": 0}, {"action": "shout"}, {"hours": 1000}, {"hours": 4}]
)
def test_figures_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        AnomalyPlugin(**options)


async def test_a_gateway_counts_what_requests_are_expected_to_cost(books: MakeGateway) -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(AnomalyPlugin(on_error="deny"))
    gateway = await books(FakeProvider(), {"policies": manager})
    assert [(await gateway.post()).status for _ in range(3)] == [200, 200, 200]
    counted = [spent async for name, spent in gateway.sark.store.counters("default") if "/nanos/hour|" in name]
    assert sum(counted) == sum(entry.expected_nanos for entry in await gateway.entries())
