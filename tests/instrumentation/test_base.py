from __future__ import annotations

import inspect
import logging

import pytest

from sark_mw.instrumentation.audit import AuditInstrumentation
from sark_mw.instrumentation.base import Composite, Instrumentation, NullInstrumentation, RequestFinished, RequestOutcome
from sark_mw.instrumentation.prometheus import PrometheusInstrumentation
from sark_mw.instrumentation.tracing import TracingInstrumentation

EVENTS = sorted(name for name in vars(Instrumentation) if not name.startswith("_"))
FINISHED = RequestFinished(outcome=RequestOutcome.ADMITTED, wire="openai", operation="chat")


class Recording(NullInstrumentation):
    def __init__(self) -> None:
        self.heard: list[object] = []

    def request_finished(self, event: RequestFinished) -> None:
        self.heard.append(event)

    def held(self, unit: str, change: int) -> None:
        self.heard.append((unit, change))


class Broken(NullInstrumentation):
    def request_finished(self, event: RequestFinished) -> None:
        raise RuntimeError("no disk")


@pytest.mark.parametrize(
    "made", [NullInstrumentation, Composite, PrometheusInstrumentation, AuditInstrumentation, TracingInstrumentation]
)
@pytest.mark.parametrize("event", EVENTS)
def test_every_instrumentation_hears_every_event_with_the_same_arguments(made: type, event: str) -> None:
    expected = list(inspect.signature(getattr(Instrumentation, event)).parameters)
    assert list(inspect.signature(getattr(made, event)).parameters) == expected


@pytest.mark.parametrize("event", EVENTS)
def test_a_composite_passes_every_event_on_as_it_came(event: str) -> None:
    heard: list[tuple[object, ...]] = []

    class Listening(NullInstrumentation):
        pass

    setattr(Listening, event, lambda self, *arguments: heard.append(arguments))
    count = len(inspect.signature(getattr(Instrumentation, event)).parameters) - 1
    arguments = tuple(object() for _ in range(count))
    getattr(Composite([Listening(), Listening()]), event)(*arguments)
    assert heard == [arguments, arguments]


def test_an_instrumentation_that_raises_stops_neither_the_request_nor_the_others(caplog: pytest.LogCaptureFixture) -> None:
    recording = Recording()
    composite = Composite([Broken(), recording])
    with caplog.at_level(logging.ERROR):
        composite.request_finished(FINISHED)
        composite.request_finished(FINISHED)
    assert recording.heard == [FINISHED, FINISHED]
    assert [record.getMessage() for record in caplog.records] == [
        "instrumentation Broken failed in request_finished; later failures are not logged"
    ]
