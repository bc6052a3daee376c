"""What is booked for what a provider did: on the wire and on the books, over both stores."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest

from sark_mw._fake_provider import FAULT_HEADER, FakeProvider
from sark_mw.asgi.types import Message, Receive, Scope, Send
from sark_mw.money import from_nanos
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.usage import Usage
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, EMBED, LONG, MESSAGES, Answer, Gateway

STREAM = {**CHAT, "stream": True}
DIALECTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", STREAM),
    ("/v1/messages", MESSAGES),
    ("/v1/messages", {**MESSAGES, "stream": True}),
    ("/v1/embeddings", EMBED),
]
IDS = ["chat", "chat stream", "messages", "messages stream", "embeddings"]


def true_cost(gateway: Gateway, body: dict[str, Any], usage: Usage) -> int:
    """Price what the provider's own tally says."""
    estimator = gateway.sark.estimators["anthropic" if body is MESSAGES or "claude" in body["model"] else "openai"]
    return estimator._book.price(estimator.provider_name, body["model"]).cost(usage)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("path", "body"), DIALECTS, ids=IDS)
async def test_a_success_is_booked_at_what_the_provider_bills(books: MakeGateway, path: str, body: dict[str, Any]) -> None:
    provider = FakeProvider(mean_words=30)
    gateway = await books(provider)
    answer = await gateway.post(body, path)
    assert answer.status == 200
    entry = await gateway.entry()
    (call,) = provider.calls
    assert (entry.input_tokens, entry.output_tokens) == (call.usage.input_tokens, call.usage.output_tokens)
    assert entry.cost_nanos == entry.actual_nanos == true_cost(gateway, body, call.usage) > 0
    assert entry.kind == "settle" and not entry.estimated and entry.status == 200
    assert entry.request_id == answer.headers["x-sark-request-id"]
    assert entry.held_nanos >= entry.cost_nanos


@pytest.mark.parametrize("fault", ["", "single_byte_chunks", "gzip", "huge"])
@pytest.mark.parametrize(("path", "body"), DIALECTS, ids=IDS)
async def test_the_client_gets_the_bytes_that_the_app_sent(
    make: MakeGateway, path: str, body: dict[str, Any], fault: str
) -> None:
    asked = {**body, "stream_options": {"include_usage": True}} if body is STREAM else body
    bare, wrapped = FakeProvider(), FakeProvider()
    gateway = await make(wrapped)
    headers = {FAULT_HEADER: fault, "accept-encoding": "gzip"}
    got = await gateway.post(asked, path, headers=headers)
    want = await (await make(bare, routes=({"path": "/**", "ignore": True},))).post(asked, path, headers=headers)
    assert got.chunks == want.chunks
    own = {name for name in got.headers if name.startswith("x-sark-")}
    assert {name: value for name, value in got.headers.items() if name not in own} == want.headers
    assert not (await gateway.entry()).estimated


async def test_usage_that_the_client_did_not_ask_for_is_asked_for_and_taken_out_again(books: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await books(provider)
    answer = await gateway.post(STREAM, headers={"accept-encoding": "gzip", "content-length": "999"})
    assert provider.calls[0].body["stream_options"] == {"include_usage": True}
    assert provider.calls[0].headers["accept-encoding"] == "identity"
    sent = json.dumps(STREAM).encode()
    assert int(provider.calls[0].headers["content-length"]) > len(sent)
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n\n") if line.startswith("data: {")]
    assert events and all(event["choices"] for event in events)
    assert (await gateway.entry()).output_tokens == provider.calls[0].usage.output_tokens


async def test_an_explicit_zero_is_zero(books: MakeGateway) -> None:
    gateway = await books(FakeProvider(faults=["zero_usage"]))
    assert (await gateway.post()).headers["x-sark-cost"] == "0.00"
    entry = await gateway.entry()
    assert (entry.cost_nanos, entry.actual_nanos, entry.estimated, entry.kind) == (0, 0, False, "settle")


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["document", "stream"])
async def test_a_response_without_usage_is_counted_and_flagged(books: MakeGateway, body: dict[str, Any]) -> None:
    provider = FakeProvider(faults=["no_usage"], mean_words=80)
    gateway = await books(provider)
    assert (await gateway.post(body)).status == 200
    entry = await gateway.entry()
    assert entry.estimated and entry.actual_nanos is None
    assert 0 < entry.output_tokens <= 200
    assert entry.cost_nanos > 0


@pytest.mark.parametrize(("path", "body"), DIALECTS, ids=IDS)
@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
async def test_an_error_before_any_output_is_released(make: MakeGateway, path: str, body: dict[str, Any], status: int) -> None:
    gateway = await make(FakeProvider())
    answer = await gateway.post(body, path, headers={FAULT_HEADER: f"status={status}"})
    assert answer.status == status
    entry = await gateway.entry()
    assert (entry.kind, entry.cost_nanos, entry.requests, entry.status) == ("release", 0, 0, status)
    assert "x-sark-request-id" in answer.headers
    await gateway.assert_balanced()


@pytest.mark.parametrize("fault", ["cut_midway", "error_midway", "half_chunk"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_stream_that_fails_midway_settles_what_it_produced(books: MakeGateway, fault: str, path: str) -> None:
    provider = FakeProvider(faults=[fault], mean_words=60)
    gateway = await books(provider)
    body = STREAM if path.endswith("completions") else {**MESSAGES, "stream": True}
    await gateway.post(body, path)
    entry = await gateway.entry()
    assert entry.kind == "settle" and entry.estimated and entry.actual_nanos is None
    assert 0 < entry.cost_nanos < entry.held_nanos
    assert 0 < entry.output_tokens <= 200


@pytest.mark.parametrize("fault", ["cut_midway", "half_chunk"])
async def test_half_a_document_is_booked_at_the_expectation(books: MakeGateway, fault: str) -> None:
    gateway = await books(FakeProvider(faults=[fault]))
    await gateway.post(LONG)
    await gateway.expected_entry()


async def _raising(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    raise RuntimeError("the app is broken")


async def _raising_midway(scope: Scope, receive: Receive, send: Send) -> None:
    chunk = {"choices": [{"delta": {"content": "a hundred words or so"}}]}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: " + json.dumps(chunk).encode() + b"\n\n", "more_body": True})
    raise RuntimeError("the app is broken")


async def _returning_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


async def _refusing_stream(scope: Scope, receive: Receive, send: Send) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"})


@pytest.mark.parametrize("app", [_raising, _returning_nothing])
async def test_an_app_that_fails_before_it_answers_releases_and_its_error_goes_on(books: MakeGateway, app: Any) -> None:
    gateway = await books(app)
    answer = await gateway.post()
    assert answer.status is None
    assert isinstance(answer.error, RuntimeError) == (app is _raising)
    assert (await gateway.entry()).kind == "release"


async def test_an_app_that_raises_midway_settles_what_it_produced(books: MakeGateway) -> None:
    gateway = await books(_raising_midway)
    answer = await gateway.post(STREAM)
    assert isinstance(answer.error, RuntimeError) and b"hundred words" in answer.body
    entry = await gateway.entry()
    assert entry.kind == "settle" and entry.estimated and entry.output_tokens == 6


async def test_a_stream_whose_first_event_is_an_error_is_released(books: MakeGateway) -> None:
    gateway = await books(_refusing_stream)
    assert (await gateway.post({**MESSAGES, "stream": True}, "/v1/messages")).status == 200
    assert (await gateway.entry()).kind == "release"


async def test_a_response_in_an_unknown_encoding_is_booked_at_the_expectation(books: MakeGateway) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-encoding", b"rot13")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})

    gateway = await books(app)
    assert (await gateway.post(LONG)).body == b"hello"
    await gateway.expected_entry()


async def test_a_spent_budget_refuses_before_the_app_is_called(books: MakeGateway) -> None:
    provider = FakeProvider()
    limits = ({"scope": "user:a", "amount": "0.000001"}, {"scope": "user:a", "amount": 9, "unit": "concurrency"})
    gateway = await books(provider, limits=limits)
    answer = await gateway.post()
    assert answer.status == 402 and answer.headers["x-should-retry"] == "false"
    assert answer.json["error"]["code"] == "budget_exceeded"
    assert provider.requests == 0 and await gateway.entries() == []
    told = gateway.seen.requests[-1]
    assert (told.outcome, told.reason, told.status, told.limit_id) == ("refused_budget", "usd", 402, "user:a/usd/day@UTC")


async def test_a_hundred_at_once_spend_what_the_provider_billed_and_no_more_than_the_budget(books: MakeGateway) -> None:
    provider = FakeProvider(mean_words=50, ttft_s=0.001)
    limits = ({"scope": "user:a", "amount": "0.02"}, {"scope": "user:a", "amount": 1000, "unit": "concurrency"})
    gateway = await books(provider, limits=limits)
    answers: list[Answer] = []
    for body in (CHAT, STREAM):
        answers += await asyncio.gather(*(gateway.post(body) for _ in range(50)))
    admitted = [answer for answer in answers if answer.status == 200]
    assert 0 < len(admitted) < 100
    assert len(admitted) == provider.requests and {a.status for a in answers} == {200, 402}
    balance = await gateway.balance()
    assert balance.spent == sum(true_cost(gateway, CHAT, call.usage) for call in provider.calls) <= 20_000_000


async def test_headers_say_the_request_the_rest_of_the_budget_and_the_cost_where_it_is_known(make: MakeGateway) -> None:
    gateway = await make(FakeProvider())
    document, stream = await gateway.post(), await gateway.post(STREAM)
    entries = await gateway.entries()
    assert document.headers["x-sark-cost"] == f"{from_nanos(entries[0].cost_nanos):f}"
    assert Decimal(document.headers["x-sark-budget-remaining"]) == 1 - from_nanos(entries[0].held_nanos)
    assert "x-sark-cost" not in stream.headers and "x-sark-budget-remaining" in stream.headers
    assert document.headers["x-sark-request-id"] != stream.headers["x-sark-request-id"]


async def test_a_document_in_two_pieces_passes_piece_by_piece(make: MakeGateway) -> None:
    body = json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 4}, "choices": []}).encode()
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": body[5:], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    gateway = await make(app)
    client = gateway.client()
    running = asyncio.ensure_future(client.run())
    await client.until_messages(2)
    assert client.answer.chunks == [body[:5]]
    go_on.set()
    await running
    assert client.answer.body == body
    assert (await gateway.entry()).output_tokens == 4


async def test_a_reply_that_comes_slowly_does_not_wait_for_its_settle(make: MakeGateway) -> None:
    gateway = await make(FakeProvider())
    store = gateway.sark.store
    settle, may_settle = store.settle, asyncio.Event()

    async def slow(request: Any) -> Any:
        await may_settle.wait()
        return await settle(request)

    store.settle = slow  # type: ignore[method-assign]
    assert (await gateway.post()).status == 200
    assert gateway.sark.settler.pending == 1
    may_settle.set()
    assert (await gateway.entry()).kind == "settle"


async def test_what_an_app_does_after_its_response_is_not_waited_for(make: MakeGateway) -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await FakeProvider()(scope, receive, send)
        await go_on.wait()
        raise RuntimeError("a background task failed")

    gateway = await make(app)
    running = asyncio.ensure_future(gateway.post())
    while not (entries := await gateway.entries()):
        await asyncio.sleep(0)
    assert entries[0].kind == "settle" and not running.done()
    go_on.set()
    assert isinstance((await running).error, RuntimeError)
    assert len(await gateway.entries()) == 1


async def test_a_cancelled_request_is_booked_at_the_expectation_and_the_settle_survives(books: MakeGateway) -> None:
    called = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.set()
        await asyncio.Event().wait()

    gateway = await books(app)
    running = asyncio.ensure_future(gateway.post(LONG))
    await called.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gateway.expected_entry()


async def test_the_estimator_learns_from_what_was_really_used(make: MakeGateway) -> None:
    gateway = await make(FakeProvider(mean_words=5))
    estimator = gateway.sark.estimators["openai"]
    assert isinstance(estimator, OpenAICostEstimator)
    for _ in range(30):
        await gateway.post({**CHAT, "max_tokens": 4000})
    first, *_, last = await gateway.entries()
    assert last.expected_nanos < first.expected_nanos


async def test_messages_beside_start_and_body_pass_as_they_are(make: MakeGateway) -> None:
    trailers: Message = {"type": "http.response.trailers", "headers": [(b"x-checksum", b"1")], "more_trailers": False}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/plain")], "trailers": True}
        await send(start)
        await send({"type": "http.response.body", "body": memoryview(b"hi")})
        await send(trailers)

    answer = await (await make(app)).post()
    assert [m["type"].rpartition(".")[2] for m in answer.messages] == ["start", "body", "trailers"]
    assert answer.messages[0]["trailers"] is True and answer.messages[2] is trailers
