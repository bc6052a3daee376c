"""Requests that are sent changed: a member or two of the body, the model in the path, and every other byte as it came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sark_mw.wire.base import Call
from sark_mw.wire.body import plain_path, with_member


def with_members(call: Call, changes: Mapping[str, object], *, model: str | None = None, path: str | None = None) -> Call | None:
    """Return the call with these top-level members of its body, and as of this model and path; None where it has no body."""
    if call.body is None:
        return None
    body, raw = call.body, call.raw
    for name, value in changes.items():
        raw = with_member(raw, name, value)
        body = {**body, name: value}
    return replace(
        call,
        body=body,
        raw=raw,
        model=call.model if model is None else model,
        path=call.path if path is None else path,
        rewritten=True,
    )


def lowered(body: Mapping[str, Any], names: Iterable[str], most: int) -> dict[str, int] | None:
    """Return the output limits to set: those of `names` that the caller has set, else the first; None where there is no place.

    No limit is raised. A limit of 0 or null is none.
    """
    names = tuple(names)
    if not names or most < 1:
        return None
    given = {name: body[name] for name in names if body.get(name)}
    return {name: min(value, most) for name, value in given.items()} or {names[0]: most}


def with_model_at(path: str, span: tuple[int, int], model: str) -> str | None:
    """Put a model into a path in the place of another; None where the path is oddly spelt or the name is none for a path."""
    if plain_path(path) != path or "/" in model or model in ("", ".", ".."):
        return None
    return path[: span[0]] + model + path[span[1] :]
