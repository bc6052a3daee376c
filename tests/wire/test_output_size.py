"""What a tap tells of the text it saw, for a response that does not tell its usage itself."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from sark_mw.pricing.tokens import expected_tokens, tokenizer
from sark_mw.wire.base import Operation, UsageTap
from sark_mw.wire.seen import SeenText
from tests.pricing.texts import KINDS, LANGUAGES
from tests.wire.serving import passed, pieces
from tests.wire.streams import JSON, call, sse, tap_of

TEXTS = {name: LANGUAGES[name] for name in ("chinese", "russian", "english", "hindi", "arabic", "korean")}
TEXTS["emoji"] = KINDS["emoji"]


def _chat(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def _response(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text}


def _message(text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "delta": {"text": text}}


def _candidate(text: str) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": text}]}}]}


DIALECTS: list[tuple[str, Operation, Any]] = [
    ("openai", Operation.CHAT, _chat),
    ("openai", Operation.RESPONSES, _response),
    ("anthropic", Operation.MESSAGES, _message),
    ("gemini", Operation.GENERATE, _candidate),
]


def cut_stream(wire: str, operation: Operation, event: Any, text: str) -> UsageTap:
    """Read a stream of three characters an event that ends in the middle of the event after them."""
    stream = sse(*(event(text[at : at + 3]) for at in range(0, len(text), 3))) + b'data: {"cho'
    tap = tap_of(call(wire, operation))
    assert passed(tap, pieces(stream, range(0, len(stream), 37))) == stream
    return tap


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(("wire", "operation", "event"), DIALECTS, ids=["chat", "responses", "messages", "gemini"])
def test_the_bytes_seen_are_those_of_the_text(name: str, wire: str, operation: Operation, event: Any) -> None:
    text = TEXTS[name] * 60
    tap = cut_stream(wire, operation, event, text)
    assert tap.output_chars == len(text)
    assert tap.output_byte_counts == Counter(text.encode())


@pytest.mark.parametrize("name", TEXTS)
def test_their_weight_is_near_the_real_tokenizers_count(name: str) -> None:
    count = tokenizer("o200k_base")
    if count is None:
        pytest.skip("the tokenizer extra is not installed")
    for text in (TEXTS[name], TEXTS[name] * 500):
        seen = SeenText()
        seen.add(text)
        assert 0.6 <= expected_tokens(seen.byte_counts) / count(text) <= 1.9


def test_a_very_long_text_is_weighed_by_a_sample_from_all_over() -> None:
    text = TEXTS["english"] * 1000 + TEXTS["chinese"] * 5000
    seen, whole = SeenText(), Counter(text.encode())
    seen.add(text)
    assert expected_tokens(seen.byte_counts) == pytest.approx(expected_tokens(whole), rel=0.03)


def test_what_is_no_text_and_half_characters_break_nothing() -> None:
    seen = SeenText()
    seen.add(None, 7, ["x"], "", "a", "\ud83d")
    assert (seen.chars, seen.byte_counts) == (2, Counter(b"a?"))
    assert SeenText().byte_counts == {} and expected_tokens({}) == 0


def test_function_calls_are_output_too() -> None:
    part = {"functionCall": {"name": "find", "args": {"city": "北京"}}}
    tap = tap_of(call("gemini", Operation.GENERATE))
    passed(tap, [sse({"candidates": [{"content": {"parts": [part]}}]})])
    assert tap.output_byte_counts == Counter('find{"city": "北京"}'.encode())


@pytest.mark.parametrize("status", [200, 500])
def test_what_cannot_be_read_has_no_text(status: int) -> None:
    tap = tap_of(call("gemini", Operation.GENERATE), status, (*JSON, (b"content-encoding", b"rot13")))
    passed(tap, [b"hello"])
    assert (tap.output_chars, tap.output_byte_counts) == (0, {})


@pytest.mark.parametrize("cut", [1, 40, 2_000])
def test_an_array_that_is_cut_off_says_what_its_whole_elements_say(cut: int) -> None:
    usage = {"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4}}
    items = [_candidate("和平"), {**_candidate("и мир"), **usage}, _candidate("x" * 3_000)]
    raw = json.dumps(items, indent=2).encode()[:-cut]
    tap = tap_of(call("gemini", Operation.GENERATE), headers=JSON)
    passed(tap, pieces(raw, range(0, len(raw), 11)))
    assert tap.output_chars == (7 if cut > 1 else 3_007)
    assert tap.usage is not None and (tap.usage.output_tokens, tap.usage.complete) == (4, False)
