"""Estimators as users write them, to be named in settings."""

from __future__ import annotations

from decimal import Decimal

from sark_mw.pricing.base import CostEstimate, CostEstimator, InvocationRequest, InvocationResult, Json


class PerPage(CostEstimator):
    """A cent per page, ten at most; knows the truth from the answer."""

    @property
    def provider_name(self) -> str:
        return "pages"

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Json) -> CostEstimate:
        asked = request.arguments.get("pages", 10)
        assert isinstance(asked, int)
        return CostEstimate(Decimal(asked) / 100, expected_cost=Decimal(asked) / 200)

    async def record_actual_cost(
        self, request: InvocationRequest, result: InvocationResult, resource_metadata: Json
    ) -> CostEstimate | None:
        body = result.result
        if not isinstance(body, dict):
            return None
        return CostEstimate(Decimal(body["read"]) / 100)


class Guessing(CostEstimator):
    """Never learns the truth."""

    @property
    def provider_name(self) -> str:
        return "guess"

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Json) -> CostEstimate:
        return CostEstimate(Decimal("0.05"))


GUESSING = Guessing()
NOT_ONE = object()
