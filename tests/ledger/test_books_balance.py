"""The real store, its real outbox and a ledger: what the counters say is what the ledger sums, whoever flushed it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from sark_mw.ledger.base import CostFilter, Ledger
from sark_mw.ledger.entries import CallerEntry
from sark_mw.ledger.flusher import Flusher
from sark_mw.limit import Limit
from sark_mw.reservation import Line, Need, Reserve, Resolution, Settle, lines_for, new_reservation_id
from sark_mw.store.base import LimitTable, Outbox
from sark_mw.store.connect import open_store
from sark_mw.store.redis_store import RedisStore
from tests.servers.redis_server import RedisHandle

SCOPES = ("org:acme", "user:alice")
LIMITS = [
    Limit(scope="org:acme", unit="usd", amount=Decimal(100), window="total", root="acme"),
    Limit(scope="user:*", unit="requests", amount=Decimal(10_000), window="total", root="acme"),
]
ENTRY = CallerEntry(principal_id="user:alice", scopes=SCOPES, provider="openai", model="gpt-4o").to_json()


@pytest.fixture
async def store(valkey_server: RedisHandle) -> AsyncIterator[RedisStore]:
    opened = await open_store(valkey_server.url, shards=4, deadline_s=5.0)
    await opened.begin()
    yield opened
    await opened.aclose()


async def spend(store: RedisStore, number: int, lines: tuple[Line, ...], table: LimitTable) -> None:
    """Make one reservation and resolve it in one of three ways."""
    request = Reserve(
        reservation_id=new_reservation_id(),
        root="acme",
        lines=lines,
        needs=(Need(unit="usd", held=5000, expected=3000), Need(unit="requests", held=1, expected=1)),
        lease_ms=60_000,
        version=table.version,
        epoch=table.epoch,
        entry=ENTRY,
    )
    reply = await store.reserve(request)
    assert reply.admitted
    kind = Resolution.RELEASE if number % 5 == 0 else Resolution.SETTLE
    settle = Settle(
        reservation_id=request.reservation_id,
        root="acme",
        lines=lines,
        amounts=() if kind is Resolution.RELEASE else (("usd", 1000 + number), ("requests", 1)),
        kind=kind,
        made_ms=reply.made_ms,
        entry=ENTRY,
    )
    await store.settle(settle)
    await store.settle(settle)  # said twice, booked once


async def test_the_ledger_is_the_counters_after_traffic_with_two_flushers_and_a_dead_one(
    store: RedisStore, ledger: Ledger
) -> None:
    assert isinstance(store, Outbox)
    table = await store.set_limits("acme", put=LIMITS)
    while (await store.limits("acme")).at_ms <= table.at_ms + 1:  # a limit counts from the millisecond after it was set
        await asyncio.sleep(0)
    now = (await store.limits("acme")).at_ms
    lines = lines_for(table.limits, SCOPES, now)
    flushers = [Flusher(store, ledger, consumer=name, batch=7, interval_s=0.01) for name in ("one", "two")]
    running = [asyncio.create_task(flusher.run()) for flusher in flushers]
    await asyncio.gather(*(spend(store, number, lines, table) for number in range(100)))
    await store.read("the dead", 1000)  # takes what it finds and never writes it
    await asyncio.gather(*(spend(store, number, lines, table) for number in range(100, 200)))
    reports = [await flusher.drain(30) for flusher in flushers]
    await asyncio.gather(*running)
    heir = await Flusher(store, ledger, consumer="heir", reclaim_idle_s=0).drain(30)
    assert heir.backlog == 0
    assert sum(report.new_rows for report in (*reports, heir)) == 200

    snapshot = await store.balance("acme", lines)
    assert await ledger.complete_up_to(snapshot.shard, snapshot.epoch, snapshot.seq)
    spent = {balance.line.unit: balance.spent for balance in snapshot.balances}
    total = await ledger.total(CostFilter(root="acme", scope="org:acme", shard=snapshot.shard, max_shard_seq=snapshot.seq))
    settled = [number for number in range(200) if number % 5]
    assert spent == {"usd": sum(1000 + number for number in settled), "requests": len(settled)}
    assert (total.cost_nanos, total.requests, total.rows) == (spent["usd"], spent["requests"], 200)
    of_scopes = {one.scope: one.cost_nanos for one in await ledger.scope_totals(snapshot.shard, 0)}
    assert of_scopes == dict.fromkeys(SCOPES, spent["usd"])
    resolutions = [one.resolution for one in await ledger.resolved(snapshot.shard, 0)]
    assert (resolutions.count("settled"), resolutions.count("released")) == (160, 40)
