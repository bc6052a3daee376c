"""What is asked of the enforcer: who pays for a request, what it touches, how it is priced, and what it takes of each unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from sark_mw.ledger.entries import CallerEntry
from sark_mw.limit import Limit, Unit
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.pricing.base import CostEstimator, Estimate, InvocationRequest
from sark_mw.reservation import Need

_MAX_SCOPE_CHARS = 264


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """Hashes (8 to 64 hex digits) of an idempotency key with its principal, and of the request that it came with."""

    key: str
    fingerprint: str


def idempotency(root: str, principal_id: str, key: str, *asked: bytes) -> Idempotency:
    """Hash a caller's key, which is its principal's alone, and what is asked with it."""
    return Idempotency(
        key=_digest(root.encode(), principal_id.encode("utf-8", "surrogatepass"), key.encode("utf-8", "surrogatepass")),
        fingerprint=_digest(*asked),
    )


def _digest(*parts: bytes) -> str:
    """Hash several texts, none of which can be read as the end of another."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One request to be admitted: who pays, what it touches, how it is priced."""

    request: InvocationRequest
    estimator: CostEstimator
    root: str
    scopes: tuple[str, ...]
    request_id: str
    action: str = "invoke"
    resource_metadata: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    stream: bool = False
    #: How many bytes the request was read from; None where it never was bytes.
    body_bytes: int | None = None
    metadata: Mapping[str, object] | None = None
    #: A batch of calls: what policies are asked about, one by one. Each counts as a request.
    calls: tuple[InvocationRequest, ...] = ()
    uses_tokens: bool = False
    #: Scopes that the caller asserts (`end_user:`, `tag:`, `resource:`): touched where a limit is about them.
    asserted: tuple[str, ...] = ()
    #: Limits of this request's own (a run's budget); their scopes must be among `scopes`.
    extra_limits: tuple[Limit, ...] = ()
    idempotency: Idempotency | None = None
    #: Makes the same invocation for another model or a smaller output limit; None, or its None, where that cannot be.
    reshape: Callable[[str | None, int | None], Invocation | None] | None = None
    #: Kinds of obligations that the caller sees to by itself.
    obeys: frozenset[str] = frozenset()
    #: How many ways to serve the same request were tried before this one: policies that count requests count attempt 0 only.
    attempt: int = 0
    #: Asked as well, after the gateway's own: no manager stands in the way of what administrators decide.
    policies: PolicyPluginManager | None = None
    #: The policies have allowed this already: they are not asked again.
    allowed: bool = False


def under_every_name(invocation: Invocation, estimate: Estimate) -> Invocation:
    """Touch the model by the price list's name as well: of a limit on a model, no spelling of it may be free."""
    if estimate.price is None or not estimate.price.model:
        return invocation
    scope = f"model:{estimate.price.model.strip().lower()}"
    if scope in invocation.scopes or len(scope) > _MAX_SCOPE_CHARS:
        return invocation
    return replace(invocation, scopes=(*invocation.scopes, scope))


def needs_of(estimate: Estimate, calls: int = 1, *, uses_tokens: bool = False) -> tuple[Need, ...]:
    """Lay out what a request of this estimate takes of each unit.

    A batch of `calls` counts as so many requests. `uses_tokens`: it does, even if its estimator does not say how many; then it
    asks for one of each, so that a limit of tokens that is used up refuses it.
    """
    least = 1 if uses_tokens and not estimate.input_tokens and not estimate.max_output_tokens else 0
    expected_in = min(estimate.expected_input_tokens or estimate.input_tokens, estimate.input_tokens)
    expected_out = min(estimate.expected_output_tokens, estimate.max_output_tokens)
    most = estimate.input_tokens + estimate.max_output_tokens
    return (
        Need(unit=Unit.USD, held=estimate.ceiling_nanos, expected=min(estimate.expected_nanos, estimate.ceiling_nanos)),
        Need(unit=Unit.REQUESTS, held=calls, expected=calls),
        Need(unit=Unit.INPUT_TOKENS, held=estimate.input_tokens or least, expected=expected_in),
        Need(unit=Unit.OUTPUT_TOKENS, held=estimate.max_output_tokens or least, expected=expected_out),
        Need(unit=Unit.TOKENS, held=most or least, expected=expected_in + expected_out),
        Need(unit=Unit.CONCURRENCY, held=1),
    )


def entry_of(invocation: Invocation, estimate: Estimate) -> CallerEntry:
    return CallerEntry(
        principal_id=invocation.request.principal_id,
        resource_id=invocation.request.resource_id or "",
        capability_id=invocation.request.capability_id,
        scopes=invocation.scopes,
        provider=estimate.provider,
        model=estimate.model,
        held_nanos=estimate.ceiling_nanos,
        expected_nanos=estimate.expected_nanos,
        input_tokens=estimate.input_tokens,
        stream=invocation.stream,
        request_id=invocation.request_id,
        metadata=invocation.metadata,
    )
