"""The official clients through a real server and a reverse proxy: admitted, streamed, refused once and typed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import httpx2
import openai
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sark_mw._fake_provider import FakeProvider
from tests.asgi.driving import CHAT, MESSAGES, Gateway, gateway_for, settings_for
from tests.wire.serving import serve


def proxy_to(upstream: httpx2.AsyncClient) -> Starlette:
    """Make a reverse proxy as users have one: raw bytes through, whatever the encoding."""

    async def forward(request: Request) -> StreamingResponse:
        headers = [(k, v) for k, v in request.headers.raw if k not in (b"host", b"content-length")]
        asked = upstream.build_request(request.method, request.url.path, headers=headers, content=await request.body())
        reply = await upstream.send(asked, stream=True)
        kept = {k: v for k, v in reply.headers.items() if k not in ("transfer-encoding", "connection")}
        return StreamingResponse(reply.aiter_raw(), reply.status_code, kept, background=BackgroundTask(reply.aclose))

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])


@pytest.fixture
async def provider() -> FakeProvider:
    return FakeProvider(chunk_s=0.001)


@pytest.fixture
async def gateway(provider: FakeProvider, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A provider, a proxy and the middleware, each pair over a real socket; $0.01 a day."""
    limits = ({"scope": "user:a", "amount": "0.01"}, {"scope": "user:a", "amount": 99, "unit": "concurrency"})
    payer = {"sources": ("scope",), "anonymous": "user:a"}
    settings = settings_for(tmp_path, limits=limits, principal=payer)
    async with (
        serve(provider) as upstream,
        httpx2.AsyncClient(base_url=upstream) as client,
        gateway_for(proxy_to(client), settings, on_fakeredis=True) as gateway,
    ):
        yield gateway
        await gateway.assert_balanced()


async def test_openai_is_served_until_the_budget_is_gone_and_then_refused_once_and_typed(
    gateway: Gateway, provider: FakeProvider
) -> None:
    async with serve(gateway.app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-x") as client:
        text = ""
        stream = await client.chat.completions.create(**CHAT, stream=True)
        async for chunk in stream:
            assert chunk.usage is None and chunk.choices
            text += chunk.choices[0].delta.content or ""
        assert text
        with pytest.raises(openai.APIStatusError) as refused:
            for _ in range(100):
                await client.chat.completions.create(**CHAT)
                await gateway.quiet()
    assert refused.value.status_code == 402 and refused.value.code == "budget_exceeded"
    told = [event.outcome for event in gateway.seen.requests]
    assert told.count("refused_budget") == 1 and told.count("admitted") == provider.requests
    assert [call.usage.output_tokens for call in provider.calls] == [entry.output_tokens for entry in await gateway.entries()]


async def test_anthropic_is_served_until_the_budget_is_gone_and_then_refused_once_and_typed(
    gateway: Gateway, provider: FakeProvider
) -> None:
    async with serve(gateway.app) as url, anthropic.AsyncAnthropic(base_url=url, api_key="sk-x") as client:
        async with client.messages.stream(**MESSAGES) as stream:
            assert await stream.get_final_text()
        with pytest.raises(anthropic.APIStatusError) as refused:
            for _ in range(100):
                await client.messages.create(**MESSAGES)
                await gateway.quiet()
    assert refused.value.status_code == 402
    assert refused.value.body["error"]["type"] == "billing_error"  # type: ignore[index,call-overload]
    assert [event.outcome for event in gateway.seen.requests].count("refused_budget") == 1


async def test_a_client_that_hangs_up_midway_is_booked_at_what_the_provider_bills(
    gateway: Gateway, provider: FakeProvider
) -> None:
    async with serve(gateway.app) as url, httpx2.AsyncClient() as client:
        async with client.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
            async for _ in reply.aiter_raw():
                break
        while not (entries := await gateway.entries()):
            await asyncio.sleep(0.005)
    assert not entries[0].estimated
    assert entries[0].output_tokens == provider.calls[0].usage.output_tokens and provider.calls[0].usage.complete


@pytest.mark.parametrize("size", [1, 300_000])
async def test_a_body_over_the_cap_is_answered_over_a_real_socket(tmp_path: Path, size: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(0, 600_000 if size > 1 else 300, size):
            yield b"x" * size

    settings = settings_for(tmp_path, http={"max_body_bytes": 200})
    async with gateway_for(FakeProvider(), settings) as gateway, serve(gateway.app) as url, httpx2.AsyncClient() as client:
        for content in (chunks(), b"x" * 400_000):
            reply = await client.post(f"{url}/v1/messages", content=content, headers={"content-type": "application/json"})
            assert reply.status_code == 413 and reply.json()["error"]["type"] == "request_too_large"


async def test_gzip_from_the_provider_is_read_and_reaches_the_client_as_it_is(gateway: Gateway, provider: FakeProvider) -> None:
    provider._faults = frozenset({"gzip"})
    async with serve(gateway.app) as url, httpx2.AsyncClient() as client:
        reply = await client.post(f"{url}/v1/chat/completions", json=CHAT, headers={"accept-encoding": "gzip"})
    assert reply.headers["content-encoding"] == "gzip"
    assert reply.json()["usage"]["completion_tokens"] == (await gateway.entry()).output_tokens
