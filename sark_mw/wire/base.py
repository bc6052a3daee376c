"""What a wire format is: one Protocol, the call it reads, the refusal it answers with, the tap it puts into a response.

A wire knows bytes and dialects only: no prices, no limits, no store. Request bodies come in whole (the middleware caps them),
responses come in chunks of any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol

from sark_mw.usage import Usage

#: Header lists as ASGI carries them: lower-case names, raw values.
Headers = Iterable[tuple[bytes, bytes]]
#: The id of a JSON-RPC request; None where the request had none that could be read.
RpcId = str | int | float | None


class Operation(StrEnum):
    """What a request asks the provider to do."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    MESSAGES = "messages"
    COUNT_TOKENS = "count_tokens"
    GENERATE = "generate"
    TOOL_CALL = "tool_call"
    OTHER = "other"

    @property
    def free(self) -> bool:
        """True for what providers never charge for."""
        return self in (Operation.COUNT_TOKENS, Operation.OTHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One MCP `tools/call`: the tool's name is the capability."""

    name: str
    rpc_id: RpcId
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as its wire read it.

    `model` and `stream` are checked; `body` is the parsed object (None where there is none). `usage_injected`: `request_body`
    asks for usage that the client did not ask for, and the tap takes it out again. `strip_accept_encoding`: forward the request
    with `accept-encoding: identity`, as a chunk cannot be taken out of a compressed stream. `raw` is the body as it came, or,
    where `rewritten`, as `Wire.rewrite` made it. `path` is that of the request; a rewritten model may stand in it.
    """

    wire: str
    operation: Operation
    model: str | None = None
    stream: bool = False
    body: dict[str, Any] | None = None
    usage_injected: bool = False
    strip_accept_encoding: bool = False
    tools: tuple[ToolCall, ...] = ()
    rpc_ids: tuple[RpcId, ...] = ()
    rpc_batch: bool = False
    path: str = ""
    rewritten: bool = False
    raw: bytes = field(default=b"", repr=False)


class RefusalKind(StrEnum):
    """Why a request is not let through (DESIGN's table of HTTP manners).

    `POLICY_UNAVAILABLE`: a policy timed out or crashed, so nobody knows what it would have said. Three are about idempotency
    keys: one that came with another request before (`IDEMPOTENCY`), one whose first request is still being answered
    (`IN_FLIGHT`), one whose first request has been answered and paid for (`ALREADY_DONE`).
    """

    RATE_LIMIT = "rate_limit"
    CONCURRENCY = "concurrency"
    BUDGET = "budget"
    POLICY = "policy"
    UNAVAILABLE = "unavailable"
    POLICY_UNAVAILABLE = "policy_unavailable"
    INVALID = "invalid"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    IDEMPOTENCY = "idempotency"
    IN_FLIGHT = "in_flight"
    ALREADY_DONE = "already_done"
    UNAUTHENTICATED = "unauthenticated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Everything that an answer to a refused caller may say.

    `limit` names the limit (`user:alice/usd/day`), `scope`, `unit` and `window` its parts. `amount`, `spent`, `held`, `needed`,
    `remaining` are in the unit: `Decimal` dollars or whole requests and tokens. `resets_at_ms` and `now_ms` are Unix milliseconds
    by the store's clock. `status_override` answers a budget with 429.
    """

    kind: RefusalKind
    message: str
    request_id: str = ""
    scope: str | None = None
    limit: str | None = None
    unit: str | None = None
    window: str | None = None
    amount: Decimal | int | None = None
    spent: Decimal | int | None = None
    held: Decimal | int | None = None
    needed: Decimal | int | None = None
    remaining: Decimal | int | None = None
    resets_at_ms: int | None = None
    now_ms: int | None = None
    retry_after_s: float | None = None
    affordable_output_tokens: int | None = None
    plugin: str | None = None
    reason: str | None = None
    param: str | None = None
    status_override: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A whole HTTP response, ready for ASGI."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class UsageTap(Protocol):
    """Reads one response as it passes.

    `usage` is what the provider said so far (`complete` tells whether more may come), None while it said nothing readable.
    `output_chars` is the text seen so far, `output_byte_counts` how often each byte of its UTF-8 occurs, which tells its scripts:
    for local counting. `failed`: the provider reported an error midway. `started`: it produced something before that.
    """

    @property
    def usage(self) -> Usage | None: ...
    @property
    def output_chars(self) -> int: ...
    @property
    def output_byte_counts(self) -> Mapping[int, int]: ...
    @property
    def failed(self) -> bool: ...
    @property
    def started(self) -> bool: ...

    def feed(self, chunk: bytes) -> bytes:
        """Read `chunk` and return what to pass on: the same object unless an injected usage chunk is held or taken out."""
        ...

    def finish(self) -> bytes:
        """End the response, whole or cut, and return the bytes that were still held back."""
        ...


class Wire(Protocol):
    """One wire format. Stateless: one object serves every request."""

    @property
    def name(self) -> str: ...

    def match(self, method: str, path: str) -> Operation | None:
        """Recognise a request by method and path; None if it is not this wire's."""
        ...

    def read(self, operation: Operation, path: str, headers: Headers, body: bytes) -> Call:
        """Read a request's body; anything malformed raises `InvalidRequestError`."""
        ...

    def request_body(self, call: Call) -> bytes | None:
        """Return the body to send instead of the caller's, or None to send the caller's."""
        ...

    def rewrite(self, call: Call, *, model: str | None = None, max_output_tokens: int | None = None) -> Call | None:
        """Return the request for another model or with a smaller output limit (that of one choice), nothing else of it changed.

        None where it cannot be: no model or no limit has a place in it, or it would not be valid any more.
        """
        ...

    def tap(self, call: Call, status: int, headers: Headers) -> UsageTap:
        """Make the tap for a response that begins with `status` and `headers`."""
        ...

    def refuse(self, refusal: Refusal, stream: bool = False, call: Call | None = None) -> Response:
        """Answer a refused caller in its dialect; `call` where it could be read (JSON-RPC needs its ids)."""
        ...
