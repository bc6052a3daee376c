"""`/metrics` as a pure ASGI app: text or OpenMetrics, gzip if the scraper takes it."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from sark_mw.instrumentation.prometheus import PrometheusInstrumentation

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_Headers = list[tuple[bytes, bytes]]


def metrics_app(instrumentation: PrometheusInstrumentation) -> App:
    """Make the app; mount it where only Prometheus can reach it. Anything but GET and HEAD is answered with 405."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "http":
            await _answer_http(instrumentation, scope, send)

    return app


async def _answer_http(instrumentation: PrometheusInstrumentation, scope: Scope, send: Send) -> None:
    if scope["method"] not in ("GET", "HEAD"):
        await _respond(send, 405, [(b"allow", b"GET, HEAD")], b"")
        return
    wanted = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    # Collecting reads the other workers' files: not on the event loop, where requests would wait for it.
    headers, body = await asyncio.to_thread(
        _render, instrumentation.scrape_registry, wanted.get(b"accept", ""), "gzip" in wanted.get(b"accept-encoding", "")
    )
    if scope["method"] == "HEAD":
        body = b""
    await _respond(send, 200, headers, body)


def _render(registry: Callable[[], CollectorRegistry], accept: str, compress: bool) -> tuple[_Headers, bytes]:
    encode, content_type = choose_encoder(accept)
    body = encode(registry())
    headers = [(b"content-type", content_type.encode("latin-1")), (b"vary", b"accept, accept-encoding")]
    if compress:
        body = gzip.compress(body, compresslevel=1)
        headers.append((b"content-encoding", b"gzip"))
    headers.append((b"content-length", str(len(body)).encode("ascii")))
    return headers, body


async def _respond(send: Send, status: int, headers: _Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
