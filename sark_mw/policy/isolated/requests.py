"""Write a request for a worker: the context as JSON, no more of it than a worker can surely read."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from uuid import UUID

from sark_mw.policy.context import PolicyContext, read_bytes
from sark_mw.policy.isolated.inside.bounds import has_more_values, is_deeper
from sark_mw.policy.unsendable import UnsendableRequestError

_LENGTH = struct.Struct(">I")
_HEAD = struct.Struct(">IQ")
_NUMBER_BYTES = 8


_CONTAINERS = frozenset({dict, list, tuple})
_SMALL = frozenset({float, bool, type(None)})
#: Levels of what plugins may walk by calling themselves; two are the context's own.
_DEPTH = 64
#: What a gateway has read from so few bytes is quickly written: to add it up before costs more than it could save.
_SMALL_BODY_BYTES = 65_536


def _data(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (Decimal, UUID, PurePath)):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise UnsendableRequestError(f"the context holds a {type(value).__name__}, which is no data")


# No number without end: a policy that calculates with one fails, and a caller could have it decided by `on_error`.
_encode = json.JSONEncoder(separators=(",", ":"), default=_data, allow_nan=False).encode


def framed(body: bytes) -> bytes:
    """Put the length before a body."""
    return _LENGTH.pack(len(body)) + body


def _content(part: dict[str, Any]) -> dict[str, Any]:
    # A view copies nested containers when they are read; only read here, they need no copy.
    return part if type(part) is dict else dict(dict.items(part))


def written_context(context: PolicyContext, most_bytes: int, most_values: int) -> bytes:
    """Write everything of a request's frame but its number; raises `UnsendableRequestError`."""
    timestamp = context.timestamp if context.timestamp.tzinfo else context.timestamp.replace(tzinfo=UTC)
    fields = [
        context.principal_id,
        context.resource_id,
        context.capability_id,
        context.action,
        _content(context.arguments),
        _content(context.environment),
        timestamp.isoformat(),
    ]
    if not _is_from_a_small_body(context):
        _look_over(fields, most_bytes, most_values)
    try:
        body = _encode(fields).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise UnsendableRequestError(f"the context cannot be written: {type(error).__name__}") from None
    if len(body) > most_bytes:
        raise _too_long(most_bytes)
    if has_more_values(body, most_values):
        raise _too_many(most_values)
    if is_deeper(body, _DEPTH):
        raise UnsendableRequestError(f"the context is more than {_DEPTH} levels deep")
    return body


def _is_from_a_small_body(context: PolicyContext) -> bool:
    # Not what the environment says of `body_bytes`: outside of HTTP that is the caller's word.
    size = read_bytes(context)
    return size is not None and size <= _SMALL_BODY_BYTES


def _look_over(root: list[Any], most_bytes: int, most_values: int) -> None:
    """Refuse what is surely too large before it is written, which would hold up the event loop once for each plugin."""
    bytes_left, values_left = most_bytes, most_values
    pending: list[Any] = [root]
    while pending:
        values = pending.pop()
        values_left -= len(values)
        if values_left < 0:
            raise _too_many(most_values)
        if isinstance(values, dict):
            bytes_left -= _keys_chars(values)
            values = dict.values(values)
        for value in values:
            kind = type(value)
            if kind is str:
                bytes_left -= len(value)
            elif kind in _CONTAINERS:
                if value:
                    pending.append(value)
            elif kind is int:
                bytes_left -= value.bit_length() >> 2  # its digits
            elif kind not in _SMALL:
                bytes_left -= _other(value, pending)
        if bytes_left < 0:
            raise _too_long(most_bytes)


def _keys_chars(values: dict[Any, Any]) -> int:
    return sum(len(key) for key in values if type(key) is str)


def _other(value: object, pending: list[Any]) -> int:
    """Put what is in an unusual container to what is pending; returns how long a text is."""
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        pending.append(value)
    elif isinstance(value, Mapping):
        pending.append(dict(value))
    return len(value) if isinstance(value, str) else 0


def _too_long(most_bytes: int) -> UnsendableRequestError:
    return UnsendableRequestError(f"the context is too long: {most_bytes} bytes are the most")


def _too_many(most_values: int) -> UnsendableRequestError:
    return UnsendableRequestError(f"the context holds more than {most_values} values")


def numbered(number: int, body: bytes) -> bytes:
    """Make the frame of a request: its number, outside of what has to be understood, then what `written_context` wrote."""
    return _HEAD.pack(_NUMBER_BYTES + len(body), number) + body
