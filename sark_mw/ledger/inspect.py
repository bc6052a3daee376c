"""Look at the database behind a ledger without changing anything: what `sark-mw doctor` asks."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sark_mw.ledger.base import Ledger
from sark_mw.ledger.sqlite import SqliteLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """What a database tells of itself. `timescale` is None where there is none, `community` or `apache` by its licence.

    `now_ms` is the database's clock, None for one that has no own; `rejected` counts entries that it would not take.
    """

    name: str
    version: str
    now_ms: int | None = None
    timescale: str | None = None
    timescale_version: str | None = None
    hypertable: bool = False
    policies: tuple[str, ...] = ()
    rejected: int | None = None
    asked_ms: int = 0


_POLICIES = """
    select proc_name from timescaledb_information.jobs
    where hypertable_schema = current_schema() and hypertable_name = 'cost_tracking' order by 1
"""
_HYPERTABLE = """
    select exists (select 1 from timescaledb_information.hypertables
        where hypertable_schema = current_schema() and hypertable_name = 'cost_tracking')
"""


async def database_facts(ledger: Ledger) -> DatabaseFacts:
    """Ask the database; raises `LedgerUnavailableError` or `LedgerError`."""
    if isinstance(ledger, SqliteLedger):
        return await _sqlite(ledger)
    try:
        from sark_mw.ledger.postgres import PostgresLedger
    except ImportError:
        return DatabaseFacts(name=type(ledger).__name__, version="")
    if isinstance(ledger, PostgresLedger):
        return await _postgres(ledger)
    return DatabaseFacts(name=type(ledger).__name__, version="")


async def _sqlite(ledger: SqliteLedger) -> DatabaseFacts:
    def ask(connection: object) -> tuple[str, int | None]:
        execute = connection.execute  # type: ignore[attr-defined]
        there = execute("select count(*) from sqlite_master where name = 'ledger_rejected'").fetchone()[0]
        rejected = execute("select count(*) from ledger_rejected").fetchone()[0] if there else None
        return str(execute("select sqlite_version()").fetchone()[0]), rejected

    version, rejected = await ledger._work(ask)
    return DatabaseFacts(name="SQLite", version=version, rejected=rejected)


async def _postgres(ledger: object) -> DatabaseFacts:
    from sark_mw.ledger.postgres_schema import Timescale, timescale_of

    async with ledger._connection() as connection:  # type: ignore[attr-defined]
        version = await connection.fetchval("show server_version")
        timescale = await timescale_of(connection)
        has_timescale = timescale is not Timescale.ABSENT
        rejected = None
        if await connection.fetchval("select to_regclass('ledger_rejected')") is not None:
            rejected = await connection.fetchval("select count(*) from ledger_rejected")
        before = time.time()
        now_ms = await connection.fetchval("select (extract(epoch from clock_timestamp()) * 1000)::bigint")
        return DatabaseFacts(
            name="PostgreSQL",
            version=str(version),
            # Compared with this machine's clock at the middle of the question.
            now_ms=now_ms,
            asked_ms=round((before + time.time()) * 500),
            timescale=timescale.value if has_timescale else None,
            timescale_version=await connection.fetchval("select extversion from pg_extension where extname = 'timescaledb'"),
            hypertable=bool(await connection.fetchval(_HYPERTABLE)) if has_timescale else False,
            policies=tuple(row[0] for row in await connection.fetch(_POLICIES)) if has_timescale else (),
            rejected=rejected,
        )
