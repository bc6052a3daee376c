"""What TimescaleDB adds, that it changes no answer, and that its Apache licence is respected."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from sark_mw.ledger.base import CostFilter, LedgerEntry
from sark_mw.ledger.postgres import PostgresLedger
from sark_mw.ledger.postgres_schema import Timescale, migrations_for, timescale_of
from tests.ledger.books import DAY_MS, entry
from tests.ledger.conftest import timescale_database

DAILY = "select day, principal_id, model, cost_nanos, cost_usd, requests, tokens, entries from cost_daily order by 1, 2, 3"
BY_HAND = """
    select date_trunc('day', reserved_at, 'UTC') as day, principal_id, model, sum(cost_nanos) as cost_nanos,
        sum(cost_usd) as cost_usd, sum(requests) as requests, sum(tokens) as tokens, count(*) as entries
    from cost_tracking group by 1, 2, 3 order by 1, 2, 3
"""


class Database:
    """One connection beside the ledger's."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask."""
        return [tuple(row) for row in await self.connection.fetch(sql)]

    async def insist(self, sql: str) -> None:
        """Do what a job in the background may be doing at the same time."""
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.connection.execute(sql)
                except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                    await asyncio.sleep(0.1)
                else:
                    return

    async def now_ms(self) -> int:
        """Return the server's clock: policies and refreshes go by it."""
        return int(await self.connection.fetchval("select extract(epoch from now()) * 1000"))


@pytest.fixture
async def database(timescale_url: str) -> AsyncIterator[Database]:
    connection = await asyncpg.connect(timescale_url)
    yield Database(connection)
    await connection.close()


@pytest.fixture
async def community(timescale_url: str, database: Database) -> None:
    """The extension, in the database of the test's own, under the licence that allows everything."""
    await timescale_database(timescale_url)
    if await timescale_of(database.connection) is not Timescale.COMMUNITY:
        pytest.skip("the server behind SARK_TEST_TIMESCALE_URL runs under the Apache licence")


@pytest.fixture
async def open_it(timescale_url: str) -> AsyncIterator[Callable[..., PostgresLedger]]:
    opened: list[PostgresLedger] = []

    def make(**options: Any) -> PostgresLedger:
        opened.append(PostgresLedger(timescale_url, **options))
        return opened[-1]

    yield make
    for ledger in opened:
        await ledger.aclose()


_numbers = itertools.count(1)


def dated(reserved_ms: int, **changes: object) -> LedgerEntry:
    return entry(next(_numbers), **{"reserved_ms": reserved_ms, "booked_ms": reserved_ms, **changes})


async def test_the_table_is_a_compressed_hypertable_with_a_live_daily_aggregate(
    community: None, database: Database, open_it: Callable[..., PostgresLedger]
) -> None:
    done = await open_it().migrate()
    assert [label for label in done if label.startswith("timescale/")] == [
        f"timescale/{name}" for name in ("0001_hypertable", "0002_columnstore", "0003_cost_daily", "0004_fill_cost_daily")
    ]
    assert await database.rows("select hypertable_name from timescaledb_information.hypertables where compression_enabled") == [
        ("cost_tracking",)
    ]
    assert await database.rows("select view_name, materialized_only from timescaledb_information.continuous_aggregates") == [
        ("cost_daily", False)
    ]
    jobs = await database.rows("select proc_name from timescaledb_information.jobs where proc_name like 'policy_%' order by 1")
    assert {("policy_compression",), ("policy_refresh_continuous_aggregate",)} <= set(jobs)
    assert ("policy_retention",) not in jobs


async def test_a_database_that_gets_the_extension_later_moves_its_rows_and_gives_the_same_answers(
    timescale_url: str, database: Database, open_it: Callable[..., PostgresLedger]
) -> None:
    ledger = open_it()
    assert len(await ledger.migrate()) == 8  # plain PostgreSQL so far
    now = await database.now_ms()
    ages = [0, 0, 1, 2, 20, 50, 400]
    await ledger.append([dated(now - age * DAY_MS, principal_id=f"user:{age % 2}", cost_nanos=7**age % 10_007) for age in ages])
    before = await database.rows(DAILY)
    await timescale_database(timescale_url)
    if await timescale_of(database.connection) is not Timescale.COMMUNITY:
        pytest.skip("the server behind SARK_TEST_TIMESCALE_URL runs under the Apache licence")
    installed, newest = await ledger.schema_version()
    assert (installed, newest) == (8, 12)
    assert len(await ledger.migrate()) == 4
    assert await ledger.schema_version() == (12, 12)
    assert await database.rows(DAILY) == before == await database.rows(BY_HAND)
    assert (
        len(await database.rows("select chunk_name from timescaledb_information.chunks where hypertable_name = 'cost_tracking'"))
        >= 4
    )


async def test_the_aggregate_answers_like_the_table_for_new_late_and_refreshed_rows(
    community: None, database: Database, open_it: Callable[..., PostgresLedger]
) -> None:
    ledger = open_it()
    await ledger.migrate()
    now = await database.now_ms()
    await ledger.append([dated(now - age * DAY_MS, model=f"m{age % 3}", cost_nanos=10**age) for age in range(9)])
    assert await database.rows(DAILY) == await database.rows(BY_HAND)
    await database.insist("call refresh_continuous_aggregate('cost_daily', null, now() - interval '1 day')")
    assert await database.rows(DAILY) == await database.rows(BY_HAND)
    # today and yesterday are live after a refresh too
    await ledger.append([dated(now), dated(now - DAY_MS, cost_nanos=-4, late=True)])
    assert await database.rows(DAILY) == await database.rows(BY_HAND)
    # a correction of an old day is there after the next refresh
    await ledger.append([dated(now - 5 * DAY_MS, cost_nanos=-77, late=True)])
    (job,) = await database.rows(
        "select job_id from timescaledb_information.jobs where proc_name = 'policy_refresh_continuous_aggregate'"
    )
    await database.insist(f"call run_job({job[0]})")
    assert await database.rows(DAILY) == await database.rows(BY_HAND)


async def test_compressed_chunks_take_late_corrections_and_refuse_repetitions(
    community: None, database: Database, open_it: Callable[..., PostgresLedger]
) -> None:
    ledger = open_it()
    await ledger.migrate()
    now = await database.now_ms()
    old = [dated(now - 40 * DAY_MS + number * 60_000) for number in range(2000)]
    assert await ledger.append(old) == 2000
    await database.insist("select compress_chunk(chunk) from show_chunks('cost_tracking') as chunk")
    assert await ledger.append(old[100:110]) == 0
    correction = dated(old[5].reserved_ms, reservation_id=old[5].reservation_id, part=2, cost_nanos=-400, requests=0, late=True)
    assert await ledger.append([*old[:50], correction]) == 1
    total = await ledger.total(CostFilter(principal_id="user:alice", scope="org:acme", root="acme"))
    assert (total.rows, total.cost_nanos) == (2001, 2000 * 1000 - 400)
    assert await ledger.last_sequence(0) == correction.shard_seq


async def test_retention_is_off_until_it_is_set_and_follows_the_setting(
    community: None, database: Database, open_it: Callable[..., PostgresLedger]
) -> None:
    retention = "select config->>'drop_after' from timescaledb_information.jobs where proc_name = 'policy_retention'"
    await open_it().migrate()
    assert await database.rows(retention) == []
    year = open_it(retention=timedelta(days=365), compress_after=timedelta(days=30))
    assert await year.migrate() == ["compression compress_after 30 days, 0:00:00", "retention drop_after 365 days, 0:00:00"]
    assert await year.migrate() == []
    assert await database.rows(retention) == [("365 days",)]
    assert await open_it(retention=timedelta(days=90), compress_after=timedelta(days=30)).migrate() == [
        "retention drop_after 90 days, 0:00:00"
    ]
    now = await database.now_ms()
    await year.append([dated(now), dated(now - 200 * DAY_MS)])
    await database.insist("call refresh_continuous_aggregate('cost_daily', null, now() - interval '1 day')")
    sums = await database.rows(DAILY)
    for name in ("policy_retention", "policy_refresh_continuous_aggregate"):
        (job,) = await database.rows(f"select job_id from timescaledb_information.jobs where proc_name = '{name}'")
        await database.insist(f"call run_job({job[0]})")
    assert (await year.total(CostFilter())).rows == 1  # the rows are gone
    assert await database.rows(DAILY) == sums  # their daily sums are not
    assert await open_it(compress_after=timedelta(days=30)).migrate() == ["retention drop_after None"]
    assert await database.rows(retention) == []


def test_the_apache_licence_leaves_out_what_it_does_not_allow() -> None:
    wanted, skipped = migrations_for(Timescale.APACHE)
    assert [migration.label for migration in wanted][-1] == "timescale/0001_hypertable"
    assert [migration.name for migration in skipped] == ["columnstore", "cost_daily", "fill_cost_daily"]
    assert migrations_for(Timescale.COMMUNITY) == ([*wanted, *skipped], [])


async def test_under_the_apache_licence_there_is_a_hypertable_and_the_rest_is_said_to_be_left_out(
    timescale_url: str, database: Database, open_it: Callable[..., PostgresLedger]
) -> None:
    await timescale_database(timescale_url)
    if await timescale_of(database.connection) is not Timescale.APACHE:
        pytest.skip("the server behind SARK_TEST_TIMESCALE_URL runs under the community licence")
    ledger = open_it(retention=timedelta(days=400))
    done = await ledger.migrate()
    assert done[8] == "timescale/0001_hypertable"
    assert [line.partition(" ")[0] for line in done[9:12]] == [
        "timescale/0002_columnstore",
        "timescale/0003_cost_daily",
        "timescale/0004_fill_cost_daily",
    ]
    assert all("Apache licence" in line for line in done[9:12])
    assert done[12].startswith("retention skipped")
    assert await ledger.schema_version() == (9, 9)
    now = await database.now_ms()
    assert await ledger.append([dated(now), dated(now - 9 * DAY_MS)]) == 2
    assert await database.rows(DAILY) == await database.rows(BY_HAND)
