"""Enforcement without HTTP, for workers, agents and jobs: hold, call the provider, settle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.enforcement.invocation import Idempotency, Invocation, idempotency
from sark_mw.enforcement.refuse import outcome_of, reason_of
from sark_mw.errors import ConfigurationError, CostEstimationError
from sark_mw.instrumentation.base import RequestFinished, RequestOutcome
from sark_mw.limit import Limit, run_limit
from sark_mw.money import to_decimal, to_nanos
from sark_mw.policy.base import Obligation
from sark_mw.pricing.base import CostEstimate, CostEstimator, Estimate, InvocationRequest, Json, Meter, in_nanos
from sark_mw.pricing.metered import MeteredEstimator
from sark_mw.usage import Usage
from sark_mw.wire.base import Refusal

#: What an estimate, or a cost, may be given as: dollars, or a `CostEstimate`.
Money = Decimal | int | str | CostEstimate
_MAX_RUN_CHARS = 128


def scope_of_run(principal: str, run: str) -> str:
    """Name a run of a principal's as a scope; raises `ConfigurationError` for an id that could be read as another's."""
    if not 0 < len(run) <= _MAX_RUN_CHARS or not run.isprintable() or "/" in run or "*" in run:
        raise ConfigurationError(f"the id of a run has 1 to {_MAX_RUN_CHARS} printable characters, no / and no *: {run!r}")
    return f"run:{principal}/{run}"


def same_request(root: str, principal: str, key: str, request: Mapping[str, object] | None) -> Idempotency:
    """Hash an idempotency key with its principal, and the request that it came with."""
    asked = json.dumps(request, sort_keys=True, default=str).encode()
    return idempotency(root, principal, key, asked)


class GivenEstimate(CostEstimator):
    """An estimator for one request whose cost the caller knows: a ceiling in dollars."""

    def __init__(self, estimate: Money) -> None:
        self._estimate = estimate if isinstance(estimate, CostEstimate) else CostEstimate(Decimal(estimate))

    @property
    def provider_name(self) -> str:
        """Name the provider of the estimate."""
        return self._estimate.provider or "direct"

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Json) -> CostEstimate:
        """Return what was given."""
        return self._estimate


class DirectReservation:
    """A hold of one call outside HTTP; settle it once, or leave the block to release it."""

    def __init__(self, admission: Admission, estimator: CostEstimator) -> None:
        self._admission = admission
        self._estimator = estimator

    @property
    def reservation_id(self) -> str:
        """Id in the store and in the ledger."""
        return self._admission.reservation_id

    @property
    def estimate(self) -> Estimate:
        """What was held, and what was expected."""
        return self._admission.estimate

    @property
    def obligations(self) -> tuple[Obligation, ...]:
        """What the policies oblige to: the kinds that `reserve` was told of are the caller's to see to, the others are done."""
        return self._admission.obligations

    @property
    def resolved(self) -> bool:
        """True once it was settled or released."""
        return self._admission.ended is not None

    def settle(self, actual: Money | Usage | Mapping[str, object] | object) -> None:
        """Book what the call cost, in the background.

        `actual` is dollars, a `CostEstimate`, a `Usage`, or the provider's own usage (a mapping, or the SDK's object). Raises
        `CostEstimationError` for something else, and the hold stays.
        """
        self._admission.settle(self._spent(actual))

    def release(self) -> None:
        """Give the hold back: the call was not made."""
        self._admission.release()

    def _spent(self, actual: Any) -> Spent:
        if isinstance(actual, CostEstimate):
            return Spent(cost_nanos=in_nanos(actual))
        if isinstance(actual, (Decimal, int, str)):
            return Spent(cost_nanos=to_nanos(actual))
        usage = actual if isinstance(actual, Usage) else self._read(actual)
        if usage is None or not isinstance(self._estimator, Meter):
            raise CostEstimationError(f"a cost cannot be read off {type(actual).__name__}", self._estimator.provider_name)
        cost = self._estimator.actual(usage, self._admission.estimate)
        self._estimator.observe(usage, self._admission.estimate)
        return Spent(cost_nanos=cost, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, usage=usage)

    def _read(self, actual: Any) -> Usage | None:
        body = actual.model_dump() if hasattr(actual, "model_dump") else actual
        if isinstance(body, Mapping) and isinstance(self._estimator, MeteredEstimator):
            return self._estimator.read_usage(body)
        return None


def limit_of_run(root: str, scope: str, budget: Decimal | int | str | None) -> Limit:
    """Make the limit of a run; `budget` in dollars."""
    return run_limit(root, scope) if budget is None else run_limit(root, scope, to_decimal(budget))


def ended(
    invocation: Invocation,
    answer: Admission | Refusal | None,
    *,
    status: int | None = None,
    upstream_seconds: float | None = None,
) -> RequestFinished:
    """Say how a call without HTTP ended; without an answer it was cancelled while it was decided."""
    refusal = answer if isinstance(answer, Refusal) else None
    return RequestFinished(
        outcome=outcome_of(refusal) if refusal else RequestOutcome.ADMITTED if answer else RequestOutcome.INVALID,
        wire="direct",
        operation=invocation.request.capability_id,
        provider=invocation.estimator.provider_name,
        status=status,
        upstream_seconds=upstream_seconds,
        reason=reason_of(refusal) if refusal else "" if answer else "client_gone",
        request_id=invocation.request_id,
        root=invocation.root,
        principal_id=invocation.request.principal_id,
        limit_id=refusal.limit or "" if refusal else "",
    )
