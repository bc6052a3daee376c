"""Requests written to be read otherwise than the provider reads them: odd paths, odd spellings, and much of little."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sark_mw.errors import InvalidRequestError
from sark_mw.wire import WIRES, wire_for
from sark_mw.wire.base import Call, Operation
from sark_mw.wire.body import clean_path, read_json, with_member
from tests.wire.test_requests import JSON, VALID, injected, read


def owner(path: str) -> tuple[str, str] | None:
    found = wire_for("POST", path)
    return None if found is None else (found[0].name, str(found[1]))


@pytest.mark.parametrize(("path", "body"), VALID)
@pytest.mark.parametrize("tenant", ["t\n", "\n", "\r\n", "t\u2028", "\x85", "t\x0b"])
def test_a_line_end_in_a_segment_hides_no_path(path: str, body: dict[str, Any], tenant: str) -> None:
    assert owner(f"/{tenant}{path}") == owner(path) is not None


def test_paths_of_any_length_are_read_in_time_that_grows_with_them() -> None:
    # By a pattern that goes back over what it has read, each of these takes many minutes.
    long = 100_000
    for path in ("/v" + "1" * long + "!", "/v1" * long, "/v" + "1" * long + "/messages!", "/a:" * long, "/models/" + ":" * long):
        assert owner(path) is None
    assert owner("/a" * long + "/.." * long + "/v1/chat/completions") == ("openai", "chat")
    assert owner("/v" + "1" * long + "/messages") == ("anthropic", "messages")


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1beta/models/./gemini-2.5-pro:generateContent", "gemini-2.5-pro"),
        ("/v1beta/models//gemini-2.5-pro:generateContent/", "gemini-2.5-pro"),
        ("/v1beta/x/../models/gemini-2.5-pro:GenerateContent", "gemini-2.5-pro"),
        ("/v1beta/models/gemini:2:generateContent", "gemini:2"),
        ("/v1beta/tunedModels/gemini-2.0-flash-lite:generateContent", "tunedModels:gemini-2.0-flash-lite"),
        ("/v1/projects/p/locations/l/endpoints/12:streamGenerateContent", "endpoints:12"),
    ],
)
def test_gemini_is_recognised_on_every_path_that_generates(path: str, model: str) -> None:
    assert owner(path) == ("gemini", "generate")
    assert read(path, {"contents": []}).model == model


@pytest.mark.parametrize("publisher", ["mistralai", "meta", "google"])
def test_a_raw_prediction_in_an_unknown_dialect_is_refused(publisher: str) -> None:
    for method in ("rawPredict", "streamRawPredict"):
        with pytest.raises(InvalidRequestError, match="rawPredict"):
            read(f"/v1/projects/p/locations/l/publishers/{publisher}/models/m:{method}", {"model": "m", "messages": []})


def test_claude_on_vertex_is_anthropics_with_the_model_of_the_path() -> None:
    body = {"anthropic_version": "vertex-2023-10-16", "model": "cheaper", "messages": [], "max_tokens": 5, "stream": True}
    for method in ("rawPredict", "streamRawPredict"):
        path = f"/v1/projects/p/locations/l/publishers/anthropic/models/claude-opus-4-5@20251101:{method}"
        call = read(path, body)
        assert (call.wire, call.operation, call.model) == ("anthropic", Operation.MESSAGES, "claude-opus-4-5@20251101")
    assert owner("/publishers/anthropic/models/count-tokens:rawPredict") == ("anthropic", "count_tokens")


RPC: list[object] = [
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}},
    [{"jsonrpc": "2.0", "method": "notifications/initialized"}],
]


@pytest.mark.parametrize("body", RPC)
def test_the_older_transport_of_mcp_passes_on_a_bare_messages_path_only(body: object) -> None:
    call = read("/messages/", body)
    assert (call.wire, call.operation, call.tools) == ("mcp", Operation.OTHER, ())
    assert json.loads(call.raw) == body
    with pytest.raises(InvalidRequestError):
        read("/v1/messages", body)


def test_messages_that_call_themselves_json_rpc_are_messages() -> None:
    body = {"jsonrpc": "2.0", "model": "claude-opus-4-5", "max_tokens": 5, "messages": []}
    assert read("/messages", body).operation == Operation.MESSAGES
    for odd in ([body], [], [RPC[0], body]):
        with pytest.raises(InvalidRequestError):
            read("/messages", odd)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b'{"max_tokens": 16000, "messages": [], "max_tokens": 1}', "max_tokens"),
        (b'{"messages": [], "max_tokens": 9, "max\\u005ftokens": 1}', "max_tokens"),
        (b'{"messages": [{"role": "user", "content": "long", "content": ""}]}', "content"),
        (b'{"stream_options": {}, "messages": [], "stream_options": {}}', "stream_options"),
    ],
)
def test_a_key_that_stands_twice_is_refused_by_name(raw: bytes, key: str) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", "/v1beta/models/g:generateContent", "/mcp"):
        with pytest.raises(InvalidRequestError, match=f"'{key}' stands twice") as error:
            read(path, raw)
        assert error.value.param == key


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[],"x":{' + b",".join(b'"%x":0' % n for n in range(600_000)) + b"}}",
        b'{"messages":[],"stream":true,"stream_options":{},"x":[' + b"0," * 1_500_000 + b"0]}",
        b'{"messages":[{"content":"' + b"," * 1_000_001 + b'"}]}',
    ],
)
def test_a_body_with_more_structure_than_any_model_reads_is_refused_unparsed(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="more than 1000000 commas"):
        read("/v1/chat/completions", body)


def test_much_text_with_little_structure_is_read() -> None:
    body = {"messages": [{"role": "user", "content": "a word, " * 900_000}]}
    assert read("/v1/chat/completions", body).operation == Operation.CHAT


def test_asking_for_usage_changes_nothing_else_of_a_body_that_has_stream_options() -> None:
    body = (
        b'\n{ "messages" : ["\\ud800 \xc3\xa9 \\"stream_options\\":{", {"stream_options": 1}], "seed": 1.0e2, "stream":true ,'
        b' "stream\\u005foptions" :\t{"include_obfuscation" : false} , "stream_options ": 7 } '
    )
    call, sent = injected(body)
    assert call.usage_injected and sent is not None
    old = b'{"include_obfuscation" : false}'
    assert sent == body.replace(old, b'{"include_obfuscation":false,"include_usage":true}')
    call, sent = injected(b'{"stream_options":null,"messages":[],"stream":true}')
    assert sent == b'{"stream_options":{"include_usage":true},"messages":[],"stream":true}'


KEYS = st.text(max_size=5)
VALUES = (
    st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2) | st.dictionaries(KEYS, st.none(), max_size=2)
)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=6), st.data(), st.sampled_from([None, 1]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_replacing_a_member_is_what_parsing_and_writing_would_be(
    body: dict[str, Any], data: st.DataObject, indent: int | None, escaped: bool
) -> None:
    name = data.draw(st.sampled_from(sorted(body)))
    raw = json.dumps(body, indent=indent, ensure_ascii=escaped).encode("utf-8", "replace")
    name, body = (name.encode("utf-8", "replace").decode(), json.loads(raw)) if not escaped else (name, body)
    if name in body:
        assert read_json(with_member(raw, name, [1])) == {**body, name: [1]}


def test_no_spelling_of_dots_and_slashes_is_cleaned_twice_otherwise() -> None:
    for path in ("/../../v1//messages/", "/a/b/../../v1/./messages", "v1/messages"):
        assert clean_path(path) == "/v1/messages" == clean_path(clean_path(path))


def test_every_wire_still_answers_by_its_name() -> None:
    call: Call = WIRES["gemini"].read(Operation.GENERATE, "/models/g:generateContent", JSON, b'{"contents": []}')
    assert call.wire == "gemini"
