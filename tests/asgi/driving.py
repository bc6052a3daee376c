"""Drive an ASGI app by hand, message by message, and read what the books say of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sark_mw._memory_store import MemoryStore
from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.instrumentation.base import NullInstrumentation, RequestFinished
from sark_mw.ledger.base import LedgerEntry
from sark_mw.ledger.entries import ledger_entry
from sark_mw.limit import Unit
from sark_mw.reservation import Balance, lines_for
from sark_mw.sark import Sark
from sark_mw.settings import Settings

CHAT: dict[str, Any] = {"model": "gpt-4o", "max_tokens": 200, "messages": [{"role": "user", "content": "hello there"}]}
MESSAGES: dict[str, Any] = {"model": "claude-haiku-4-5", "max_tokens": 200, "messages": [{"role": "user", "content": "hello"}]}
#: An output limit far above what is usual, so that the expectation and the hold are different figures.
LONG: dict[str, Any] = {**CHAT, "max_tokens": 4000}
EMBED: dict[str, Any] = {"model": "text-embedding-3-small", "input": "hello there"}
JSON = ("content-type", "application/json")


class Seen(NullInstrumentation):
    """Keeps what the middleware told of requests."""

    def __init__(self) -> None:
        self.requests: list[RequestFinished] = []
        self.adapted: list[str] = []
        self.repeated: list[str] = []

    def request_finished(self, event: RequestFinished) -> None:
        self.requests.append(event)

    def request_adapted(self, kind: str) -> None:
        self.adapted.append(kind)

    def idempotent_replayed(self, outcome: str) -> None:
        self.repeated.append(outcome)


@dataclass
class Answer:
    """What an app sent, as it sent it."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def status(self) -> int | None:
        return next((m["status"] for m in self.messages if m["type"] == "http.response.start"), None)

    @property
    def headers(self) -> dict[str, str]:
        start = next(m for m in self.messages if m["type"] == "http.response.start")
        return {name.decode(): value.decode() for name, value in start["headers"]}

    @property
    def chunks(self) -> list[bytes]:
        return [m.get("body", b"") for m in self.messages if m["type"] == "http.response.body"]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def scope_of(
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: Iterable[tuple[str, str]] = (JSON,),
    client: tuple[str, int] | None = ("203.0.113.9", 1234),
    **more: Any,
) -> dict[str, Any]:
    """Make an HTTP scope as uvicorn does."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": client,
        "server": ("127.0.0.1", 80),
        "state": {},
        **more,
    }


def pieces_of(body: bytes, size: int | None = None) -> list[dict[str, Any]]:
    """Cut a body into request messages."""
    size = size or max(len(body), 1)
    cut = [body[start : start + size] for start in range(0, max(len(body), 1), size)]
    return [{"type": "http.request", "body": piece, "more_body": i < len(cut) - 1} for i, piece in enumerate(cut)]


class Client:
    """One client connection: sends request messages, takes response messages, and may leave."""

    def __init__(self, app: Any, scope: dict[str, Any], messages: Sequence[dict[str, Any]]) -> None:
        self._app = app
        self.scope = scope
        self._messages = list(messages)
        self.answer = Answer()
        self.left = asyncio.Event()
        self._came = asyncio.Condition()

    async def _receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self.left.is_set():
            return  # as uvicorn does
        async with self._came:
            self.answer.messages.append(message)
            self._came.notify_all()

    async def run(self) -> Answer:
        try:
            await self._app(self.scope, self._receive, self._send)
        except Exception as error:
            self.answer.error = error
        async with self._came:
            self._came.notify_all()
        return self.answer

    async def until_messages(self, count: int) -> None:
        """Wait until so many response messages have come."""
        async with self._came:
            await self._came.wait_for(lambda: len(self.answer.messages) >= count)


class Gateway:
    """A middleware around an app, and its books."""

    def __init__(self, app: SarkMiddleware, seen: Seen) -> None:
        self.app = app
        self.sark: Sark = app.sark
        self.seen = seen
        self._entries: list[LedgerEntry] = []

    def client(
        self, body: object = CHAT, *, headers: Mapping[str, str] | None = None, size: int | None = None, **scope: Any
    ) -> Client:
        """Connect with a request; `headers` are added to the content type."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        pairs = [*([] if headers and "content-type" in headers else [JSON]), *(headers or {}).items()]
        return Client(self.app, scope_of(**{"headers": pairs, **scope}), pieces_of(raw, size))

    async def post(self, body: object = CHAT, path: str = "/v1/chat/completions", **more: Any) -> Answer:
        """Send a request and take the whole answer."""
        return await self.client(body, path=path, **more).run()

    async def quiet(self) -> None:
        """Wait until everything that was to be booked is booked."""
        while self.app._front.background or self.sark.settler.pending:
            await asyncio.sleep(0)

    async def entries(self) -> list[LedgerEntry]:
        """Return all ledger entries so far, in the order of the outbox."""
        await self.quiet()
        outbox = self.sark.store
        while batch := await outbox.read("test", 100):
            self._entries += [ledger_entry(entry) for entry in batch]
            await outbox.acknowledge(batch)
        return self._entries

    async def entry(self) -> LedgerEntry:
        """Return the only entry there is."""
        (only,) = await self.entries()
        return only

    async def expected_entry(self) -> LedgerEntry:
        """Return the only entry, which must be booked at its expectation: not at its hold, and flagged."""
        entry = await self.entry()
        assert entry.kind == "settle" and entry.estimated and entry.actual_nanos is None
        assert 0 < entry.cost_nanos == entry.expected_nanos < entry.held_nanos
        return entry

    async def balance(self, scope: str = "user:a", unit: str = Unit.USD, root: str = "default") -> Balance:
        """Return the counter of the only limit of this unit on a scope."""
        await self.quiet()
        table = await self.sark.store.limits(root)
        lines = [line for line in lines_for(table.limits, [scope], table.at_ms) if line.unit == unit]
        (balance,) = (await self.sark.store.balance(root, lines)).balances
        return balance

    async def assert_balanced(self) -> None:
        """The counter says what the ledger says, and nothing is held."""
        entries = await self.entries()
        balance = await self.balance()
        assert balance.held == 0
        assert balance.spent == sum(entry.cost_nanos for entry in entries if "user:a" in entry.scopes)
        assert (await self.balance(unit=Unit.CONCURRENCY)).held == 0


def settings_for(tmp_path: Path, **sections: Any) -> Settings:
    """Make settings with a dollar a day for `user:a`, who everybody is by default."""
    defaults: dict[str, Any] = {
        "principal": {"anonymous": "user:a"},
        "limits": (
            {"scope": "user:a", "amount": "1"},
            {"scope": "user:a", "amount": 100, "unit": "concurrency"},
            {"scope": "user:a", "amount": 10_000, "unit": "requests"},
        ),
        "store": {"journal": tmp_path / "journal.jsonl", "deadline_ms": 20_000},
        "ledger": {"flush": False},
        "observe": {"metrics": False, "audit_log": False},
    }
    return Settings(**{**defaults, **sections})


@asynccontextmanager
async def gateway_for(app: Any, settings: Settings, *, on_fakeredis: bool = False, **parts: Any) -> AsyncIterator[Gateway]:
    """Mount the middleware on an app, start it, and close it after the test."""
    seen = Seen()
    principal = parts.pop("principal", None)
    store = None if on_fakeredis else MemoryStore()
    sark = Sark(settings, store=store, instrumentation=seen, **parts)  # type: ignore[arg-type]
    await sark.start()
    try:
        yield Gateway(SarkMiddleware(app, sark=sark, principal=principal), seen)
    finally:
        await sark.aclose()
