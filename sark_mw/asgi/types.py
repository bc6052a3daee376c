"""What ASGI's callables look like, and the few facts of a scope that are read in several places."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

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


def client_address(scope: Scope) -> str | None:
    """Return the peer's address; None for a Unix socket or a server that does not tell."""
    client = scope.get("client")
    return str(client[0]) if client else None
