"""Requests for another model or with a smaller output: what was asked for is changed, and not a byte besides."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sark_mw.pricing.anthropic import AnthropicCostEstimator
from sark_mw.pricing.base import InvocationRequest, Meter
from sark_mw.pricing.gemini import GeminiCostEstimator
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.wire import WIRES, wire_for
from sark_mw.wire.base import Call

CHAT = "/v1/chat/completions"
GEMINI = "/v1beta/models/gemini-2.5-pro:generateContent"
AZURE = "/openai/deployments/big/chat/completions"
VERTEX = "/v1/projects/p/locations/l/publishers/anthropic/models/claude-opus-4-1:rawPredict"
SAID: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "häll\u2028o"}], "x": {"y": [1e-7, 0.10]}}
ASKED: dict[str, Any] = {"contents": [{"parts": [{"text": "hello"}]}]}


def call_of(path: str, body: object) -> Call:
    """Read a request as the middleware does; its JSON has spaces that no library writes."""
    found = wire_for("POST", path)
    assert found is not None
    raw = body if isinstance(body, bytes) else b" " + json.dumps(body, indent=3, ensure_ascii=False).encode()
    return found[0].read(found[1], path, [(b"content-type", b"application/json")], raw)


def rewritten(call: Call, **changes: Any) -> Call:
    """Rewrite a call that can be."""
    made = WIRES[call.wire].rewrite(call, **changes)
    assert made is not None
    return made


def sent(call: Call) -> Any:
    """Return the body that goes to the provider."""
    body = WIRES[call.wire].request_body(call)
    assert body is not None
    assert call.usage_injected or json.loads(body) == call.body
    return json.loads(body)


@pytest.mark.parametrize(
    ("path", "given", "limits"),
    [
        (CHAT, {"max_tokens": 900}, {"max_tokens": 50}),
        (CHAT, {"max_completion_tokens": 900}, {"max_completion_tokens": 50}),
        (CHAT, {"max_completion_tokens": 900, "max_tokens": 40}, {"max_completion_tokens": 50, "max_tokens": 40}),
        (CHAT, {}, {"max_completion_tokens": 50}),
        (CHAT, {"max_tokens": None}, {"max_completion_tokens": 50, "max_tokens": None}),
        (CHAT, {"max_tokens": 0}, {"max_completion_tokens": 50, "max_tokens": 0}),
        (CHAT, {"n": 3, "max_tokens": 900}, {"n": 3, "max_tokens": 50}),
        ("/v1/completions", {"max_tokens": 900, "prompt": "p"}, {"max_tokens": 50, "prompt": "p"}),
        ("/v1/completions", {"prompt": "p"}, {"max_tokens": 50, "prompt": "p"}),
        ("/v1/responses", {"input": "p", "max_output_tokens": 900}, {"input": "p", "max_output_tokens": 50}),
        ("/v1/responses", {"input": "p", "max_tokens": 7}, {"input": "p", "max_tokens": 7, "max_output_tokens": 50}),
        ("/v1/messages", {"max_tokens": 900}, {"max_tokens": 50}),
        ("/v1/messages", {}, {"max_tokens": 50}),
    ],
)
def test_an_output_limit_is_set_where_the_caller_has_one_or_else_where_the_endpoint_wants_it(
    path: str, given: dict[str, Any], limits: dict[str, Any]
) -> None:
    assert sent(rewritten(call_of(path, {**SAID, **given}), max_output_tokens=50)) == {**SAID, **limits}


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, {"generationConfig": {"maxOutputTokens": 50}}),
        ({"generationConfig": {"topK": 3}}, {"generationConfig": {"topK": 3, "maxOutputTokens": 50}}),
        ({"generationConfig": {"maxOutputTokens": 900}}, {"generationConfig": {"maxOutputTokens": 50}}),
        ({"generationConfig": {"max_output_tokens": 900}}, {"generationConfig": {"max_output_tokens": 50}}),
        ({"generation_config": {"max_output_tokens": 900}}, {"generation_config": {"max_output_tokens": 50}}),
        ({"generation_config": {"candidate_count": 2}}, {"generation_config": {"candidate_count": 2, "max_output_tokens": 50}}),
        (
            {"generationConfig": {"maxOutputTokens": 9, "max_output_tokens": 99}, "generation_config": {"maxOutputTokens": 99}},
            {"generationConfig": {"maxOutputTokens": 9, "max_output_tokens": 50}, "generation_config": {"maxOutputTokens": 50}},
        ),
        (
            {"generationConfig": {"topK": 3}, "generation_config": {"max_output_tokens": 900}},
            {"generationConfig": {"topK": 3}, "generation_config": {"max_output_tokens": 50}},
        ),
    ],
)
def test_geminis_limit_is_set_in_the_callers_spelling(given: dict[str, Any], limits: dict[str, Any]) -> None:
    assert sent(rewritten(call_of(GEMINI, {**ASKED, **given}), max_output_tokens=50)) == {**ASKED, **limits}


@pytest.mark.parametrize(
    ("path", "body", "estimator"),
    [
        (CHAT, {**SAID, "model": "gpt-4o"}, OpenAICostEstimator()),
        (CHAT, {**SAID, "model": "gpt-4o", "n": 4, "max_tokens": 9_000}, OpenAICostEstimator()),
        ("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": ["a", "b"], "best_of": 2}, OpenAICostEstimator()),
        ("/v1/responses", {"model": "gpt-4o", "input": "hello"}, OpenAICostEstimator()),
        ("/v1/messages", {**SAID, "model": "claude-haiku-4-5", "max_tokens": 9_000}, AnthropicCostEstimator()),
        (GEMINI, {**ASKED, "generationConfig": {"candidateCount": 3}}, GeminiCostEstimator()),
    ],
)
def test_what_is_rewritten_to_what_is_affordable_is_affordable(path: str, body: dict[str, Any], estimator: Meter) -> None:
    def estimate(call: Call) -> Any:
        request = InvocationRequest("c", "user:a", call.body or {})
        return estimator.estimate(request, {"model": call.model, "endpoint": call.operation.value})

    call = call_of(path, body)
    asked = estimate(call)
    available = (asked.ceiling_nanos + asked.fixed_yoctos // 10**15) // 2
    affordable = asked.affordable_output_tokens(available)
    assert affordable is not None and affordable > 0
    fits = estimate(rewritten(call, max_output_tokens=affordable)).ceiling_nanos
    assert fits <= available < estimate(rewritten(call, max_output_tokens=affordable + 2)).ceiling_nanos


def test_nothing_but_the_members_that_change_is_written_anew() -> None:
    raw = b'\n{ "messages" : [{"content":"\\u00fc","role":"user"}],\t"max_tokens" : 900 , "model":"gpt-4o", "odd": 1.10e+2 } '
    call = rewritten(call_of(CHAT, raw), model="gpt-4o-mini", max_output_tokens=50)
    assert call.raw == raw.replace(b"900", b"50").replace(b'"gpt-4o"', b'"gpt-4o-mini"')
    assert (call.model, call.path) == ("gpt-4o-mini", CHAT)


def test_a_member_that_is_missing_comes_first() -> None:
    raw = b'{"model":"gpt-4o","messages":[]}'
    assert rewritten(call_of(CHAT, raw), max_output_tokens=5).raw == b'{"max_completion_tokens":5,' + raw[1:]
    assert rewritten(call_of("/v1/completions", b"{ }"), max_output_tokens=5).raw == b'{"max_tokens":5 }'


def test_usage_is_still_asked_for_in_a_stream_that_is_rewritten() -> None:
    body = sent(rewritten(call_of(CHAT, {**SAID, "stream": True, "max_tokens": 900}), model="x", max_output_tokens=50))
    assert body == {**SAID, "stream": True, "max_tokens": 50, "model": "x", "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("path", "body", "want"),
    [
        (GEMINI, ASKED, "/v1beta/models/gemini-2.5-flash:generateContent"),
        (AZURE, {"messages": []}, "/openai/deployments/gemini-2.5-flash/chat/completions"),
        (VERTEX, {"messages": []}, VERTEX.replace("claude-opus-4-1", "gemini-2.5-flash")),
    ],
)
def test_a_model_in_the_path_is_replaced_there(path: str, body: dict[str, Any], want: str) -> None:
    call = rewritten(call_of(path, body), model="gemini-2.5-flash")
    assert (call.path, call.model, sent(call)) == (want, "gemini-2.5-flash", body)
    again = wire_for("POST", call.path)
    assert again is not None and again[0].read(again[1], call.path, [], call.raw).model == call.model


def test_azures_body_names_the_model_that_its_path_does() -> None:
    call = rewritten(call_of(AZURE, {"model": "gpt-4o", "messages": []}), model="small")
    assert call.path == "/openai/deployments/small/chat/completions" and sent(call)["model"] == "small"


@pytest.mark.parametrize("path", ["/v1beta//models/m:generateContent", "/x/../v1/models/m:generateContent"])
def test_a_model_in_an_oddly_spelt_path_stays(path: str) -> None:
    assert WIRES["gemini"].rewrite(call_of(path, ASKED), model="other") is None


@pytest.mark.parametrize("path", ["/v1/tunedModels/mine:generateContent", "/v1/p/endpoints/123:generateContent"])
def test_a_model_of_its_owners_own_stays(path: str) -> None:
    assert WIRES["gemini"].rewrite(call_of(path, ASKED), model="other") is None


@pytest.mark.parametrize("model", ["a/b", "..", "."])
def test_a_model_that_is_no_segment_of_a_path_is_put_into_none(model: str) -> None:
    for path, body in ((GEMINI, ASKED), (AZURE, {"messages": []}), (VERTEX, {"messages": []})):
        call = call_of(path, body)
        assert WIRES[call.wire].rewrite(call, model=model) is None


def test_a_limit_below_the_budget_for_thinking_is_none() -> None:
    call = call_of("/v1/messages", {**SAID, "max_tokens": 9_000, "thinking": {"type": "enabled", "budget_tokens": 2_000}})
    wire = WIRES["anthropic"]
    assert wire.rewrite(call, max_output_tokens=2_000) is None
    assert sent(rewritten(call, max_output_tokens=2_001))["max_tokens"] == 2_001


@pytest.mark.parametrize("limit", [0, -1])
def test_nothing_is_no_limit(limit: int) -> None:
    for path, body in ((CHAT, SAID), ("/v1/messages", SAID), (GEMINI, ASKED)):
        call = call_of(path, body)
        assert WIRES[call.wire].rewrite(call, max_output_tokens=limit) is None


def test_what_has_no_output_or_no_model_is_not_rewritten() -> None:
    embeddings = call_of("/v1/embeddings", {"model": "m", "input": "x"})
    assert WIRES["openai"].rewrite(embeddings, max_output_tokens=5) is None
    assert rewritten(embeddings, model="n").model == "n"
    tool = call_of("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "t"}})
    counted = call_of("/v1/messages/count_tokens", SAID)
    for call in (tool, counted, Call(wire="plain", operation=tool.operation, raw=b"x")):
        assert WIRES[call.wire].rewrite(call, model="n", max_output_tokens=5) is None
