"""Estimating and recording for those who only track: lenient where the middleware is strict, over the same books."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from decimal import Decimal

from sark_mw.attribution import CostAttributionService
from sark_mw.errors import LedgerError, StoreError
from sark_mw.pricing.base import CostEstimate, CostEstimator, InvocationRequest, InvocationResult, Json, in_nanos
from sark_mw.pricing.fixed import NoCostEstimator
from sark_mw.pricing.registry import builtin_estimators

_log = logging.getLogger(__name__)

#: Longest that an estimator may think about one request.
_ESTIMATOR_S = 5.0
_FREE = "free"
_ID_NAMES = ("record_id", "invocation_id", "request_id")


class CostTracker:
    """Estimate, check and record invocations through `service`; without one, through a service of its own.

    An unknown provider is free, an estimator that fails costs 0 and says so, a store or ledger that fails is logged.
    """

    def __init__(self, service: CostAttributionService | None = None) -> None:
        self.service = service if service is not None else CostAttributionService()
        ours = isinstance(self.service, CostAttributionService)
        self._estimators: dict[str, CostEstimator] = dict(self.service.sark.estimators if ours else builtin_estimators())

    async def aclose(self) -> None:
        """Close the service, and with it what it opened itself."""
        await self.service.aclose()

    def register_estimator(self, provider: str, estimator: CostEstimator) -> None:
        """Price this provider's invocations with `estimator` from now on."""
        self._estimators[provider] = estimator

    def get_estimator(self, provider: str) -> CostEstimator | None:
        """Return the estimator of a provider, None for an unknown one."""
        return self._estimators.get(provider)

    async def estimate_invocation_cost(self, request: InvocationRequest, resource_metadata: Json) -> CostEstimate:
        """Estimate with the estimator of `cost_provider`, else of `provider`, else for free.

        An estimator that fails costs 0, with `metadata {"error", "fallback": True}`.
        """
        provider = provider_of(resource_metadata)
        try:
            async with asyncio.timeout(_ESTIMATOR_S):
                estimate = await self._estimator(provider).estimate_cost(request, resource_metadata)
            in_nanos(estimate)  # negative, and other currencies, fail here
        except Exception as error:  # noqa: BLE001  # the hook boundary, and lenient by promise
            _log.warning("the estimator of %s failed, the invocation counts as free: %s", provider, type(error).__name__)
            said = str(error) or type(error).__name__
            return CostEstimate(Decimal("0.00"), provider=provider, metadata={"error": said, "fallback": True})
        return estimate

    async def check_budget_before_invocation(
        self, request: InvocationRequest, resource_metadata: Json
    ) -> tuple[bool, str | None]:
        """Tell whether the estimate fits the principal's budgets, and if not, why; what cannot be asked is allowed and logged."""
        estimate = await self.estimate_invocation_cost(request, resource_metadata)
        try:
            return await self.service.check_budget(request.principal_id, estimate.estimated_cost)
        except (StoreError, LedgerError) as error:
            _log.error("the budget of an invocation could not be checked: %s", error)
            return True, None

    async def record_invocation_cost(
        self, request: InvocationRequest, result: InvocationResult, resource_id: str, resource_metadata: Json
    ) -> None:
        """Book what an invocation cost: what its result tells, else the estimate, and for a failed one nothing.

        A `record_id`, `invocation_id` or `request_id` of the result's metadata, or an `invocation_id` of the request's context,
        lets the same invocation count once. What fails is logged.
        """
        provider = provider_of(resource_metadata)
        estimate = await self.estimate_invocation_cost(request, resource_metadata)
        told = await told_cost(self._estimator(provider), request, result, resource_metadata)
        actual = told.estimated_cost if told is not None else None if result.success else Decimal("0.00")
        shown = told or estimate
        metadata: dict[str, object] = {
            "provider": shown.provider or provider,
            "model": shown.model or resource_metadata.get("model"),
            # Of a failed invocation the estimate's tokens were never used.
            "breakdown": shown.breakdown if told is not None or result.success else {},
            "success": result.success,
            **({"fallback": True} if estimate.metadata.get("fallback") else {}),
        }
        try:
            await self.service.record_cost(
                request.principal_id,
                resource_id,
                request.capability_id,
                estimated_cost=estimate.estimated_cost,
                actual_cost=actual,
                metadata=metadata,
                record_id=_id_of(request, result),
            )
        except Exception:  # noqa: BLE001  # whoever only tracks must not fail for it: lenient by promise
            _log.exception("the cost of an invocation of %s could not be recorded", resource_id)

    def _estimator(self, provider: str) -> CostEstimator:
        return self._estimators.get(provider) or NoCostEstimator(provider)


def provider_of(resource_metadata: Json) -> str:
    """Name the provider whose prices apply: `cost_provider`, then `provider`, then "free"."""
    return str(resource_metadata.get("cost_provider") or resource_metadata.get("provider") or _FREE)


async def told_cost(
    estimator: CostEstimator, request: InvocationRequest, result: InvocationResult, resource_metadata: Json
) -> CostEstimate | None:
    """Ask an estimator for the actual cost; None where the result, or the estimator, does not tell."""
    if not estimator.supports_actual_cost():
        return None
    try:
        async with asyncio.timeout(_ESTIMATOR_S):
            cost = await estimator.record_actual_cost(request, result, resource_metadata)
        if cost is not None:
            in_nanos(cost)
    except Exception as error:  # noqa: BLE001  # the hook boundary: a user's estimator must not lose a cost
        _log.warning("estimator %s failed to tell the actual cost: %s", type(estimator).__name__, error)
        return None
    return cost


def _id_of(request: InvocationRequest, result: InvocationResult) -> str | None:
    # A request's own `request_id` may be that of a whole HTTP request with many invocations.
    named: Mapping[str, object] = {"invocation_id": request.context.get("invocation_id"), **result.metadata}
    return next((str(named[name]) for name in _ID_NAMES if named.get(name)), None)
