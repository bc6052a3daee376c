"""What is PostgreSQL's own: faults of the connection, and that nothing secret is said."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from sark_mw.errors import LedgerError, LedgerUnavailableError
from sark_mw.ledger.base import CostFilter
from sark_mw.ledger.events import EventFilter
from sark_mw.ledger.open import open_ledger
from sark_mw.ledger.postgres import PostgresLedger
from tests.ledger.books import NOON_MS, entry, limit_event
from tests.servers.postgres import PostgresServer

EVERYTHING = CostFilter()


@pytest.fixture
async def ledger(postgres_url: str) -> Any:
    opened = PostgresLedger(postgres_url, deadline_s=0.5)
    await opened.migrate()
    yield opened
    await opened.aclose()


@pytest.mark.parametrize("fault", ["stop", "pause"])
async def test_every_call_ends_when_the_database_does_not_answer(
    postgres_server: PostgresServer, ledger: PostgresLedger, fault: str
) -> None:
    await ledger.append([entry(1)])
    await asyncio.to_thread(getattr(postgres_server, fault))
    calls = [
        ledger.append([entry(2)]),
        ledger.total(EVERYTHING),
        ledger.last_sequence(0),
        ledger.recent(0, 0),
        ledger.load_limits(),
        ledger.save_limits([], [("a", "b")]),
        ledger.record_events([limit_event(1)]),
        ledger.events(EventFilter()),
        ledger.claim_events(("threshold",), NOON_MS, 1000, 10),
        ledger.schema_version(),
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [LedgerUnavailableError] * len(calls)
    await asyncio.to_thread(postgres_server.recover)
    while True:  # a server that comes back may still end what it was busy with
        try:
            await ledger.append([entry(2)])
            break
        except LedgerUnavailableError:
            continue
    assert (await ledger.total(EVERYTHING)).rows == 2


async def test_closing_ends_when_the_database_does_not_answer(postgres_server: PostgresServer, ledger: PostgresLedger) -> None:
    await ledger.total(EVERYTHING)
    await asyncio.to_thread(postgres_server.pause)
    await ledger.aclose()


async def test_connections_that_the_server_ended_are_replaced(postgres_server: PostgresServer, ledger: PostgresLedger) -> None:
    await ledger.append([entry(1)])
    postgres_server.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname like 'sark_%'"
    )
    for number in (2, 3):
        while True:
            try:
                assert await ledger.append([entry(number)]) == 1
                break
            except LedgerUnavailableError:
                continue
    assert (await ledger.total(EVERYTHING)).rows == 3


async def test_nobody_is_there(tmp_path: Any) -> None:
    ledger = PostgresLedger(f"postgresql://me:geheim@/books?host={tmp_path}", deadline_s=0.5)
    with pytest.raises(LedgerUnavailableError) as raised:
        await ledger.append([entry(1)])
    assert "geheim" not in str(raised.value)
    with pytest.raises(LedgerUnavailableError):
        await ledger.migrate()
    await ledger.aclose()


async def test_a_database_that_does_not_exist_is_an_error_and_never_a_rejected_row(postgres_server: PostgresServer) -> None:
    ledger = PostgresLedger(postgres_server.dsn("no_such_database"))
    with pytest.raises(LedgerError, match="no_such_database"):
        await ledger.append([entry(1)])
    assert ledger.rejected_rows == 0
    await ledger.aclose()


@pytest.mark.parametrize("dsn", ["postgresql://host:notaport/db", "postgresql://h/db?sslmode=maybe"])
async def test_an_address_that_makes_no_sense_is_an_error_and_never_a_rejected_row(dsn: str) -> None:
    ledger = PostgresLedger(dsn)
    with pytest.raises(LedgerError):
        await ledger.append([entry(1)])
    with pytest.raises(LedgerError):
        await ledger.migrate()
    assert ledger.rejected_rows == 0
    await ledger.aclose()


async def test_a_read_only_database_is_waited_for(
    postgres_server: PostgresServer, postgres_url: str, ledger: PostgresLedger
) -> None:
    name = urlsplit(postgres_url).path.lstrip("/")
    postgres_server.query(f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(LedgerUnavailableError, match="read-only"):
        await ledger.append([entry(1)])
    postgres_server.query(f"alter database {name} reset default_transaction_read_only")
    assert await ledger.append([entry(1)]) == 1
    assert ledger.rejected_rows == 0


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(postgres_server: PostgresServer, postgres_url: str) -> None:
    postgres_server.query("create table principal_budgets (somebody text)", dsn=postgres_url)
    ledger = open_ledger(postgres_url)
    with pytest.raises(LedgerError, match="principal_budgets"):
        await ledger.migrate()
    assert (await ledger.schema_version())[0] == 1
    postgres_server.query("drop table principal_budgets", dsn=postgres_url)
    assert await ledger.migrate() == [
        "postgres/0002_principal_budgets",
        "postgres/0003_ledger_rejected",
        "postgres/0004_cost_daily",
        "postgres/0005_shard_epochs",
        "postgres/0006_limit_events",
        "postgres/0007_limit_options",
        "postgres/0008_policy_events",
    ]
    await ledger.aclose()


async def test_a_retention_without_timescaledb_is_said_to_do_nothing(postgres_url: str) -> None:
    ledger = open_ledger(postgres_url, retention=timedelta(days=400))
    assert (await ledger.migrate())[-1] == "retention skipped: it needs TimescaleDB under its community licence"
    await ledger.aclose()


async def test_sums_of_a_principal_and_of_a_scope_are_found_by_index(
    postgres_server: PostgresServer, postgres_url: str, ledger: PostgresLedger
) -> None:
    await ledger.append(
        [entry(n, principal_id=f"user:{n % 500}", scopes=("org:acme", f"user:{n % 500}")) for n in range(1, 5001)]
    )
    postgres_server.query("analyze cost_tracking", dsn=postgres_url)

    def plan(condition: str) -> str:
        sql = f"explain select sum(cost_nanos), sum(tokens) from cost_tracking where {condition}"
        return "\n".join(row[0] for row in postgres_server.query(sql, dsn=postgres_url))

    assert "cost_tracking_principal_idx" in plan("principal_id = 'user:7' and reserved_at >= '2026-11-01'")
    assert "cost_tracking_scopes_idx" in plan("scopes @> array['user:7']")
    assert "cost_tracking_shard_seq_idx" in plan("shard = 0 and shard_seq > 4990")
