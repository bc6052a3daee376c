"""Any other HTTP: nothing is read of it, and refusals are problem details (RFC 9457)."""

from __future__ import annotations

from sark_mw.wire.base import Call, Headers, Operation, Refusal, RefusalKind, Response, UsageTap
from sark_mw.wire.refusal import CODE, details_of, response_of, status_of
from sark_mw.wire.tap import PassTap

_TITLE = {
    RefusalKind.RATE_LIMIT: "Rate limit exceeded",
    RefusalKind.CONCURRENCY: "Too many requests at once",
    RefusalKind.BUDGET: "Budget exceeded",
    RefusalKind.POLICY: "Denied by policy",
    RefusalKind.UNAVAILABLE: "Enforcement unavailable",
    RefusalKind.POLICY_UNAVAILABLE: "Policy unavailable",
    RefusalKind.INVALID: "Invalid request",
    RefusalKind.TOO_LARGE: "Request too large",
    RefusalKind.UNSUPPORTED: "Unsupported media type",
    RefusalKind.IDEMPOTENCY: "Idempotency key reused",
    RefusalKind.IN_FLIGHT: "Request in flight",
    RefusalKind.ALREADY_DONE: "Request already done",
    RefusalKind.UNAUTHENTICATED: "Not authenticated",
}


class PlainWire:
    """Callers that speak no dialect of ours; routes to meter come from the settings, so it matches nothing by itself."""

    name = "plain"

    def match(self, method: str, path: str) -> Operation | None:
        """Match nothing: only own rules meter plain requests."""
        return None

    def read(self, operation: Operation, path: str, headers: Headers, body: bytes) -> Call:
        """Take the body as it is: it is not ours to judge."""
        return Call(wire=self.name, operation=operation, path=path, raw=body)

    def request_body(self, call: Call) -> bytes | None:
        """Nothing to ask for."""
        return None

    def rewrite(self, call: Call, *, model: str | None = None, max_output_tokens: int | None = None) -> Call | None:
        """Nothing is known of its body."""
        return None

    def tap(self, call: Call, status: int, headers: Headers) -> UsageTap:
        """Nothing to read."""
        return PassTap(failed=status >= 400)

    def refuse(self, refusal: Refusal, stream: bool = False, call: Call | None = None) -> Response:
        """Answer problem details, with ours as extension members."""
        code = CODE[refusal.kind]
        problem = {
            **details_of(refusal),
            "type": f"urn:sark-mw:problem:{code.replace('_', '-')}",
            "title": _TITLE[refusal.kind],
            "status": status_of(refusal),
            "detail": refusal.message,
        }
        return response_of(refusal, problem, media_type="application/problem+json")
