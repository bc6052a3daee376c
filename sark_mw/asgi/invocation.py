"""From a request that its wire has read to an invocation: what it is called, which scopes it touches, how it is priced."""

from __future__ import annotations

from dataclasses import dataclass

from sark_mw.asgi.asserted import Asserted
from sark_mw.asgi.principal import Principal
from sark_mw.asgi.routes import Route
from sark_mw.asgi.types import RawHeaders, Scope, client_address, header, single
from sark_mw.enforcement.members import MAX_SCOPES
from sark_mw.enforcer import Idempotency, Invocation
from sark_mw.errors import InvalidRequestError
from sark_mw.pricing.base import CostEstimator, InvocationRequest
from sark_mw.pricing.fixed import FixedCostEstimator
from sark_mw.wire.base import Call, Operation
from sark_mw.wire.body import read_json

#: The word of an administrator, where a policy waits for one.
APPROVAL = b"x-sark-approval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A request whose principal is known and whose body is read."""

    route: Route
    estimator: CostEstimator
    call: Call
    principal: Principal
    scope: Scope
    request_id: str
    said: Asserted
    idempotency: Idempotency | None = None


def invocation_for(incoming: Incoming) -> Invocation:
    """Make the invocation; raises `InvalidRequestError` for a request that touches too many scopes."""
    route, call, principal, scope = incoming.route, incoming.call, incoming.principal, incoming.scope
    estimator = _for_all_calls(incoming)

    def request(capability: str, arguments: dict[str, object]) -> InvocationRequest:
        return InvocationRequest(
            capability_id=route.capability or capability,
            principal_id=principal.principal_id,
            arguments=arguments,
            resource_id=estimator.provider_name,
        )

    return Invocation(
        request=request(call.tools[0].name if call.tools else route.fallback_capability, _arguments(call, scope["headers"])),
        calls=tuple(request(tool.name, tool.arguments) for tool in call.tools) if len(call.tools) > 1 else (),
        estimator=estimator,
        root=principal.root or "",
        scopes=_scopes(principal, call, estimator, incoming.said),
        asserted=incoming.said.asserted,
        extra_limits=incoming.said.limits,
        idempotency=incoming.idempotency,
        request_id=incoming.request_id,
        action="invoke" if call.operation is Operation.OTHER else call.operation.value,
        resource_metadata={"model": call.model, "endpoint": call.operation.value, "provider": estimator.provider_name},
        environment={
            "client": client_address(scope),
            "method": scope["method"],
            "path": scope["path"],
            "wire": call.wire,
            "operation": call.operation.value,
            "stream": call.stream,
            "body_bytes": len(call.raw),
            "approval": single(scope["headers"], APPROVAL),
        },
        stream=call.stream,
        body_bytes=len(call.raw),
        uses_tokens=call.model is not None,
    )


def _for_all_calls(incoming: Incoming) -> CostEstimator:
    """Return the estimator; for a batch of tool calls at a fixed price, one that charges each of them."""
    calls, price = len(incoming.call.tools), incoming.route.call_price
    if calls < 2 or price is None:
        return incoming.estimator
    return FixedCostEstimator(price * calls, incoming.estimator.provider_name)


def _scopes(principal: Principal, call: Call, estimator: CostEstimator, said: Asserted) -> tuple[str, ...]:
    touched = [*principal.scopes, *said.scopes, f"provider:{estimator.provider_name}"]
    if call.model is not None:
        # As it is spelt, and as most would spell it; the price list's own name comes with the estimate.
        name = call.model.strip().lower()
        touched += [f"model:{each}" for each in (call.model, name, name.rpartition("/")[2]) if each]
    touched += [f"tool:{tool.name}" for tool in call.tools]
    scopes = tuple(dict.fromkeys(touched))
    # Leaving some out would leave their limits out.
    if len(scopes) > 2 * MAX_SCOPES:
        raise InvalidRequestError("The request touches too many tools at once.")
    return scopes


def _arguments(call: Call, headers: RawHeaders) -> dict[str, object]:
    if len(call.tools) == 1:
        return call.tools[0].arguments
    if call.tools:
        return {"calls": [{"name": tool.name, "arguments": tool.arguments} for tool in call.tools]}
    if call.body is not None or call.wire != "plain":
        return call.body or {}
    if b"json" not in (header(headers, b"content-type") or b""):
        return {}
    try:
        parsed = read_json(call.raw)
    except InvalidRequestError:
        return {}  # a plain route's body is not ours to judge
    return parsed if isinstance(parsed, dict) else {}
