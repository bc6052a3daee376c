"""What policies outside this process are sent about a request, and how their answers are read.

The document is JSON, the `input` of Rego: `principal`, `action`, `capability`, `resource`, `model`, `provider`, `root`, `scopes`,
`estimated_usd`, `output_limit`, `stream`, `arguments` (without prompts unless asked for), `environment` (what else the gateway
knows), `limits` and `time`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.base import LimitFigures, LimitReader, Obligation, PolicyContext, PolicyDecision
from sark_mw.policy.cel_values import model_of, output_limit, streams
from sark_mw.policy.needs import PROMPTS
from sark_mw.policy.unsendable import UnsendableRequestError

MAX_DEPTH = 32
MAX_REPLY_BYTES = 64 << 10
_MAX_REASON = 500
#: What is near the ends of a double: beyond them rego-cpp gives up.
_LEAST, _MOST = 1e-300, 1e300
_NANOS = 1_000_000_000
#: Fields of the environment that have a name of their own in the document.
#: What the document says elsewhere, and an approval's token, which whoever reads it could use up.
_NAMED = frozenset({"model", "provider", "root", "scopes", "estimated_nanos", "limits", "approval"})
#: What ends a line or steers a terminal, wherever a reason is shown.
_CONTROLS = dict.fromkeys((*range(32), 127, *range(128, 160), 0x2028, 0x2029), " ")
_ANSWER = frozenset({"allow", "reason", "obligations", "metadata"})


async def figures_for(context: PolicyContext, reader: LimitReader | None) -> Sequence[LimitFigures]:
    """Read where the limits of a request stand; raises `PolicyEvaluationError` where nobody can tell."""
    if reader is None:
        raise PolicyEvaluationError("this gateway lends no figures of limits")
    environment = context.environment
    scopes = tuple(str(scope) for scope in environment.get("scopes") or ()) or (context.principal_id,)
    root, request_id = environment.get("root") or "default", environment.get("request_id") or ""
    return await reader.read(str(root), scopes, str(request_id))


def document_of(context: PolicyContext, figures: Sequence[LimitFigures] = (), prompts: Collection[str] = ()) -> dict[str, Any]:
    """Make the document; of the fields that hold prompts only those named in `prompts` are in it."""
    environment = context.environment
    arguments = context.arguments
    shown = {name: value for name, value in arguments.items() if name not in PROMPTS or name in prompts}
    at = context.timestamp
    return {
        "principal": context.principal_id,
        "action": context.action,
        "capability": context.capability_id,
        "resource": context.resource_id,
        "model": model_of(context) or "",
        "provider": environment.get("provider") or "",
        "root": environment.get("root") or "",
        "scopes": list(environment.get("scopes") or ()),
        "estimated_usd": int(environment.get("estimated_nanos") or 0) / _NANOS,
        "output_limit": output_limit(context),
        "stream": streams(context),
        "arguments": shown,
        "environment": {name: value for name, value in environment.items() if name not in _NAMED},
        "limits": [_shown(each) for each in figures],
        "time": (at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)).isoformat(),
    }


def _shown(each: LimitFigures) -> dict[str, Any]:
    scale = _NANOS if each.unit == "usd" else 1
    return {
        "scope": each.scope,
        "unit": each.unit,
        "window": each.window,
        "amount": each.amount / scale,
        "spent": each.spent / scale,
        "held": each.held / scale,
        "remaining": (each.amount - each.spent - each.held) / scale,
        "used": each.used,
        "enforced": each.enforced,
        "asserted": each.asserted,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a document may have: values, of which the name of a field counts as `of_a_name`, and bytes."""

    values: int
    of_a_name: int = 0
    bytes: int


#: The gateway writes the worst of these in a few milliseconds.
BOUNDS = Bounds(values=10_000, bytes=1 << 20)
#: The worst of these takes rego-cpp a third of its deadline; a field costs it as much as three values do.
REGO_BOUNDS = Bounds(values=3_000, of_a_name=1, bytes=1 << 19)


def encode(document: Mapping[str, Any]) -> bytes:
    """Write a document as JSON; raises `UnsendableRequestError` for one that is too large, too deep or none."""
    return encode_parts([document], BOUNDS)[0]


def encode_parts(parts: Sequence[Mapping[str, Any]], bounds: Bounds) -> list[bytes]:
    """Write several that are bounded together; raises `UnsendableRequestError`."""
    copy = _Copy(bounds)
    try:
        # As UTF-8: not every reader undoes escapes, and a lone surrogate has none.
        written = [_written(each).encode() for each in [copy.of(part, 0) for part in parts]]
    except (ValueError, TypeError, RecursionError) as error:
        raise UnsendableRequestError(f"the request cannot be shown to the policy: {error}") from error
    if sum(map(len, written)) > bounds.bytes:
        raise copy.too_long()
    return written


class _Copy:
    """Copy values into what JSON knows, and stop at the bounds: what is too large is not even written."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._left = bounds.values
        self._room = bounds.bytes

    def too_long(self) -> UnsendableRequestError:
        return UnsendableRequestError(f"the request is larger than the {self._bounds.bytes:,} bytes that are shown to a policy")

    def _text(self, value: str) -> str:
        self._room -= len(value)
        if self._room < 0:
            raise self.too_long()
        return value

    def of(self, value: object, depth: int) -> object:
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise UnsendableRequestError(f"policies are shown at most {self._bounds.values:,} values, {MAX_DEPTH} levels deep")
        if isinstance(value, str):
            return self._text(value)
        if value is None:
            return value
        if isinstance(value, (int, float)):
            return _number(value)
        if isinstance(value, (dict, Mapping)):  # by its class first, which is much faster
            self._left -= len(value) * self._bounds.of_a_name
            return {self._text(str(name)): self.of(each, depth + 1) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.of(each, depth + 1) for each in value]
        if isinstance(value, (set, frozenset)):
            return [self.of(each, depth + 1) for each in sorted(map(str, value))]
        return str(value)


def _number(value: float) -> float:
    if value and not _LEAST <= abs(value) <= _MOST:
        raise UnsendableRequestError("a number is larger or smaller than every policy can read")
    # Whole ones without a point: OPA 1.10 to 1.20.0 takes 100.0 for 10.0.
    return int(value) if type(value) is float and value.is_integer() else value


_written = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


def read_answer(answer: object, name: str) -> PolicyDecision:
    """Make a decision of a policy's JSON: `true`, `false`, or an object with `allow`, `reason`, `obligations`, `metadata`.

    Only `true` allows; `"allow": false` denies, however odd the rest of it is. Raises `PolicyEvaluationError` for anything else.
    """
    if answer is True:
        return PolicyDecision(True, "")
    if answer is False:
        return _denial({}, name)
    if not isinstance(answer, dict) or not isinstance(answer.get("allow"), bool):
        raise PolicyEvaluationError(f"the policy answered neither true, false nor an object with `allow`: {repr(answer)[:100]}")
    if answer["allow"] is False:
        return _denial(answer, name)
    if unknown := set(answer) - _ANSWER:
        raise PolicyEvaluationError(f"the policy answered with {sorted(map(str, unknown))[0][:40]!r}, which nobody knows")
    reason, metadata = answer.get("reason", ""), answer.get("metadata", {})
    if not isinstance(reason, str) or not isinstance(metadata, dict):
        raise PolicyEvaluationError("the reason must be a text and the metadata an object")
    if not _is_plain(answer):
        raise PolicyEvaluationError("the policy answered with half a character, or a number without end")
    return PolicyDecision(True, on_one_line(reason), metadata, obligations=_obligations(answer.get("obligations", {})))


def _denial(answer: Mapping[str, Any], name: str) -> PolicyDecision:
    reason, metadata = answer.get("reason"), answer.get("metadata")
    told = on_one_line(reason) if isinstance(reason, str) else ""
    shown = metadata if isinstance(metadata, dict) and _is_plain(metadata) else {}
    return PolicyDecision(False, told or f"policy {name} says no", shown)


def _is_plain(value: object) -> bool:
    """Tell whether it is JSON that has UTF-8."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def on_one_line(text: str) -> str:
    """Shorten a text that a policy wrote, and take out what would forge a line of a log, or has no UTF-8."""
    shown = text[:_MAX_REASON].translate(_CONTROLS)
    return shown if shown.isascii() else shown.encode(errors="replace").decode()


def _obligations(given: object) -> tuple[Obligation, ...]:
    # A table of kinds and values, or a list of objects with both; the manager judges whether they may be.
    if isinstance(given, dict):
        pairs = [(kind, each) for kind, value in given.items() for each in (value if isinstance(value, list) else [value])]
    elif isinstance(given, list) and all(isinstance(each, dict) and set(each) == {"kind", "value"} for each in given):
        pairs = [(each["kind"], each["value"]) for each in given]
    else:
        raise PolicyEvaluationError("obligations are an object of kinds and values, or a list of objects with `kind` and `value`")
    # What a policy reckons with may come back with a point.
    pairs = [(kind, int(value) if type(value) is float and value.is_integer() else value) for kind, value in pairs]
    if not all(isinstance(kind, str) and type(value) in (str, int) for kind, value in pairs):
        raise PolicyEvaluationError("an obligation has a kind and, as its value, a name or a whole number")
    return tuple(Obligation(kind, value) for kind, value in pairs)
