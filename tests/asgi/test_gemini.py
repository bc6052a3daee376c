"""Gemini end to end: its three kinds of response are metered, cut ones are counted by their script, and its key is one."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from sark_mw.asgi.types import Receive, Scope, Send
from sark_mw.instrumentation.keys import hash_key
from sark_mw.pricing.tokens import tokenizer
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, Gateway
from tests.pricing.texts import KINDS, LANGUAGES

MODEL = "/v1beta/models/gemini-2.5-flash"
CONFIG = {"maxOutputTokens": 3000, "thinkingConfig": {"thinkingBudget": 1000}}
ASK: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "hello there"}]}], "generationConfig": CONFIG}
USAGE = {"promptTokenCount": 40, "cachedContentTokenCount": 30, "candidatesTokenCount": 20, "thoughtsTokenCount": 50}
#: 10 fresh, 30 cached, and thoughts at the price of output.
COST = 10 * 300 + 30 * 30 + 70 * 2500
SECRET = "0123456789abcdef0123"


def chunk(text: str, **more: Any) -> dict[str, Any]:
    """Make one response, or one piece of a stream."""
    return {"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, **more}], "modelVersion": "gemini-2.5-flash"}


class FakeGemini:
    """Answers what the path and `alt` ask for: a document, server-sent events, or one array that grows.

    `cut` leaves the last chunk, the one with the usage, half sent.
    """

    def __init__(self, texts: tuple[str, ...] = ("Guten ", "Tag"), cut: bool = False) -> None:
        self.texts = texts
        self.cut = cut
        self.queries: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert json.loads((await receive())["body"])["contents"]
        self.queries.append(scope["query_string"])
        chunks = [json.dumps(chunk(text)) for text in self.texts]
        last = json.dumps({**chunk("!", finishReason="STOP"), "usageMetadata": USAGE})
        kind = "application/json"
        if not scope["path"].endswith(":streamGenerateContent"):
            pieces = [last]
        elif b"alt=sse" in scope["query_string"]:
            kind = "text/event-stream"
            pieces = [f"data: {each}\r\n\r\n" for each in (*chunks, last)]
        else:
            pieces = [f"{',' if at else '['}{each}\r\n" for at, each in enumerate((*chunks, last))]
            pieces[-1] += "]"
        if self.cut:
            pieces[-1] = pieces[-1][: len(pieces[-1]) // 2]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
        if not self.cut:
            await send({"type": "http.response.body", "body": b""})


KINDS_OF_RESPONSE = [("generateContent", b""), ("streamGenerateContent", b"alt=sse"), ("streamGenerateContent", b"")]
IDS = ["document", "events", "array"]


@pytest.mark.parametrize(("method", "query"), KINDS_OF_RESPONSE, ids=IDS)
async def test_a_request_is_held_and_booked_at_its_price_and_its_bytes_pass(
    books: MakeGateway, method: str, query: bytes
) -> None:
    bare, wrapped = FakeGemini(), FakeGemini()
    gateway = await books(wrapped)
    answer = await gateway.post(ASK, f"{MODEL}:{method}", query_string=query)
    ignoring = await books(bare, routes=({"path": "/**", "ignore": True},))
    assert answer.chunks == (await ignoring.post(ASK, f"{MODEL}:{method}", query_string=query)).chunks
    entry = await gateway.entry()
    assert (entry.kind, entry.status, entry.estimated) == ("settle", 200, False)
    assert (entry.provider, entry.model, entry.input_tokens, entry.output_tokens) == ("google", "gemini-2.5-flash", 40, 70)
    assert entry.cost_nanos == entry.actual_nanos == COST
    # The thoughts are held on top of the output limit.
    assert 4000 * 2500 < entry.held_nanos < 4000 * 2500 + 100 * 300
    assert entry.request_id == answer.headers["x-sark-request-id"]


async def test_a_budget_too_small_for_the_thoughts_refuses_in_geminis_dialect(make: MakeGateway) -> None:
    provider = FakeGemini()
    gateway = await make(provider, limits=({"scope": "user:a", "amount": "0.005"},))
    refused = await gateway.post(ASK, f"{MODEL}:generateContent")
    assert refused.status == 402 and refused.json["error"]["status"] == "RESOURCE_EXHAUSTED"
    (details,) = refused.json["error"]["details"]
    affordable = int(details["metadata"]["affordable_max_tokens"])
    assert 900 < affordable < 1000 and provider.queries == []
    config = {**CONFIG, "maxOutputTokens": affordable}
    assert (await gateway.post({**ASK, "generationConfig": config}, f"{MODEL}:generateContent")).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {"contents": []},
        {**ASK, "generationConfig": {"maxOutputTokens": -1}},
        {**ASK, "generationConfig": {"thinkingConfig": {"thinkingBudget": "much"}}},
        {**ASK, "generationConfig": {"candidateCount": 1000}},
        {**ASK, "contents": [{"parts": 7}]},
    ],
)
async def test_a_request_with_bad_numbers_or_nothing_in_it_is_the_callers_fault(make: MakeGateway, body: dict[str, Any]) -> None:
    provider = FakeGemini()
    answer = await (await make(provider)).post(body, f"{MODEL}:generateContent")
    assert answer.status == 400 and answer.json["error"]["status"] == "INVALID_ARGUMENT"
    assert provider.queries == []


class CutChat:
    """Streams a text in OpenAI's dialect, three characters at a time, and breaks off before the usage."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for at in range(0, len(self.text), 3):
            event = {"choices": [{"delta": {"content": self.text[at : at + 3]}}]}
            body = b"data: " + json.dumps(event).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})


@pytest.mark.parametrize("name", ["chinese", "japanese", "russian", "hindi", "english", "emoji"])
async def test_a_stream_that_is_cut_is_booked_near_what_a_tokenizer_counts_whatever_its_script(
    make: MakeGateway, name: str
) -> None:
    text = {**LANGUAGES, **KINDS}[name] * 10
    count = tokenizer("o200k_base")
    if count is None:
        pytest.skip("the tokenizer extra is not installed")
    pieces = tuple(text[at : at + 3] for at in range(0, len(text), 3))
    chat = await make(CutChat(text))
    await chat.post({**CHAT, "max_tokens": 4000, "stream": True})
    events, array = await make(FakeGemini(pieces, cut=True)), await make(FakeGemini(pieces, cut=True))
    await events.post(ASK, f"{MODEL}:streamGenerateContent", query_string=b"alt=sse")
    await array.post(ASK, f"{MODEL}:streamGenerateContent")
    for gateway in (chat, events, array):
        entry = await gateway.entry()
        assert entry.kind == "settle" and entry.estimated and entry.actual_nanos is None
        assert 0.7 <= entry.output_tokens / count(text) <= 1.7
        await gateway.assert_balanced()


@pytest.mark.parametrize("text", ["a", "是", "😀"])
async def test_one_character_of_output_is_not_booked_as_none(make: MakeGateway, text: str) -> None:
    gateway = await make(FakeGemini((text,), cut=True))
    await gateway.post(ASK, f"{MODEL}:streamGenerateContent", query_string=b"alt=sse")
    assert 1 <= (await gateway.entry()).output_tokens <= 3


# --- the key in the query -----------------------------------------------------------------------------------------------


async def keyed(make: MakeGateway, **settings: Any) -> Gateway:
    return await make(FakeGemini(), principal={"key_secret": SECRET, **settings})


@pytest.mark.parametrize("query", [b"key=AIza-1", b"alt=sse&key=AIza%2D1", b"key=&key=AIza-1", b"key=AIza-1&key=AIza-1"])
async def test_a_key_in_the_query_pays_like_the_same_key_in_a_header(
    make: MakeGateway, query: bytes, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = await make(FakeGemini(), principal={"key_secret": SECRET}, observe={"metrics": False, "audit_log": True})
    digest = f"key:{hash_key(SECRET.encode(), 'AIza-1')}"
    assert (await gateway.post(ASK, f"{MODEL}:generateContent", query_string=query)).status == 200
    assert (await gateway.post(ASK, f"{MODEL}:generateContent", headers={"x-goog-api-key": "AIza-1"})).status == 200
    entries = await gateway.entries()
    assert [entry.principal_id for entry in entries] == [digest, digest]
    told = repr(entries) + repr(gateway.seen.requests) + caplog.text + "".join(capsys.readouterr())
    assert "AIza" not in told and digest in told


async def test_the_key_stays_in_the_query_that_the_provider_gets(make: MakeGateway) -> None:
    provider = FakeGemini()
    gateway = await make(provider, principal={"key_secret": SECRET})
    await gateway.post(ASK, f"{MODEL}:generateContent", query_string=b"key=AIza-1")
    assert provider.queries == [b"key=AIza-1"]


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        (f"{MODEL}:generateContent", b"", 401),
        (f"{MODEL}:generateContent", b"key=", 401),
        (f"{MODEL}:generateContent", b"monkey=AIza-1", 401),
        # Only Gemini's callers put their key there.
        ("/v1/chat/completions", b"key=AIza-1", 401),
        # Which one the provider would take is not known.
        (f"{MODEL}:generateContent", b"key=AIza-1&key=AIza-2", 400),
        (f"{MODEL}:generateContent", b"&".join([b"key=AIza-1"] * 101), 400),
    ],
)
async def test_what_is_no_key_in_the_query_pays_for_nothing(make: MakeGateway, path: str, query: bytes, status: int) -> None:
    gateway = await keyed(make)
    answer = await gateway.post(ASK if "models" in path else CHAT, path, query_string=query)
    assert answer.status == status and b"AIza" not in answer.body
    assert await gateway.entries() == []


async def test_a_header_is_asked_before_the_query_and_an_unknown_key_is_refused(make: MakeGateway) -> None:
    known = {"key_hash": hash_key(SECRET.encode(), "AIza-1"), "principal": "user:bo"}
    gateway = await keyed(make, keys=(known,), require_known_key=True)
    path = f"{MODEL}:generateContent"
    assert (await gateway.post(ASK, path, query_string=b"key=AIza-2")).status == 401
    assert (await gateway.post(ASK, path, query_string=b"key=AIza-1", headers={"x-goog-api-key": "AIza-2"})).status == 401
    assert (await gateway.post(ASK, path, query_string=b"key=AIza-1")).status == 200
    assert (await gateway.entry()).principal_id == "user:bo"
