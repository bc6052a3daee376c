"""What is charged beside or instead of what a body says: tools of the provider, deployments, responses that go on unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sark_mw.usage import Usage
from sark_mw.wire.anthropic import anthropic_usage
from sark_mw.wire.base import Operation
from sark_mw.wire.openai import openai_usage
from tests.asgi.driving import MESSAGES, gateway_for, settings_for
from tests.wire.serving import passed
from tests.wire.streams import JSON, call, tap_of
from tests.wire.test_requests import read

COUNTS = {"input_tokens": 5, "output_tokens": 7}


class Provider:
    """Answers every request with one JSON body."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = json.dumps(body).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self._body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/openai/deployments/gpt-4/chat/completions", "gpt-4"),
        ("/openai/deployments/gpt-4/extensions/chat/completions", "gpt-4"),
        ("/openai/deployments/cheap/../gpt-4/chat/completions", "gpt-4"),
        ("/openai/deployments/cheap/../../Deployments/gpt-4//chat/completions/", "gpt-4"),
        ("/v1/engines/gpt-4/completions", "gpt-4"),
        ("/deployments/eu/v1/chat/completions", "gpt-4.1-nano"),
        ("/v1/chat/completions", "gpt-4.1-nano"),
    ],
)
def test_the_deployment_that_serves_a_request_is_its_model_whatever_the_body_says(path: str, model: str) -> None:
    assert read(path, {"model": "gpt-4.1-nano", "messages": []}).model == model


async def test_a_deployment_is_booked_at_its_own_price_and_an_unknown_one_at_that_of_the_model_that_answered(
    tmp_path: Path,
) -> None:
    body = {"model": "gpt-4.1-nano", "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}
    answer = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1000}}
    settings = settings_for(tmp_path, limits=[{"scope": "user:a", "amount": "5"}])
    for deployment, answered in (("gpt-4", None), ("gpt-4", "gpt-4"), ("prod-chat", "gpt-4")):
        async with gateway_for(Provider({**answer, "model": answered}), settings) as gateway:
            sent = await gateway.post(body, path=f"/openai/deployments/{deployment}/chat/completions")
            entry = await gateway.entry()
            assert (sent.status, entry.cost_nanos) == (200, 5 * 30_000 + 1000 * 60_000)
            assert entry.held_nanos >= entry.cost_nanos


def test_calls_of_openais_tools_are_counted_among_the_items() -> None:
    search = {"type": "web_search_call", "status": "completed"}
    items: list[Any] = [
        {**search, "action": {"type": "search", "query": "x"}},
        search,
        {**search, "action": {"type": "open_page", "url": "u"}},
        {"type": "file_search_call"},
        *[{"type": "code_interpreter_call", "container_id": name} for name in ("a", "a", "b")],
        {"type": "message", "content": []},
        7,
        {"type": []},
    ]
    means = Usage(input_tokens=5, output_tokens=7, web_searches=2, file_searches=1, code_sessions=2)
    assert openai_usage({"usage": COUNTS, "output": items}) == means
    tap = tap_of(call("openai", Operation.RESPONSES), headers=((b"content-type", b"text/event-stream"),))
    event = {"type": "response.completed", "response": {"status": "completed", "usage": COUNTS, "output": items}}
    passed(tap, [f"data: {json.dumps(event)}\n\n".encode()])
    assert tap.usage == means


@pytest.mark.parametrize(("told", "searches"), [(3, 3), (0, 0), (None, 0), (-1, 0), ("3", 0), ({}, 0)])
def test_searches_are_read_off_anthropics_usage(told: object, searches: int) -> None:
    usage = anthropic_usage({**COUNTS, "server_tool_use": {"web_search_requests": told}})
    assert usage is not None and usage.web_searches == searches


def test_searches_are_read_off_geminis_grounding_in_any_order() -> None:
    grounded = {"content": {"parts": []}, "groundingMetadata": {"webSearchQueries": ["a", "b"]}}
    counts = {"promptTokenCount": 1, "candidatesTokenCount": 2}
    chunks: list[list[dict[str, Any]]] = [
        [{"candidates": [grounded], "usageMetadata": counts}],
        [{"candidates": [grounded]}, {"candidates": [{"finishReason": "STOP"}], "usageMetadata": counts}],
        [{"usageMetadata": counts}, {"candidates": [{**grounded, "finishReason": "STOP"}]}],
    ]
    for body in chunks:
        tap = tap_of(call("gemini", Operation.GENERATE, stream=False), headers=JSON)
        passed(tap, [json.dumps(body).encode()])
        assert tap.usage is not None and tap.usage.web_searches == 2


async def test_fifty_searches_are_held_and_booked(tmp_path: Path) -> None:
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 50}
    usage = {"input_tokens": 10, "output_tokens": 10, "server_tool_use": {"web_search_requests": 50}}
    answer = {"type": "message", "model": "claude-haiku-4-5", "content": [], "stop_reason": "end_turn", "usage": usage}
    settings = settings_for(tmp_path, limits=[{"scope": "user:a", "amount": "5"}])
    async with gateway_for(Provider(answer), settings) as gateway:
        sent = await gateway.post({**MESSAGES, "tools": [tool]}, path="/v1/messages")
        entry = await gateway.entry()
        assert sent.status == 200
        assert entry.cost_nanos == 500_000_000 + 10 * 1000 + 10 * 5000 <= entry.held_nanos


BACKGROUND = {"model": "gpt-5", "background": True, "max_output_tokens": 100_000, "input": "write"}


@pytest.mark.parametrize("status", ["queued", "in_progress"])
async def test_a_response_that_goes_on_unseen_is_booked_at_its_ceiling(tmp_path: Path, status: str) -> None:
    output = [{"type": "message", "content": [{"type": "output_text", "text": "so far"}]}]
    answer = {"id": "resp_1", "status": status, "background": True, "output": output, "usage": None, "model": "gpt-5"}
    settings = settings_for(tmp_path, limits=[{"scope": "user:a", "amount": "5"}])
    async with gateway_for(Provider(answer), settings) as gateway:
        answers = [await gateway.post(BACKGROUND, path="/v1/responses") for _ in range(30)]
        entries = await gateway.entries()
        # Two dollars each in the dearest tier.
        assert [each.status for each in answers] == [200] * 2 + [402] * 28
        assert [(entry.cost_nanos, entry.estimated) for entry in entries] == [(entries[0].held_nanos, True)] * 2
        assert entries[0].output_tokens == 100_000


async def test_one_that_has_ended_or_failed_is_booked_at_what_it_says(tmp_path: Path) -> None:
    done = {"id": "resp_1", "status": "completed", "output": [], "usage": COUNTS, "model": "gpt-5"}
    failed: dict[str, Any] = {"id": "resp_1", "status": "failed", "error": {"code": "x"}, "usage": None, "model": "gpt-5"}
    for answer in (done, failed):
        async with gateway_for(Provider(answer), settings_for(tmp_path, limits=[{"scope": "user:a", "amount": "5"}])) as gateway:
            await gateway.post(BACKGROUND, path="/v1/responses")
            entry = await gateway.entry()
            assert entry.cost_nanos < 1_000_000 < entry.held_nanos
