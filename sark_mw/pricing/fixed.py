"""Costs that do not depend on the request: free of charge, or so much per call."""

from __future__ import annotations

from decimal import Decimal

from sark_mw.money import to_decimal, to_nanos
from sark_mw.pricing.base import CostEstimate, CostEstimator, Estimate, InvocationRequest, Json
from sark_mw.pricing.rates import YOCTOS_PER_NANO
from sark_mw.usage import Usage


class FixedCostEstimator(CostEstimator):
    """Charge the same for every call; `cost_per_call` in dollars (Decimal, int or str), else `MoneyError`."""

    def __init__(self, cost_per_call: Decimal | int | str, provider: str = "fixed") -> None:
        self._cost = to_decimal(cost_per_call)
        self._nanos = to_nanos(cost_per_call)
        self._provider = provider

    @property
    def provider_name(self) -> str:
        """Name the provider."""
        return self._provider

    def estimate(self, request: InvocationRequest, resource_metadata: Json) -> Estimate:
        """Hold exactly what the call costs."""
        return Estimate(
            ceiling_nanos=self._nanos,
            expected_nanos=self._nanos,
            provider=self._provider,
            output_limited=True,
            fixed_yoctos=self._nanos * YOCTOS_PER_NANO,
        )

    def actual(self, usage: Usage, estimate: Estimate) -> int:
        """Charge the call, whatever it used."""
        return self._nanos

    def observe(self, usage: Usage, estimate: Estimate) -> None:
        """Learn nothing: the cost is fixed."""

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Json) -> CostEstimate:
        """Return the cost of one call."""
        return CostEstimate(self._cost, provider=self._provider, breakdown=self._breakdown())

    def _breakdown(self) -> dict[str, object]:
        return {"cost_per_call": str(self._cost), "call_count": 1}


class NoCostEstimator(FixedCostEstimator):
    """Charge nothing."""

    def __init__(self, provider: str = "free") -> None:
        super().__init__(Decimal("0.00"), provider)

    def _breakdown(self) -> dict[str, object]:
        return {}
