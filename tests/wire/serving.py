"""Serve an ASGI app on a real socket for a test, and drive taps by hand."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Iterable

import uvicorn

from sark_mw.wire.base import UsageTap


@contextlib.asynccontextmanager
async def serve(app: object) -> AsyncIterator[str]:
    """Run `app` in this loop and yield its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


def passed(tap: UsageTap, chunks: Iterable[bytes]) -> bytes:
    """Feed the chunks and return everything that the client gets."""
    return b"".join([*(tap.feed(chunk) for chunk in chunks), tap.finish()])


def pieces(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut a stream at the given offsets."""
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[a:b] for a, b in itertools.pairwise(edges)]
