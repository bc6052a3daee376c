from __future__ import annotations

import gzip
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from sark_mw.instrumentation.metrics_app import metrics_app
from sark_mw.instrumentation.prometheus import PrometheusInstrumentation
from tests.instrumentation.scraping import ask, samples


async def test_a_scraper_that_asks_for_openmetrics_gets_it() -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.holds_expired(2)
    answer = await ask(prometheus, accept="application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in parse_openmetrics(answer.body.decode())}
    assert "sark_expired_holds" in names


async def test_anyone_else_gets_plain_text() -> None:
    answer = await ask(PrometheusInstrumentation())
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert int(answer.headers["content-length"]) == len(answer.body)


async def test_gzip_is_used_when_the_scraper_takes_it() -> None:
    answer = await ask(PrometheusInstrumentation(), accept_encoding="gzip, deflate")
    assert answer.headers["content-encoding"] == "gzip"
    assert samples(gzip.decompress(answer.body).decode())["sark_overrun_nanos_total"] == 0


async def test_head_tells_the_length_and_sends_no_body() -> None:
    answer = await ask(PrometheusInstrumentation(), method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


async def test_other_methods_are_refused() -> None:
    answer = await ask(PrometheusInstrumentation(), method="POST")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_a_server_that_runs_it_alone_gets_its_lifespan_answered() -> None:
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await metrics_app(PrometheusInstrumentation())({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
