"""OpenTelemetry: put what a request cost on the span that is current, where opentelemetry is installed."""

from __future__ import annotations

from importlib.util import find_spec

from sark_mw.instrumentation.audit import printable
from sark_mw.instrumentation.base import NullInstrumentation, RequestFinished, Reserved, Settled
from sark_mw.limit import Unit


def is_installed() -> bool:
    """Tell whether opentelemetry's API can be imported; it is never a dependency."""
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.trace") is not None


class TracingInstrumentation(NullInstrumentation):
    """Set `sark.*` attributes on the current span: outcome, principal, holds and costs in nanos; no prompts, no keys.

    A span that ended before the settle (which is off the client's path) takes none. Without opentelemetry the
    constructor raises `ImportError`: ask `is_installed` first.
    """

    def __init__(self) -> None:
        from opentelemetry import trace

        self._current_span = trace.get_current_span

    def _set(self, **attributes: str | int | None) -> None:
        span = self._current_span()
        if span.is_recording():
            for name, value in attributes.items():
                if value not in (None, ""):
                    span.set_attribute(f"sark.{name}", printable(value) if isinstance(value, str) else value)

    def request_finished(self, event: RequestFinished) -> None:
        """Say how the request ended and for whom."""
        self._set(
            outcome=event.outcome.value,
            reason=event.reason,
            principal_id=event.principal_id,
            provider=event.provider,
            model=event.model,
            request_id=event.request_id,
        )

    def reserved(self, event: Reserved) -> None:
        """Say what is held."""
        self._set(
            reserve_outcome=str(event.outcome), reservation_id=event.reservation_id, held_nanos=dict(event.held).get(Unit.USD)
        )

    def settled(self, event: Settled) -> None:
        """Say what it cost and what was expected."""
        self._set(
            settle_outcome=str(event.outcome),
            booked_nanos=dict(event.booked).get(Unit.USD),
            estimated_nanos=event.estimated_nanos,
        )
