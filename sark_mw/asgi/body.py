"""A metered request's body: read whole within a cap and a time, then replayed to the app byte for byte."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from functools import lru_cache

from sark_mw.asgi.types import RawHeaders, Receive, header
from sark_mw.wire.encoding import readable_encodings

#: What is still read of a body that is refused, so that a client which is writing gets to read the answer.
_DISCARD_BYTES = 8 * 1024 * 1024
_DISCARD_S = 5.0


class BodyFault(StrEnum):
    """Why there is no body."""

    TOO_LARGE = "body_too_large"
    TIMED_OUT = "body_timeout"
    CLIENT_GONE = "client_gone"


async def read_body(receive: Receive, headers: RawHeaders, max_bytes: int, timeout_s: float) -> bytes | BodyFault:
    """Read the body, whatever its chunks."""
    declared = header(headers, b"content-length")
    if declared is not None and declared.isdigit() and int(declared[:20]) > max_bytes:
        return BodyFault.TOO_LARGE
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, max_bytes)
    except TimeoutError:
        return BodyFault.TIMED_OUT


async def _read(receive: Receive, max_bytes: int) -> bytes | BodyFault:
    message = await receive()
    if message["type"] == "http.disconnect":
        return BodyFault.CLIENT_GONE
    first: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return first if len(first) <= max_bytes else BodyFault.TOO_LARGE
    body = bytearray(first)
    while len(body) <= max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            return BodyFault.CLIENT_GONE
        body += message.get("body", b"")
        if not message.get("more_body", False) and len(body) <= max_bytes:
            return bytes(body)
    return BodyFault.TOO_LARGE


async def discard_body(receive: Receive) -> bool:
    """Read on without keeping anything, for a while; False if there is more, so that the connection must be closed."""
    left = _DISCARD_BYTES
    try:
        async with asyncio.timeout(_DISCARD_S):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return True
                left -= len(message.get("body", b""))
    except TimeoutError:
        return False
    return False


def forwarded_headers(headers: RawHeaders, body: bytes | None, *, identity: bool) -> RawHeaders:
    """Return the headers for the app: the same list unless the body was rewritten or its answer could not be read.

    `body` is the rewritten one. Of `accept-encoding` stays what can be read here; with `identity` nothing.
    """
    accepted = header(headers, b"accept-encoding")
    readable = accepted if accepted is None else b"identity" if identity else _readable(accepted)
    if identity and accepted is None:
        readable = b"identity"
    if body is None and readable == accepted:
        return headers
    length = None if body is None else str(len(body)).encode()
    changed = [
        (name, length if name == b"content-length" and length is not None else value)
        for name, value in headers
        if name != b"accept-encoding"
    ]
    return changed if readable is None else [*changed, (b"accept-encoding", readable)]


@lru_cache(maxsize=256)
def _readable(accepted: bytes) -> bytes:
    known = {name.encode() for name in readable_encodings()} | {b"identity"}
    parts = [part.strip() for part in accepted.split(b",")]
    kept = [part for part in parts if part.split(b";")[0].strip().lower() in known]
    if len(kept) == len(parts):
        return accepted
    return b", ".join(kept) or b"identity"
