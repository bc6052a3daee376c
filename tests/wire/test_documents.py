"""Whole JSON responses: what each dialect's usage means, and what is too large to be read."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

from sark_mw.usage import Usage
from sark_mw.wire.base import Operation
from sark_mw.wire.encoding import MAX_DECODED_BYTES, UndecodableError, decoder_for, readable_encodings
from tests.wire.serving import passed, pieces
from tests.wire.streams import CHAT_MEANS, CHAT_USAGE, GEMINI_LAST, GEMINI_MEANS, JSON, MESSAGE_MEANS, call, tap_of

_MESSAGE = {
    "type": "message",
    "model": "claude-x",
    "content": [{"type": "text", "text": "hello"}, {"type": "thinking", "thinking": "hm"}],
    "usage": {
        "input_tokens": 7,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
        "output_tokens": 25,
        "output_tokens_details": {"thinking_tokens": 6},
        "service_tier": "standard",
    },
}


def read(wire: str, operation: Operation, body: object) -> tuple[Usage | None, int]:
    raw = json.dumps(body).encode()
    tap = tap_of(call(wire, operation, stream=False), headers=JSON)
    assert passed(tap, pieces(raw, range(0, len(raw), 7))) == raw
    return tap.usage, tap.output_chars


def test_openai_input_includes_its_cached_part() -> None:
    tool = {"function": {"name": "go", "arguments": '{"a":1}'}}
    body = {**CHAT_USAGE, "choices": [{"message": {"content": "hi", "tool_calls": [tool]}}]}
    assert read("openai", Operation.CHAT, body) == (CHAT_MEANS, 11)


def test_anthropic_input_has_its_cached_parts_added() -> None:
    assert read("anthropic", Operation.MESSAGES, _MESSAGE) == (MESSAGE_MEANS, 7)


def test_anthropic_cache_writes_without_a_breakdown_live_five_minutes() -> None:
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 30, "cache_read_input_tokens": None}
    means = Usage(input_tokens=31, cache_write_5m_tokens=30, output_tokens=2)
    assert read("anthropic", Operation.MESSAGES, {"usage": usage})[0] == means


def test_gemini_thoughts_and_tool_prompts_are_outside_the_other_counts() -> None:
    assert read("gemini", Operation.GENERATE, GEMINI_LAST) == (GEMINI_MEANS, 2)
    array = [{"candidates": []}, {"usageMetadata": {"promptTokenCount": 3}}, GEMINI_LAST]
    assert read("gemini", Operation.GENERATE, array) == (GEMINI_MEANS, 2)
    tools = {"usageMetadata": {"promptTokenCount": 3, "toolUsePromptTokenCount": 4}}
    assert (read("gemini", Operation.GENERATE, tools)[0] or Usage()).input_tokens == 7


def test_embeddings_have_no_output() -> None:
    body = {"data": [], "model": "e", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    assert read("openai", Operation.EMBEDDINGS, body)[0] == Usage(input_tokens=8, model="e")


def test_a_chat_usage_without_output_is_no_usage() -> None:
    assert read("openai", Operation.CHAT, {"usage": {"prompt_tokens": 8, "total_tokens": 8}})[0] is None


def test_huge_embeddings_are_read_from_their_tail() -> None:
    vectors = {"data": [{"embedding": [0.25] * 1000}] * 400, "model": "e"}
    usage = {"prompt_tokens": 8, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2}}
    means = Usage(input_tokens=8, cache_read_tokens=2)
    for body in ({**vectors, "usage": usage}, {**vectors, "usage": usage, "id": "x"}):
        assert read("openai", Operation.EMBEDDINGS, body)[0] == means
    assert read("openai", Operation.EMBEDDINGS, vectors)[0] is None


def test_a_document_over_the_bound_is_passed_and_not_kept() -> None:
    tap = tap_of(call("openai", Operation.CHAT, stream=False), headers=JSON)
    chunk = b" " * 1024 * 1024
    assert all(tap.feed(chunk) is chunk for _ in range(20))
    assert tap.finish() == b"" and tap.usage is None and tap.started


@pytest.mark.parametrize(
    "body",
    [
        "null",
        "[]",
        "7",
        '"x"',
        '{"usage": 5}',
        '{"usage": {"prompt_tokens": {}}}',
        '{"usage":' * 5000,
        "[" * 100_000,
        '{"choices": {"a": 1}, "usage": [], "content": 3, "output": [{"content": "x"}, 5], "candidates": [{"content": []}]}',
        '{"usage": {"prompt_tokens": ' + "9" * 5000 + "}}",
    ],
)
@pytest.mark.parametrize(
    ("wire", "operation"),
    [
        ("openai", Operation.CHAT),
        ("openai", Operation.RESPONSES),
        ("openai", Operation.EMBEDDINGS),
        ("anthropic", Operation.MESSAGES),
        ("gemini", Operation.GENERATE),
    ],
)
def test_a_hostile_upstream_raises_nothing(wire: str, operation: Operation, body: str) -> None:
    for headers in (JSON, ((b"content-type", b"text/event-stream"),)):
        raw = f"data: {body}\n\n".encode() if headers is not JSON else body.encode()
        tap = tap_of(call(wire, operation), headers=headers)
        assert passed(tap, [raw]) == raw
        assert tap.usage is None


@pytest.mark.parametrize("coding", readable_encodings())
def test_a_decompression_bomb_is_not_unpacked(coding: str) -> None:
    import brotli
    import zstandard

    def gzipped(data: bytes) -> bytes:
        return gzip.compress(data, 9)

    pack = {"gzip": gzipped, "deflate": zlib.compress, "br": brotli.compress}
    pack["zstd"] = zstandard.compress
    bomb = pack[coding](b"\0" * (MAX_DECODED_BYTES + 10_000_000))
    headers = (*JSON, (b"content-encoding", coding.encode()))
    decoder = decoder_for(headers)
    assert decoder is not None
    assert max(len(piece) for piece in decoder.feed(bomb[: len(bomb) // 2])) <= 2 * 1024 * 1024
    whole = decoder_for(headers)
    assert whole is not None
    with pytest.raises(UndecodableError, match="decodes to more than"):
        for _piece in whole.feed(bomb):
            pass
    tap = tap_of(call("openai", Operation.CHAT, stream=False), headers=headers)
    assert passed(tap, [bomb]) == bomb and tap.usage is None


def test_the_encodings_that_can_be_read_here_are_named() -> None:
    assert {"gzip", "deflate", "br", "zstd"} == set(readable_encodings())
