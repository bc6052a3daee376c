"""Ask a metrics app over ASGI and read the answer with Prometheus' own parser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from sark_mw.instrumentation.metrics_app import metrics_app
from sark_mw.instrumentation.prometheus import PrometheusInstrumentation


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def ask(instrumentation: PrometheusInstrumentation, *, method: str = "GET", **headers: str) -> Answer:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    wire = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await metrics_app(instrumentation)({"type": "http", "method": method, "path": "/metrics", "headers": wire}, receive, send)
    got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(status=sent[0]["status"], headers=got, body=sent[1]["body"])


def samples(text: str) -> dict[str, float]:
    """Map `name{a=b,…}` to values."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def scrape(instrumentation: PrometheusInstrumentation) -> dict[str, float]:
    return samples((await ask(instrumentation)).body.decode())
