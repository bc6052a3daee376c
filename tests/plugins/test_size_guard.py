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
