"""Tell the plugins what became of the requests that they were asked about: an instrumentation like any other."""

from __future__ import annotations

from sark_mw.instrumentation.base import NullInstrumentation, RequestFinished, RequestOutcome
from sark_mw.policy.outcomes import Outcomes, RequestEnd


class OutcomesInstrumentation(NullInstrumentation):
    """Passes the end of each request on to `outcomes`."""

    def __init__(self) -> None:
        self.outcomes = Outcomes()

    def request_finished(self, event: RequestFinished) -> None:
        """Tell of a request's end; one that was answered from what is kept went nowhere."""
        self.outcomes.tell(
            RequestEnd(
                request_id=event.request_id,
                admitted=event.outcome is RequestOutcome.ADMITTED,
                status=event.status,
                upstream_seconds=event.upstream_seconds,
            )
        )
