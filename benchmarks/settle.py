"""Settling: off the client's path, and what it costs there."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import redis.asyncio as redis

from benchmarks.apps import CHAT, chat_app, in_process, make_settings
from benchmarks.figures import Figure, Options, p50_p99, percentile
from benchmarks.reserve import GROUP, server_micros
from benchmarks.servers import store_on, valkey
from benchmarks.workload import group, lines_of, reserve, set_limits, settle
from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.reservation import Settle, SettleReply
from sark_mw.sark import Sark

_SLOW_S = 0.05


async def run(options: Options) -> list[Figure]:
    """Measure a client's latency with a settle that is usual and one that takes 50 ms, then settles themselves."""
    async with valkey() as url:
        figures = await _off_the_path(url, options)
    async with valkey() as url, store_on(url) as store:
        table = await set_limits(store)
        lines = lines_of(table, 1)
        alone = []
        for _ in range(options.count(1000)):
            request = reserve(table, lines)
            await store.reserve(request)
            started = time.perf_counter()
            await store.settle(settle(request))
            alone.append(time.perf_counter() - started)
        client = redis.Redis.from_url(url, decode_responses=True)
        server, crowd = [], []
        for _ in range(options.count(100)):
            requests = group(table, [lines], GROUP)
            await asyncio.gather(*(store.reserve(request) for request in requests))
            before, started = await server_micros(client), time.perf_counter()
            await asyncio.gather(*(store.settle(settle(request)) for request in requests))
            crowd.append((time.perf_counter() - started) / GROUP)
            server.append((await server_micros(client) - before) / GROUP)
        await client.aclose()
    return [
        *figures,
        *p50_p99("a settle, alone, until answered", alone),
        Figure(name="a settle among 64, all told, p50", value=percentile(crowd, 50) * 1e6, unit="µs"),
        Figure(name="server, per settle among 64, p50", value=percentile(server, 50), unit="µs", note="ledger entry included"),
    ]


async def _off_the_path(url: str, options: Options) -> list[Figure]:
    body = json.dumps(CHAT).encode()
    with tempfile.TemporaryDirectory() as directory:
        sark = Sark(make_settings(url, Path(directory)))
        app = SarkMiddleware(chat_app, sark=sark)
        await sark.start()
        usual, slow = [], []
        honest = sark.store.settle

        async def slow_settle(request: Settle) -> SettleReply:
            await asyncio.sleep(_SLOW_S)
            return await honest(request)

        try:
            for n in range(options.count(800)):
                # In turn, so that whatever else the machine does falls on both.
                store: Any = sark.store
                store.settle = slow_settle if n % 2 else honest
                took, status = await in_process(app, body)
                assert status == 200, status
                (slow if n % 2 else usual).append(took)
                await asyncio.sleep(0.002)  # the settle before must not be what the next request waits for
        finally:
            await sark.aclose()
    figures = p50_p99("client's latency, usual settle", usual, note="in process, app answers at once")
    figures += p50_p99("client's latency, settle takes 50 ms more", slow)
    ratio = percentile(slow, 50) / percentile(usual, 50)
    return [*figures, Figure(name="slow settle ÷ usual settle, p50", value=ratio, unit="×", most=1.1)]
