"""Requests as hostile or broken clients send them: refused in their dialect, read within bounds, replayed exactly."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from sark_mw._fake_provider import FakeProvider
from sark_mw.asgi.types import Receive, Scope, Send
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, Client, pieces_of, scope_of

RAW = json.dumps(CHAT).encode()


class Echo:
    """An app that keeps what it got and answers 204."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append({**scope, "headers": list(scope["headers"])})
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[]", 400),
        (b'{"model": 7, "messages": []}', 400),
        (b'{"model": "gpt-4o", "messages": "hi"}', 400),
        (b'{"model": "gpt-4o", "messages": [], "max_tokens": -1}', 400),
        (b'{"model": "gpt-4o", "messages": [], "max_tokens": 1e400}', 400),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', 400),
        (b"[" * 100_000, 400),
        (b'{"model": "gpt-4o", "messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
        (b'{"model": "gpt-4o\\ud800", "messages": []}', 400),
    ],
)
async def test_a_body_that_cannot_be_metered_is_refused_in_the_dialect(make: MakeGateway, body: bytes, status: int) -> None:
    app = Echo()
    gateway = await make(app)
    answer = await gateway.post(body)
    assert answer.status == status and answer.error is None
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert app.bodies == [] and await gateway.entries() == []
    assert gateway.seen.requests[-1].outcome == "invalid"
    anthropic = await gateway.post(body, "/v1/messages")
    assert anthropic.status == status and anthropic.json["type"] == "error"


@pytest.mark.parametrize(
    "headers",
    [{"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {"content-encoding": "gzip"}],
)
async def test_a_wrong_content_type_or_encoding_is_refused(make: MakeGateway, headers: dict[str, str]) -> None:
    app = Echo()
    gateway = await make(app)
    answer = await gateway.post(gzip.compress(RAW) if "content-encoding" in headers else RAW, headers=headers)
    assert answer.status == 415 and app.bodies == []


async def test_a_body_in_single_bytes_reaches_the_app_as_it_was(make: MakeGateway) -> None:
    app = Echo()
    gateway = await make(app)
    raw = b'{ "messages" : [{"role":"user","content":"\\u00fc \xc3\xbc"}],\n"max_tokens":5 , "model":"gpt-4o" }'
    assert (await gateway.post(raw, size=1)).status == 204
    assert app.bodies == [raw]


async def test_the_cap_holds_for_declared_and_for_chunked_bodies_and_lets_its_own_length_pass(make: MakeGateway) -> None:
    app = Echo()
    gateway = await make(app, http={"max_body_bytes": len(RAW)})
    assert (await gateway.post(RAW, size=7)).status == 204
    over = RAW + b" "
    for headers in ({"content-length": str(len(over))}, {"content-length": "9" * 30}, {}):
        answer = await gateway.post(over, size=7, headers=headers)
        assert answer.status == 413 and answer.json["error"]["code"] == "request_too_large"
    assert gateway.seen.requests[-1].reason == "body_too_large"
    assert app.bodies == [RAW]


async def test_a_refused_body_is_read_to_its_end_so_that_the_client_reads_the_answer(make: MakeGateway) -> None:
    gateway = await make(Echo(), http={"max_body_bytes": 10})
    client = gateway.client(b"x" * 1000, size=10)
    answer = await client.run()
    assert answer.status == 413 and client._messages == [] and "connection" not in answer.headers


async def test_an_endless_body_is_given_up_and_the_connection_closed(make: MakeGateway) -> None:
    gateway = await make(Echo(), http={"max_body_bytes": 10})
    piece = {"type": "http.request", "body": b"x" * (1 << 20), "more_body": True}
    client = Client(gateway.app, scope_of(), [piece] * 100)
    answer = await client.run()
    assert answer.status == 413 and answer.headers["connection"] == "close"
    assert len(client._messages) > 80


async def test_a_body_that_does_not_arrive_in_time_is_refused(make: MakeGateway) -> None:
    gateway = await make(Echo(), http={"body_timeout_s": 0.01})
    answer = await Client(gateway.app, scope_of(), [{"type": "http.request", "body": b"{", "more_body": True}]).run()
    assert answer.status == 408 and answer.headers["connection"] == "close"
    assert gateway.seen.requests[-1].reason == "body_timeout"


async def test_a_client_that_leaves_while_it_sends_costs_nothing(make: MakeGateway) -> None:
    app = Echo()
    gateway = await make(app)
    client = Client(gateway.app, scope_of(), [{"type": "http.request", "body": b"{", "more_body": True}])
    client.left.set()
    answer = await client.run()
    assert answer.messages == [] and app.bodies == [] and await gateway.entries() == []
    assert [event.reason for event in gateway.seen.requests] == ["client_gone"]


async def test_the_app_sees_the_headers_as_sent_but_for_encodings_that_cannot_be_read(make: MakeGateway) -> None:
    app = Echo()
    gateway = await make(app)
    scope = scope_of(
        headers=[("content-type", "application/json"), ("accept-encoding", "gzip, weird;q=0.5, br;q=0"), ("x-a", "1")]
    )
    before = list(scope["headers"])
    await Client(gateway.app, scope, pieces_of(RAW)).run()
    seen = dict(app.scopes[0]["headers"])
    assert seen[b"x-a"] == b"1" and b"weird" not in seen[b"accept-encoding"] and b"gzip" in seen[b"accept-encoding"]
    assert scope["headers"] == before


async def test_every_request_is_told_of_once_with_the_time_that_we_added(make: MakeGateway) -> None:
    gateway = await make(FakeProvider(ttft_s=0.05), routes=({"path": "/fixed", "price_usd": "0.01"},))
    await gateway.post()
    await gateway.post(path="/fixed")
    await gateway.post(b"{")
    await gateway.client(method="GET", path="/health").run()
    told = gateway.seen.requests
    assert [(event.outcome, event.wire, event.status) for event in told] == [
        ("admitted", "openai", 200),
        ("admitted", "plain", 404),
        ("invalid", "openai", 400),
        ("passed", "", None),
    ]
    assert told[0].provider == "openai" and told[0].principal_id == "user:a" and told[0].operation == "chat"
    assert told[0].added_seconds is not None and 0 < told[0].added_seconds < 0.05


async def test_the_store_out_of_reach_refuses_with_503_in_the_dialect(make: MakeGateway) -> None:
    app = Echo()
    gateway = await make(app)
    gateway.sark.store.lose_data()  # type: ignore[attr-defined]
    recovered = await gateway.post()
    assert recovered.status == 204, "a store that lost its data is rebuilt before the first admit"

    from sark_mw.errors import StoreUnavailableError

    async def unreachable(request: object) -> object:
        raise StoreUnavailableError("no answer")

    gateway.sark.store.reserve = unreachable  # type: ignore[method-assign,assignment]
    answer = await gateway.post()
    assert answer.status == 503 and int(answer.headers["retry-after"]) <= 2
    assert len(app.bodies) == 1


async def test_two_hundred_clients_with_slow_bodies_do_not_hold_each_other_up(make: MakeGateway) -> None:
    app = Echo()
    gateway = await make(app)
    slow = [Client(gateway.app, scope_of(), [{"type": "http.request", "body": b"{", "more_body": True}]) for _ in range(200)]
    running = [asyncio.ensure_future(client.run()) for client in slow]
    assert (await gateway.post()).status == 204
    for client in slow:
        client.left.set()
    await asyncio.gather(*running)


TOKEN = "a token of the tests, long enough"


@pytest.mark.parametrize(
    ("path", "headers", "query"),
    [
        ("/v1/chat/completions", {"authorization": f"Bearer {TOKEN}"}, b""),
        ("/v1/chat/completions", {"authorization": f"bearer   {TOKEN} "}, b""),
        ("/v1/messages", {"x-api-key": TOKEN}, b""),
        ("/v1/models", {"authorization": TOKEN}, b""),
        ("//sark/admin/limits", {"authorization": f"Bearer {TOKEN}"}, b""),
        ("/sark/admin2/limits", {"authorization": f"Bearer {TOKEN}"}, b""),
        ("/sark/me", {"authorization": f"Bearer {TOKEN}"}, b""),
        ("/v1beta/models/gemini-2.5-flash:generateContent", {}, b"alt=sse&key=" + TOKEN.encode()),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
async def test_the_administrators_token_goes_no_further_wherever_else_it_is_sent(
    make: MakeGateway, path: str, headers: dict[str, str], query: bytes, enabled: bool
) -> None:
    provider = FakeProvider()
    gateway = await make(provider, admin={"enabled": enabled, "token": TOKEN})
    answer = await gateway.post(CHAT, path, headers=headers, query_string=query)
    assert (answer.status, answer.headers["content-type"]) == (401, "application/problem+json")
    assert TOKEN not in answer.body.decode() and provider.requests == 0 and await gateway.entries() == []
    assert [(event.outcome, event.reason) for event in gateway.seen.requests] == [("invalid", "admin_token")]
    almost = {name: value.replace(TOKEN, TOKEN[:-1]) for name, value in headers.items()}
    assert (await gateway.post(CHAT, path, headers=almost, query_string=query[:-1])).status != 401


async def test_a_websocket_with_the_administrators_token_is_closed(make: MakeGateway) -> None:
    gateway = await make(FakeProvider(), admin={"enabled": True, "token": TOKEN})
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {**scope_of(headers=[("authorization", f"Bearer {TOKEN}")]), "type": "websocket"}
    await gateway.app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
