"""What every dialect's refusal has in common: status, headers, details."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from sark_mw.errors import InvalidRequestError
from sark_mw.wire.base import Refusal, RefusalKind, Response

#: SDKs honour a Retry-After up to one minute and fall back to guessing beyond it.
MAX_RETRY_AFTER_S = 60

STATUS = {
    RefusalKind.RATE_LIMIT: 429,
    RefusalKind.CONCURRENCY: 429,
    RefusalKind.BUDGET: 402,
    RefusalKind.POLICY: 403,
    RefusalKind.UNAVAILABLE: 503,
    RefusalKind.POLICY_UNAVAILABLE: 503,
    RefusalKind.INVALID: 400,
    RefusalKind.TOO_LARGE: 413,
    RefusalKind.UNSUPPORTED: 415,
    RefusalKind.IDEMPOTENCY: 422,
    RefusalKind.IN_FLIGHT: 409,
    RefusalKind.ALREADY_DONE: 409,
    RefusalKind.UNAUTHENTICATED: 401,
}

CODE = {
    RefusalKind.RATE_LIMIT: "rate_limit_exceeded",
    RefusalKind.CONCURRENCY: "concurrency_limit_exceeded",
    RefusalKind.BUDGET: "budget_exceeded",
    RefusalKind.POLICY: "policy_denied",
    RefusalKind.UNAVAILABLE: "enforcement_unavailable",
    RefusalKind.POLICY_UNAVAILABLE: "policy_unavailable",
    RefusalKind.INVALID: "invalid_request",
    RefusalKind.TOO_LARGE: "request_too_large",
    RefusalKind.UNSUPPORTED: "unsupported_media_type",
    RefusalKind.IDEMPOTENCY: "idempotency_key_reused",
    RefusalKind.IN_FLIGHT: "request_in_flight",
    RefusalKind.ALREADY_DONE: "request_already_done",
    RefusalKind.UNAUTHENTICATED: "unauthenticated",
}

_RATE = (RefusalKind.RATE_LIMIT, RefusalKind.CONCURRENCY)
_TRANSIENT = (*_RATE, RefusalKind.UNAVAILABLE, RefusalKind.POLICY_UNAVAILABLE, RefusalKind.IN_FLIGHT)
_WINDOW_S = {"minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
# Registered quota units of the RateLimit draft; tokens have none.
_QUOTA_UNIT = {"requests": "requests", "concurrency": "concurrent-requests"}
_MAX_SF_INTEGER = 999_999_999_999_999


def kind_of(error: InvalidRequestError) -> RefusalKind:
    """Tell a body that cannot be read at all (415) from one that is wrong (400)."""
    return RefusalKind.UNSUPPORTED if error.param in ("content-type", "content-encoding") else RefusalKind.INVALID


def status_of(refusal: Refusal) -> int:
    """Return the HTTP status."""
    return refusal.status_override or STATUS[refusal.kind]


def details_of(refusal: Refusal) -> dict[str, Any]:
    """Return the machine-readable part of the body: what is known, dollars as strings, instants in RFC 3339."""
    details = {
        "error_code": CODE[refusal.kind],
        "request_id": refusal.request_id or None,
        "scope": refusal.scope,
        "limit": refusal.limit,
        "unit": refusal.unit,
        "window": refusal.window,
        "amount": _plain(refusal.amount),
        "spent": _plain(refusal.spent),
        "held": _plain(refusal.held),
        "needed": _plain(refusal.needed),
        "remaining": _plain(refusal.remaining),
        "affordable_max_tokens": refusal.affordable_output_tokens,
        "resets_at": instant(refusal.resets_at_ms),
        "plugin": refusal.plugin,
        "reason": refusal.reason,
        "param": refusal.param,
    }
    return {name: value for name, value in details.items() if value is not None}


def response_of(refusal: Refusal, body: Any, *, media_type: str = "application/json", status: int | None = None) -> Response:
    """Assemble the response: the dialect's body and the headers that all dialects share."""
    status = status or status_of(refusal)
    # Lone surrogates in a message (from a hostile request) must not break the answer: ASCII escapes carry them.
    encoded = json.dumps(body, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    headers = [("content-type", media_type), ("content-length", str(len(encoded))), *_headers(refusal)]
    return Response(status=status, headers=tuple((n.encode(), v.encode("latin-1", "replace")) for n, v in headers), body=encoded)


def instant(at_ms: int | None) -> str | None:
    """Format Unix milliseconds as RFC 3339 in UTC, whole seconds rounded up; None and 0 (never) are None."""
    if at_ms is None or at_ms <= 0:
        return None
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=-(-at_ms // 1000))
    except OverflowError:
        return None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _wait_s(refusal: Refusal) -> int:
    if refusal.retry_after_s is not None:
        return max(1, math.ceil(refusal.retry_after_s))
    if refusal.resets_at_ms and refusal.now_ms and refusal.kind in _RATE:
        return max(1, -(-(refusal.resets_at_ms - refusal.now_ms) // 1000))
    return 1


def _headers(refusal: Refusal) -> list[tuple[str, str]]:
    wait = _wait_s(refusal)
    # Waiting a minute for what comes back tomorrow only hangs the caller: SDKs retry unless told not to.
    retry = refusal.kind in _TRANSIENT and wait <= MAX_RETRY_AFTER_S
    headers = [] if retry else [("x-should-retry", "false")]
    if refusal.kind is RefusalKind.IN_FLIGHT:
        # Not every client that retries takes a conflict for something that passes.
        headers.append(("x-should-retry", "true"))
    if refusal.kind in _TRANSIENT:
        headers.append(("retry-after", str(min(wait, MAX_RETRY_AFTER_S))))
    if refusal.request_id:
        identity = header_text(refusal.request_id)
        # openai reads x-request-id, anthropic request-id: their exceptions then carry the id that our audit trail has.
        headers += [("x-sark-request-id", identity), ("x-request-id", identity), ("request-id", identity)]
    if refusal.kind == RefusalKind.UNAUTHENTICATED:
        headers.append(("www-authenticate", "Bearer"))
    if reset := instant(refusal.resets_at_ms):
        headers.append(("x-sark-reset", reset))
    if refusal.kind == RefusalKind.BUDGET and refusal.remaining is not None:
        headers.append(("x-sark-budget-remaining", str(_plain(refusal.remaining))))
    if refusal.kind in _RATE:
        headers += _rate_headers(refusal, wait)
    return headers


def _rate_headers(refusal: Refusal, wait: int) -> list[tuple[str, str]]:
    """`x-ratelimit-*` as OpenAI writes them, and the IETF draft's two structured fields."""
    if refusal.unit is None or refusal.amount is None:
        return []
    unit = header_text(refusal.unit.replace("_", "-"))
    amount, remaining = _whole(refusal.amount), _whole(refusal.remaining or 0)
    name = _sf_string(refusal.limit or refusal.scope or refusal.unit)
    policy = f"{name};q={amount}"
    if window := _window_s(refusal.window):
        policy += f";w={window}"
    if quota_unit := _QUOTA_UNIT.get(refusal.unit):
        policy += f';qu="{quota_unit}"'
    return [
        (f"x-ratelimit-limit-{unit}", str(amount)),
        (f"x-ratelimit-remaining-{unit}", str(remaining)),
        (f"x-ratelimit-reset-{unit}", f"{wait}s"),
        ("ratelimit-policy", policy),
        ("ratelimit", f"{name};r={remaining};t={wait}"),
    ]


def _window_s(window: str | None) -> int | None:
    if window is None:
        return None
    kind, _, seconds = window.partition(":")
    return int(seconds) if kind == "rolling" and seconds.isascii() and seconds.isdigit() else _WINDOW_S.get(kind)


def _plain(amount: Decimal | int | None) -> str | int | None:
    return f"{amount:f}" if isinstance(amount, Decimal) else amount


def _whole(amount: Decimal | int) -> int:
    return min(max(0, int(amount)), _MAX_SF_INTEGER)


def _sf_string(text: str) -> str:
    """Write a structured-field string: printable ASCII, anything else percent-encoded, quotes escaped."""
    return '"' + header_text(text, safe=" !#$&'()*+,/:;=?@[]\"\\^`{|}<>").replace("\\", "\\\\").replace('"', '\\"') + '"'


def header_text(text: str, safe: str = ":/+=@,") -> str:
    """Make a text fit for a header: no control characters, ASCII only."""
    return quote(text, safe=safe, errors="replace")[:512]
