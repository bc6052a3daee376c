"""However a stream is cut, its usage and what the client gets are the same."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import replace
from itertools import repeat

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sark_mw._fake_replies import frames, make_plan
from sark_mw.usage import Usage
from sark_mw.wire.base import Operation
from tests.wire.serving import passed, pieces
from tests.wire.streams import (
    CHAT_CHUNKS,
    CHAT_MEANS,
    CHAT_USAGE,
    JSON,
    MESSAGE_EVENTS,
    MESSAGE_MEANS,
    RECORDED,
    SSE,
    Recorded,
    call,
    sse,
    tap_of,
)


def names(recorded: Recorded) -> str:
    return recorded.name


@pytest.mark.parametrize("recorded", RECORDED, ids=names)
def test_a_recorded_stream_means_its_usage(recorded: Recorded) -> None:
    tap = tap_of(recorded.asked)
    assert passed(tap, [recorded.stream]) == (recorded.client or recorded.stream)
    assert (tap.usage, tap.output_chars, tap.failed) == (recorded.usage, recorded.chars, recorded.failed)
    assert tap.started


@pytest.mark.parametrize("recorded", RECORDED, ids=names)
def test_single_bytes_mean_the_same(recorded: Recorded) -> None:
    tap = tap_of(recorded.asked)
    assert passed(tap, pieces(recorded.stream, range(len(recorded.stream)))) == (recorded.client or recorded.stream)
    assert (tap.usage, tap.output_chars, tap.failed) == (recorded.usage, recorded.chars, recorded.failed)


@given(st.sampled_from(RECORDED), st.lists(st.integers(0, 5000), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_chunking_means_the_same(recorded: Recorded, cuts: list[int]) -> None:
    tap = tap_of(recorded.asked)
    assert passed(tap, pieces(recorded.stream, cuts)) == (recorded.client or recorded.stream)
    assert (tap.usage, tap.output_chars, tap.failed) == (recorded.usage, recorded.chars, recorded.failed)


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"data: {}", b"data:", b": c", b"x", b"\xff"]), max_size=60), st.data())
@settings(max_examples=300, deadline=None)
def test_any_line_ends_pass_whole_however_they_are_cut(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts) + sse(CHAT_USAGE) + b"".join(parts)
    once = tap_of(call("openai", Operation.CHAT, injected=True))
    whole = passed(once, [stream])
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=30))
    tap = tap_of(call("openai", Operation.CHAT, injected=True))
    assert passed(tap, pieces(stream, cuts)) == whole
    assert tap.usage == once.usage


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=10))
@settings(max_examples=200, deadline=None)
def test_garbage_passes_untouched_and_raises_nothing(garbage: bytes, cuts: list[int]) -> None:
    for recorded in RECORDED[1], RECORDED[7], RECORDED[10], RECORDED[11]:
        for headers in (SSE, JSON, (*SSE, (b"content-encoding", b"gzip")), (*JSON, (b"content-encoding", b"br"))):
            tap = tap_of(recorded.asked, headers=headers)
            assert passed(tap, pieces(garbage, cuts)) == garbage
            assert tap.usage is None


def test_chunks_are_the_same_objects_where_nothing_is_taken_out() -> None:
    events = [sse(chunk) for chunk in CHAT_CHUNKS]
    for injected in (True, False):
        tap = tap_of(call("openai", Operation.CHAT, injected=injected))
        assert all(tap.feed(event) is event for event in events)


def test_a_held_event_is_let_go_as_soon_as_it_is_too_long_to_be_usage() -> None:
    tap = tap_of(call("openai", Operation.CHAT, injected=True))
    got = b"".join(tap.feed(chunk) for chunk in [b'data: {"x": "', *repeat(b"y" * 1000, 70)])
    assert len(got) > 64 * 1024
    end = b'"}\n\n' + sse(CHAT_USAGE)
    assert tap.feed(end) == b'"}\n\n'
    assert tap.usage == CHAT_MEANS


@pytest.mark.parametrize("size", [1000, 65_536, 9_000_000])
def test_an_event_over_the_bound_is_skipped_and_the_usage_after_it_is_read(size: int) -> None:
    huge = b"data: " + b"z" * 9_000_000 + b"\r\n\r\n"
    stream = sse(*CHAT_CHUNKS) + huge + sse(CHAT_USAGE, "[DONE]")
    tap = tap_of(call("openai", Operation.CHAT, injected=True))
    assert passed(tap, pieces(stream, range(0, len(stream), size))) == sse(*CHAT_CHUNKS) + huge + b"data: [DONE]\n\n"
    assert tap.usage == CHAT_MEANS


def test_a_null_usage_on_intermediate_chunks_is_not_usage() -> None:
    tap = tap_of(call("openai", Operation.CHAT))
    passed(tap, [sse(*CHAT_CHUNKS)])
    assert tap.usage is None and tap.started


def test_azure_first_chunk_without_choices_and_without_usage_reaches_the_client() -> None:
    first = sse({"choices": [], "prompt_filter_results": []})
    tap = tap_of(call("openai", Operation.CHAT, injected=True))
    assert passed(tap, [first]) == first


def test_anthropic_stream_that_is_cut_knows_its_input_and_no_output() -> None:
    tap = tap_of(call("anthropic", Operation.MESSAGES))
    passed(tap, [sse(*MESSAGE_EVENTS[:3], names=True)])
    assert tap.usage == replace(MESSAGE_MEANS, output_tokens=0, reasoning_tokens=0, complete=False)
    assert tap.output_chars == 7


def test_anthropic_error_event_midway_keeps_what_is_known() -> None:
    tap = tap_of(call("anthropic", Operation.MESSAGES))
    passed(tap, [sse(*MESSAGE_EVENTS[:4], {"type": "error", "error": {"type": "overloaded_error"}}, names=True)])
    assert tap.failed and tap.started
    assert tap.usage is not None and (tap.usage.output_tokens, tap.usage.complete) == (9, False)


def test_an_error_before_any_output_has_not_started() -> None:
    for wire, operation in (("openai", Operation.CHAT), ("anthropic", Operation.MESSAGES), ("gemini", Operation.GENERATE)):
        tap = tap_of(call(wire, operation))
        passed(tap, [sse({"type": "error", "error": {"message": "overloaded"}}, names=True)])
        assert tap.failed and not tap.started


@pytest.mark.parametrize("bad", ["12", -1, 1.5, True, 10**12, [1], {}, "NaN"])
def test_mistyped_counts_are_absent_and_a_later_good_one_counts(bad: object) -> None:
    tap = tap_of(call("openai", Operation.CHAT))
    passed(tap, [sse(CHAT_CHUNKS[0], {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": bad}})])
    assert tap.usage is None
    tap = tap_of(call("anthropic", Operation.MESSAGES))
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": bad}}
    passed(tap, [sse(*MESSAGE_EVENTS[:4], delta, {"type": "message_stop"}, names=True)])
    assert tap.usage is not None and not tap.usage.complete
    good = {**delta, "usage": {"output_tokens": 11}}
    tap = tap_of(call("anthropic", Operation.MESSAGES))
    passed(tap, [sse(*MESSAGE_EVENTS[:4], delta, good, names=True)])
    assert tap.usage is not None and (tap.usage.output_tokens, tap.usage.complete) == (11, True)


def test_an_explicit_zero_is_zero() -> None:
    tap = tap_of(call("openai", Operation.CHAT))
    passed(tap, [sse({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})])
    assert tap.usage == Usage(input_tokens=0, output_tokens=0)


def _zlib_raw(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(data) + deflate.flush()


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:])),
        ("deflate", zlib.compress),
        ("deflate", _zlib_raw),
        ("br", brotli.compress),
        ("zstd", zstandard.compress),
        ("identity", lambda data: data),
    ],
)
@given(cuts=st.lists(st.integers(0, 3000), max_size=20))
@settings(max_examples=40, deadline=None)
def test_a_compressed_stream_passes_untouched_and_is_read(coding: str, compress: object, cuts: list[int]) -> None:
    stream = sse(*CHAT_CHUNKS, CHAT_USAGE, "[DONE]")
    body = compress(stream)  # type: ignore[operator]
    headers = (*SSE, (b"content-encoding", coding.encode()))
    # An upstream that compresses although it was asked not to: nothing can be taken out, so everything passes.
    for injected in (False, coding != "identity"):
        tap = tap_of(call("openai", Operation.CHAT, injected=injected), headers=headers)
        assert passed(tap, pieces(body, cuts)) == body
        assert tap.usage == CHAT_MEANS


@pytest.mark.parametrize("coding", [b"gzip, br", b"compress", b"gzip, gzip"])
def test_an_encoding_we_cannot_read_passes_unread(coding: bytes) -> None:
    tap = tap_of(call("openai", Operation.CHAT), headers=(*SSE, (b"content-encoding", coding)))
    body = gzip.compress(sse(CHAT_USAGE))
    assert passed(tap, [body]) == body
    assert tap.usage is None and tap.started


def test_a_status_of_error_is_passed_unread() -> None:
    tap = tap_of(call("openai", Operation.CHAT), status=500)
    body = json.dumps({"usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
    assert tap.feed(body) is body
    assert tap.usage is None and tap.failed and not tap.started


@given(
    st.integers(0, 50), st.sampled_from(["chat", "completions", "responses", "messages"]), st.integers(1, 4), st.integers(1, 9)
)
@settings(max_examples=80, deadline=None)
def test_the_fake_providers_tally_is_what_the_tap_reads(seed: int, operation: str, n: int, size: int) -> None:
    asked = {"model": "gpt-5", "messages": [{"content": f"hello {seed}"}], "stream_options": {"include_usage": True}}
    many = {"n": n} if operation in ("chat", "completions") else {}
    plan = make_plan(seed, "id", operation, {**asked, **many}, 30)
    tap = tap_of(call("anthropic" if operation == "messages" else "openai", Operation(operation)))
    passed(tap, [frame.raw for frame in frames(plan, size)])
    # Anthropic's wire has no place for reasoning here, and service tiers are not what is compared.
    read = tap.usage and replace(tap.usage, service_tier=None)
    told = replace(plan.usage, reasoning_tokens=0) if operation == "messages" else plan.usage
    assert read == told
