"""Sending a refusal in the caller's dialect, and what is told about it."""

from __future__ import annotations

from sark_mw.asgi.body import BodyFault
from sark_mw.asgi.types import Scope, Send
from sark_mw.instrumentation.base import RequestOutcome
from sark_mw.wire.base import Refusal, RefusalKind, Response

_OUTCOME = {
    RefusalKind.BUDGET: RequestOutcome.REFUSED_BUDGET,
    RefusalKind.RATE_LIMIT: RequestOutcome.REFUSED_RATE,
    RefusalKind.CONCURRENCY: RequestOutcome.REFUSED_RATE,
    RefusalKind.POLICY: RequestOutcome.REFUSED_POLICY,
    RefusalKind.UNAVAILABLE: RequestOutcome.UNAVAILABLE,
}


def outcome_of(refusal: Refusal) -> RequestOutcome:
    """Name the outcome of a refused request."""
    return _OUTCOME.get(refusal.kind, RequestOutcome.INVALID)


def reason_of(refusal: Refusal) -> str:
    """Name what refused, from a small set: a unit, a plugin, or the fault."""
    if refusal.kind is RefusalKind.POLICY:
        return refusal.plugin or ""
    return refusal.unit or refusal.reason or refusal.kind.value


def refuse_body(fault: BodyFault, max_bytes: int, request_id: str) -> Refusal:
    """Refuse a body that is too long, or too slow."""
    if fault is BodyFault.TOO_LARGE:
        message = f"The request body is longer than {max_bytes} bytes."
        return Refusal(kind=RefusalKind.TOO_LARGE, message=message, reason=fault.value, request_id=request_id)
    return Refusal(
        kind=RefusalKind.INVALID,
        message="The request body did not arrive in time.",
        reason=fault.value,
        request_id=request_id,
        status_override=408,
    )


async def send_response(scope: Scope, send: Send, response: Response, *, close: bool = False) -> None:
    """Send a whole response; without its body to a HEAD. `close`: the request's body was not read to its end."""
    headers = list(response.headers)
    if close and str(scope.get("http_version", "1.1")).startswith("1"):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})
