"""`CostTracker`: lenient where the middleware is strict, and exact about what it books."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from sark_mw import (
    AnthropicCostEstimator,
    CostAttributionService,
    CostEstimate,
    CostEstimator,
    CostTracker,
    FixedCostEstimator,
    InvocationRequest,
    InvocationResult,
    NoCostEstimator,
    OpenAICostEstimator,
    Settings,
    StoreUnavailableError,
)
from tests.enforcement.whole import settings_for
from tests.servers.fixtures import FreshValkey

BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
OPENAI = {"provider": "openai", "model": "gpt-4o"}
USAGE = {"usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}}
#: 10 tokens in at $2.50 and 20 out at $10 per million.
COST = Decimal("0.000225")


class Failing(CostEstimator):
    @property
    def provider_name(self) -> str:
        return "failing"

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: object) -> CostEstimate:
        raise RuntimeError("no price today")

    async def record_actual_cost(
        self, request: InvocationRequest, result: InvocationResult, resource_metadata: object
    ) -> CostEstimate | None:
        raise RuntimeError("no usage either")


class Euros(Failing):
    async def estimate_cost(self, request: InvocationRequest, resource_metadata: object) -> CostEstimate:
        return CostEstimate(Decimal(1), currency="EUR")


@pytest.fixture
async def tracker(service: CostAttributionService) -> AsyncIterator[CostTracker]:
    tracker = CostTracker(service)
    tracker.register_estimator("fixed", FixedCostEstimator(1))
    tracker.register_estimator("failing", Failing())
    yield tracker


def asked(**context: object) -> InvocationRequest:
    return InvocationRequest("chat", "alice", BODY, context)


async def spent(tracker: CostTracker) -> Decimal:
    return (await tracker.service.get_cost_summary(principal_id="alice")).total_cost


async def test_estimators_are_there_from_the_start_and_others_can_be_registered(tracker: CostTracker) -> None:
    assert isinstance(tracker.get_estimator("openai"), OpenAICostEstimator)
    assert isinstance(tracker.get_estimator("anthropic"), AnthropicCostEstimator)
    assert isinstance(tracker.get_estimator("free"), NoCostEstimator)
    assert isinstance(tracker.get_estimator("fixed"), FixedCostEstimator)
    assert tracker.get_estimator("nobody") is None


async def test_the_provider_is_that_of_the_costs_then_the_resource_s_then_free(tracker: CostTracker) -> None:
    async def estimated(**metadata: object) -> Decimal:
        return (await tracker.estimate_invocation_cost(asked(), metadata)).estimated_cost

    assert await estimated(cost_provider="fixed", provider="openai") == 1
    assert await estimated(provider="openai") > 0
    assert await estimated(provider="nobody") == 0
    assert await estimated() == 0


@pytest.mark.parametrize("estimator", [Failing(), Euros()], ids=["raises", "another currency"])
async def test_an_estimator_that_fails_costs_nothing_and_says_so(tracker: CostTracker, estimator: CostEstimator) -> None:
    tracker.register_estimator("failing", estimator)
    estimate = await tracker.estimate_invocation_cost(asked(), {"provider": "failing"})
    assert (estimate.estimated_cost, estimate.provider, estimate.metadata["fallback"]) == (0, "failing", True)
    assert estimate.metadata["error"]
    await tracker.record_invocation_cost(asked(), InvocationResult(True), "r", {"provider": "failing"})
    assert await spent(tracker) == 0


async def test_a_budget_is_checked_with_the_estimate(tracker: CostTracker) -> None:
    await tracker.service.set_budget("alice", daily_budget="1.5")
    assert await tracker.check_budget_before_invocation(asked(), {"provider": "fixed"}) == (True, None)
    await tracker.record_invocation_cost(asked(), InvocationResult(True), "r", {"provider": "fixed"})
    allowed, reason = await tracker.check_budget_before_invocation(asked(), {"provider": "fixed"})
    assert not allowed
    assert (reason or "").startswith("Daily budget exceeded (limit: 1.50 USD)")


async def test_a_call_is_booked_at_what_its_result_tells_and_else_at_its_estimate(tracker: CostTracker) -> None:
    await tracker.record_invocation_cost(asked(), InvocationResult(True, metadata=USAGE), "r", OPENAI)
    assert await spent(tracker) == COST
    await tracker.record_invocation_cost(asked(), InvocationResult(True, result=USAGE), "r", OPENAI)
    assert await spent(tracker) == 2 * COST
    estimate = (await tracker.estimate_invocation_cost(asked(), OPENAI)).estimated_cost
    await tracker.record_invocation_cost(asked(), InvocationResult(True), "r", OPENAI)
    assert await spent(tracker) == 2 * COST + estimate
    summary = await tracker.service.get_cost_summary(resource_id="r")
    assert (summary.record_count, [*summary.breakdown["by_model"]]) == (3, ["gpt-4o"])


async def test_a_failed_call_is_not_charged_its_estimate_but_what_it_used(tracker: CostTracker) -> None:
    await tracker.record_invocation_cost(asked(), InvocationResult(False, error="boom"), "r", {"provider": "fixed"})
    await tracker.record_invocation_cost(asked(), InvocationResult(False, error="boom"), "r", OPENAI)
    assert await spent(tracker) == 0
    await tracker.record_invocation_cost(asked(), InvocationResult(False, metadata=USAGE), "r", OPENAI)
    assert await spent(tracker) == COST


async def test_one_invocation_recorded_three_times_counts_once(tracker: CostTracker) -> None:
    once = InvocationResult(True, metadata={"invocation_id": "i1"})
    for _ in range(3):
        await tracker.record_invocation_cost(asked(), once, "r", {"provider": "fixed"})
        await tracker.record_invocation_cost(asked(invocation_id="i2"), InvocationResult(True), "r", {"provider": "fixed"})
    assert await spent(tracker) == 2
    for _ in range(2):  # one HTTP request may have many invocations
        await tracker.record_invocation_cost(asked(request_id="q"), InvocationResult(True), "r", {"provider": "fixed"})
    assert await spent(tracker) == 4


async def test_fifty_concurrent_invocations_of_one_add_up_to_fifty(tracker: CostTracker) -> None:
    await asyncio.gather(
        *(tracker.record_invocation_cost(asked(), InvocationResult(True), "r", {"provider": "fixed"}) for _ in range(50))
    )
    assert await spent(tracker) == 50


async def test_a_store_that_is_away_is_logged_and_does_not_stop_who_only_tracks(
    fresh_valkey: FreshValkey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = fresh_valkey()
    server.kill()
    settings = settings_for(server.url, tmp_path, budget=None, store={"deadline_ms": 100})
    tracker = CostTracker(CostAttributionService(settings=settings))
    assert await tracker.check_budget_before_invocation(asked(), OPENAI) == (True, None)
    await tracker.record_invocation_cost(asked(), InvocationResult(True), "r", OPENAI)
    assert [record.levelname for record in caplog.records if record.name == "sark_mw.tracker"] == ["ERROR", "ERROR"]
    with pytest.raises(StoreUnavailableError):
        await tracker.service.check_budget("alice", 1)
    await tracker.aclose()


async def test_without_a_service_it_has_one_of_its_own() -> None:
    tracker = CostTracker()
    await tracker.service.set_budget("alice", daily_budget=1)
    await tracker.record_invocation_cost(asked(), InvocationResult(True, metadata=USAGE), "r", OPENAI)
    assert await spent(tracker) == COST
    await tracker.aclose()


async def test_it_prices_as_the_settings_of_its_service_say(tmp_path: Path) -> None:
    settings = settings_for("memory://", tmp_path, budget=None)
    price = {"provider": "openai", "model": "house", "input_usd_per_million": 0, "output_usd_per_million": 10_000}
    priced = Settings.of({**settings.model_dump(), "pricing": {"models": [price]}})
    tracker = CostTracker(CostAttributionService(settings=priced))
    estimate = await tracker.estimate_invocation_cost(asked(), {"provider": "openai", "model": "house"})
    assert estimate.estimated_cost == 1
    await tracker.aclose()
