"""One worker of a gateway for the multi-process test: does what its standard input says, one line each."""

from __future__ import annotations

import asyncio
import sys

from sark_mw.instrumentation.base import RequestFinished, RequestOutcome, Settled
from sark_mw.instrumentation.prometheus import PrometheusInstrumentation
from tests.instrumentation.scraping import ask


def main() -> None:
    prometheus = PrometheusInstrumentation()
    print("ready", flush=True)
    for line in sys.stdin:
        verb, *words = line.split()
        if verb == "work":
            requests, backlog = int(words[0]), int(words[1])
            for _ in range(requests):
                prometheus.request_finished(
                    RequestFinished(outcome=RequestOutcome.ADMITTED, wire="openai", operation="chat", status=200)
                )
                prometheus.held("usd", 100)
                prometheus.settled(Settled(outcome="settled", kind="settle", seconds=0.004, booked=(("usd", 10),)))
            prometheus.backlog_measured(backlog, 1.0)
            prometheus.breaker_changed("store", backlog % 3)
            print("done", flush=True)
        elif verb == "scrape":
            print(asyncio.run(ask(prometheus)).body.decode(), flush=True)
            print("# END", flush=True)


if __name__ == "__main__":
    main()
