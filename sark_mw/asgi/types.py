"""What ASGI's callables look like, and the few facts of a scope that are read in several places."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sark_mw.errors import InvalidRequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
#: As ASGI carries them: lower-case names, raw values.
RawHeaders = list[tuple[bytes, bytes]]


def header(headers: RawHeaders, name: bytes) -> bytes | None:
    """Return the first value of a header."""
    for key, value in headers:
        if key == name:
            return value
    return None


def once(headers: RawHeaders, name: bytes) -> bytes | None:
    """Return the value of a header that must not be repeated: who reads it behind us may take another; `InvalidRequestError`."""
    values = [value for key, value in headers if key == name]
    if len(values) > 1:
        raise InvalidRequestError(f"The header {name.decode('latin-1')} must not be repeated.")
    return values[0] if values else None


def single(headers: RawHeaders, name: bytes) -> str | None:
    """Return the text of a header that must not be repeated, else whoever appends to it could be overruled."""
    value = once(headers, name)
    if value is None:
        return None
    try:
        return value.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise InvalidRequestError(f"The header {name.decode('latin-1')} is not UTF-8.") from None


def client_address(scope: Scope) -> str | None:
    """Return the peer's address; None for a Unix socket or a server that does not tell."""
    client = scope.get("client")
    return str(client[0]) if client else None
