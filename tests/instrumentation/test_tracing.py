from __future__ import annotations

import pytest

trace = pytest.importorskip("opentelemetry.trace")

from sark_mw.instrumentation.base import RequestFinished, RequestOutcome, Reserved, Settled  # noqa: E402
from sark_mw.instrumentation.tracing import TracingInstrumentation, is_installed  # noqa: E402


class RecordingSpan(trace.NonRecordingSpan):
    """A span of the API alone that keeps what is set on it: the SDK is not needed to see the attributes."""

    def __init__(self, recording: bool = True) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.recording = recording
        self.attributes: dict[str, object] = {}

    def is_recording(self) -> bool:
        return self.recording

    def set_attribute(self, key: str, value: object) -> None:
        self.attributes[key] = value


def tell(span: RecordingSpan) -> None:
    tracing = TracingInstrumentation()
    with trace.use_span(span):
        tracing.reserved(Reserved(outcome="held", seconds=0.1, reservation_id="x", held=(("usd", 1000),)))
        tracing.settled(Settled(outcome="settled", kind="settle", seconds=0.1, booked=(("usd", 900),), estimated_nanos=800))
        tracing.request_finished(
            RequestFinished(
                outcome=RequestOutcome.ADMITTED, wire="openai", operation="chat", principal_id="user:alice", model="m\n"
            )
        )


def test_the_current_span_says_what_the_request_cost() -> None:
    span = RecordingSpan()
    tell(span)
    assert is_installed()
    assert span.attributes == {
        "sark.reserve_outcome": "held",
        "sark.reservation_id": "x",
        "sark.held_nanos": 1000,
        "sark.settle_outcome": "settled",
        "sark.booked_nanos": 900,
        "sark.estimated_nanos": 800,
        "sark.outcome": "admitted",
        "sark.principal_id": "user:alice",
        "sark.model": "m_",
    }


def test_a_span_that_is_not_recorded_gets_nothing() -> None:
    span = RecordingSpan(recording=False)
    tell(span)
    assert span.attributes == {}
