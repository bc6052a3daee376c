"""A provider that is not there: speaks OpenAI's and Anthropic's wires over ASGI, takes its time, counts, fails on demand.

It knows nothing of `sark_mw.wire`, so that its tally is an independent witness of what a gateway should have billed.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

from sark_mw import _fake_replies as replies
from sark_mw.usage import Usage

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Request header that asks for faults, comma-separated, e.g. `x-fake-fault: gzip, no_usage` or `status=429`.
FAULT_HEADER = "x-fake-fault"
FAULTS = frozenset(
    {
        "no_usage",
        "zero_usage",
        "cut_midway",
        "error_midway",
        "half_chunk",
        "gzip",
        "force_gzip",
        "slow",
        "single_byte_chunks",
        "huge",
    }
)
_HUGE_CHARS = 1024 * 1024
_SLOW = 10
_PATH = re.compile(
    r".*?/(?:(?P<chat>chat/completions)|(?P<completions>completions)|(?P<responses>responses)|(?P<embeddings>embeddings)|"
    r"(?P<messages>messages)|(?P<count_tokens>messages/count_tokens))/?"
)
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")
#: What it says it has; it answers as any other model too.
_MODELS = ("gpt-4o", "gpt-4o-mini", "claude-haiku-4-5", "text-embedding-3-small")
_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeCall:
    """One call as the provider saw it; `usage` is what it bills, `complete` in it tells whether the reply went out whole.

    `headers` are the request's, lower-case; `body` is the request's.
    """

    call_id: str
    operation: str
    model: str
    usage: Usage
    headers: dict[str, str]
    body: dict[str, Any]
    faults: frozenset[str]


class FakeProvider:
    """An ASGI app that answers chat completions, completions, responses, embeddings, messages and count_tokens.

    `ttft_s` and `chunk_s` are the seconds before the first byte and between chunks (0 never sleeps), spread by half either way;
    `mean_words` the mean length of an answer; `faults` apply to every call, the header `x-fake-fault` to one. `calls` tallies
    what is billed, in the order the replies ended; `requests` counts all that came, refused ones included.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        ttft_s: float = 0.0,
        chunk_s: float = 0.0,
        words_per_chunk: int = 4,
        mean_words: int = 40,
        faults: Iterable[str] = (),
    ) -> None:
        self._seed = seed
        self._ttft_s = ttft_s
        self._chunk_s = chunk_s
        self._words_per_chunk = words_per_chunk
        self._mean_words = mean_words
        self._faults = _checked(faults)
        self._jitter = random.Random(seed)  # noqa: S311 - reproducible, not secret
        self.calls: list[FakeCall] = []
        self.requests = 0

    @property
    def total(self) -> Usage:
        """Everything billed so far."""
        names = ("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "output_tokens")
        sums = {name: sum(getattr(call.usage, name) for call in self.calls) for name in (*names, "reasoning_tokens")}
        return Usage(**sums)

    def reset(self) -> None:
        """Forget the tally."""
        self.calls.clear()
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            self.requests += 1
            await _Exchange(self, scope, receive, send).run()

    async def _wait(self, seconds: float, faults: frozenset[str]) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds * self._jitter.uniform(0.5, 1.5) * (_SLOW if "slow" in faults else 1))


def _checked(faults: Iterable[str]) -> frozenset[str]:
    chosen = frozenset(fault.strip() for fault in faults if fault.strip())
    unknown = {fault for fault in chosen - FAULTS if not re.fullmatch(r"status=[45]\d\d", fault)}
    if unknown:
        raise ValueError(f"unknown faults {sorted(unknown)}: one of {sorted(FAULTS)} or status=<4xx or 5xx>")
    return chosen


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "fake", "type": "model", "display_name": name}


class _Exchange:
    """One request and its reply."""

    def __init__(self, provider: FakeProvider, scope: Scope, receive: Receive, send: Send) -> None:
        self._provider = provider
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._faults: frozenset[str] = frozenset()
        self._gone: asyncio.Task[MutableMapping[str, Any]] | None = None
        self._zip: Any = None

    async def run(self) -> None:
        match = _PATH.fullmatch(self._scope["path"])
        raw = await self._read()
        if self._scope["method"] == "GET" and self._scope["path"].rstrip("/").endswith("/models"):
            return await self._json({"object": "list", "data": [_model(name) for name in _MODELS]})
        try:
            self._faults = self._provider._faults | _checked(self._headers.get(FAULT_HEADER, "").split(","))
            body = json.loads(raw)
        except ValueError as error:
            return await self._error(400, str(error))
        if match is None or self._scope["method"] != "POST" or not isinstance(body, dict):
            return await self._error(404 if match is None else 400, "no such endpoint, method or body")
        status = next((int(fault[7:]) for fault in self._faults if fault.startswith("status=")), None)
        await self._provider._wait(self._provider._ttft_s, self._faults)
        if status:
            return await self._error(status, f"asked to answer {status}")
        operation = str(match.lastgroup)
        if operation == "count_tokens":
            return await self._json({"input_tokens": replies.count_input([body.get("messages"), body.get("system")])})
        return await self._answer(operation, body)

    async def _answer(self, operation: str, body: dict[str, Any]) -> None:
        provider = self._provider
        deployment = _DEPLOYMENT.search(self._scope["path"])
        call_id = f"fake-{provider._seed}-{provider.requests:06d}"
        model = None if body.get("model") or not deployment else deployment[1]
        plan = replies.make_plan(provider._seed, call_id, operation, body, provider._mean_words, model)
        mode = "none" if "no_usage" in self._faults else "zero" if "zero_usage" in self._faults else "true"
        plan = replace(plan, usage_mode=mode, pad_chars=_HUGE_CHARS if "huge" in self._faults else 0)
        self._gone = asyncio.ensure_future(self._receive())
        sent = plan.after(0)
        try:
            if body.get("stream") is True and operation != "embeddings":
                async for usage in self._stream(plan):
                    sent = usage
            else:
                sent = await self._document(plan)
        finally:
            self._gone.cancel()
            billed = Usage(model=plan.model) if mode == "zero" else sent
            provider.calls.append(
                FakeCall(
                    call_id=call_id,
                    operation=operation,
                    model=plan.model,
                    usage=billed,
                    headers=self._headers,
                    body=body,
                    faults=self._faults,
                )
            )

    async def _document(self, plan: replies.Plan) -> Usage:
        """A JSON reply is computed, and so billed, whole, however much of it arrives."""
        raw = json.dumps(replies.reply(plan)).encode()
        if self._faults & {"cut_midway", "half_chunk", "error_midway"}:
            await self._start(200, "application/json", len(raw) if "cut_midway" in self._faults else None)
            await self._chunk(raw[: len(raw) // 2])
            if "cut_midway" not in self._faults:
                await self._end()
            return replace(plan.usage, complete=False)
        await self._start(200, "application/json", None if self._zipped() else len(raw))
        await self._chunk(raw)
        await self._end()
        return plan.usage

    async def _stream(self, plan: replies.Plan) -> AsyncIterator[Usage]:
        """Send the events; yields what is billed should the stream end here."""
        events = list(replies.frames(plan, self._provider._words_per_chunk))
        stop = len(events) // 2 if self._faults & {"cut_midway", "half_chunk", "error_midway"} else None
        await self._start(200, "text/event-stream; charset=utf-8")
        for number, event in enumerate(events):
            if self._gone and self._gone.done():
                return
            if number == stop:
                await self._fail(plan, event, events[number - 1].words)
                return
            await self._chunk(event.raw)
            yield plan.after(event.words)
            await self._provider._wait(self._provider._chunk_s, self._faults)
        await self._end()
        yield plan.usage

    async def _fail(self, plan: replies.Plan, event: replies.Frame, words: int) -> None:
        """End a stream in the middle; a cut one is not ended at all, so that the server drops the connection."""
        if "error_midway" in self._faults:
            await self._chunk(replies.error_frame(plan, words).raw)
        elif "half_chunk" in self._faults:
            await self._chunk(event.raw[: len(event.raw) // 2])
        if "cut_midway" not in self._faults:
            await self._end()

    async def _read(self) -> bytes:
        raw = bytearray()
        while True:
            message = await self._receive()
            raw += message.get("body", b"")
            if message["type"] != "http.request" or not message.get("more_body"):
                return bytes(raw)

    async def _error(self, status: int, text: str) -> None:
        kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        error = {"type": kind, "message": text}
        anthropic = "messages" in self._scope["path"]
        body = {"type": "error", "error": error} if anthropic else {"error": {**error, "code": None, "param": None}}
        await self._json(body, status)

    async def _json(self, body: dict[str, Any], status: int = 200) -> None:
        raw = json.dumps(body).encode()
        await self._start(status, "application/json", None if self._zipped() else len(raw))
        await self._chunk(raw)
        await self._end()

    def _zipped(self) -> bool:
        accepted = "gzip" in self._headers.get("accept-encoding", "")
        return "force_gzip" in self._faults or ("gzip" in self._faults and accepted)

    async def _start(self, status: int, kind: str, length: int | None = None) -> None:
        headers = [(b"content-type", kind.encode()), (b"x-request-id", f"fake-{self._provider.requests}".encode())]
        if self._zipped():
            headers.append((b"content-encoding", b"gzip"))
            self._zip = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
        elif length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _chunk(self, raw: bytes) -> None:
        if self._zip:
            raw = self._zip.compress(raw) + self._zip.flush(zlib.Z_SYNC_FLUSH)
        size = 1 if "single_byte_chunks" in self._faults else max(1, len(raw))
        for start in range(0, len(raw), size):
            await self._send({"type": "http.response.body", "body": raw[start : start + size], "more_body": True})

    async def _end(self) -> None:
        await self._send({"type": "http.response.body", "body": self._zip.flush() if self._zip else b"", "more_body": False})
