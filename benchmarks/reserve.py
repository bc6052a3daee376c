"""Reserving: latency alone and in a crowd, what groups save over single calls, and the server's own time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import redis.asyncio as redis

from benchmarks.figures import Figure, Options, p50_p99, percentile
from benchmarks.servers import store_on, valkey
from benchmarks.workload import group, lines_of, reserve, set_limits, settle
from sark_mw.reservation import Line, Reserve
from sark_mw.store.base import LimitTable
from sark_mw.store.encode import LineTable, reserve_args
from sark_mw.store.redis_store import RedisStore
from sark_mw.store.scripts import load_script

GROUP = 64


async def run(options: Options) -> list[Figure]:
    """Measure on a real server, then on the embedded default."""
    async with valkey() as url:
        async with store_on(url) as store:
            table = await set_limits(store)
            figures = await _latency("Valkey", store, table, options)
            figures += await _against_single_calls(url, store, table, options)
            figures += await _server_time(url, store, table, options)
        figures += await _slope(options)
    async with store_on("memory://") as store:
        figures += await _latency("memory://", store, await set_limits(store), options)
    return figures


async def _timed(store: RedisStore, request: Reserve) -> float:
    started = time.perf_counter()
    reply = await store.reserve(request)
    took = time.perf_counter() - started
    assert reply.admitted, reply.outcome
    return took


async def _finish(store: RedisStore, requests: Sequence[Reserve]) -> None:
    await asyncio.gather(*(store.settle(settle(request)) for request in requests))


async def _latency(name: str, store: RedisStore, table: LimitTable, options: Options) -> list[Figure]:
    lines = lines_of(table, 1)
    alone: list[float] = []
    for _ in range(options.count(1500)):
        request = reserve(table, lines)
        alone.append(await _timed(store, request))
        await _finish(store, [request])
    crowd: list[float] = []
    for _ in range(options.count(100)):
        requests = group(table, [lines], GROUP)
        crowd += await asyncio.gather(*(_timed(store, request) for request in requests))
        await _finish(store, requests)
    target = 5000.0 if name == "Valkey" else None
    return [
        *p50_p99(f"{name}, one at a time", alone, most_p99=target, note="4 scopes × 2 windows"),
        *p50_p99(f"{name}, 64 at once", crowd, most_p99=target, note="until each has its answer"),
    ]


async def _against_single_calls(url: str, store: RedisStore, table: LimitTable, options: Options) -> list[Figure]:
    """64 reservations through the store, and the same 64 as single EVALSHA of the same script, in turn."""
    client = redis.Redis.from_url(url, decode_responses=True)
    script = load_script("reserve")
    keys = store.keys_of(0).all
    ours: list[float] = []
    singles: list[float] = []
    lines = lines_of(table, 1)
    for _ in range(options.count(150)):
        requests = group(table, [lines], GROUP)
        started = time.perf_counter()
        await asyncio.gather(*(store.reserve(request) for request in requests))
        ours.append(time.perf_counter() - started)
        await _finish(store, requests)
        requests = group(table, [lines], GROUP)
        prepared = [_prepared(store, request) for request in requests]
        started = time.perf_counter()
        await asyncio.gather(*(client.evalsha(script.sha, len(keys), *keys, *args) for args in prepared))
        singles.append(time.perf_counter() - started)
        await _finish(store, requests)
    pings = []
    for _ in range(options.count(500)):
        started = time.perf_counter()
        await client.ping()
        pings.append(time.perf_counter() - started)
    await client.aclose()
    p50 = percentile(ours, 50), percentile(singles, 50)
    return [
        Figure(
            name="64 reservations through the store, p50",
            value=p50[0] * 1e3,
            unit="ms",
            note=f"{p50[0] / GROUP * 1e6:.0f} µs each",
        ),
        Figure(
            name="the same 64 as single evalsha on redis-py, p50",
            value=p50[1] * 1e3,
            unit="ms",
            note=f"{p50[1] / GROUP * 1e6:.0f} µs each; arguments made beforehand, replies not read",
        ),
        Figure(name="store ÷ single evalsha", value=p50[0] / p50[1], unit="×", most=0.4),
        Figure(
            name="PING on redis-py, p50", value=percentile(pings, 50) * 1e6, unit="µs", note="the floor of one round trip here"
        ),
    ]


def _prepared(store: RedisStore, request: Reserve) -> list[str | int]:
    table = LineTable()
    table.add(request.lines)
    return reserve_args([request], table, store.retention_ms, 0)


async def server_micros(client: Any) -> float:
    """Read how long the server has been in EVALSHA altogether."""
    stats = await client.info("commandstats")
    return float(stats.get("cmdstat_evalsha", {}).get("usec", 0))


async def server_cpu_micros(client: Any) -> float:
    """Read the CPU time of the server's main thread: what else the machine does is not in it."""
    stats = await client.info("cpu")
    return (float(stats["used_cpu_user_main_thread"]) + float(stats["used_cpu_sys_main_thread"])) * 1e6


async def server_time(
    client: Any,
    store: RedisStore,
    table: LimitTable,
    lines: Sequence[tuple[Line, ...]],
    groups: int,
    size: int = GROUP,
    read: Callable[[Any], Awaitable[float]] = server_micros,
) -> float:
    """Return the server's µs per reservation in groups, by its own account; settles are left out of it."""
    each = []
    for _ in range(groups):
        requests = group(table, lines, size)
        before = await read(client)
        replies = await asyncio.gather(*(store.reserve(request) for request in requests))
        each.append((await read(client) - before) / size)
        assert all(reply.admitted for reply in replies)
        await _finish(store, requests)
    return percentile(each, 50)


async def _server_time(url: str, store: RedisStore, table: LimitTable, options: Options) -> list[Figure]:
    client = redis.Redis.from_url(url, decode_responses=True)
    groups = options.count(150)
    shared = [lines_of(table, 1)]
    eight = [lines_of(table, user) for user in range(8)]
    distinct = [lines_of(table, user) for user in range(GROUP)]
    script = load_script("reserve")
    figures = [
        Figure(
            name=f"server, per reservation, {who}",
            value=await server_time(client, store, table, lines, groups),
            unit="µs",
            most=most,
        )
        for who, lines, most in (
            ("one principal", shared, 30.0),
            ("8 principals in a group of 64", eight, 30.0),
            ("64 distinct users and keys", distinct, 30.0),
        )
    ]
    cpu = [
        Figure(
            name=f"server's CPU, per reservation, {who}",
            value=await server_time(client, store, table, lines, groups, read=server_cpu_micros),
            unit="µs",
            note="reading the command and writing the reply included",
        )
        for who, lines in (("one principal", shared), ("64 distinct users and keys", distinct))
    ]
    one = await server_time(client, store, table, shared, groups, 1)
    empty = await _empty_script(client, options)
    await client.aclose()
    note = f"script of {len(script.source):,} bytes"
    return [
        *figures,
        *cpu,
        Figure(name="server, a reservation that is alone", value=one, unit="µs", note=note),
        Figure(name="server, an empty script", value=empty, unit="µs", note="what a call costs before it does anything"),
    ]


async def _empty_script(client: Any, options: Options) -> float:
    sha = await client.script_load("return 1")
    before, times = await server_micros(client), options.count(500)
    for _ in range(times):
        await client.evalsha(sha, 0)
    return (await server_micros(client) - before) / times


async def _slope(options: Options) -> list[Figure]:
    """The server's time per reservation over the number of limits it touches: a line's slope by least squares."""
    points = {"one principal": [], "64 distinct users and keys": []}  # type: dict[str, list[tuple[int, float]]]
    for windows in (1, 2, 3, 4):
        async with valkey() as url, store_on(url) as store:
            client = redis.Redis.from_url(url, decode_responses=True)
            table = await set_limits(store, windows=windows)
            for who, users in (("one principal", 1), ("64 distinct users and keys", GROUP)):
                lines = [lines_of(table, user) for user in range(users)]
                took = await server_time(client, store, table, lines, options.count(60))
                points[who].append((4 * windows, took))
            await client.aclose()
    return [
        Figure(
            name=f"server, per limit more, {who}",
            value=least_squares(found),
            unit="µs",
            note=", ".join(f"{limits}: {micros:.1f}" for limits, micros in found),
        )
        for who, found in points.items()
    ]


def least_squares(points: Sequence[tuple[int, float]]) -> float:
    """Return the slope of the line through points."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
