"""Write what a policy answered as the gateway takes it: a denial stays one, whatever of the request it repeats.

It runs in the engine's process, so that a policy which puts a caller's text into its answer costs nobody that process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sark_mw.policy.isolated.inside.bounds import has_more_values, is_deeper

MAX_BYTES = 64 << 10
#: More than a decision needs, and few enough to be parsed in the event loop.
MAX_VALUES = 2_000
_MAX_DEPTH = 64
_MAX_REASON_CHARS = 500
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


def written(answer: Mapping[str, Any]) -> bytes:
    """Write an answer; its reason is cut, metadata that is too much left out, and what still cannot be read becomes an error."""
    result = answer.get("result")
    if not isinstance(result, dict):
        return _first_of(answer)
    shown = _denial(result) if result.get("allow") is False else _shortened(result)
    return _first_of({"result": shown}, {"result": {**shown, "metadata": {"truncated": True}}})


def _denial(result: dict[str, Any]) -> dict[str, Any]:
    # What does not allow denies, however odd the rest of it is.
    reason, metadata = result.get("reason"), result.get("metadata")
    told = {"reason": _cut(reason)} if isinstance(reason, str) else {}
    return {"allow": False, **told, "metadata": metadata if isinstance(metadata, dict) else {}}


def _shortened(result: dict[str, Any]) -> dict[str, Any]:
    reason = result.get("reason")
    return {**result, "reason": reason[:_MAX_REASON_CHARS]} if isinstance(reason, str) else result


def _first_of(*answers: Mapping[str, Any]) -> bytes:
    wrong = ""
    for answer in answers:
        try:
            return _bounded(answer)
        except (TypeError, ValueError, RecursionError) as error:
            wrong = wrong or str(error)
    return _encode({"error": _cut(f"the answer cannot be read: {wrong}")}).encode()


def _bounded(answer: Mapping[str, Any]) -> bytes:
    body = _encode(answer).encode()
    if len(body) > MAX_BYTES or has_more_values(body, MAX_VALUES) or is_deeper(body, _MAX_DEPTH):
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes, {MAX_VALUES:,} values or {_MAX_DEPTH} levels")
    return body


def _cut(text: str) -> str:
    return text[:_MAX_REASON_CHARS].encode(errors="replace").decode()
