"""Sending a refusal in the caller's dialect, and what is told about it."""

from __future__ import annotations

from sark_mw.asgi.body import BodyFault
from sark_mw.asgi.types import Scope, Send
from sark_mw.wire.base import Refusal, RefusalKind, Response


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
