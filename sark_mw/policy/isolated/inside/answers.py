"""Write what a plugin answered as the gateway takes it: whoever sends any other reply is killed, and honest plugins must not."""

from __future__ import annotations

import json
import math
from typing import Any

from sark_mw.policy.isolated.inside import api
from sark_mw.policy.isolated.inside.bounds import has_more_values

#: Values of one reply, which is read in the gateway's event loop: metadata is for a person or a log.
MAX_VALUES = 1000
MAX_REASON_CHARS = 500
MAX_OBLIGATIONS = 16
MAX_OBLIGATION_CHARS = 200
_DEPTH = 12
_encode = json.JSONEncoder(separators=(",", ":")).encode


def decision_reply(number: int, decision: Any, most_bytes: int) -> bytes:
    """Write a decision, without its metadata where that is too much; raises TypeError or ValueError for what is none."""
    if not isinstance(decision, api.PolicyDecision):
        raise TypeError(f"evaluate() must return a PolicyDecision, not {type(decision).__name__}")
    reply = _allowing(decision) if decision.allowed is True else _denying(decision)
    reply["id"] = number
    body = _encode(reply).encode()
    if len(body) > most_bytes or has_more_values(body, MAX_VALUES):
        body = _encode(reply | {"metadata": {"truncated": True}}).encode()
    return body


def _allowing(decision: api.PolicyDecision) -> dict[str, Any]:
    if len(decision.obligations) > MAX_OBLIGATIONS:
        raise ValueError(f"a decision has at most {MAX_OBLIGATIONS} obligations")
    return {
        "allowed": True,
        "reason": cut(str(decision.reason), MAX_REASON_CHARS),
        "metadata": _metadata(decision),
        "obligations": [_obligation(each) for each in decision.obligations],
    }


def _denying(decision: api.PolicyDecision) -> dict[str, Any]:
    """Say no, however odd the rest of it is: failures are what `on_error` decides, and it may allow them."""
    told: dict[str, Any] = {"reason": "no reason that can be read", "metadata": {}}
    for name, read in (
        ("reason", lambda: cut(str(decision.reason), MAX_REASON_CHARS)),
        ("metadata", lambda: _metadata(decision)),
    ):
        try:
            told[name] = read()
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001, S112  # the plugin's own __str__
            continue
    return {"allowed": False, **told, "obligations": []}


def _metadata(decision: api.PolicyDecision) -> Any:
    return _plain(decision.metadata, _DEPTH) if isinstance(decision.metadata, dict) else {}


def failure_reply(number: int, error: str, told: str) -> bytes:
    """Write that the plugin failed."""
    return _encode({"id": number, "error": cut(error, 100), "text": cut(told, MAX_REASON_CHARS)}).encode()


def cut(value: str, most: int) -> str:
    """Cut a text, and put a question mark where nobody could encode it."""
    value = value[:most]
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8", "replace")


def _obligation(given: Any) -> dict[str, Any]:
    kind, value = str(given.kind), given.value
    if kind not in tuple(api.ObligationKind):
        raise ValueError(f"no obligation of kind {kind[:40]!r} is known")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return {"kind": kind, "value": int(value)}
    if not isinstance(value, str) or len(value) > MAX_OBLIGATION_CHARS or cut(value, len(value)) != value:
        raise ValueError(f"{kind} takes a whole number or a text of at most {MAX_OBLIGATION_CHARS} characters")
    return {"kind": kind, "value": value}


def _plain(value: Any, depth: int) -> Any:
    """Make JSON that the gateway will take of whatever an honest plugin put into its metadata."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return cut(value, 10_000)
    if isinstance(value, int) and -(2**63) < value < 2**63:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if depth <= 0:
        return "…"
    if isinstance(value, dict):
        return {cut(str(key), 200): _plain(each, depth - 1) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each, depth - 1) for each in value]
    return cut(str(value) if not isinstance(value, int) else hex(value), 1000)
