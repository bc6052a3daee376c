"""The fake provider is understood by the official clients, and its tally is what they were told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anthropic
import httpx2
import openai
import pytest

from sark_mw._fake_provider import FakeProvider
from tests.wire.serving import serve

MESSAGES = [{"role": "user", "content": "tell me a story of a coin and a lamp, please"}]


@asynccontextmanager
async def clients(provider: FakeProvider) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    async with (
        serve(provider) as url,
        openai.AsyncOpenAI(api_key="test", base_url=f"{url}/v1", max_retries=0) as chat,
        anthropic.AsyncAnthropic(api_key="test", base_url=url, max_retries=0) as claude,
    ):
        yield chat, claude


async def raw(provider: FakeProvider, path: str, body: object, **headers: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=provider)
    async with httpx2.AsyncClient(transport=transport, base_url="http://fake") as client:
        return await client.post(path, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


async def test_openai_chat_reports_the_usage_that_was_tallied() -> None:
    provider = FakeProvider(seed=1)
    async with clients(provider) as (chat, _):
        reply = await chat.chat.completions.create(model="gpt-4o", messages=MESSAGES, n=2)  # type: ignore[arg-type]
    billed = provider.calls[0].usage
    assert reply.usage is not None and reply.usage.prompt_tokens_details is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (billed.input_tokens, billed.output_tokens)
    assert reply.usage.prompt_tokens_details.cached_tokens == billed.cache_read_tokens
    assert sum(len((choice.message.content or "").split()) for choice in reply.choices) == billed.output_tokens
    assert len(reply.choices) == 2 and billed.complete


@pytest.mark.parametrize("asks", [True, False])
async def test_openai_streams_carry_usage_only_where_asked(asks: bool) -> None:
    provider = FakeProvider(seed=2)
    options: dict[str, object] = {"stream_options": {"include_usage": True}} if asks else {}
    async with clients(provider) as (chat, _):
        stream = await chat.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True, **options)  # type: ignore[call-overload]
        chunks = [chunk async for chunk in stream]
    words = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices).split()
    billed = provider.calls[0].usage
    assert len(words) == billed.output_tokens
    reported = [chunk.usage for chunk in chunks if chunk.usage]
    assert [usage.completion_tokens for usage in reported] == ([billed.output_tokens] if asks else [])


async def test_the_same_question_gives_the_same_tokens_streamed_or_not() -> None:
    provider = FakeProvider(seed=3)
    async with clients(provider) as (chat, _):
        await chat.chat.completions.create(model="gpt-4o", messages=MESSAGES)  # type: ignore[arg-type]
        async for _chunk in await chat.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True):  # type: ignore[arg-type]
            pass
    assert provider.calls[0].usage == provider.calls[1].usage
    assert provider.total.output_tokens == 2 * provider.calls[0].usage.output_tokens


async def test_responses_api_completes_and_is_incomplete_at_its_limit() -> None:
    provider = FakeProvider(seed=4)
    async with clients(provider) as (chat, _):
        whole = await chat.responses.create(model="gpt-5-mini", input="a question of nine words, all of them small")
        limited = await chat.responses.create(model="gpt-5-mini", input="a question", max_output_tokens=4)
        events = [event async for event in await chat.responses.create(model="o3", input="a question", stream=True)]
    assert whole.usage is not None and whole.usage.output_tokens == provider.calls[0].usage.output_tokens
    assert whole.usage.output_tokens_details.reasoning_tokens == provider.calls[0].usage.reasoning_tokens > 0
    assert len(whole.output_text.split()) == whole.usage.output_tokens - whole.usage.output_tokens_details.reasoning_tokens
    assert limited.status == "incomplete" and limited.usage is not None and limited.usage.output_tokens == 4
    assert events[-1].type == "response.completed" and events[-1].response.usage is not None
    assert events[-1].response.usage.output_tokens == provider.calls[2].usage.output_tokens


async def test_embeddings_give_a_vector_for_each_input_and_bill_no_output() -> None:
    provider = FakeProvider()
    async with clients(provider) as (chat, _):
        reply = await chat.embeddings.create(model="text-embedding-3-small", input=["one two", "three"])
    assert [len(item.embedding) for item in reply.data] == [8, 8]
    assert reply.usage.prompt_tokens == provider.calls[0].usage.input_tokens == 3
    assert provider.calls[0].usage.output_tokens == 0


async def test_anthropic_messages_report_the_usage_that_was_tallied_streamed_or_not() -> None:
    provider = FakeProvider(seed=5)
    async with clients(provider) as (_, claude):
        reply = await claude.messages.create(model="claude-test", max_tokens=12, messages=MESSAGES)  # type: ignore[arg-type]
        async with claude.messages.stream(model="claude-test", max_tokens=500, messages=MESSAGES) as stream:  # type: ignore[arg-type]
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
    assert reply.stop_reason == "max_tokens" and reply.usage.output_tokens == 12 == provider.calls[0].usage.output_tokens
    assert final.usage.output_tokens == provider.calls[1].usage.output_tokens == len(text.split())
    assert final.usage.input_tokens == provider.calls[1].usage.input_tokens


async def test_anthropic_cache_writes_are_outside_the_reported_input() -> None:
    provider = FakeProvider(seed=6)
    block = {"type": "text", "text": "word " * 30, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    async with clients(provider) as (_, claude):
        reply = await claude.messages.create(model="claude-test", max_tokens=5, system=[block], messages=MESSAGES)  # type: ignore[arg-type,list-item]
    billed = provider.calls[0].usage
    assert billed.cache_write_1h_tokens > 0
    assert reply.usage.cache_creation_input_tokens == billed.cache_write_1h_tokens
    told = (reply.usage.input_tokens, reply.usage.cache_read_input_tokens or 0, reply.usage.cache_creation_input_tokens or 0)
    assert sum(told) == billed.input_tokens


async def test_count_tokens_is_answered_and_not_billed() -> None:
    provider = FakeProvider()
    async with clients(provider) as (_, claude):
        reply = await claude.messages.count_tokens(model="claude-test", messages=MESSAGES)  # type: ignore[arg-type]
    assert reply.input_tokens > 0 and provider.calls == [] and provider.requests == 1


async def test_some_inputs_are_billed_as_cached() -> None:
    provider = FakeProvider(seed=7)
    for number in range(40):
        await raw(provider, "/v1/chat/completions", {"model": "m", "messages": [{"content": f"number {number} of many"}]})
    cached = [call for call in provider.calls if call.usage.cache_read_tokens]
    assert 0 < len(cached) < 40


async def test_a_cut_stream_breaks_the_connection_and_bills_what_went_out() -> None:
    provider = FakeProvider(faults=["cut_midway"])
    async with clients(provider) as (chat, _):
        stream = await chat.chat.completions.create(model="m", messages=MESSAGES, stream=True)  # type: ignore[arg-type]
        seen = []
        with pytest.raises(openai.APIError):
            async for chunk in stream:
                seen.append(chunk)  # noqa: PERF401 - a comprehension would lose what came before the error
    words = "".join(choice.delta.content or "" for chunk in seen for choice in chunk.choices).split()
    assert 0 < provider.calls[0].usage.output_tokens == len(words)
    assert not provider.calls[0].usage.complete


async def test_an_error_midway_raises_in_both_clients() -> None:
    provider = FakeProvider(faults=["error_midway"])
    async with clients(provider) as (chat, claude):
        with pytest.raises(openai.APIError, match="had an error"):
            async for _ in await chat.chat.completions.create(model="m", messages=MESSAGES, stream=True):  # type: ignore[arg-type]
                pass
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            async for _event in await claude.messages.create(model="m", max_tokens=50, messages=MESSAGES, stream=True):  # type: ignore[arg-type]
                pass
    assert [call.usage.complete for call in provider.calls] == [False, False]


@pytest.mark.parametrize(
    ("status", "error"), [(401, "AuthenticationError"), (429, "RateLimitError"), (500, "InternalServerError")]
)
async def test_a_status_on_demand_is_typed_and_not_billed(status: int, error: str) -> None:
    provider = FakeProvider(faults=[f"status={status}"])
    async with clients(provider) as (chat, claude):
        with pytest.raises(getattr(openai, error)):
            await chat.chat.completions.create(model="m", messages=MESSAGES)  # type: ignore[arg-type]
        with pytest.raises(getattr(anthropic, error)):
            await claude.messages.create(model="m", max_tokens=5, messages=MESSAGES)  # type: ignore[arg-type]
    assert provider.calls == [] and provider.requests == 2


async def test_gzip_single_bytes_and_huge_chunks_are_still_understood() -> None:
    provider = FakeProvider()
    body = {"model": "m", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    plain = await raw(provider, "/v1/chat/completions", body)
    single = await raw(provider, "/v1/chat/completions", body, x_fake_fault="single_byte_chunks, gzip", accept_encoding="gzip")
    huge = await raw(provider, "/v1/chat/completions", body, x_fake_fault="huge")
    assert single.headers["content-encoding"] == "gzip"
    assert single.text.replace("000002", "000001") == plain.text
    assert len(huge.content) > 1_000_000
    assert provider.calls[0].usage == provider.calls[1].usage == provider.calls[2].usage


async def test_gzip_is_sent_only_to_who_accepts_it_unless_forced() -> None:
    provider = FakeProvider(faults=["gzip"])
    body = {"model": "m", "messages": MESSAGES}
    plain = await raw(provider, "/v1/chat/completions", body, accept_encoding="identity")
    assert "content-encoding" not in plain.headers
    forced = await raw(provider, "/v1/chat/completions", body, accept_encoding="identity", x_fake_fault="force_gzip")
    assert forced.headers["content-encoding"] == "gzip"


async def test_usage_is_left_out_or_zero_on_demand() -> None:
    provider = FakeProvider()
    body = {"model": "m", "max_tokens": 9, "messages": MESSAGES}
    for path in ("/v1/chat/completions", "/v1/messages"):
        assert "usage" not in (await raw(provider, path, body, x_fake_fault="no_usage")).json()
        zero = (await raw(provider, path, body, x_fake_fault="zero_usage")).json()["usage"]
        assert {value for value in zero.values() if isinstance(value, int)} == {0}
    assert [call.usage.total_tokens > 0 for call in provider.calls] == [True, False, True, False]


async def test_half_a_chunk_ends_inside_an_event() -> None:
    provider = FakeProvider()
    body = {"model": "m", "max_tokens": 30, "messages": MESSAGES, "stream": True}
    reply = await raw(provider, "/v1/messages", body, x_fake_fault="half_chunk")
    assert not reply.text.endswith("\n\n") and "message_stop" not in reply.text


async def test_azure_deployments_name_the_model_in_the_path() -> None:
    provider = FakeProvider()
    reply = await raw(provider, "/openai/deployments/gpt-4o/chat/completions", {"messages": MESSAGES})
    assert reply.json()["model"] == "gpt-4o" == provider.calls[0].model


async def test_malformed_requests_and_unknown_faults_are_client_errors() -> None:
    provider = FakeProvider()
    transport = httpx2.ASGITransport(app=provider)
    async with httpx2.AsyncClient(transport=transport, base_url="http://fake") as client:
        assert (await client.post("/v1/messages", content=b"{")).status_code == 400
        assert (await client.get("/v1/messages")).status_code == 400
        assert (await client.post("/v1/elsewhere", json={})).status_code == 404
    assert (await raw(provider, "/v1/messages", {}, x_fake_fault="nonsense")).status_code == 400
    with pytest.raises(ValueError, match="unknown faults"):
        FakeProvider(faults=["status=200"])
