"""Many limits touched at once: one round trip, and what each limit more costs the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import redis.asyncio as redis

from benchmarks.figures import Figure, Options, percentile
from benchmarks.reserve import GROUP, least_squares, server_cpu_micros, server_micros
from benchmarks.servers import store_on, valkey
from benchmarks.workload import ROOT, group, settle
from sark_mw.limit import Limit
from sark_mw.reservation import Line, base_of, lines_for
from sark_mw.store.base import Grant, LimitTable
from sark_mw.store.redis_store import RedisStore

KINDS = ("org", "team", "project", "user", "key", "run", "model", "provider", "tool", "resource", "tag", "end_user")
_WINDOWS = ("day", "month", "hour", "week")
#: How many limits a request touches, along which the line is laid.
COUNTS = (1, 4, 8, 12, 24, 48)
_TWELVE = 12
#: Other principals on the shard.
_OTHERS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is special about the limits: options of each, and what is done to the store before."""

    name: str
    thresholds: tuple[int, ...] = ()
    rollover: int = 0
    prepare: Callable[[RedisStore, LimitTable, Sequence[Line]], Awaitable[LimitTable]] | None = None
    settles: bool = False
    size: int = 1
    most: float | None = None
    read: Callable[[Any], Awaitable[float]] = server_micros


async def run(options: Options) -> list[Figure]:
    """Count round trips, then measure each kind of limit on a server of its own."""
    figures = await _round_trips(options)
    for variant in VARIANTS:
        async with valkey() as url, store_on(url) as store:
            client = redis.Redis.from_url(url, decode_responses=True)
            figures += await _slope(client, store, variant, options)
            await client.aclose()
    return figures


async def _round_trips(options: Options) -> list[Figure]:
    """Watch what one client sends for reserves that touch twelve limits of four units."""
    times = options.count(100)
    async with valkey() as url, store_on(url) as store:
        table = await _set_limits(store, Variant(name="plain"))
        lines = _lines(table)[:_TWELVE]
        [warm] = group(table, [lines], 1)
        await store.reserve(warm)
        watcher = redis.Redis.from_url(url, decode_responses=True)
        async with watcher.monitor() as monitor:
            for request in group(table, [lines], times):
                assert (await store.reserve(request)).admitted
            await store._commands.client.echo("end")
            sent: list[str] = []
            async for seen in monitor.listen():
                if seen["client_type"] != "lua":
                    sent.append(str(seen["command"]).partition(" ")[0].upper())
                if sent and sent[-1] == "ECHO":
                    break
        await watcher.aclose()
    calls = sent[:-1]
    note = f"{times} reserves, each on {_TWELVE} limits, watched with MONITOR: {', '.join(sorted(set(calls)))}"
    return [Figure(name="commands per reserve on 12 limits", value=len(calls) / times, unit="", most=1, least=1, note=note)]


async def _set_limits(store: RedisStore, variant: Variant) -> LimitTable:
    limits = [
        Limit(
            root=ROOT,
            scope=f"{kind}:*",
            amount=Decimal(9_000_000),
            window=window,
            thresholds=variant.thresholds,
            rollover=Decimal(variant.rollover),
        )
        for window in _WINDOWS
        for kind in KINDS
    ]
    table = await store.set_limits(ROOT, limits)
    while table.at_ms <= max(limit.since_ms for limit in table.limits):
        table = await store.limits(ROOT)
    return table


def _lines(table: LimitTable, user: int = 1) -> tuple[Line, ...]:
    """Lay out all limits as one request touches them, windows in turn."""
    laid = lines_for(table.limits, [f"{kind}:{user}" for kind in KINDS], table.at_ms)
    return tuple(sorted(laid, key=lambda line: (_WINDOWS.index(line.limit.window), line.scope) if line.limit else (0, "")))


async def _slope(client: Any, store: RedisStore, variant: Variant, options: Options) -> list[Figure]:
    """Lay a line through the server's time over the number of limits; beside it what an empty script takes at this hour."""
    table = await _set_limits(store, variant)
    if variant.prepare is not None:
        table = await variant.prepare(store, table, _lines(table))
    await _crowd(store, table)
    lines = _lines(table)
    times = options.count(400 if variant.size == 1 else 60)
    # Rounds through all counts, so that whatever else the machine does falls on each of them.
    took: dict[int, list[float]] = {count: [] for count in COUNTS}
    empty: list[float] = []
    sha = await client.script_load("return 1")
    for _ in range(times):
        for count in COUNTS:
            took[count].append(await _once(client, store, table, [lines[:count]], variant))
        before = await server_micros(client)
        await asyncio.gather(*(client.evalsha(sha, 0) for _ in range(10)))
        empty.append((await server_micros(client) - before) / 10)
    points = [(count, percentile(took[count], 50)) for count in COUNTS]
    slope, floor = least_squares(points), percentile(empty, 50)
    return [
        Figure(
            name=f"{variant.name}: per limit more",
            value=slope,
            unit="µs",
            most=variant.most,
            note=", ".join(f"{count}: {micros:.1f}" for count, micros in points),
        ),
        Figure(
            name=f"{variant.name}: per limit more, up to {2 * _TWELVE}",
            value=least_squares([point for point in points if point[0] <= 2 * _TWELVE]),
            unit="µs",
            most=variant.most,
        ),
        Figure(
            name=f"{variant.name}: per limit more ÷ an empty evalsha",
            value=slope / floor,
            unit="×",
            note=f"an empty one: {floor:.2f} µs; off the line at most {_off(points):.0%}",
        ),
    ]


async def _crowd(store: RedisStore, table: LimitTable) -> None:
    """Let other principals hold and spend, as on any shard in use: a hash of few short fields is a list, walked at each look."""
    others = [_lines(table, user) for user in range(1_000, 1_000 + _OTHERS)]
    kept, spent = group(table, others, _OTHERS), group(table, others, _OTHERS)
    for request in (*kept, *spent):
        assert (await store.reserve(request)).admitted
    for request in spent:
        await store.settle(settle(request))


async def _once(client: Any, store: RedisStore, table: LimitTable, lines: Sequence[tuple[Line, ...]], variant: Variant) -> float:
    """Reserve and settle one group; return the server's µs per reservation of the half that is asked about."""
    requests = group(table, lines, variant.size)
    before = await variant.read(client)
    replies = await asyncio.gather(*(store.reserve(request) for request in requests))
    between = await variant.read(client)
    assert all(reply.admitted for reply in replies)
    await asyncio.gather(*(store.settle(settle(request)) for request in requests))
    after = await variant.read(client)
    return (after - between if variant.settles else between - before) / variant.size


def _off(points: Sequence[tuple[int, float]]) -> float:
    """Tell how far the points lie off their line, as a share of the largest."""
    slope = least_squares(points)
    middle = sum(y for _, y in points) / len(points) - slope * sum(x for x, _ in points) / len(points)
    return max(abs(y - middle - slope * x) for x, y in points) / max(y for _, y in points)


async def _grant(store: RedisStore, table: LimitTable, lines: Sequence[Line]) -> LimitTable:
    """Top up one counter and override another: from now on every line of the shard is looked up."""
    until = table.at_ms + 3_600_000
    await store.adjust(
        [
            Grant(root=ROOT, counter=lines[0].counter, amount=1000, count=1, keep_until_ms=lines[0].ends_ms),
            Grant(root=ROOT, counter=base_of(lines[1].counter), amount=10**15, count=1, until_ms=until, keep_until_ms=until),
        ]
    )
    return table


async def _carry(store: RedisStore, table: LimitTable, lines: Sequence[Line]) -> LimitTable:
    """Give every line a period before whose rest may still change, as a rebuild writes it: the dearest there is."""
    fields = []
    for line in lines:
        assert line.limit is not None
        before = line.limit.counter(line.scope, line.limit.period(line.limit.period(table.at_ms).starts_ms - 1))
        record = f"{line.ordinal} {line.counter} a{line.amount} {line.carry_cap} {line.ordinal - 1} {before} a{line.amount}"
        fields.append((f"{base_of(line.counter)}|carry", record))
    await store.abandon(0, table.epoch)
    await store.restore(0, limits=table.limits, grants=fields)
    return await store.limits(ROOT)


VARIANTS = (
    Variant(name="plain, alone", most=3.0),
    Variant(name="plain, 64 at once of one principal", size=GROUP, most=3.0),
    Variant(name="top-ups in the shard, alone", prepare=_grant),
    Variant(name="rollover, alone", rollover=1_000_000),
    Variant(name="rollover with an open period before, alone", rollover=1_000_000, prepare=_carry),
    Variant(name="settle, plain, alone", settles=True),
    Variant(name="settle, with thresholds, alone", thresholds=(50, 80, 95), settles=True),
    Variant(name="server's CPU, plain, alone", read=server_cpu_micros),
)
