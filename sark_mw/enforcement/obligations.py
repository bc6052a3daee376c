"""Do what decisions oblige to: another model, a smaller output limit, tags, and scopes that a request must touch.

The first plugin in the order of the chain chooses the model, the smallest cap holds. What is changed is priced anew, and held,
sent and booked as if it had been asked for; the policies are not asked again, since the administrator has listed the models.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from sark_mw.enforcement.invocation import Invocation, under_every_name
from sark_mw.enforcement.members import MAX_SCOPES, Memberships
from sark_mw.enforcement.policies import Owed
from sark_mw.policy.base import ObligationKind
from sark_mw.pricing.base import Estimate
from sark_mw.wire.base import Refusal, RefusalKind

Price = Callable[[Invocation], Awaitable[Estimate | Refusal]]


async def obey(
    owed: Sequence[Owed], invocation: Invocation, estimate: Estimate, price: Price, members: Memberships
) -> tuple[Invocation, Estimate] | Refusal:
    """Return the request as it may be made, with its price; a refusal for what cannot be done to it."""
    asked_model = _model(invocation, estimate)
    chosen = next((each for each in owed if _left_to_us(each, ObligationKind.USE_MODEL, invocation)), None)
    if chosen is not None and chosen.obligation.value != asked_model:
        shaped = _reshaped(invocation, model=str(chosen.obligation.value))
        if shaped is None:
            return _unmet(chosen, f"the model {chosen.obligation.value}", invocation)
        priced = await price(shaped)
        if isinstance(priced, Refusal):
            return priced
        invocation, estimate = shaped, priced
    cap = min(
        (each for each in owed if _left_to_us(each, ObligationKind.CAP_OUTPUT_TOKENS, invocation)),
        key=lambda each: each.obligation.value,
        default=None,
    )
    most = _cap(cap, estimate, changed=_model(invocation, estimate) != asked_model)
    # A tool call puts out no tokens, so it is within every cap; of a call without HTTP nobody here knows what it will be.
    tool_call = invocation.reshape is not None and not invocation.uses_tokens and not estimate.max_output_tokens
    if most is not None and not tool_call:
        shaped = _reshaped(invocation, max_output_tokens=most)
        if shaped is None and cap is not None:
            return _unmet(cap, f"at most {most} tokens of output", invocation)
        if shaped is not None:
            priced = await price(shaped)
            if isinstance(priced, Refusal):
                return priced
            invocation, estimate = shaped, priced
    return _within_scopes(owed, invocation, estimate, members)


def output_asked(estimate: Estimate) -> int:
    """Tell the output limit of one choice, as it stands in the request, or as the model's maximum where none does."""
    return estimate.max_output_tokens // estimate.choices - estimate.extra_output_tokens


def _model(invocation: Invocation, estimate: Estimate) -> object:
    return invocation.resource_metadata.get("model") or estimate.model


def _left_to_us(owed: Owed, kind: ObligationKind, invocation: Invocation) -> bool:
    return owed.obligation.kind == kind and kind not in invocation.obeys


def _reshaped(invocation: Invocation, *, model: str | None = None, max_output_tokens: int | None = None) -> Invocation | None:
    return None if invocation.reshape is None else invocation.reshape(model, max_output_tokens)


def _cap(owed: Owed | None, estimate: Estimate, *, changed: bool) -> int | None:
    """Return the output limit to set, None where what is asked for is within it; another model may need a smaller one, too."""
    known = estimate.price.max_output_tokens if estimate.price is not None else None
    wanted = [int(owed.obligation.value)] if owed is not None else []
    if changed and known is not None and estimate.output_limited:
        wanted.append(known)
    if not wanted:
        return None
    most = min(wanted)
    if estimate.output_limited:
        return most if most < output_asked(estimate) else None
    return None if known is not None and known <= most else most


def _within_scopes(
    owed: Sequence[Owed], invocation: Invocation, estimate: Estimate, members: Memberships
) -> tuple[Invocation, Estimate] | Refusal:
    tags = dict.fromkeys(_tag(each) for each in owed if each.obligation.kind == ObligationKind.ADD_TAG)
    if len(tags) > MAX_SCOPES:
        last = next(each for each in reversed(owed) if each.obligation.kind == ObligationKind.ADD_TAG)
        return _unmet(last, f"more than {MAX_SCOPES} tags", invocation)
    if tags:
        invocation = replace(invocation, scopes=members.of((*invocation.scopes, *tags)))
    touched = under_every_name(invocation, estimate).scopes
    for each in owed:
        if each.obligation.kind == ObligationKind.REQUIRE_SCOPE and each.obligation.value not in touched:
            return _denied(each, f"it takes a request of {each.obligation.value}", invocation)
    return invocation, estimate


def _tag(owed: Owed) -> str:
    value = str(owed.obligation.value)
    return value if value.startswith("tag:") else f"tag:{value}"


def _unmet(owed: Owed, what: str, invocation: Invocation) -> Refusal:
    return _denied(owed, f"it asks for {what}, which this request cannot be changed to", invocation)


def _denied(owed: Owed, reason: str, invocation: Invocation) -> Refusal:
    return Refusal(
        kind=RefusalKind.POLICY,
        message=f"Denied by policy {owed.plugin}: {reason}",
        request_id=invocation.request_id,
        plugin=owed.plugin,
        reason=reason,
    )
