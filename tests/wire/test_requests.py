"""Requests: which paths are whose, what a request means, and that hostile ones are refused politely."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sark_mw.errors import InvalidRequestError
from sark_mw.wire import WIRES, wire_for
from sark_mw.wire.base import Call, Operation, ToolCall
from sark_mw.wire.openai import OpenAIWire

JSON = [(b"content-type", b"application/json")]
#: A valid request of each dialect and its path.
VALID: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "stream": True}),
    ("/v1/completions", {"model": "m", "prompt": "hi"}),
    ("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 5}),
    ("/v1/embeddings", {"model": "m", "input": ["a", "b"]}),
    ("/v1/messages", {"model": "m", "max_tokens": 5, "messages": []}),
    ("/v1/messages/count_tokens", {"model": "m", "messages": []}),
    ("/v1beta/models/gemini-2.5-pro:generateContent", {"contents": []}),
    ("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search", "arguments": {"q": "x"}}}),
]


def read(path: str, body: object, headers: list[tuple[bytes, bytes]] | None = None) -> Call:
    found = wire_for("POST", path)
    assert found is not None
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return found[0].read(found[1], path, JSON if headers is None else headers, raw)


@pytest.mark.parametrize(
    ("path", "wire", "operation"),
    [
        ("/v1/chat/completions", "openai", "chat"),
        ("/chat/completions", "openai", "chat"),
        ("/proxy/openai/deployments/gpt-4o/chat/completions", "openai", "chat"),
        ("/openai/deployments/ada/embeddings", "openai", "embeddings"),
        ("/api/v1/completions", "openai", "completions"),
        ("/v1/engines/davinci/completions", "openai", "completions"),
        ("/openai/v1/responses", "openai", "responses"),
        ("//V1//chat/./completions/", "openai", "chat"),
        ("/v1/x/../chat/completions", "openai", "chat"),
        ("/v1/messages", "anthropic", "messages"),
        ("/anthropic/v1/messages", "anthropic", "messages"),
        ("/v1/messages/count_tokens", "anthropic", "count_tokens"),
        ("/v1beta/models/gemini-2.5-pro:generateContent", "gemini", "generate"),
        ("/v1/projects/p/locations/l/publishers/google/models/g:streamGenerateContent", "gemini", "generate"),
        ("/v1beta/models/g:countTokens", "gemini", "count_tokens"),
        ("/mcp", "mcp", "tool_call"),
        ("/servers/files/mcp/", "mcp", "tool_call"),
    ],
)
def test_a_metered_path_is_recognised_however_it_is_spelled(path: str, wire: str, operation: str) -> None:
    found = wire_for("POST", path)
    assert found is not None and (found[0].name, found[1]) == (wire, operation)
    assert wire_for("GET", path) is None


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/models",
        "/surveys/7/responses",
        "/v1/threads/t/messages",
        "/v1/responses/resp_1/cancel",
        "/chat",
        "/v1/messages/batches",
        "/v1beta/models/g:embedContent",
        "/mcp/other",
        "/v1/chat/completions/c1",
    ],
)
def test_other_paths_are_nobodys(path: str) -> None:
    assert wire_for("POST", path) is None


def test_free_operations_are_free() -> None:
    assert {operation for operation in Operation if operation.free} == {Operation.COUNT_TOKENS, Operation.OTHER}


def test_a_call_carries_what_was_asked() -> None:
    call = read(*VALID[0])
    assert (call.wire, call.operation, call.model, call.stream) == ("openai", Operation.CHAT, "gpt-4o", True)
    assert call.body is not None and call.body["messages"][0]["content"] == "hi"


def test_azure_and_gemini_name_the_model_in_the_path() -> None:
    assert read("/openai/deployments/My-GPT/chat/completions", {"messages": []}).model == "My-GPT"
    assert read("/v1beta/models/gemini-2.5-pro:generateContent", {}).model == "gemini-2.5-pro"
    assert read("/v1beta/models/g:streamGenerateContent", {}).stream and not read("/v1beta/models/g:generateContent", {}).stream


def injected(body: bytes) -> tuple[Call, bytes | None]:
    call = read("/v1/chat/completions", body)
    return call, WIRES["openai"].request_body(call)


def test_usage_is_asked_for_where_the_client_did_not_and_nothing_else_of_its_bytes_changes() -> None:
    body = b' {"model": "m", "seed": 1.0e2, "messages": ["\\ud800 \xc3\xa9"], "stream": true}\n'
    call, sent = injected(body)
    assert call.usage_injected and call.strip_accept_encoding and sent is not None
    assert sent == body.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)
    assert json.loads(sent)["stream_options"] == {"include_usage": True}


def test_other_stream_options_are_kept() -> None:
    body = b'{"messages": ["\\ud800"], "stream": true, "stream_options": {"include_usage": false, "include_obfuscation": false}}'
    call, sent = injected(body)
    assert call.usage_injected and sent is not None
    told = json.loads(sent)
    assert told["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert told["messages"] == json.loads(body)["messages"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [], "stream": true, "stream_options": {"include_usage": true}}',
        b'{"messages": [], "stream": false}',
        b'{"messages": []}',
    ],
)
def test_a_request_that_needs_nothing_is_sent_as_it_is(body: bytes) -> None:
    call, sent = injected(body)
    assert sent is None and not call.usage_injected and not call.strip_accept_encoding


def test_injection_can_be_switched_off() -> None:
    wire = OpenAIWire(inject_usage=False)
    assert not wire.read(Operation.CHAT, "/v1/chat/completions", JSON, b'{"messages": [], "stream": true}').usage_injected


def test_an_mcp_batch_gives_its_tools_and_ids() -> None:
    batch = [
        {"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": {"name": "search"}},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
        {"jsonrpc": "2.0", "id": 9, "result": {}},
    ]
    call = read("/mcp", batch)
    assert call.tools == (ToolCall(name="search", rpc_id="a", arguments={}),)
    assert call.rpc_ids == ("a", 2) and call.rpc_batch and call.operation == Operation.TOOL_CALL
    assert read("/mcp", batch[2]).operation == Operation.OTHER


BAD_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"model": 5, "messages": []}, "model"),
    ("/v1/chat/completions", {"model": "a\nb", "messages": []}, "model"),
    ("/v1/chat/completions", {"model": "x" * 300, "messages": []}, "model"),
    ("/v1/chat/completions", {"model": "\ud800", "messages": []}, "model"),
    ("/v1/chat/completions", {"model": "m"}, "messages"),
    ("/v1/chat/completions", {"model": "m", "messages": {}}, "messages"),
    ("/v1/chat/completions", {"messages": [], "stream": "yes"}, "stream"),
    ("/v1/chat/completions", {"messages": [], "stream": 1}, "stream"),
    ("/v1/chat/completions", {"messages": [], "max_tokens": -1}, "max_tokens"),
    ("/v1/chat/completions", {"messages": [], "max_completion_tokens": 1e9}, "max_completion_tokens"),
    ("/v1/chat/completions", {"messages": [], "max_tokens": True}, "max_tokens"),
    ("/v1/chat/completions", {"messages": [], "n": 0}, "n"),
    ("/v1/chat/completions", {"messages": [], "n": 10**30}, "n"),
    ("/v1/chat/completions", {"messages": [], "stream": True, "stream_options": []}, "stream_options"),
    ("/v1/chat/completions", {"messages": [], "stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
    ("/v1/embeddings", {"model": "m"}, "input"),
    ("/v1/responses", {"input": 5}, "input"),
    ("/v1/messages", {"messages": [], "max_tokens": "5"}, "max_tokens"),
    ("/v1/messages", {"messages": "hi", "max_tokens": 5}, "messages"),
    ("/v1beta/models/g:generateContent", {"generationConfig": {"maxOutputTokens": -1}}, "maxOutputTokens"),
    ("/v1beta/models/g:generateContent", {"generationConfig": 1}, "generationConfig"),
    ("/mcp", {"method": "tools/call", "params": {"name": 5}}, "params.name"),
    ("/mcp", {"method": "tools/call", "params": {"name": "x", "arguments": []}}, "params.arguments"),
    ("/mcp", {"method": "tools/call", "id": {}, "params": {"name": "x"}}, "id"),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD_FIELDS)
def test_a_wrong_field_is_named(path: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        read(path, body)
    assert error.value.param == param


HOSTILE = {
    "empty": b"",
    "truncated": b'{"messages": [{"role": "us',
    "not an object": b'["messages"]',
    "no json": b"<xml/>",
    "nan": b'{"messages": [], "temperature": NaN}',
    "infinite": b'{"messages": [], "temperature": 1e999}',
    "endless number": b'{"messages": [], "n": ' + b"9" * 100_000 + b"}",
    "latin-1": b'{"messages": ["\xe9"]}',
    "utf-16": '{"messages": []}'.encode("utf-16"),
    "bom": b'\xef\xbb\xbf{"messages": []}',
    "deep": b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}",
    "very deep": b'{"messages": ' + b'[{"a":' * 200_000,
    "deep objects": b'{"messages": [], "x": ' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}",
    "wide": b'{"messages": [' + b"[]," * 3_000_000 + b"[]]}",
    "nul": b"\0" * 100,
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("path", [path for path, _ in VALID])
def test_hostile_bodies_are_invalid_requests(path: str, body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        read(path, body)


def test_ten_megabytes_take_bounded_memory() -> None:
    body = b'{"messages": [' + b"{}," * 3_300_000 + b"{}]}"
    tracemalloc.start()
    with pytest.raises(InvalidRequestError):
        read("/v1/chat/completions", body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
    text = json.dumps({"messages": [{"content": "{[" * 200_000 + "x" * 10_000_000}]}).encode()
    assert read("/v1/chat/completions", text).operation == Operation.CHAT


@pytest.mark.parametrize(
    ("header", "value"),
    [(b"content-type", b"text/plain"), (b"content-type", b"multipart/form-data; boundary=x"), (b"content-encoding", b"gzip")],
)
def test_bodies_declared_as_something_else_are_refused(header: bytes, value: bytes) -> None:
    for path, body in VALID:
        with pytest.raises(InvalidRequestError) as error:
            read(path, body, [(header, value)])
        assert error.value.param == header.decode()


def test_json_types_and_none_are_accepted() -> None:
    for headers in ([], [(b"content-type", b"application/vnd.x+json; charset=utf-8")], [(b"content-encoding", b"identity")]):
        assert read(*VALID[0], headers).model == "gpt-4o"


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters(), max_size=8)
JSONISH = st.recursive(
    LEAVES, lambda child: st.lists(child, max_size=4) | st.dictionaries(st.text(max_size=8), child, max_size=4), max_leaves=12
)
FIELDS = st.sampled_from(
    [
        "model",
        "messages",
        "input",
        "prompt",
        "stream",
        "stream_options",
        "max_tokens",
        "n",
        "system",
        "tools",
        "method",
        "params",
        "id",
        "contents",
        "generationConfig",
    ]
)


@given(st.sampled_from(VALID), st.dictionaries(FIELDS, JSONISH, max_size=5))
@settings(max_examples=400, deadline=None)
def test_wrong_types_anywhere_raise_nothing_but_invalid_requests(valid: tuple[str, dict[str, Any]], odd: dict[str, Any]) -> None:
    path, body = valid
    try:
        call = read(path, {**body, **odd})
        sent = WIRES[call.wire].request_body(call)
    except InvalidRequestError:
        return
    assert call.model is None or call.model.isprintable()
    assert sent is None or isinstance(json.loads(sent), dict)


@given(st.sampled_from([path for path, _ in VALID]), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_raise_nothing_but_invalid_requests(path: str, body: bytes) -> None:
    try:
        read(path, body)
    except InvalidRequestError as error:
        assert str(error)


@given(st.text(max_size=60), st.sampled_from(["POST", "GET", "PUT", ""]))
def test_any_path_is_somebodys_or_nobodys(path: str, method: str) -> None:
    wire_for(method, "/" + path)
