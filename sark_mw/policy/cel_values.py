"""The variables of rules: what they are declared as, and their values for one request, bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.base import LimitFigures, PolicyContext
from sark_mw.policy.cel_sizes import MAX_ELEMENTS, MAX_NAME, MAX_SCOPES, MAX_TEXT, MAX_VALUES
from sark_mw.policy.unsendable import UnsendableRequestError

#: How deep values may lie that rules read.
MAX_DEPTH = 16
_NANOS = 1_000_000_000
_INT64 = 2**63
_LIMITS_OF: Mapping[str, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "anthropic": ("max_tokens",),
    "gemini": (),
}
_ANY_LIMIT: tuple[str, ...] = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_CONFIG_LIMITS = ("maxOutputTokens", "max_output_tokens")

#: Variables and their CEL types, by name; dotted ones are variables too, so that an unknown field is found at start.
VARIABLES: Mapping[str, str] = {
    "request.model": "string",
    "request.provider": "string",
    "request.action": "string",
    "request.capability": "string",
    "request.resource": "string",
    "request.stream": "bool",
    "request.estimated_usd": "double",
    "request.output_limit": "int",
    "request.arguments": "map(string, dyn)",
    "principal": "string",
    "scopes": "list(string)",
    "tags": "list(string)",
    "time": "timestamp",
    "spend": "double",
    "remaining": "double",
}
BUDGET_FIELDS = ("amount", "spent", "held", "remaining", "used")
#: What is read from the limits, in one look.
FROM_LIMITS = frozenset({"spend", "remaining", "budget"})


class CurrentFigures(threading.local):
    """The limits of the request that this thread evaluates right now; evaluations never suspend."""

    def __init__(self) -> None:
        self.take(())

    def take(self, figures: Sequence[LimitFigures]) -> None:
        """Let these be the limits of the request."""
        self._figures = figures
        self._found: dict[str, dict[str, float]] = {}

    def budget(self, name: str) -> dict[str, float]:
        """Give the usd limit with the highest share whose scope is `name` or of that kind; no such limit is an error."""
        found = self._found.get(name)
        if found is None:
            named = [each for each in self._figures if name in (each.scope, each.scope.partition(":")[0])]
            # A limit that is only tried out, or comes with the caller, changes nothing beside another; the only one is meant.
            found = tightest(deciding(named)) or tightest(each for each in named if each.enforced) or tightest(named)
            if found is None:
                raise PolicyEvaluationError(f"no budget of {name[:100]!r} applies to this request")
            # A loop may ask for it thousands of times.
            self._found[name] = found
        return found


def deciding(figures: Iterable[LimitFigures]) -> list[LimitFigures]:
    """Leave out what refuses nothing, and what the caller could bring along to hide the limit that it has used up."""
    return [each for each in figures if each.enforced and not each.asserted]


def tightest(figures: Any) -> dict[str, float] | None:
    """Give the figures in dollars of the usd limit of which the most is used."""
    highest = max((each for each in figures if each.unit == "usd" and each.amount >= 0), key=lambda each: each.used, default=None)
    if highest is None:
        return None
    amount, spent, held = (nanos / _NANOS for nanos in (highest.amount, highest.spent, highest.held))
    return {"amount": amount, "spent": spent, "held": held, "remaining": amount - spent - held, "used": highest.used}


def values_for(
    context: PolicyContext,
    names: Collection[str],
    arguments: Collection[str] | None,
    figures: Sequence[LimitFigures],
) -> dict[str, object]:
    """Give the variables that are named; of the arguments only those named, None for all of them.

    Raises `UnsendableRequestError` for a request that is too large for rules. Without a budget `spend` and `remaining` are
    absent.
    """
    environment = context.environment
    budget = _Budget()
    values: dict[str, object] = {}
    for name in names:
        if name in _SIMPLE:
            values[name] = budget.name(_SIMPLE[name](context))
    if "request.stream" in names:
        values["request.stream"] = streams(context)
    if "request.estimated_usd" in names:
        values["request.estimated_usd"] = int(environment.get("estimated_nanos") or 0) / _NANOS
    if "request.output_limit" in names:
        values["request.output_limit"] = output_limit(context)
    if "request.arguments" in names:
        own = context.arguments
        chosen = own if arguments is None else {name: own[name] for name in arguments if name in own}
        values["request.arguments"] = budget.copy(chosen, 0)
    if "scopes" in names or "tags" in names:
        scopes = [str(scope) for scope in environment.get("scopes") or ()]
        values["scopes"] = budget.names(scopes)
        values["tags"] = budget.names([scope[4:] for scope in scopes if scope.startswith("tag:")])
    if "time" in names:
        at = context.timestamp
        values["time"] = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    if ("spend" in names or "remaining" in names) and (whole := tightest(deciding(figures))) is not None:
        values["spend"], values["remaining"] = whole["spent"], whole["remaining"]
    return values


def streams(context: PolicyContext) -> bool:
    """Tell whether the answer is asked for as a stream: some wires say so in the path."""
    known = context.environment.get("stream")
    return known if isinstance(known, bool) else context.arguments.get("stream") is True


def model_of(context: PolicyContext) -> object:
    """Give the model that a request names; the arguments of a tool are not about models, whatever they are called."""
    known = context.environment.get("model")
    return known or ("" if context.environment.get("wire") == "mcp" else context.arguments.get("model"))


def output_limit(context: PolicyContext) -> int:
    """Give the output tokens that a request limits itself to, the largest of those that its wire heeds; 0 for none.

    Fields of other dialects are passed over: whoever adds one would hide the limit that counts.
    """
    arguments, wire = context.arguments, context.environment.get("wire")
    names = _ANY_LIMIT
    if wire == "openai":
        names = _LIMITS_OF.get(_endpoint(context), ())
    elif wire in ("anthropic", "gemini"):
        names = _LIMITS_OF[wire]
    found = [arguments.get(name) for name in names]
    if wire not in ("openai", "anthropic"):
        configs = [arguments.get(name) for name in ("generationConfig", "generation_config")]
        found += [each.get(name) for each in configs if isinstance(each, Mapping) for name in _CONFIG_LIMITS]
    return max((min(each, _INT64 - 1) for each in found if type(each) is int and each > 0), default=0)


def _endpoint(context: PolicyContext) -> str:
    operation = context.environment.get("operation")
    if isinstance(operation, str) and operation:
        return operation
    return next(
        (each for name, each in (("messages", "chat"), ("prompt", "completions")) if name in context.arguments), "responses"
    )


_SIMPLE: Mapping[str, Callable[[PolicyContext], object]] = {
    "request.model": model_of,
    "request.provider": lambda context: context.environment.get("provider"),
    "request.action": lambda context: context.action,
    "request.capability": lambda context: context.capability_id,
    "request.resource": lambda context: context.resource_id,
    "principal": lambda context: context.principal_id,
}


class _Budget:
    """Copy values into what CEL knows, and stop at what one evaluation may read."""

    def __init__(self) -> None:
        self._text = MAX_TEXT
        self._values = MAX_VALUES

    def text(self, value: object) -> str:
        if not isinstance(value, str):
            return ""
        self._text -= len(value)
        if self._text < 0:
            raise UnsendableRequestError(f"what the rules read of this request is longer than {MAX_TEXT} characters")
        # The engine's texts end there: what comes after it would be hidden from the rules.
        if "\0" in value:
            raise UnsendableRequestError("rules read no text with a NUL in it")
        # Lone surrogates have no UTF-8.
        return value if value.isascii() else value.encode(errors="replace").decode()

    def names(self, values: list[str]) -> list[str]:
        if len(values) > MAX_SCOPES:
            raise UnsendableRequestError(f"rules are asked about at most {MAX_SCOPES} scopes")
        return [self.name(value) for value in values]

    def name(self, value: object) -> str:
        if isinstance(value, str) and len(value) > MAX_NAME:
            raise UnsendableRequestError(f"rules read names of at most {MAX_NAME:,} characters")
        return self.text(value)

    def copy(self, value: object, depth: int) -> object:
        self._values -= 1
        if self._values < 0 or depth > MAX_DEPTH:
            raise UnsendableRequestError(f"rules read at most {MAX_VALUES} values, {MAX_DEPTH} levels deep")
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            return value if -_INT64 <= value < _INT64 else _as_double(value)
        if isinstance(value, (Mapping, list, tuple)):
            if len(value) > MAX_ELEMENTS:
                raise UnsendableRequestError(f"rules read lists of at most {MAX_ELEMENTS} elements")
            if isinstance(value, Mapping):
                copied = {self.text(key): self.copy(each, depth + 1) for key, each in value.items()}
                if len(copied) < len(value):
                    raise UnsendableRequestError("rules read no names that only differ in what is no text")
                return copied
            return [self.copy(each, depth + 1) for each in value]
        if isinstance(value, datetime):
            return value
        return str(type(value).__name__)


def _as_double(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
