"""Events are cut at the same bytes however the stream arrives."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sark_mw.wire.base import Operation
from sark_mw.wire.sse import Event, EventReader
from tests.wire.serving import passed, pieces
from tests.wire.streams import CHAT_MEANS, CHAT_USAGE, call, sse, tap_of

PARTS = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"data: a", b"event: e", b": c", b"\xc3", b"\xa9"]), max_size=40)


def events(chunks: list[bytes], bound: int = 1000) -> list[Event]:
    reader = EventReader(bound)
    return [*(event for chunk in chunks for event in reader.feed(chunk)), *reader.finish()]


@given(PARTS, st.lists(st.integers(0, 200), max_size=20), st.sampled_from([5, 12, 1000]))
@example([b"data: a", b"\r\n", b"\r\n", b"data: a"], list(range(30)), 1000)
@settings(max_examples=400, deadline=None)
def test_any_chunking_gives_the_same_events_and_their_sizes_add_up(parts: list[bytes], cuts: list[int], bound: int) -> None:
    stream = b"".join(parts)
    whole = events([stream], bound)
    assert events(pieces(stream, cuts), bound) == whole
    assert events(pieces(stream, range(len(stream))), bound) == whole
    assert sum(event.size for event in whole) == len(stream)


def test_names_and_lines_of_data_are_read() -> None:
    assert events([b"event: done\r\nid: 1\r\ndata: a\r\ndata:b\r\n\r\n"]) == [Event("done", "a\nb", 39)]


def test_a_usage_event_that_is_first_leaves_no_byte_behind() -> None:
    stream = sse(CHAT_USAGE, "[DONE]", end="\r\n")
    tap = tap_of(call("openai", Operation.CHAT, injected=True))
    assert passed(tap, pieces(stream, range(len(stream)))) == b"data: [DONE]\r\n\r\n"
    assert tap.usage == CHAT_MEANS


def test_a_usage_event_too_long_to_hold_passes_however_it_arrives() -> None:
    stream = sse({**CHAT_USAGE, "padding": "x" * 70_000})
    for step in (len(stream), 1000):
        tap = tap_of(call("openai", Operation.CHAT, injected=True))
        assert passed(tap, pieces(stream, range(0, len(stream), step))) == stream
        assert tap.usage == CHAT_MEANS
