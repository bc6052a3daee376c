"""Typed uses of the public names: checked by mypy --strict, never run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from decimal import Decimal
from typing import Any

from sark_mw import (
    BudgetReader,
    BudgetStatus,
    CostAttributionRecord,
    CostAttributionService,
    CostAwareAdapter,
    CostEstimate,
    CostEstimator,
    CostSummary,
    CostTracker,
    FixedCostEstimator,
    InvocationRequest,
    InvocationResult,
    Limit,
    PolicyContext,
    PolicyDecision,
    PolicyPlugin,
    PolicyPluginManager,
    Principal,
    ProtocolAdapter,
    RefusedError,
    Sark,
    SARKGateway,
    SarkMiddleware,
    Settings,
    Usage,
)

Message = MutableMapping[str, Any]


async def app(
    scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})


class Weekdays(PolicyPlugin):
    @property
    def name(self) -> str:
        return "weekdays"

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(context.timestamp.weekday() < 5, "closed")


class PerPage(CostEstimator):
    @property
    def provider_name(self) -> str:
        return "ocr"

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Any) -> CostEstimate:
        return CostEstimate(Decimal("0.01"), provider="ocr")

    async def record_actual_cost(
        self, request: InvocationRequest, result: InvocationResult, resource_metadata: Any
    ) -> CostEstimate | None:
        return CostEstimate(Decimal("0.02")) if result.success else None


def who(scope: MutableMapping[str, Any]) -> Principal | str | None:
    return "user:alice"


async def use() -> None:
    settings = Settings.load("sark.toml")
    wrapped = SarkMiddleware(app, settings=settings, principal=who, estimators={"ocr": PerPage()})
    assert wrapped.app is app
    policies = PolicyPluginManager()
    await policies.register_plugin(Weekdays())
    async with Sark.open("sark.toml", policies=policies) as sark:
        await sark.limits.set(
            Limit(scope="team:ml", unit="usd", amount=Decimal("50"), window="day", timezone="Europe/Berlin"),
        )
        try:
            async with sark.reserve(principal="user:alice", scopes=["team:ml"], estimate=Decimal("0.10")) as reservation:
                reservation.settle(Usage(input_tokens=10, output_tokens=20))
                reservation.settle(Decimal("0.05"))
        except RefusedError as refused:
            kind: str = refused.kind
            print(kind)
    estimate: CostEstimate = await FixedCostEstimator(Decimal("0.5")).estimate_cost(
        InvocationRequest("search", "user:alice", {}), {}
    )
    cost: Decimal = estimate.estimated_cost
    print(cost)


class Adapter(ProtocolAdapter):
    async def invoke(self, request: InvocationRequest) -> InvocationResult:
        return InvocationResult(success=True, result={"ok": True}, metadata={"usage": {"prompt_tokens": 1}}, duration_ms=1.0)


async def use_faces(sark: Sark) -> None:
    gateway = SARKGateway(settings={"store": {"url": "memory://"}})
    service = CostAttributionService(gateway.db)
    async with CostAttributionService(sark, timezone="Europe/Berlin") as berlin:
        reader: BudgetReader = berlin
        await reader.get_budget_status("alice")
    status: BudgetStatus | None = await service.get_budget_status("alice")
    if status is not None:
        left: Decimal | None = status.daily_remaining
        share: float = status.daily_percent_used
        print(left, share)
    budget: BudgetStatus = await service.set_budget("alice", daily_budget=Decimal("10.00"), monthly_budget=None, currency="USD")
    allowed, reason = await service.check_budget(budget.principal_id, estimated_cost=Decimal("0.05"))
    said: str | None = reason
    record: CostAttributionRecord = await service.record_cost(
        "alice", "openai", "chat", estimated_cost=Decimal("0.05"), actual_cost=None, metadata={"model": "gpt-4o"}, record_id="1"
    )
    summary: CostSummary = await service.get_cost_summary("alice", period_start=record.timestamp)
    print(allowed, said, summary.total_cost, summary.breakdown["by_model"])
    tracker = CostTracker(service)
    tracker.register_estimator("ocr", PerPage())
    estimator: CostEstimator | None = tracker.get_estimator("ocr")
    request = InvocationRequest("read", "alice", {"page": 1}, resource_id="scanner")
    may, why = await tracker.check_budget_before_invocation(request, {"cost_provider": "ocr"})
    await tracker.record_invocation_cost(request, InvocationResult(may, error=why), "scanner", {"cost_provider": "ocr"})
    gateway.cost_tracker = tracker
    gateway.policy_manager = PolicyPluginManager()
    gateway.register_adapter("scanner", Adapter(), {"provider": "ocr"})
    result: InvocationResult = await gateway.invoke(
        principal_id="alice", resource_id="scanner", capability_id="read", arguments={"page": 1}
    )
    print(result.success)
    await CostAwareAdapter(Adapter(), gateway, estimator=estimator).invoke(request)
    await CostAwareAdapter(Adapter(), sark, resource_metadata={"provider": "ocr"}).invoke(request)
    await gateway.aclose()
