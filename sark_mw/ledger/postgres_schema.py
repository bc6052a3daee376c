"""Migrations on PostgreSQL: plain tables first, then what TimescaleDB adds where it is there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from sark_mw.errors import ConfigurationError
from sark_mw.ledger.schema import LOCK_KEY, Migration, migrations

_Connection: TypeAlias = Any  # see postgres.py

_TABLE = """
    create table if not exists schema_migrations (
        track text not null, version integer not null, name text not null, description text not null,
        applied_at timestamptz not null default now(), primary key (track, version)
    )
"""
_RECORD = "insert into schema_migrations (track, version, name, description) values ($1, $2, $3, $4)"
_LICENCE = "select current_setting('timescaledb.license', true) from pg_extension where extname = 'timescaledb'"
_POLICY = """
    select job_id, config->>$2 as after from timescaledb_information.jobs
    where hypertable_name = 'cost_tracking' and hypertable_schema = current_schema() and proc_name = $1
"""
#: A lock that is not to be had, a deadlock; and how long and often to try again.
_BUSY = ("55P03", "40P01")
_ATTEMPTS, _PAUSE_S = 50, 0.2
#: The daily sums are refreshed as far back as this; rows must live longer, or a refresh would empty the sums.
_REFRESHED = timedelta(days=35)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What TimescaleDB does to old chunks: compress them `compress_after`, drop them after `retention` (None: never)."""

    retention: timedelta | None = None
    compress_after: timedelta = timedelta(days=14)

    def __post_init__(self) -> None:
        if self.retention is not None and self.retention <= _REFRESHED:
            raise ConfigurationError(f"the ledger must be kept for more than {_REFRESHED.days} days, not {self.retention}")
        if self.compress_after <= timedelta():
            raise ConfigurationError(f"compress_after must be positive, not {self.compress_after}")


class Timescale(StrEnum):
    """What there is of TimescaleDB in a database."""

    ABSENT = "absent"
    APACHE = "apache"
    COMMUNITY = "community"


async def timescale_of(connection: _Connection) -> Timescale:
    """Look whether the extension was created in this database, and under which licence it runs."""
    licence = await connection.fetchrow(_LICENCE)
    if licence is None:
        return Timescale.ABSENT
    return Timescale.COMMUNITY if licence[0] == "timescale" else Timescale.APACHE


async def schema_version(connection: _Connection) -> tuple[int, int]:
    """Count the migrations (installed, that there are for this database)."""
    wanted, _ = migrations_for(await timescale_of(connection))
    if await connection.fetchval("select to_regclass('schema_migrations')") is None:
        return 0, len(wanted)
    return await connection.fetchval("select count(*) from schema_migrations"), len(wanted)


async def migrate(connection: _Connection, policies: Policies) -> list[str]:
    """Run what is missing under an advisory lock; return what was done, and what the licence did not allow."""
    await connection.execute("select pg_advisory_lock($1)", LOCK_KEY)  # gone with the connection, if not before
    try:
        await connection.execute(_TABLE)
        timescale = await timescale_of(connection)
        wanted, skipped = migrations_for(timescale)
        done = {(track, version) for track, version in await connection.fetch("select track, version from schema_migrations")}
        missing = [migration for migration in wanted if (migration.track, migration.version) not in done]
        for migration in missing:
            await _run(connection, migration)
        said = [migration.label for migration in missing]
        if said:  # once, not at every start: a second call has nothing to do and says so
            said += [f"{migration.label} skipped: TimescaleDB runs under its Apache licence" for migration in skipped]
        return said + await _apply(connection, policies, timescale)
    finally:
        if not connection.is_closed():
            await connection.execute("select pg_advisory_unlock($1)", LOCK_KEY)


def migrations_for(timescale: Timescale) -> tuple[list[Migration], list[Migration]]:
    """Choose (wanted, skipped) migrations; a skipped one is not recorded, so it runs when the licence allows it."""
    added = () if timescale is Timescale.ABSENT else migrations("timescale")
    skipped = [migration for migration in added if migration.needs_community and timescale is Timescale.APACHE]
    return [*migrations("postgres"), *(migration for migration in added if migration not in skipped)], skipped


async def _run(connection: _Connection, migration: Migration) -> None:
    record = (migration.track, migration.version, migration.name, migration.description)
    if not migration.in_transaction:
        await _insist(connection, migration.sql)
        await connection.execute(_RECORD, *record)
        return
    async with connection.transaction():
        await connection.execute(migration.sql)
        await connection.execute(_RECORD, *record)


async def _insist(connection: _Connection, sql: str) -> None:
    """Run what may be repeated, and what one of TimescaleDB's own jobs may be doing at the same time."""
    for _ in range(_ATTEMPTS):
        try:
            await connection.execute(sql)
        except Exception as error:
            if getattr(error, "sqlstate", None) not in _BUSY:
                raise
            await asyncio.sleep(_PAUSE_S)
        else:
            return
    await connection.execute(sql)


async def _apply(connection: _Connection, policies: Policies, timescale: Timescale) -> list[str]:
    """Make the policies those of the settings; return what changed."""
    if timescale is not Timescale.COMMUNITY:
        return ["retention skipped: it needs TimescaleDB under its community licence"] if policies.retention else []
    changed = []
    for name, argument, wanted in (
        ("compression", "compress_after", policies.compress_after),
        ("retention", "drop_after", policies.retention),
    ):
        job = await connection.fetchrow(_POLICY, f"policy_{name}", argument)
        current = await connection.fetchval("select $1::text::interval", job["after"]) if job else None
        if current == wanted:
            continue
        async with connection.transaction():
            await connection.execute(f"select remove_{name}_policy('cost_tracking', if_exists => true)")
            if wanted is not None:
                await connection.execute(f"select add_{name}_policy('cost_tracking', {argument} => $1::interval)", wanted)
        changed.append(f"{name} {argument} {wanted}")
    return changed
