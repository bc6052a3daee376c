"""A small gateway of the kind that users have: passes requests on to a provider, knows nothing of budgets."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sark_mw import SarkMiddleware
from sark_mw.asgi.types import App, Receive, Scope, Send
from sark_mw.demo.books import Stopwatch, glance, read_books
from sark_mw.demo.cast import demo_settings
from sark_mw.demo.serving import serve
from sark_mw.instrumentation.metrics_app import metrics_app
from sark_mw.sark import Sark

_OWN_HEADERS = frozenset({"host", "connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length"})


def make_gateway(upstream: str) -> Starlette:
    """Make the gateway: every path goes to `upstream`, bodies and streams as they come."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=200)
        async with httpx2.AsyncClient(base_url=upstream, timeout=60, limits=limits) as app.state.client:
            yield

    async def forward(request: Request) -> Response:
        headers = [(name, value) for name, value in request.headers.items() if name not in _OWN_HEADERS]
        asked = request.app.state.client.build_request(
            request.method, request.url.path, headers=headers, content=await request.body(), params=request.query_params
        )
        answer = await request.app.state.client.send(asked, stream=True)
        kept = {name: value for name, value in answer.headers.items() if name not in _OWN_HEADERS - {"content-length"}}
        return StreamingResponse(answer.aiter_raw(), answer.status_code, headers=kept, background=BackgroundTask(answer.aclose))

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])], lifespan=lifespan)


def make_desk(sark: Sark, stopwatch: Stopwatch) -> App:
    """Make what the demo reads from the gateway's process: balances, the books when all is quiet, and metrics."""

    async def now(_: Request) -> Response:
        return JSONResponse(await glance(sark))

    async def books(_: Request) -> Response:
        return JSONResponse(await read_books(sark, stopwatch))

    desk = Starlette(routes=[Route("/now", now), Route("/books", books)])
    assert sark.prometheus is not None
    metrics = metrics_app(sark.prometheus)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_metrics = scope["type"] == "http" and scope["path"] == "/metrics"
        await (metrics if is_metrics else desk)(scope, receive, send)

    return app


async def _main(upstream: str, directory: Path, port: int) -> None:
    # Every shard of an empty store is begun from the empty ledger: true, and of no interest on a first look.
    logging.getLogger("sark_mw").setLevel(logging.ERROR)
    stopwatch = Stopwatch()
    gateway = SarkMiddleware(make_gateway(upstream), settings=demo_settings(directory), instrumentation=stopwatch)
    desk = make_desk(gateway.sark, stopwatch)
    await serve({"gateway": (gateway, port), "bare": (make_gateway(upstream), 0), "desk": (desk, 0)})


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
