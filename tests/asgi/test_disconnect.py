"""Clients that leave: before, during and after the response, with and without reading the rest of it for its usage."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sark_mw.asgi.types import Receive, Scope, Send
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import LONG, Client, pieces_of, scope_of

STREAM = {**LONG, "stream": True, "stream_options": {"include_usage": True}}
WORDS = [{"choices": [{"delta": {"content": f"word{i} "}}]} for i in range(8)]
USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 40}}
EVENTS = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in (*WORDS, USAGE)] + [b"data: [DONE]\n\n"]


class Upstream:
    """A Starlette app that streams when it is told to, as a proxy does."""

    def __init__(self, pause_at: int) -> None:
        self._pause_at = pause_at
        self.go_on = asyncio.Event()
        self.read = 0
        self.asgi = Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> StreamingResponse:
        await request.json()
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> Any:
        for number, event in enumerate(EVENTS):
            if number == self._pause_at:
                await self.go_on.wait()
            self.read += 1
            yield event


async def test_a_client_that_leaves_midway_is_booked_exactly_since_the_rest_is_read(books: MakeGateway) -> None:
    upstream = Upstream(pause_at=3)
    gateway = await books(upstream.asgi)
    client = gateway.client(STREAM)
    running = asyncio.ensure_future(client.run())
    await client.until_messages(4)
    client.left.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not running.done()
    upstream.go_on.set()
    await running
    assert upstream.read == len(EVENTS)
    entry = await gateway.entry()
    assert (entry.estimated, entry.input_tokens, entry.output_tokens) == (False, 9, 40)


async def test_without_draining_the_app_hears_of_it_and_what_is_known_or_expected_is_booked(books: MakeGateway) -> None:
    upstream = Upstream(pause_at=3)
    gateway = await books(upstream.asgi, http={"drain_on_disconnect": False})
    client = gateway.client(STREAM)
    running = asyncio.ensure_future(client.run())
    await client.until_messages(4)
    client.left.set()
    await running
    assert upstream.read == 3
    await gateway.expected_entry()


async def test_draining_ends_after_its_time_and_the_expectation_is_booked(books: MakeGateway) -> None:
    upstream = Upstream(pause_at=3)
    gateway = await books(upstream.asgi, http={"drain_timeout_s": 0.02})
    client = gateway.client(STREAM)
    running = asyncio.ensure_future(client.run())
    await client.until_messages(4)
    client.left.set()
    await running
    assert upstream.read == 3
    await gateway.expected_entry()


async def test_a_client_that_leaves_before_the_first_byte_is_booked_exactly_too(books: MakeGateway) -> None:
    upstream = Upstream(pause_at=0)
    gateway = await books(upstream.asgi)
    client = gateway.client(STREAM)
    client.left.set()
    running = asyncio.ensure_future(client.run())
    for _ in range(20):
        await asyncio.sleep(0)
    upstream.go_on.set()
    await running
    assert (await gateway.entry()).output_tokens == 40


async def test_a_client_that_leaves_after_the_stream_changes_nothing(books: MakeGateway) -> None:
    upstream = Upstream(pause_at=-1)
    gateway = await books(upstream.asgi)
    client = gateway.client(STREAM)
    answer = await client.run()
    client.left.set()
    assert answer.body == b"".join(EVENTS)
    assert (await gateway.entry()).output_tokens == 40


async def test_an_app_that_listens_after_its_response_hears_the_server_and_not_us(make: MakeGateway) -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b"{}"})
        heard.append((await receive())["type"])

    gateway = await make(app)
    client = gateway.client()
    running = asyncio.ensure_future(client.run())
    await client.until_messages(2)
    client.left.set()
    await running
    assert heard == ["http.disconnect"]


@pytest.mark.parametrize("drain", [True, False])
async def test_a_server_whose_send_fails_for_a_client_that_left_is_understood(books: MakeGateway, drain: bool) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        if len(sent) == 3:
            raise OSError("the client has gone")
        sent.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number, event in enumerate(EVENTS):
            await send({"type": "http.response.body", "body": event, "more_body": number + 1 < len(EVENTS)})

    gateway = await books(app, http={"drain_on_disconnect": drain})
    client = Client(gateway.app, scope_of(), pieces_of(json.dumps(STREAM).encode()))
    client._send = send  # type: ignore[method-assign]
    answer = await client.run()
    assert isinstance(answer.error, OSError) == (not drain)
    if drain:
        entry = await gateway.entry()
        assert (entry.estimated, entry.output_tokens) == (False, 40)
    else:
        await gateway.expected_entry()


async def test_the_progress_of_a_long_stream_is_noted_and_settled_once(books: MakeGateway, monkeypatch: Any) -> None:
    from sark_mw.asgi import exchange

    monkeypatch.setattr(exchange, "_REPORT_S", 0.0)
    upstream = Upstream(pause_at=6)
    gateway = await books(upstream.asgi)
    client = gateway.client(STREAM)
    running = asyncio.ensure_future(client.run())
    await client.until_messages(7)
    (admission,) = gateway.sark.enforcer.live.values()
    task = admission.book_progress()
    assert task is not None
    await task
    (part,) = await gateway.entries()
    assert part.kind == "partial" and 0 < part.cost_nanos < 1_000_000
    upstream.go_on.set()
    await running
    _, last = await gateway.entries()
    assert last.kind == "settle" and (last.input_tokens, last.output_tokens) == (9, 40)
    assert (await gateway.balance()).spent == last.actual_nanos == part.cost_nanos + last.cost_nanos
