"""What an estimator is: the promised classes, and the fast face that the enforcer calls on every request."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Protocol, cast, runtime_checkable

from sark_mw.errors import CostEstimationError, InvalidRequestError, MoneyError
from sark_mw.money import from_nanos, to_decimal, to_nanos
from sark_mw.pricing.rates import YOCTOS_PER_NANO, ModelPrice
from sark_mw.usage import Usage

_log = logging.getLogger(__name__)

#: Longest that an estimator of a user's own may think about one request.
_ESTIMATE_S = 5.0

#: Parsed JSON: bodies and metadata come from outside, so every read of them checks its type.
Json = Mapping[str, object]


class InvocationRequest:
    """Name one invocation of a capability; `arguments` is the parsed body. Unknown fields are ignored."""

    __slots__ = ("arguments", "capability_id", "context", "principal_id", "resource_id")

    def __init__(
        self,
        capability_id: str,
        principal_id: str,
        arguments: Json,
        context: Json | None = None,
        resource_id: str | None = None,
        **_ignored: object,
    ) -> None:
        self.capability_id = capability_id
        self.principal_id = principal_id
        self.arguments = arguments
        self.context = {} if context is None else context
        self.resource_id = resource_id

    def __repr__(self) -> str:
        # Arguments may hold prompts, which never reach a log.
        return f"InvocationRequest(capability_id={self.capability_id!r}, principal_id={self.principal_id!r})"


@dataclass(frozen=True, slots=True)
class InvocationResult:
    """What an invocation came to; `result` is the parsed body, `metadata["usage"]` the usage where it is known apart."""

    success: bool
    result: object = None
    error: str | None = None
    metadata: Json = field(default_factory=dict)
    duration_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """A cost in `currency`: `estimated_cost` is the ceiling (or the actual cost), `expected_cost` the probable one.

    `expected_cost` is `estimated_cost` where nothing better is known. Floats raise `MoneyError`.
    """

    estimated_cost: Decimal
    currency: str = "USD"
    provider: str | None = None
    model: str | None = None
    breakdown: Json = field(default_factory=dict)
    metadata: Json = field(default_factory=dict)
    expected_cost: Decimal | None = None

    def __post_init__(self) -> None:
        ceiling = to_decimal(self.estimated_cost)
        object.__setattr__(self, "estimated_cost", ceiling)
        expected = ceiling if self.expected_cost is None else to_decimal(self.expected_cost)
        object.__setattr__(self, "expected_cost", expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Two figures for one request, in nano-dollars, and what they were made of.

    Token counts are ceilings over all choices (`n`); `expected_output_tokens` is the probable output. `output_limited` tells
    whether the request itself caps its output; `choices` is by how much one limit is multiplied.
    """

    ceiling_nanos: int
    expected_nanos: int
    input_tokens: int = 0
    max_output_tokens: int = 0
    expected_output_tokens: int = 0
    provider: str | None = None
    model: str | None = None
    unknown_model: bool = False
    price: ModelPrice | None = None
    expected_input_tokens: int = 0
    audio_input_tokens: int = 0
    output_limited: bool = False
    choices: int = 1
    #: Per choice, what comes on top of the request's own limit: rejected predictions, thoughts.
    extra_output_tokens: int = 0
    service_tier: str | None = None
    #: In yocto-dollars: the fixed part (input, fees) of the ceiling, and the dearest that one output token can be.
    fixed_yoctos: int = 0
    output_yoctos: int = 0
    #: It goes on when its response has ended; where that tells no usage, none will be seen, and the ceiling is what to expect.
    detached: bool = False
    #: Calls of the provider's own tools that were made if anything was, and that the response does not count.
    uncounted_calls: Usage | None = None

    def affordable_output_tokens(self, available_nanos: int) -> int | None:
        """Return the largest output limit that fits into `available_nanos`; None where output costs nothing or nothing fits."""
        left = available_nanos * YOCTOS_PER_NANO - self.fixed_yoctos
        if self.output_yoctos == 0 or left < 0:
            return None
        affordable = min(left // self.output_yoctos, self.max_output_tokens) // self.choices - self.extra_output_tokens
        return affordable if affordable > 0 or not self.extra_output_tokens else None


class CostEstimator(ABC):
    """Price invocations of one provider."""

    @property
    @abstractmethod
    def provider_name(self) -> str:
        """Name the provider, as it stands in metrics and in the ledger."""

    @abstractmethod
    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Json) -> CostEstimate:
        """Estimate what a request will cost; raises `CostEstimationError` or `InvalidRequestError`."""

    async def record_actual_cost(
        self, request: InvocationRequest, result: InvocationResult, resource_metadata: Json
    ) -> CostEstimate | None:
        """Read the actual cost off a result; None where it does not tell."""
        return None

    def supports_actual_cost(self) -> bool:
        """Tell whether this estimator reads actual costs: whether its class says how."""
        return type(self).record_actual_cost is not CostEstimator.record_actual_cost

    def get_estimator_info(self) -> dict[str, object]:
        """Describe the estimator for listings."""
        return {
            "provider_name": self.provider_name,
            "estimator_class": type(self).__name__,
            "supports_actual_cost": self.supports_actual_cost(),
            "module": type(self).__module__,
        }


@runtime_checkable
class Meter(Protocol):
    """The fast face of the built-in estimators: synchronous, microseconds, integers."""

    def estimate(self, request: InvocationRequest, resource_metadata: Json) -> Estimate:
        """Estimate a request; raises `CostEstimationError` or `InvalidRequestError`."""

    def actual(self, usage: Usage, estimate: Estimate) -> int:
        """Price what was used, in nanos."""

    def observe(self, usage: Usage, estimate: Estimate) -> None:
        """Learn from what was used how much output to expect of the next request."""


@lru_cache(maxsize=256)
def is_meter(kind: type[CostEstimator]) -> bool:
    """Tell whether a class of estimators has the fast face; asking the Protocol itself costs as much as an estimate."""
    return issubclass(kind, Meter)


def in_nanos(cost: CostEstimate) -> int:
    """Return a cost in nanos; raises `CostEstimationError` for a currency other than dollars, of which no rate is known here."""
    if cost.currency.upper() != "USD":
        raise CostEstimationError(f"a cost in {cost.currency} cannot be charged: estimators answer in USD", cost.provider)
    return to_nanos(cost.estimated_cost)


async def estimate_with(estimator: CostEstimator, request: InvocationRequest, resource_metadata: Json) -> Estimate:
    """Ask any estimator for an `Estimate`: a user's own, which only has `estimate_cost`, included.

    Raises `InvalidRequestError`, `MoneyError` or `CostEstimationError`; whatever else an estimator raises, or that it takes too
    long, is the last of these with `metadata["failed"]`.
    """
    try:
        if is_meter(type(estimator)):
            return cast(Meter, estimator).estimate(request, resource_metadata)
        async with asyncio.timeout(_ESTIMATE_S):
            cost = await estimator.estimate_cost(request, resource_metadata)
        return _from_cost(estimator, cost)
    except (CostEstimationError, InvalidRequestError, MoneyError):
        raise
    except Exception as error:  # the hook boundary: a user's estimator must not end in a 500
        _log.exception("estimator %s failed", type(estimator).__name__)
        raise CostEstimationError("the cost of the request could not be estimated", failed=True) from error


def _from_cost(estimator: CostEstimator, cost: CostEstimate) -> Estimate:
    ceiling = in_nanos(cost)
    expected = ceiling if cost.expected_cost is None else to_nanos(cost.expected_cost)
    return Estimate(
        ceiling_nanos=ceiling,
        expected_nanos=min(expected, ceiling),
        provider=cost.provider or estimator.provider_name,
        model=cost.model,
        fixed_yoctos=ceiling * YOCTOS_PER_NANO,
    )


def as_cost_estimate(estimate: Estimate, breakdown: Json) -> CostEstimate:
    """Turn the fast face's figures into the promised class."""
    return CostEstimate(
        from_nanos(estimate.ceiling_nanos),
        provider=estimate.provider,
        model=estimate.model,
        breakdown=breakdown,
        metadata={"unknown_model": True} if estimate.unknown_model else {},
        expected_cost=from_nanos(estimate.expected_nanos),
    )
