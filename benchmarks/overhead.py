"""Overhead: the same app bare and wrapped, over real sockets and in process, at 1 and 64 in flight."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.apps import CHAT, KEY, PATH, chat_app, in_process, make_settings
from benchmarks.figures import Figure, Options, percentile
from benchmarks.servers import valkey
from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.demo.serving import Child, serve

_ROUNDS = 6


async def run(options: Options) -> list[Figure]:
    """Measure over sockets (uvicorn in a process of its own, a raw keep-alive client in this one), then in process."""
    figures: list[Figure] = []
    async with valkey() as url:
        for name, store in (("Valkey", url), ("memory://", "memory://")):
            with tempfile.TemporaryDirectory() as directory:
                async with Child("benchmarks.overhead", [store, directory]) as child:
                    for in_flight in (1, 64):
                        figures += await _over_sockets(name, child, in_flight, options)
        figures += await _in_process(url, options)
    return figures


async def _over_sockets(name: str, child: Child, in_flight: int, options: Options) -> list[Figure]:
    """Rounds of bare and wrapped in turn; the ratio is that of the medians of the rounds."""
    rates: dict[str, list[float]] = {"bare": [], "wrapped": []}
    took: dict[str, list[float]] = {"bare": [], "wrapped": []}
    calls = options.count(150 if in_flight == 1 else 640)
    for number in range(2 if options.tiny else _ROUNDS):
        for which in ("bare", "wrapped") if number % 2 else ("wrapped", "bare"):
            seconds, latencies = await _drive(child.url(which), in_flight, calls)
            if number:  # the first round warms up
                rates[which].append(len(latencies) / seconds)
                took[which] += latencies
    p50 = {which: percentile(values, 50) * 1e3 for which, values in took.items()}
    p99 = {which: percentile(values, 99) * 1e3 for which, values in took.items()}
    rate = {which: percentile(values, 50) for which, values in rates.items()}
    at = f"{name}, {in_flight} in flight"
    return [
        Figure(
            name=f"{at}: throughput, wrapped ÷ bare",
            value=rate["wrapped"] / rate["bare"],
            unit="×",
            note=f"{rate['wrapped']:.0f} and {rate['bare']:.0f} requests/s",
        ),
        Figure(
            name=f"{at}: p50, wrapped ÷ bare",
            value=p50["wrapped"] / p50["bare"],
            unit="×",
            note=f"{p50['wrapped']:.2f} and {p50['bare']:.2f} ms",
        ),
        Figure(
            name=f"{at}: added, p50",
            value=p50["wrapped"] - p50["bare"],
            unit="ms",
            note=f"p99 {p99['wrapped']:.1f} and {p99['bare']:.1f} ms",
        ),
    ]


async def _drive(url: str, in_flight: int, calls: int) -> tuple[float, list[float]]:
    parts = urlsplit(url)
    body = json.dumps(CHAT).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    left = calls
    latencies: list[float] = []

    async def connection() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while left > 0:
            left -= 1
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            latencies.append(time.perf_counter() - started)
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(in_flight)))
    return time.perf_counter() - started, latencies


async def _in_process(url: str, options: Options) -> list[Figure]:
    body = json.dumps(CHAT).encode()
    with tempfile.TemporaryDirectory() as directory:
        wrapped = SarkMiddleware(chat_app, settings=make_settings(url, Path(directory)))
        await wrapped.sark.start()
        bare: list[float] = []
        took: list[float] = []
        passed: list[float] = []
        try:
            for _ in range(options.count(800)):
                for app, into in ((chat_app, bare), (wrapped, took)):
                    seconds, status = await in_process(app, body)
                    assert status == 200
                    into.append(seconds)
            other: Any = _unmetered(wrapped)
            for _ in range(options.count(2000)):
                took_one, _ = await in_process(other, body)
                passed.append(took_one)
        finally:
            await wrapped.sark.aclose()
    added = percentile(took, 50) - percentile(bare, 50)
    return [
        Figure(name="in process, Valkey: added, p50", value=added * 1e6, unit="µs", note="calls of the ASGI app, one at a time"),
        Figure(
            name="in process: added to a path that is not metered, p50",
            value=max(percentile(passed, 50) - percentile(bare, 50), 0) * 1e6,
            unit="µs",
        ),
    ]


def _unmetered(app: Any) -> Any:
    async def call(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await app({**scope, "path": "/healthz", "raw_path": b"/healthz"}, receive, send)

    return call


async def _serve(store: str, directory: str) -> None:
    wrapped = SarkMiddleware(chat_app, settings=make_settings(store, Path(directory)))
    await serve({"wrapped": (wrapped, 0), "bare": (chat_app, 0)})


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2]))
