"""Idempotency keys: what a second request with the same key is compared by, and the responses that it is answered with.

Responses are kept in this process's memory and nowhere else, within a bound and for a time. A retry that reaches another process
is told that its first request has been answered and paid for.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sark_mw.asgi.principal import Principal
from sark_mw.asgi.types import Message, RawHeaders, Scope, header, single
from sark_mw.enforcement.invocation import Idempotency, idempotency
from sark_mw.errors import InvalidRequestError
from sark_mw.wire.base import Response

HEADER = b"idempotency-key"
MAX_KEY_CHARS = 255
#: A longer response is not kept.
MAX_KEPT_BYTES = 1024 * 1024
#: What Python takes for a kept response and for each of its headers beside their bytes, measured.
_RESPONSE_BYTES = 700
_HEADER_BYTES = 120
#: One principal's fair part of the bound, as a fraction (1/n).
_SHARES = 16


def idempotency_of(principal: Principal, scope: Scope, body: bytes) -> Idempotency | None:
    """Read a request's key; None where it has none. Raises `InvalidRequestError` for one that is no key."""
    if scope["method"].upper() != "POST":
        return None
    key = single(scope["headers"], HEADER)
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY_CHARS or not key.isprintable():
        raise InvalidRequestError(f"An idempotency key has 1 to {MAX_KEY_CHARS} printable characters.", param="idempotency-key")
    query: bytes = scope.get("query_string", b"")
    asked = (scope["method"].upper().encode(), scope["path"].encode("utf-8", "surrogatepass"), query, body)
    return idempotency(principal.root or "", principal.principal_id, key, *asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One whole response, the request that it answers, and whose it is."""

    owner: str
    fingerprint: str
    accept_encoding: bytes | None
    status: int
    headers: RawHeaders
    body: bytes
    until: float

    @property
    def response(self) -> Response:
        """The response, byte for byte; it tells that it is one of before."""
        return Response(status=self.status, headers=(*self.headers, (b"x-sark-replayed", b"true")), body=self.body)

    @property
    def size(self) -> int:
        """What it takes of the bound."""
        return len(self.body) + size_of(self.headers)


def size_of(headers: RawHeaders) -> int:
    """Say what a response takes in memory beside its body."""
    return _RESPONSE_BYTES + sum(_HEADER_BYTES + len(name) + len(value) for name, value in headers)


class KeptResponses:
    """The responses of one process that can be answered with again: at most `most_bytes`, each for `keep_s` seconds.

    Anybody may fill what is free. Once it is full, whoever has more than a share of it makes room first, so that nobody's
    responses push out those of all others.
    """

    def __init__(self, most_bytes: int, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most_bytes
        self._share = most_bytes // _SHARES
        self._keep_s = keep_s
        self._clock = clock
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._used = 0
        #: What each principal takes, recordings included, and the keys of what is kept for it, the oldest first.
        self._taken: dict[str, int] = {}
        self._keys: dict[str, dict[str, None]] = {}
        #: Who has more than a share: never more than there are shares.
        self._greedy: set[str] = set()

    def recording(self, idempotency: Idempotency | None, owner: str, request_headers: RawHeaders) -> Recording | None:
        """Begin to keep the response to a request of `owner`; None where it has no key or nothing is kept."""
        if idempotency is None or not self._most:
            return None
        return Recording(self, idempotency, owner, header(request_headers, b"accept-encoding"))

    def find(self, idempotency: Idempotency | None, request_headers: RawHeaders) -> Kept | None:
        """Return the response to the same request with the same key, unless it was compressed for another client."""
        if idempotency is None:
            return None
        self._forget_old()
        kept = self._kept.get(idempotency.key)
        if kept is None or kept.fingerprint != idempotency.fingerprint:
            return None
        compressed = header(kept.headers, b"content-encoding") is not None
        same = kept.accept_encoding == header(request_headers, b"accept-encoding")
        return kept if same or not compressed else None

    def make_room(self, owner: str, size: int) -> bool:
        """Take so many bytes of the bound, in the place of older responses; False if what is being recorded fills it."""
        self._forget_old()
        while self._used + size > self._most:
            key = self._least_missed(owner, size)
            if key is None:
                return False
            self._drop(key)
        self._take(owner, size)
        return True

    def _least_missed(self, owner: str, size: int) -> str | None:
        """Name the response that makes room: the oldest of whoever wants more than a share, or has it, else of all."""
        if self._taken.get(owner, 0) + size > self._share:
            return next(iter(self._keys.get(owner, ())), None)
        dearest = max((each for each in self._greedy if self._keys.get(each)), key=self._taken.__getitem__, default=None)
        return next(iter(self._kept if dearest is None else self._keys[dearest]), None)

    def give_back(self, owner: str, size: int) -> None:
        """Give bytes of the bound back that nothing was kept in."""
        self._take(owner, -size)

    def _take(self, owner: str, size: int) -> None:
        self._used += size
        taken = self._taken.get(owner, 0) + size
        if taken > self._share:
            self._greedy.add(owner)
        else:
            self._greedy.discard(owner)
        if taken:
            self._taken[owner] = taken
        else:
            self._taken.pop(owner, None)

    def put(self, key: str, kept: Kept) -> None:
        """Keep a response for which there is room already."""
        if key in self._kept:
            self._drop(key)
        self._kept[key] = kept
        self._keys.setdefault(kept.owner, {})[key] = None

    def until(self) -> float:
        """Say until when a response of now is kept."""
        return self._clock() + self._keep_s

    def _forget_old(self) -> None:
        now = self._clock()
        while self._kept:
            key = next(iter(self._kept))
            if self._kept[key].until > now:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key)
        keys = self._keys[kept.owner]
        del keys[key]
        if not keys:
            del self._keys[kept.owner]
        self._take(kept.owner, -kept.size)


class Recording:
    """One response while it passes; kept when it came to its end, forgotten otherwise."""

    __slots__ = ("_accept", "_body", "_headers", "_idempotency", "_into", "_owner", "_size", "_status")

    def __init__(self, into: KeptResponses, idempotency: Idempotency, owner: str, accept: bytes | None) -> None:
        self._into = into
        self._idempotency = idempotency
        self._owner = owner
        self._accept = accept
        self._status = 0
        self._headers: RawHeaders = []
        self._body: bytearray | None = bytearray()
        self._size = 0

    def hear(self, message: Message) -> None:
        """Take a message as the client gets it."""
        if self._body is None:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = [(bytes(name), bytes(value)) for name, value in message["headers"]]
            self._grow(size_of(self._headers))
        elif message["type"] == "http.response.body":
            piece = message.get("body", b"")
            if self._grow(len(piece)):
                self._body += piece
        else:
            self.forget()

    def _grow(self, size: int) -> bool:
        if self._size + size > MAX_KEPT_BYTES or not self._into.make_room(self._owner, size):
            self.forget()
            return False
        self._size += size
        return True

    def keep(self) -> None:
        """Keep what was heard: the response has come to its end. Errors are not kept: the next request may fare better."""
        if self._body is None or not 200 <= self._status < 400:
            return self.forget()
        body, self._body, self._size = bytes(self._body), None, 0
        kept = Kept(
            owner=self._owner,
            fingerprint=self._idempotency.fingerprint,
            accept_encoding=self._accept,
            status=self._status,
            headers=self._headers,
            body=body,
            until=self._into.until(),
        )
        return self._into.put(self._idempotency.key, kept)

    def forget(self) -> None:
        """Keep nothing."""
        self._into.give_back(self._owner, self._size)
        self._body, self._size = None, 0
