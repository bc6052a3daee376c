"""Idempotency keys: a request is made and paid once, whoever asks how often, and a lost response is had again."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from sark_mw._fake_provider import FAULT_HEADER, FakeProvider
from sark_mw.asgi.idempotency import KeptResponses, idempotency_of, size_of
from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.asgi.principal import Principal
from sark_mw.asgi.types import RawHeaders
from sark_mw.enforcer import Idempotency
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, MESSAGES, Answer, Gateway, Seen, gateway_for, scope_of, settings_for
from tests.asgi.test_clients import proxy_to
from tests.asgi.test_disconnect import EVENTS, STREAM, Upstream
from tests.wire.serving import serve

KEY = {"idempotency-key": "k-1"}


def named(scope: Any) -> str:
    """Name the payer: whoever is not named has no keys."""
    return "user:a"


@pytest.fixture(name="books")
def named_books(books: MakeGateway) -> MakeGateway:
    return lambda app, parts=None, **sections: books(app, {"principal": named, **(parts or {})}, **sections)


@pytest.fixture(name="make")
def named_make(make: MakeGateway) -> MakeGateway:
    return lambda app, parts=None, **sections: make(app, {"principal": named, **(parts or {})}, **sections)


def code_of(answer: Answer) -> tuple[int | None, str]:
    return answer.status, answer.json["error"]["code"]


async def test_a_retry_is_answered_byte_for_byte_as_the_first_request_was_and_is_not_paid_again(books: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await books(provider)
    first = await gateway.post(headers=KEY)
    for _ in range(3):
        again = await gateway.post(headers=KEY)
        assert (again.status, again.body) == (first.status, first.body)
        assert again.headers == {**first.headers, "x-sark-replayed": "true"}
    assert provider.requests == 1
    await gateway.entry()
    assert [(event.outcome, event.reason) for event in gateway.seen.requests[1:]] == [("passed", "replayed")] * 3
    assert gateway.seen.repeated == ["replayed"] * 3


async def test_a_stream_is_answered_again_as_one_body(books: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await books(provider)
    first = await gateway.post({**CHAT, "stream": True}, headers=KEY)
    await gateway.quiet()
    again = await gateway.post({**CHAT, "stream": True}, headers=KEY)
    assert len(first.chunks) > 2 and again.chunks == [first.body]
    assert again.headers["content-type"] == first.headers["content-type"]
    assert b'"choices":[]' not in again.body.replace(b" ", b"") and provider.requests == 1


async def test_a_client_that_left_gets_what_was_read_without_it(books: MakeGateway) -> None:
    upstream = Upstream(pause_at=3)
    gateway = await books(upstream.asgi)
    client = gateway.client(STREAM, headers=KEY)
    running = asyncio.ensure_future(client.run())
    await client.until_messages(4)
    client.left.set()
    meanwhile = await gateway.post(STREAM, headers=KEY)
    assert code_of(meanwhile) == (409, "request_in_flight")
    assert (meanwhile.headers["retry-after"], meanwhile.headers["x-should-retry"]) == ("1", "true")
    upstream.go_on.set()
    await running
    again = await gateway.post(STREAM, headers=KEY)
    assert again.body == b"".join(EVENTS) and upstream.read == len(EVENTS)
    assert (await gateway.entry()).output_tokens == 40
    assert gateway.seen.repeated == ["in_flight", "replayed"]


async def test_a_key_with_another_request_is_refused(books: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await books(provider)
    await gateway.post(headers=KEY)
    await gateway.quiet()
    others: list[dict[str, Any]] = [
        {"body": {**CHAT, "max_tokens": 3}},
        {"path": "/v2/chat/completions"},
        {"query_string": b"x=1"},
    ]
    for other in others:
        answer = await gateway.post(headers=KEY, **other)
        assert code_of(answer) == (422, "idempotency_key_reused") and answer.headers["x-should-retry"] == "false"
    assert provider.requests == 1 and gateway.seen.repeated == ["reused"] * 3


async def test_a_key_is_its_principals_and_its_roots_own(make: MakeGateway) -> None:
    def who(scope: Any) -> Principal:
        name, root = dict(scope["headers"])[b"x-who"].decode().split()
        return Principal(name, root=root)

    provider = FakeProvider()
    gateway = await make(provider, {"principal": who})
    for each in ("user:a default", "user:b default", "user:a other"):
        answer = await gateway.post(headers={**KEY, "x-who": each})
        assert answer.status == 200 and "x-sark-replayed" not in answer.headers
    assert provider.requests == 3


async def test_a_request_that_failed_or_was_refused_may_be_made_again_under_its_key(books: MakeGateway) -> None:
    provider = FakeProvider()
    limits = ({"scope": "user:a", "amount": "1"}, {"scope": "user:a", "amount": 100, "unit": "concurrency"})
    gateway = await books(provider, limits=limits)
    assert (await gateway.post({**CHAT, "max_tokens": 10_000_000}, headers=KEY)).status == 402
    failed = await gateway.post(headers={**KEY, FAULT_HEADER: "status=500"})
    await gateway.quiet()
    assert failed.status == 500
    answer = await gateway.post(headers=KEY)
    assert answer.status == 200 and "x-sark-replayed" not in answer.headers
    assert (await gateway.post(headers=KEY)).headers["x-sark-replayed"] == "true"


@pytest.mark.parametrize("http", [{"idempotency_keep_bytes": 0}, {"idempotency_keep_bytes": 200}])
async def test_a_retry_whose_answer_is_not_here_any_more_hears_that_it_was_paid(books: MakeGateway, http: dict[str, Any]) -> None:
    provider = FakeProvider()
    gateway = await books(provider, http=http)
    await gateway.post(headers=KEY)
    await gateway.quiet()
    again = await gateway.post(headers=KEY)
    assert code_of(again) == (409, "request_already_done") and again.headers["x-should-retry"] == "false"
    assert provider.requests == 1 and gateway.seen.repeated == ["done"]
    await gateway.entry()


async def test_a_retry_at_another_process_is_not_made_again_either(tmp_path: Path) -> None:
    provider = FakeProvider()
    async with gateway_for(provider, settings_for(tmp_path), on_fakeredis=True, principal=named) as gateway:
        other = Gateway(SarkMiddleware(provider, sark=gateway.sark, principal=named), Seen())
        await gateway.post(headers=KEY)
        await gateway.quiet()
        assert code_of(await other.post(headers=KEY)) == (409, "request_already_done")
        assert provider.requests == 1


@pytest.mark.parametrize("fault", ["cut_midway", "error_midway", "half_chunk"])
async def test_half_a_response_is_not_answered_again(books: MakeGateway, fault: str) -> None:
    gateway = await books(FakeProvider(faults=[fault]))
    body = {**CHAT, "stream": True}
    await gateway.post(body, headers=KEY)
    await gateway.quiet()
    assert code_of(await gateway.post(body, headers=KEY)) == (409, "request_already_done")


async def test_a_response_that_is_too_long_to_keep_passes_all_the_same(books: MakeGateway) -> None:
    gateway = await books(FakeProvider(faults=["huge"]))
    assert len((await gateway.post(headers=KEY)).body) > 1024 * 1024
    await gateway.quiet()
    assert (await gateway.post(headers=KEY)).status == 409


async def test_a_compressed_response_is_answered_again_only_to_who_accepts_it(books: MakeGateway) -> None:
    gateway = await books(FakeProvider(faults=["gzip"]))
    zipped = {**KEY, "accept-encoding": "gzip"}
    first = await gateway.post(headers=zipped)
    await gateway.quiet()
    assert first.headers["content-encoding"] == "gzip"
    assert (await gateway.post(headers=KEY)).status == 409
    assert (await gateway.post(headers=zipped)).body == first.body


async def test_only_metered_posts_have_keys_and_none_where_the_settings_say_so(make: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await make(provider, http={"idempotency": "off"})
    for _ in range(2):
        assert "x-sark-replayed" not in (await gateway.post(headers={"idempotency-key": ""})).headers
        await gateway.quiet()
    assert provider.requests == 2
    routes = ({"path": "/reports", "methods": ("GET", "PUT"), "free": True},)
    gateway = await make(provider, routes=routes)
    for method in ("GET", "PUT", "GET"):
        await gateway.post(b"", "/reports", method=method, headers=KEY)
        await gateway.quiet()
    assert provider.requests == 5


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "a\tb", "\xff"])
async def test_a_key_that_is_none_is_refused(make: MakeGateway, key: str) -> None:
    provider = FakeProvider()
    gateway = await make(provider)
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/messages", MESSAGES)):
        answer = await gateway.post(body, path, headers={"idempotency-key": key})
        assert answer.status == 400 and answer.json["error"]["type"] == "invalid_request_error"
    assert provider.requests == 0


async def test_of_many_requests_with_one_key_at_once_one_is_made(books: MakeGateway) -> None:
    provider = FakeProvider(chunk_s=0.001)
    gateway = await books(provider)
    answers = await asyncio.gather(*(gateway.post(headers=KEY) for _ in range(20)))
    assert provider.requests == 1
    assert {answer.status for answer in answers} <= {200, 409} and any(answer.status == 200 for answer in answers)
    await gateway.entry()


async def test_a_cheaper_model_is_made_and_paid_once_too(books: MakeGateway) -> None:
    provider = FakeProvider()
    limits = ({"scope": "user:a", "amount": "0.1"}, {"scope": "user:a", "amount": 100, "unit": "concurrency"})
    rules = {"models": ({"from": "gpt-4o", "to": ("gpt-4o-mini",), "at_percent": 1},)}
    gateway = await books(provider, limits=limits, instead=rules)
    first = await gateway.post(headers=KEY)
    await gateway.quiet()
    again = await gateway.post(headers=KEY)
    assert first.headers["x-sark-model"] == again.headers["x-sark-model"] == "gpt-4o-mini"
    assert again.body == first.body and provider.requests == 1


def record(kept: KeptResponses, name: str, size: int, owner: str = "a", headers: int = 0) -> Idempotency:
    """Keep a response that takes so many bytes beside what each takes; see `size_of`."""
    idempotency = Idempotency(key=name, fingerprint="f")
    recording = kept.recording(idempotency, owner, [])
    assert recording is not None
    recording.hear({"type": "http.response.start", "status": 200, "headers": [(b"h", b"v")] * headers})
    recording.hear({"type": "http.response.body", "body": b"x" * size})
    recording.keep()
    return idempotency


def test_what_is_kept_is_bounded_in_bytes_and_in_time() -> None:
    now, each = 0.0, size_of([])
    kept = KeptResponses(1_000 + 2 * each, 60, clock=lambda: now)

    first, second, third = (record(kept, name, 400) for name in "abc")
    nothing: RawHeaders = []
    assert kept.find(first, nothing) is None and kept.find(second, nothing) and kept.find(third, nothing)
    assert kept.find(record(kept, "d", 1_001 + each), nothing) is None
    assert kept.find(Idempotency(key="c", fingerprint="other"), nothing) is None
    record(kept, "c", 300)
    assert kept.find(record(kept, "e", 600), nothing) is not None
    now = 60.0
    assert kept.find(third, nothing) is None
    # Everything was given back: the whole bound is free again, however responses ended.
    unfinished = kept.recording(Idempotency(key="f", fingerprint="f"), "a", nothing)
    assert unfinished is not None
    unfinished.hear({"type": "http.response.start", "status": 200, "headers": []})
    unfinished.hear({"type": "http.response.body", "body": b"x" * 900})
    assert kept.find(record(kept, "g", 200), nothing) is None
    unfinished.forget()
    assert kept.find(record(kept, "h", 1_000 + each), nothing) is not None


def test_of_short_responses_no_more_are_kept_than_there_is_memory_for() -> None:
    kept = KeptResponses(100_000, 60)
    found = [record(kept, f"{n}", 59, headers=5) for n in range(200)]
    tracemalloc.start()
    try:
        kept = KeptResponses(100_000, 60)
        found = [record(kept, f"{n}", 59, headers=5) for n in range(200)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 200_000 and 20 < sum(kept.find(each, []) is not None for each in found) < 100


def test_one_principal_cannot_push_out_the_responses_of_all_others() -> None:
    each = size_of([])
    kept = KeptResponses(32 * (1_000 + each), 60)
    small = [record(kept, f"small-{n}", 1_000, owner=f"user:{n}") for n in range(4)]
    large = [record(kept, f"large-{n}", 1_000, owner="greedy") for n in range(100)]
    assert all(kept.find(one, []) for one in small)
    assert [one for one in large if kept.find(one, [])] == large[-28:], "what is free may be taken"
    late = [record(kept, f"late-{n}", 1_000, owner="late") for n in range(2)]
    assert all(kept.find(one, []) for one in (*small, *late)) and kept.find(large[-26], []) and not kept.find(large[-27], [])
    # Nor can responses that are still under way.
    under_way = [kept.recording(Idempotency(key=f"w-{n}", fingerprint="f"), "greedy", []) for n in range(100)]
    for one in under_way:
        assert one is not None
        one.hear({"type": "http.response.start", "status": 200, "headers": []})
        one.hear({"type": "http.response.body", "body": b"x" * 1_000})
    assert all(kept.find(one, []) for one in (*small, *late))


async def test_who_is_not_named_has_no_keys_and_nobody_elses_answers(make: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await make(provider, {"principal": None})
    for body in (CHAT, CHAT, {**CHAT, "max_tokens": 3}):
        answer = await gateway.post(body, headers=KEY)
        assert answer.status == 200 and "x-sark-replayed" not in answer.headers
        await gateway.quiet()
    assert provider.requests == 3


def test_a_key_and_a_request_are_hashes_that_do_not_run_together() -> None:
    def of(root: str, name: str, key: str, body: bytes = b"{}", path: str = "/v1/x") -> Idempotency:
        scope = scope_of(path, headers=[("idempotency-key", key)])
        made = idempotency_of(Principal(name, root=root), scope, body)
        assert made is not None and len(made.key) == len(made.fingerprint) == 32
        return made

    keys = {of(*parts).key for parts in (("r", "user:a", "bc"), ("r", "user:ab", "c"), ("ru", "ser:a", "bc"))}
    prints = {of("r", "user:a", "k", body, path).fingerprint for body, path in ((b"ab", "/c"), (b"b", "/ca"), (b"", "/cab"))}
    assert len(keys) == len(prints) == 3
    assert idempotency_of(Principal("user:a"), scope_of(), b"") is None


async def test_official_clients_send_a_key_where_they_are_told_to_and_are_answered_once_paid(tmp_path: Path) -> None:
    provider = FakeProvider(chunk_s=0.001)
    async with (
        serve(provider) as upstream,
        httpx2.AsyncClient(base_url=upstream) as relay,
        gateway_for(proxy_to(relay), settings_for(tmp_path), on_fakeredis=True, principal=named) as gateway,
        serve(gateway.app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-x") as chat,
        anthropic.AsyncAnthropic(base_url=url, api_key="sk-x") as claude,
    ):
        first = await chat.chat.completions.create(**CHAT, extra_headers=KEY)
        assert await chat.chat.completions.create(**CHAT, extra_headers=KEY) == first
        streamed = await claude.messages.create(**MESSAGES, stream=True, extra_headers={"idempotency-key": "k-2"})
        events = [event async for event in streamed]
        streamed = await claude.messages.create(**MESSAGES, stream=True, extra_headers={"idempotency-key": "k-2"})
        assert [event async for event in streamed] == events and provider.requests == 2
        with pytest.raises(openai.UnprocessableEntityError):
            await chat.chat.completions.create(**{**CHAT, "n": 2}, extra_headers=KEY)
        with pytest.raises(anthropic.UnprocessableEntityError):
            await claude.messages.create(**{**MESSAGES, "max_tokens": 9}, extra_headers={"idempotency-key": "k-2"})
        gateway.app._front.kept._kept.clear()
        before = len(gateway.seen.requests)
        with pytest.raises(openai.ConflictError):
            await chat.chat.completions.create(**CHAT, extra_headers=KEY)
        with pytest.raises(anthropic.ConflictError):
            await claude.messages.create(**MESSAGES, stream=True, extra_headers={"idempotency-key": "k-2"})
        assert len(gateway.seen.requests) == before + 2 and provider.requests == 2
        await gateway.assert_balanced()


async def test_official_clients_count_their_retries_and_send_no_key_by_themselves(tmp_path: Path) -> None:
    provider = FakeProvider(faults=["status=500"])
    async with gateway_for(provider, settings_for(tmp_path)) as gateway:
        seen: list[dict[bytes, bytes]] = []

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            seen.append(dict(scope["headers"]))
            if len(seen) == 2:
                provider._faults = frozenset()
            await gateway.app(scope, receive, send)

        async with serve(watched) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-x") as chat:
            assert (await chat.chat.completions.create(**CHAT)).choices
    assert [headers[b"x-stainless-retry-count"] for headers in seen] == [b"0", b"1"]
    assert all(b"idempotency-key" not in headers for headers in seen)


async def test_a_replay_has_the_length_of_its_body_over_a_real_socket(tmp_path: Path) -> None:
    asked = {**CHAT, "stream": True}
    async with (
        gateway_for(FakeProvider(), settings_for(tmp_path), principal=named) as gateway,
        serve(gateway.app) as url,
        httpx2.AsyncClient(headers=KEY) as client,
    ):
        first = await client.post(f"{url}/v1/chat/completions", json=asked)
        await gateway.quiet()
        again = await client.post(f"{url}/v1/chat/completions", json=asked)
    assert again.content == first.content and again.headers["x-sark-replayed"] == "true"


async def test_a_retry_of_what_is_kept_is_no_new_request_to_policies(make: MakeGateway) -> None:
    provider = FakeProvider()
    once = {"plugins": [{"name": "rate_limit", "options": {"max_requests": 1}}]}
    gateway = await make(provider, policy=once)
    first = await gateway.post(headers=KEY)
    await gateway.quiet()
    again = await gateway.post(headers=KEY)
    assert (first.status, again.status, again.headers.get("x-sark-replayed")) == (200, 200, "true")
    assert again.body == first.body
    assert (await gateway.post(headers={"idempotency-key": "k-2"})).status == 403
    assert provider.requests == 1


async def test_a_retry_of_an_approved_request_asks_for_no_other_approval(tmp_path: Path) -> None:
    policy = {"plugins": [{"name": "approval", "options": {"above_usd": 0}}]}
    settings = settings_for(tmp_path, admin={"token": "x" * 40}, policy=policy)
    async with gateway_for(FakeProvider(), settings, on_fakeredis=True, principal=named) as gateway:
        asked = await gateway.post(headers=KEY)
        approval_id = asked.json["error"]["message"].rsplit(": ", 1)[1]
        granted = await gateway.sark.approvals.grant("default", approval_id, valid_s=100)
        headers = KEY | {"x-sark-approval": granted.token}
        first = await gateway.post(headers=headers)
        await gateway.quiet()
        again = await gateway.post(headers=headers)
        assert (asked.status, first.status, again.status) == (403, 200, 200)
        assert again.body == first.body
        assert await gateway.sark.approvals.waiting("default") == []
