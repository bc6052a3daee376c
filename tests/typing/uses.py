"""Typed uses of the public names: checked by mypy --strict, never run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from decimal import Decimal
from typing import Any

from sark_mw import (
    CostEstimate,
    CostEstimator,
    FixedCostEstimator,
    InvocationRequest,
    InvocationResult,
    Limit,
    PolicyContext,
    PolicyDecision,
    PolicyPlugin,
    PolicyPluginManager,
    Principal,
    RefusedError,
    Sark,
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
