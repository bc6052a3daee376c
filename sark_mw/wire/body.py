"""Reading JSON that others wrote: strict for requests (anything odd raises), lenient for responses (anything odd is absent)."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sark_mw.errors import InvalidRequestError
from sark_mw.wire.base import Headers
from sark_mw.wire.encoding import content_codings

MAX_DEPTH = 128
#: Commas, colons, brackets and braces in one body, those inside strings included: each may become an object of some 60 bytes,
#: and a million of them take a third of a second to parse. A text that fills the largest context window has fewer.
MAX_STRUCTURE = 1_000_000
MAX_MODEL_CHARS = 256
MAX_OUTPUT_TOKENS = 100_000_000
#: More tokens than this in one response is no count but a fault.
MAX_COUNT = 1_000_000_000

_SPACE = re.compile(r"[ \t\n\r]*")
_KIND_NAMES = {"str": "a string", "list": "an array", "dict": "an object"}


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not a finite number: {text[:32]}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; of a key that stands twice, one parser takes the first value and another the last."""
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0][:64]
        raise InvalidRequestError(f"The key '{twice}' stands twice in one object of the request body.", param=twice)
    return made


def read_json(body: bytes) -> Any:
    """Parse a request body: UTF-8 JSON, finite numbers, no key twice, bounded depth; else `InvalidRequestError`."""
    if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > MAX_STRUCTURE:
        raise InvalidRequestError(f"The request body has more than {MAX_STRUCTURE} commas, colons and brackets.")
    try:
        parsed = json.loads(
            body.decode("utf-8"), parse_float=_finite, parse_constant=_no_constant, object_pairs_hook=_unambiguous
        )
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"The request body is not UTF-8 (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"The request body is not JSON: {error.msg} (character {error.pos}).") from None
    except ValueError as error:
        raise InvalidRequestError(f"The request body is not JSON: {str(error)[:200]}.") from None
    except RecursionError:
        raise InvalidRequestError(f"The request body is nested deeper than {MAX_DEPTH} levels.") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(parsed)
    return parsed


def _check_depth(parsed: object) -> None:
    level: list[Any] = [parsed] if isinstance(parsed, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
    if level:
        raise InvalidRequestError(f"The request body is nested deeper than {MAX_DEPTH} levels.")


def check_headers(headers: Headers) -> None:
    """Refuse a request body that is compressed or declared to be something other than JSON (415 by its `param`)."""
    pairs = list(headers)
    if content_codings(pairs):
        raise InvalidRequestError("Compressed request bodies are not supported.", param="content-encoding")
    declared = next((value for name, value in pairs if name.lower() == b"content-type"), b"")
    kind = declared.split(b";")[0].strip().lower()
    if kind and kind != b"application/json" and not kind.endswith(b"+json"):
        raise InvalidRequestError("The content type must be application/json.", param="content-type")


def read_object(headers: Headers, body: bytes) -> dict[str, Any]:
    """Read a request body that must be a JSON object."""
    check_headers(headers)
    parsed = read_json(body)
    if not isinstance(parsed, dict):
        raise InvalidRequestError("The request body must be a JSON object.")
    return parsed


def check_model(model: object) -> str | None:
    """Return the model's name, None if there is none; odd names raise, as they end up in labels and reports."""
    if model is None:
        return None
    if not isinstance(model, str):
        raise InvalidRequestError("'model' must be a string.", param="model")
    if not 0 < len(model) <= MAX_MODEL_CHARS or not model.isprintable():
        raise InvalidRequestError(f"'model' must be 1 to {MAX_MODEL_CHARS} printable characters.", param="model")
    return model


def check_flag(body: dict[str, Any], name: str) -> bool:
    """Return a boolean field; absent and null are False, anything else raises."""
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InvalidRequestError(f"'{name}' must be a boolean.", param=name)


def check_count(body: dict[str, Any], name: str, low: int, high: int = MAX_OUTPUT_TOKENS) -> int | None:
    """Return an integer field in [low, high]; absent and null are None, anything else raises."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise InvalidRequestError(f"'{name}' must be an integer from {low} to {high}.", param=name)
    return value


def check_kind(body: dict[str, Any], name: str, kinds: tuple[type[object], ...], required: bool = False) -> None:
    """Raise unless the field has one of the types; absent and null pass if not required."""
    value = body.get(name)
    if value is None and not required:
        return
    if not isinstance(value, kinds):
        wanted = " or ".join(_KIND_NAMES[kind.__name__] for kind in kinds)
        raise InvalidRequestError(f"'{name}' must be {wanted}.", param=name)


def _past_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def with_member(raw: bytes, name: str, value: object) -> bytes:
    """Set one top-level member of a JSON object that `read_json` has read, in its own bytes: in its place, or as the first.

    Everything before the member is read a second time, nothing is written anew.
    """
    text = raw.decode("utf-8")
    written = json.dumps(value, separators=(",", ":"))
    scan = json.JSONDecoder().raw_decode
    begin = at = text.index("{")
    empty = text[_past_space(text, at + 1)] == "}"
    while at < len(text) and not empty:
        key, at = scan(text, _past_space(text, at + 1))
        at = _past_space(text, at)
        start = _past_space(text, at + 1)
        _, at = scan(text, start)
        if key == name:
            return b"".join((text[:start].encode(), written.encode("ascii"), text[at:].encode()))
        at = _past_space(text, at)
        if text[at] == "}":
            break
    added = f"{json.dumps(name)}:{written}{'' if empty else ','}"
    return b"".join((text[: begin + 1].encode(), added.encode("ascii"), text[begin + 1 :].encode()))


def clean_path(path: str) -> str:
    """Normalise a path the way lenient servers do, so that no spelling of a metered path passes unmetered."""
    return plain_path(path.lower())


def plain_path(path: str) -> str:
    """Normalise a path and leave its letters as they are; linear in its length."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def parse(text: str | bytes) -> Any:
    """Parse a provider's JSON; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def mapping(value: object) -> dict[str, Any]:
    """Return the object, an empty one if it is none."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> Iterator[dict[str, Any]]:
    """Iterate over the objects of an array, passing over anything else."""
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def count(value: object) -> int | None:
    """Return a token count; None where it is mistyped, negative or huge."""
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def part(value: object, whole: int) -> int:
    """Return a count that is part of another: 0 where it is unreadable, at most the whole."""
    return min(count(value) or 0, whole)


def name_or_none(value: object) -> str | None:
    """Return a provider's short name (a model, a tier), None for anything that is none."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_MODEL_CHARS and value.isprintable() else None
