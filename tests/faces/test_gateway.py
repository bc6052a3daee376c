"""`SARKGateway` and `CostAwareAdapter`: a resource's adapter, metered by the code of the middleware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from decimal import Decimal

import pytest

from sark_mw import (
    ConfigurationError,
    CostAttributionService,
    CostAwareAdapter,
    CostTracker,
    FixedCostEstimator,
    InvocationRequest,
    InvocationResult,
    Limit,
    PolicyContext,
    PolicyDecision,
    PolicyPlugin,
    PolicyPluginManager,
    ProtocolAdapter,
    Sark,
    SARKGateway,
    Settings,
    builtin_plugin_path,
)
from sark_mw.limit import DEFAULT_ROOT
from tests.enforcement.whole import until

FIXED = {"provider": "fixed"}
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
USAGE = {"usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}}
COST = Decimal("0.000225")


class Echo(ProtocolAdapter):
    """Answer with what `answer` makes of a request, once `gate` is open."""

    def __init__(self, answer: Callable[[InvocationRequest], InvocationResult] | None = None) -> None:
        self.answer = answer or (lambda request: InvocationResult(True, result=dict(request.arguments)))
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def invoke(self, request: InvocationRequest) -> InvocationResult:
        self.asked.append(request.principal_id)
        await self.gate.wait()
        return self.answer(request)


class Watching(PolicyPlugin):
    """Allow only what is not `forbidden`, and remember who asked."""

    name = "watching"

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str, object]] = []

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        self.seen.append((context.principal_id, context.resource_id, context.capability_id, context.environment.get("from")))
        return PolicyDecision(context.capability_id != "forbidden", "not this one")


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[SARKGateway]:
    async with SARKGateway(settings=settings) as opened:
        opened.cost_tracker.register_estimator("fixed", FixedCostEstimator(1))
        yield opened


async def invoke(gateway: SARKGateway, resource: str = "r", capability: str = "chat", **words: object) -> InvocationResult:
    return await gateway.invoke(
        principal_id="alice", resource_id=resource, capability_id=capability, arguments={"x": 1}, context=words
    )


async def daily(gateway: SARKGateway) -> tuple[Decimal, Decimal | None]:
    status = await gateway.cost_tracker.service.get_budget_status("alice")
    assert status
    return status.daily_spent, status.daily_remaining


async def test_thirty_concurrent_invocations_of_one_on_a_budget_of_ten_admit_exactly_ten(gateway: SARKGateway) -> None:
    adapter = Echo()
    gateway.register_adapter("r", adapter, FIXED)
    await gateway.cost_tracker.service.set_budget("alice", daily_budget=10)
    results = await asyncio.gather(*(invoke(gateway) for _ in range(30)))
    assert (sum(result.success for result in results), len(adapter.asked)) == (10, 10)
    assert {result.metadata["reason"] for result in results if not result.success} == {"budget"}
    assert await daily(gateway) == (10, 0)
    summary = await gateway.cost_tracker.service.get_cost_summary("alice")
    assert (summary.total_cost, summary.record_count) == (10, 10)
    comparisons = await gateway.sark.drift.compare(DEFAULT_ROOT, await gateway.sark.limits.list())
    assert [(each.settled, each.drift) for each in comparisons] == [(True, 0)]


async def test_a_refusal_is_a_result_that_says_which_limit_and_how_much_is_left(gateway: SARKGateway) -> None:
    gateway.register_adapter("r", Echo(), FIXED)
    await gateway.cost_tracker.service.set_budget("alice", daily_budget="0.5")
    result = await invoke(gateway)
    assert not result.success
    assert "budget of user:alice" in (result.error or "")
    details = result.metadata["refusal"]
    assert isinstance(details, dict)
    assert {name: details[name] for name in ("limit", "amount", "needed", "remaining")} == {
        "limit": "user:alice/usd/day@UTC",
        "amount": Decimal("0.5"),
        "needed": 1,
        "remaining": Decimal("0.5"),
    }


async def test_a_call_is_booked_at_its_usage_and_its_result_says_so(gateway: SARKGateway) -> None:
    gateway.register_adapter("openai", Echo(lambda request: InvocationResult(True, result=USAGE)), {"provider": "openai"})
    await gateway.cost_tracker.service.set_budget("alice", daily_budget=1)
    result = await gateway.invoke(principal_id="alice", resource_id="openai:gpt", capability_id="chat", arguments=BODY)
    assert (result.success, result.metadata["cost"], result.metadata["cost_estimated"]) == (True, COST, False)
    assert result.duration_ms > 0
    assert (await daily(gateway))[0] == COST
    summary = await gateway.cost_tracker.service.get_cost_summary(resource_id="openai:gpt")
    assert summary.breakdown == {"by_provider": {"openai": COST}, "by_model": {"gpt-4o": COST}}


async def test_an_adapter_that_raises_and_a_call_that_fails_are_given_back(gateway: SARKGateway) -> None:
    def broken(request: InvocationRequest) -> InvocationResult:
        raise ConnectionError("nobody there")

    gateway.register_adapter("broken", Echo(broken), FIXED)
    gateway.register_adapter("failing", Echo(lambda request: InvocationResult(False, error="no")), FIXED)
    await gateway.cost_tracker.service.set_budget("alice", daily_budget=1)
    result = await invoke(gateway, "broken")
    assert (result.success, result.error, result.metadata["reason"]) == (False, "ConnectionError: nobody there", "adapter")
    result = await invoke(gateway, "failing")
    assert (result.success, result.error, result.metadata["cost"]) == (False, "no", 0)
    assert await daily(gateway) == (0, 1)
    assert (await gateway.cost_tracker.service.get_cost_summary()).record_count == 0


async def test_a_call_whose_caller_is_cancelled_is_booked_at_what_was_expected(gateway: SARKGateway) -> None:
    adapter = Echo()
    adapter.gate.clear()
    gateway.register_adapter("r", adapter, FIXED)
    await gateway.cost_tracker.service.set_budget("alice", daily_budget=5)
    task = asyncio.ensure_future(invoke(gateway))

    async def under_way() -> bool:
        return bool(adapter.asked)

    await until(under_way)
    assert await daily(gateway) == (0, 4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def booked() -> bool:
        return await daily(gateway) == (1, 4)

    await until(booked)


async def test_policies_are_asked_first_and_see_the_names_that_the_caller_gave(gateway: SARKGateway) -> None:
    watching = Watching()
    await gateway.policy_manager.register_plugin(watching)
    adapter = Echo()
    gateway.register_adapter("r", adapter, FIXED)
    await gateway.cost_tracker.service.set_budget("alice", daily_budget=5)
    result = await invoke(gateway, capability="forbidden", **{"from": "here"})
    assert (result.success, result.metadata["reason"]) == (False, "policy")
    assert "watching" in (result.error or "")
    assert (await invoke(gateway)).success
    assert watching.seen == [("alice", "r", "forbidden", "here"), ("alice", "r", "chat", None)]
    assert adapter.asked == ["alice"]
    assert await daily(gateway) == (1, 4)


async def test_set_up_as_the_guides_do_it_meters_with_the_manager_and_the_tracker_that_are_assigned(settings: Settings) -> None:
    gateway = SARKGateway(settings=settings)
    service = CostAttributionService(gateway.db)
    tracker = CostTracker(service)
    tracker.register_estimator("fixed", FixedCostEstimator(1))
    await service.set_budget("alice", daily_budget=2)  # it is started by now
    watching, manager = Watching(), PolicyPluginManager()
    await manager.register_plugin(watching)
    gateway.policy_manager = manager
    gateway.cost_tracker = tracker
    gateway.register_adapter("r", Echo(), FIXED)
    assert [(await invoke(gateway)).success for _ in range(3)] == [True, True, False]
    assert (await invoke(gateway, capability="forbidden")).metadata["reason"] == "policy"
    assert len(watching.seen) == 4
    assert await daily(gateway) == (2, 0)
    await gateway.aclose()
    assert not gateway.sark.started


async def test_a_hold_made_under_an_assigned_manager_is_renewed_like_any_other(settings: Settings) -> None:
    quick = Settings.of({**settings.model_dump(), "reservation": {"lease_s": 2.0, "sweep_interval_ms": 10}})
    async with SARKGateway(PolicyPluginManager(), settings=quick) as gateway:
        gateway.cost_tracker.register_estimator("fixed", FixedCostEstimator(1))
        adapter = Echo()
        adapter.gate.clear()
        gateway.register_adapter("r", adapter, FIXED)
        await gateway.cost_tracker.service.set_budget("alice", daily_budget=5)
        task = asyncio.ensure_future(invoke(gateway))

        async def under_way() -> bool:
            return bool(adapter.asked)

        await until(under_way)
        ends = (await gateway.sark.store.limits(DEFAULT_ROOT)).at_ms + 3_000
        while (await gateway.sark.store.limits(DEFAULT_ROOT)).at_ms < ends:
            await asyncio.sleep(0.01)
        assert await daily(gateway) == (0, 4)
        adapter.gate.set()
        assert (await task).success
        assert await daily(gateway) == (1, 4)


async def test_the_built_in_budget_policy_finds_a_bare_principal_s_budget(gateway: SARKGateway) -> None:
    await gateway.policy_manager.load_from_file(builtin_plugin_path("cost_aware"), deny_threshold=0.5, warning_threshold=0.4)
    gateway.register_adapter("r", Echo(), FIXED)
    await gateway.cost_tracker.service.set_budget("alice", daily_budget=4)
    assert [(await invoke(gateway)).success for _ in range(3)] == [True, True, False]


async def test_what_cannot_be_invoked_says_why(gateway: SARKGateway) -> None:
    result = await invoke(gateway, "nowhere")
    assert (result.success, result.metadata["reason"]) == (False, "unknown_resource")
    assert "'nowhere'" in (result.error or "")
    gateway.register_adapter("odd", Echo(), {"provider": "unheard of"})
    result = await invoke(gateway, "odd")
    assert (result.success, result.metadata["reason"]) == (False, "estimator")
    gateway.register_adapter("openai", Echo(), {"provider": "openai"})
    result = await invoke(gateway, "openai")
    assert (result.success, result.metadata["reason"]) == (False, "invalid")
    result = await gateway.invoke(principal_id="", resource_id="openai", capability_id="chat")
    assert (result.success, result.metadata["reason"]) == (False, "invalid")


async def test_limits_on_tools_resources_and_providers_hold_in_the_gateway_too(gateway: SARKGateway) -> None:
    gateway.register_adapter("r", Echo(), FIXED)
    gateway.register_adapter("s", Echo(), FIXED)
    await gateway.cost_tracker.service.opened()
    await gateway.sark.limits.set(
        Limit(scope="tool:search", unit="requests", amount=Decimal(1), window="day"),
        Limit(scope="resource:s", amount=Decimal(2), window="day"),
        Limit(scope="provider:fixed", amount=Decimal(4), window="day"),
    )
    assert [(await invoke(gateway, capability="search")).metadata.get("reason") for _ in range(2)] == [None, "rate_limit"]
    assert [(await invoke(gateway, "s")).metadata.get("reason") for _ in range(3)] == [None, None, "budget"]
    assert [(await invoke(gateway)).metadata.get("reason") for _ in range(2)] == [None, "budget"]


async def test_an_adapter_of_one_s_own_is_metered_by_wrapping_it(gateway: SARKGateway) -> None:
    await gateway.cost_tracker.service.set_budget("alice", daily_budget=2)
    wrapped = CostAwareAdapter(Echo(), gateway, estimator=FixedCostEstimator("0.5"))
    request = InvocationRequest("chat", "alice", {}, resource_id="mine")
    assert [(await wrapped.invoke(request)).success for _ in range(2)] == [True, True]
    gateway.register_adapter("mine", wrapped, FIXED)
    assert (await invoke(gateway, "mine")).metadata["cost"] == Decimal("0.5")  # once, and not at the gateway's price again
    assert await daily(gateway) == (Decimal("1.5"), Decimal("0.5"))
    over_sark = CostAwareAdapter(Echo(), gateway.sark, estimator=FixedCostEstimator(1))
    assert (await over_sark.invoke(request)).metadata["reason"] == "budget"
    await over_sark.aclose()
    assert gateway.sark.started


async def test_parts_that_cannot_go_together_are_refused(settings: Settings) -> None:
    sark = Sark(settings)
    tracker = CostTracker(CostAttributionService(sark))
    with pytest.raises(ConfigurationError):
        SARKGateway(cost_tracker=tracker, settings=settings)
    gateway = SARKGateway(cost_tracker=tracker)
    gateway.register_adapter("r", Echo())
    assert (await invoke(gateway)).success
    await gateway.aclose()
    assert sark.started  # it was given
    await sark.aclose()
