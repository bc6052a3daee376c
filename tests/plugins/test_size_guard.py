from __future__ import annotations

from typing import Any

import pytest

from plugins.size_guard import SizeGuardPlugin
from sark_mw import ConfigurationError, Obligation, PolicyDecision, PolicyPluginManager
from sark_mw._fake_provider import FakeProvider
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT
from tests.policy.samples import a_context


async def ask(plugin: SizeGuardPlugin, arguments: dict[str, Any], **environment: Any) -> PolicyDecision:
    return await plugin.evaluate(a_context(arguments=arguments, environment=environment))


def said(*parts: dict[str, Any] | str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
TEXT = {"type": "text", "text": "hello"}


async def test_the_length_is_the_bodys_own_as_it_came() -> None:
    plugin = SizeGuardPlugin(max_body_bytes=100)
    assert (await ask(plugin, {"a": 1}, body_bytes=100)).allowed
    decision = await ask(plugin, {"a": 1}, body_bytes=101)
    assert not decision.allowed and decision.metadata == {"bytes": 101}
    assert not (await ask(plugin, {"a": "x" * 100})).allowed  # where nobody says how long it was


async def test_too_many_messages_are_denied_in_every_dialect() -> None:
    plugin = SizeGuardPlugin(max_messages=2)
    for name in ("messages", "input", "contents"):
        assert (await ask(plugin, {name: [said(TEXT)] * 2})).allowed
        assert not (await ask(plugin, {name: [said(TEXT)] * 3})).allowed
    assert (await ask(plugin, {"input": "a string"})).allowed


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (said(IMAGE, TEXT), "image"),
        (said({"type": "input_audio", "input_audio": {}}), "audio"),
        (said({"type": "document", "source": {}}), "file"),
        (said({"type": "image", "source": {}}), "image"),
        (said({"type": "document", "source": {"type": "content", "content": [IMAGE, TEXT]}}), "image"),
        ({"parts": {"inlineData": {"mimeType": "image/png"}}}, "image"),
        ({"parts": [{"text": "", "inlineData": None, "inline_data": {"mime_type": "image/png"}}]}, "image"),
        (said([IMAGE]), "image"),  # type: ignore[arg-type]
        (said({"type": "tool_result", "content": [{"type": "image", "source": {}}]}), "image"),
        ({"role": "user", "parts": [{"inlineData": {"mimeType": "image/png"}}]}, "image"),
        ({"role": "user", "parts": [{"fileData": {"mimeType": "application/pdf"}}]}, "file"),
        ({"parts": [{"inline_data": {"mime_type": "video/mp4"}}]}, "video"),
        ({"parts": [{"functionResponse": {"name": "f", "parts": [{"inlineData": {"mimeType": "audio/wav"}}]}}]}, "audio"),
        ({"type": "input_image", "image_url": "x"}, "image"),
        (said({"type": "hologram"}), "other"),
        (said({"strange": 1}), "other"),
    ],
)
async def test_content_of_other_kinds_than_those_allowed_is_denied(message: dict[str, Any], kind: str) -> None:
    text_only = SizeGuardPlugin(content_types=["text", "tool"])
    name = "contents" if "parts" in message else "messages"
    decision = await ask(text_only, {name: [said("plain"), message]})
    assert not decision.allowed and kind in decision.metadata["content"], decision
    assert not (await ask(text_only, {name: message})).allowed, "one object is a list of one"
    assert (await ask(SizeGuardPlugin(content_types=["text", "tool", "file", kind]), {name: [message]})).allowed


PNG = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"prompt": {"id": "pmpt_1", "variables": {"a": "text", "b": {"type": "input_image", "image_url": "x"}}}}, "image"),
        ({"prompt": {"id": "pmpt_1", "variables": {"b": {"type": "input_file", "file_id": "x"}}}}, "file"),
        ({"tools": [{"type": "image_generation", "input_image_mask": {"image_url": "data:x"}}]}, "image"),
        ({"tools": [{"type": "image_generation", "input_image_mask": {"file_id": "x"}}]}, "image"),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["x"]}}]}, "file"),
        (
            {
                "input": [
                    {"type": "additional_tools", "tools": [{"type": "image_generation", "input_image_mask": {"file_id": "x"}}]}
                ]
            },
            "image",
        ),
        ({"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "x"}}]}, "image"),
        ({"input": [{"type": "image_generation_call", "id": "x", "result": "AAAA"}]}, "image"),
        ({"input": [{"type": "code_interpreter_call", "outputs": [{"type": "image", "url": "x"}]}]}, "image"),
        ({"systemInstruction": {"parts": [PNG]}}, "image"),
        ({"system_instruction": {"parts": PNG}}, "image"),
        ({"generateContentRequest": {"contents": [{"parts": [PNG]}]}}, "image"),
        ({"generate_content_request": {"system_instruction": {"parts": [PNG]}}}, "image"),
        ({"contents": [{"parts": [{"function_response": {"name": "f", "parts": [PNG]}}]}]}, "image"),
        ({"system": [{"type": "document", "source": {"type": "base64", "data": "AA"}}]}, "file"),
        ({"system": [{"type": "text", "text": "x"}, {"type": "image", "source": {}}]}, "image"),
        ({"prediction": {"type": "content", "content": [TEXT, IMAGE]}}, "image"),
        ({"messages": [said({"type": "text", "text": "x", "image_url": {"url": "x"}})]}, "image"),
        ({"messages": [said({"text": "x", "input_audio": {"data": "x"}})]}, "audio"),
        ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "audio_1"}}]}, "audio"),
    ],
)
async def test_content_is_seen_wherever_a_request_carries_it(body: dict[str, Any], kind: str) -> None:
    decision = await ask(SizeGuardPlugin(content_types=["text", "tool"]), body)
    assert not decision.allowed and set(decision.metadata["content"]) - {"text", "tool"} == {kind}
    assert (await ask(SizeGuardPlugin(content_types=["text", "tool", kind]), body)).allowed
    assert (await ask(SizeGuardPlugin(max_messages=1), body)).allowed, "only messages are counted as such"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"mimeType": "Image/png"}, "image"),
        ({"mime_type": " VIDEO/mp4"}, "video"),
        ({"mimeType": "application/pdf", "mime_type": "image/png"}, "image"),
        ({}, "file"),
    ],
)
async def test_media_types_are_read_whatever_their_case(data: dict[str, Any], kind: str) -> None:
    decision = await ask(SizeGuardPlugin(content_types=["text"]), {"contents": [{"parts": [{"inlineData": data}]}]})
    assert kind in decision.metadata["content"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "tool", "tool_call_id": "x", "content": "x"},
        {"role": "function", "name": "f", "content": "x"},
        {"type": "mcp_approval_response", "approve": True},
        said({"type": "web_fetch_tool_result", "content": {"type": "web_fetch_result", "url": "x"}}),
        {"role": "model", "parts": [{"function_call": {"name": "f"}}]},
        {"role": "model", "parts": [{"executableCode": {"code": "x"}}, {"codeExecutionResult": {"output": "x"}}]},
    ],
)
async def test_what_tools_are_asked_and_answer_is_of_the_kind_tool(message: dict[str, Any]) -> None:
    field = "contents" if "parts" in message else "messages"
    decision = await ask(SizeGuardPlugin(content_types=["text"]), {field: [message]})
    assert not decision.allowed and set(decision.metadata["content"]) <= {"text", "tool"}
    assert (await ask(SizeGuardPlugin(content_types=["text", "tool"]), {field: [message]})).allowed


async def test_fields_that_are_empty_carry_nothing() -> None:
    messages = [{"role": "assistant", "content": "x", "tool_calls": [], "function_call": None, "audio": None}]
    body = {"messages": messages, "system": None, "prompt": {"id": "x"}, "tools": [{"type": "function", "name": "f"}, "odd"]}
    assert (await ask(SizeGuardPlugin(content_types=["text"]), body)).allowed
    assert (await ask(SizeGuardPlugin(content_types=["text"]), {"prompt": [1, 2], "prediction": {}, "input": [[3]]})).allowed


async def test_what_is_text_in_any_dialect_is_text() -> None:
    plugin = SizeGuardPlugin(content_types=["text", "tool"])
    messages = [
        said("plain"),
        {"role": "user", "content": "plain"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]},
        said({"type": "input_text", "text": "x"}, {"type": "thinking", "thinking": "x"}),
        {"type": "function_call_output", "call_id": "1", "output": "x"},
        {"role": "model", "parts": [{"text": "x"}, {"functionCall": {"name": "f", "args": {}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"a": 1}}}]},
    ]
    assert (await ask(plugin, {"messages": messages})).allowed


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        ({"max_tokens": 100}, True),
        ({"max_tokens": 101}, False),
        ({"max_completion_tokens": 101, "max_tokens": 1}, False),
        ({"generationConfig": {"maxOutputTokens": 100}}, True),
        ({"generationConfig": {"maxOutputTokens": 5000}}, False),
        ({}, False),
    ],
)
async def test_more_output_than_allowed_is_denied_or_capped(body: dict[str, Any], allowed: bool) -> None:
    assert (await ask(SizeGuardPlugin(max_output_tokens=100), body)).allowed is allowed
    capped = await ask(SizeGuardPlugin(max_output_tokens=100, cap_output=True), body)
    assert capped.allowed and capped.obligations == (() if allowed else (Obligation("cap_output_tokens", 100),))


@pytest.mark.parametrize(
    ("wire", "operation", "body", "allowed"),
    [
        ("openai", "chat", {"max_output_tokens": 1}, False),
        ("openai", "chat", {"generationConfig": {"maxOutputTokens": 1}}, False),
        ("openai", "chat", {"max_tokens": 1, "max_output_tokens": 5000}, True),
        ("openai", "responses", {"max_tokens": 1}, False),
        ("openai", "embeddings", {}, True),
        ("openai", "", {"messages": [], "max_output_tokens": 1}, False),
        ("anthropic", "messages", {"max_completion_tokens": 1}, False),
        ("anthropic", "messages", {"max_tokens": 1}, True),
        ("gemini", "generate", {"max_tokens": 1}, False),
        (
            "gemini",
            "generate",
            {"generationConfig": {"maxOutputTokens": 1}, "generation_config": {"maxOutputTokens": 101}},
            False,
        ),
        ("gemini", "generate", {"generationConfig": {"maxOutputTokens": 0}}, False),
        ("gemini", "generate", {"generation_config": {"max_output_tokens": 1}}, True),
    ],
)
async def test_a_limit_of_another_wire_is_no_limit(wire: str, operation: str, body: dict[str, Any], allowed: bool) -> None:
    assert (await ask(SizeGuardPlugin(max_output_tokens=100), body, wire=wire, operation=operation)).allowed is allowed


STRICT = {"max_messages": 2, "content_types": ["text"], "max_output_tokens": 10}


@pytest.mark.parametrize(
    "arguments",
    [{}, {"q": "x"}, {"input": {"path": "a"}}, {"messages": [{"id": 5}]}, {"input": [1, 2, 3]}, {"model": "T", "max_tokens": 99}],
)
async def test_of_a_tools_call_over_mcp_only_the_length_is_judged(arguments: dict[str, Any]) -> None:
    assert (await ask(SizeGuardPlugin(**STRICT), arguments, wire="mcp", operation="tool_call")).allowed
    capped = await ask(SizeGuardPlugin(max_output_tokens=10, cap_output=True), arguments, wire="mcp")
    assert capped.allowed and capped.obligations == (), "there is nothing to lower"
    assert not (await ask(SizeGuardPlugin(max_body_bytes=100), arguments, wire="mcp", body_bytes=101)).allowed


async def test_a_plain_body_is_judged_where_it_names_a_model() -> None:
    plugin = SizeGuardPlugin(**STRICT)
    assert (await ask(plugin, {"input": [1, 2, 3], "messages": [said(IMAGE)]}, wire="plain")).allowed
    assert not (await ask(plugin, {"model": "llama", "messages": [said(IMAGE)]}, wire="plain")).allowed
    assert not (await ask(plugin, {"max_tokens": 11}, wire="plain", model="llama")).allowed


async def test_a_gateway_lets_tools_be_called_that_guards_what_its_models_write(make: MakeGateway) -> None:
    manager, provider = PolicyPluginManager(), FakeProvider()
    await manager.register_plugin(SizeGuardPlugin(**STRICT))
    gateway = await make(provider, {"policies": manager}, routes=({"path": "/mcp", "wire": "mcp", "price_usd": "0.001"},))
    call = {"name": "search", "arguments": {"input": [1, 2, 3]}}
    answer = await gateway.post({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}, path="/mcp")
    assert b"size_guard" not in answer.body
    assert (await gateway.post(CHAT)).status == 403


async def test_a_fallback_with_a_limit_of_its_own_does_not_get_round_it() -> None:
    for cap in (True, False):
        plugin = SizeGuardPlugin(max_output_tokens=100, cap_output=cap)
        body = {"max_tokens": 100, "fallbacks": [{"model": "claude-opus", "max_tokens": 101}]}
        decision = await ask(plugin, body, wire="anthropic", operation="messages")
        assert (decision.allowed, decision.reason) == (False, "a fallback asks for up to 101 output tokens, 100 are allowed")
        for fallbacks in ("default", ["claude-haiku"], [{"model": "claude-haiku", "max_tokens": 100}], None):
            assert (await ask(plugin, {"max_tokens": 100, "fallbacks": fallbacks}, wire="anthropic")).allowed


@pytest.mark.parametrize("options", [{"max_messages": 0}, {"max_body_bytes": True}, {"content_types": ["pictures"]}])
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SizeGuardPlugin(**options)


async def test_over_http_the_bodys_bytes_count_and_the_output_is_capped_on_the_wire(make: MakeGateway) -> None:
    manager, provider = PolicyPluginManager(), FakeProvider()
    await manager.register_plugin(SizeGuardPlugin(max_body_bytes=500, max_output_tokens=50, cap_output=True))
    gateway = await make(provider, {"policies": manager})
    assert (await gateway.post(CHAT)).status == 200
    assert provider.calls[0].body["max_tokens"] == 50
    long = await gateway.post({**CHAT, "user": "x" * 500})
    assert long.status == 403 and "bytes long" in long.json["error"]["message"]
