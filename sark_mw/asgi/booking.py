"""What a response has cost: from the provider's usage where it is whole, else counted here and flagged as estimated."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.errors import CostEstimationError, MoneyError
from sark_mw.pricing.base import CostEstimator, InvocationRequest, InvocationResult, Meter, in_nanos
from sark_mw.pricing.tokens import expected_tokens
from sark_mw.usage import Usage
from sark_mw.wire.base import UsageTap

_log = logging.getLogger(__name__)

#: As in English; scripts that have fewer characters to a token are weighed by their bytes.
_CHARS_PER_TOKEN = 4
_OWN_ESTIMATOR_S = 5.0


class Ended(StrEnum):
    """How a response ended. `CUT`: the app stopped in the middle. `GONE`: nobody was left to read it, so its rest is unknown."""

    WHOLE = "whole"
    CUT = "cut"
    GONE = "gone"


def spent_on(admission: Admission, meter: Meter | None, tap: UsageTap, status: int, ended: Ended) -> Spent | None:
    """Return what to book for a response with a success status, or None to release the hold: an error came before any output."""
    usage = tap.usage
    if usage is not None and usage.complete:
        return price(admission, meter, usage, status)
    if usage is None and tap.failed and not tap.started:
        return None
    if admission.estimate.detached and not tap.failed:
        return admission.expected(status)  # it goes on unseen: its expectation is the most that it can cost
    if ended is Ended.GONE:
        admission.report(counted(admission, meter, tap, status))
        return admission.expected(status)
    if usage is None and tap.output_chars == 0 and not tap.failed:
        return admission.expected(status)  # it could not be read, or says nothing: the expectation is all there is
    return counted(admission, meter, tap, status)


def counted(admission: Admission, meter: Meter | None, tap: UsageTap, status: int) -> Spent:
    """Count a response that did not tell, or has not told all yet."""
    usage, estimate = tap.usage or Usage(), admission.estimate
    made = max(usage.output_tokens, _seen_tokens(tap))
    if estimate.max_output_tokens:
        made = min(made, max(estimate.max_output_tokens, usage.output_tokens))
    read = usage.input_tokens if tap.usage else (estimate.expected_input_tokens or estimate.input_tokens)
    return price(admission, meter, replace(usage, input_tokens=read, output_tokens=made, estimated=True), status)


def _seen_tokens(tap: UsageTap) -> int:
    return max(-(-tap.output_chars // _CHARS_PER_TOKEN), expected_tokens(tap.output_byte_counts))


def price(admission: Admission, meter: Meter | None, usage: Usage, status: int | None) -> Spent:
    """Price a usage; an estimator without a meter charges what it expected."""
    if meter is None:
        # The cost is a guess, the tokens are not: they count against limits of tokens.
        return replace(
            admission.expected(status), usage=usage, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens
        )
    return Spent(
        cost_nanos=meter.actual(usage, admission.estimate),
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        usage=usage,
        estimated=usage.estimated,
        status=status,
    )


def spent_per_call(admission: Admission, tap: UsageTap, status: int) -> Spent:
    """Charge a call whose price does not depend on what it used; its tokens still count against limits of tokens."""
    usage = tap.usage or Usage(output_tokens=_seen_tokens(tap))
    return Spent(
        cost_nanos=admission.estimate.ceiling_nanos,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        usage=tap.usage,
        status=status,
    )


async def ask_estimator(
    estimator: CostEstimator,
    request: InvocationRequest,
    result: InvocationResult,
    metadata: Mapping[str, object],
    fallback: Spent,
) -> Spent:
    """Ask a user's own estimator for the actual cost; what it cannot tell in time is booked as `fallback`."""
    try:
        async with asyncio.timeout(_OWN_ESTIMATOR_S):
            cost = await estimator.record_actual_cost(request, result, metadata)
        nanos = None if cost is None else in_nanos(cost)
    except (CostEstimationError, MoneyError) as error:
        _log.warning("estimator %s: %s", estimator.provider_name, error)
        return fallback
    except Exception:  # noqa: BLE001  the hook boundary: a user's estimator must not lose a cost
        _log.exception("estimator %s failed to tell the actual cost; its estimate is booked", estimator.provider_name)
        return fallback
    return fallback if nanos is None else replace(fallback, cost_nanos=nanos, estimated=False)
