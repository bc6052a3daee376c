"""The models that a request names for its provider to fall back to: each may serve it, so the dearest of them is held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sark_mw.errors import InvalidRequestError
from sark_mw.pricing.base import Json

#: OpenRouter's, Anthropic's and LiteLLM's.
_FIELDS = ("models", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
_MOST = 8


def fallbacks(body: Json) -> list[tuple[str, Json]]:
    """List the other models of a request, each with the body as it would be sent to it.

    Raises `InvalidRequestError` for what cannot be read: what it may cost is not known then.
    """
    own = body.get("model")
    found: dict[str, Json] = {}
    for field in _FIELDS:
        for model, changes in _models(body.get(field), field):
            if model != own or changes:
                found[f"{model} {sorted(map(str, changes))}"] = {**body, **changes, "model": model}
        if len(found) > _MOST:
            raise InvalidRequestError(f"A request may name at most {_MOST} models to fall back to", field)
    return [(str(changed["model"]), changed) for changed in found.values()]


def _models(named: object, field: str) -> Iterator[tuple[str, Json]]:
    """Read names, objects with a `model`, and objects that name models by the one that they stand in for."""
    waiting: list[object] = [] if named is None else [named]
    for _ in range(100 * _MOST):
        if not waiting:
            return
        each = waiting.pop()
        if isinstance(each, str) and each and not (field == "fallbacks" and each == "default"):
            yield each, {}
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, Mapping) and isinstance(each.get("model"), str):
            yield each["model"], each
        elif isinstance(each, Mapping) and "model" not in each:
            waiting += each.values()
        else:
            break
    raise InvalidRequestError(f"The models that '{field}' names cannot be read, so what they cost is not known", field)
