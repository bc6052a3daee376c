"""Summing costs up: over a ledger of a million rows, in SQLite and PostgreSQL. Target: under 50 ms."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, Options, percentile
from benchmarks.servers import postgres
from sark_mw.ledger import open_ledger
from sark_mw.ledger.base import CostFilter, Ledger, LedgerEntry

_BATCH = 20_000
_DAYS = 90
_DAY_MS = 86_400_000
_MODELS = ("gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "text-embedding-3-small")


async def run(options: Options) -> list[Figure]:
    """Fill each ledger, then time the sums that budgets and reports ask for."""
    rows = 500 if options.tiny else min(options.rows, 50_000) if options.quick else options.rows
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="sark-bench-") as directory:
        ledger = open_ledger(f"sqlite:///{Path(directory) / 'ledger.db'}", deadline_s=120)
        figures += await _measure("SQLite", ledger, rows, options)
    with postgres() as dsn:
        if dsn is not None:
            figures += await _measure("PostgreSQL", open_ledger(dsn, deadline_s=120), rows, options, dsn)
    return figures


async def _vacuum(dsn: str) -> None:
    """Do what autovacuum does within a minute or so of a load like this."""
    import asyncpg

    connection = await asyncpg.connect(dsn)
    await connection.execute("vacuum analyze cost_tracking")
    await connection.close()


def _entries(rows: int, now_ms: int) -> Iterator[LedgerEntry]:
    rng = random.Random(1)
    for n in range(rows):
        made = now_ms - round(_DAYS * _DAY_MS * (rows - n) / rows)
        user = min(int(rng.expovariate(0.02)), 499)  # a few users make most of the calls
        model = _MODELS[n % 4]
        tokens_in, tokens_out = rng.randrange(20, 4000), rng.randrange(1, 800)
        yield LedgerEntry(
            reservation_id=f"{made:012x}{n:020x}",
            part=1,
            kind="settle",
            root="acme",
            shard=0,
            shard_seq=n + 1,
            epoch="e",
            reserved_ms=made,
            booked_ms=made + 900,
            cost_nanos=tokens_in * 2500 + tokens_out * 10_000,
            requests=1,
            tokens=tokens_in + tokens_out,
            estimated=False,
            late=False,
            principal_id=f"user:{user}",
            resource_id=model,
            capability_id="chat",
            scopes=(f"user:{user}", f"team:{user % 10}", "org:acme"),
            provider="openai",
            model=model,
            held_nanos=20_000_000,
            expected_nanos=5_000_000,
            actual_nanos=tokens_in * 2500 + tokens_out * 10_000,
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            status=200,
        )


async def _measure(name: str, ledger: Ledger, rows: int, options: Options, dsn: str | None = None) -> list[Figure]:
    now_ms = round(time.time() * 1000)
    await ledger.migrate()
    batch: list[LedgerEntry] = []
    started = time.perf_counter()
    for entry in _entries(rows, now_ms):
        batch.append(entry)
        if len(batch) == _BATCH:
            await ledger.append(batch)
            batch = []
    if batch:
        await ledger.append(batch)
    filling = time.perf_counter() - started
    if dsn is not None:
        await _vacuum(dsn)
    today, month = now_ms - now_ms % _DAY_MS, now_ms - 30 * _DAY_MS
    asked = {
        "a principal's day": (CostFilter(root="acme", principal_id="user:3", from_ms=today), None),
        "a principal's 30 days, by model": (CostFilter(root="acme", principal_id="user:3", from_ms=month), "model"),
        "a team's day": (CostFilter(root="acme", scope="team:3", from_ms=today), None),
        "everybody's day, by principal": (CostFilter(root="acme", from_ms=today), "principal_id"),
        "everybody's 30 days, by model": (CostFilter(root="acme", from_ms=month), "model"),
    }
    figures = [
        Figure(name=f"{name}, rows appended", value=rows / filling, unit="rows/s", note=f"{rows:,} rows over {_DAYS} days")
    ]
    for what, (query, group_by) in asked.items():
        took = []
        found = await ledger.total(query, group_by)
        for _ in range(options.count(40)):
            started = time.perf_counter()
            await ledger.total(query, group_by)
            took.append(time.perf_counter() - started)
            await asyncio.sleep(0)
        note = f"sums {found.rows:,} rows"
        figures.append(Figure(name=f"{name}, {what}, p50", value=percentile(took, 50) * 1e3, unit="ms", most=50, note=note))
    await ledger.aclose()
    return figures
