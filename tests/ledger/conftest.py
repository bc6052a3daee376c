"""One ledger after another for the contract: SQLite in memory and in a file, PostgreSQL, TimescaleDB."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from sark_mw.ledger.base import Ledger
from sark_mw.ledger.open import open_ledger

SHARED = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres), pytest.param("timescale", marks=pytest.mark.timescale)]


async def timescale_database(dsn: str) -> str:
    """Create the extension in a database of the test's own."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("create extension if not exists timescaledb")
    await connection.close()
    return dsn


@pytest.fixture(params=SHARED)
async def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty ledger that several may open."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'ledger.db'}"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return await timescale_database(url) if request.param == "timescale" else url


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    """A ledger with its schema."""
    opened = open_ledger(ledger_url)
    await opened.migrate()
    yield opened
    await opened.aclose()


@pytest.fixture
async def rows(ledger_url: str, ledger: Ledger) -> Any:
    """Ask the ledger's database itself: `await rows("select …")` as a list of dicts."""

    async def ask(sql: str) -> list[dict[str, Any]]:
        return await run_sql(ledger_url, sql)

    return ask


async def run_sql(ledger_url: str, sql: str) -> list[dict[str, Any]]:
    """Run a statement in the database of a ledger, beside the ledger."""
    if ledger_url.startswith("sqlite"):
        connection = sqlite3.connect(ledger_url.removeprefix("sqlite:///"), isolation_level=None)
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute(sql).fetchall()]
        connection.close()
        return found
    server = await asyncpg.connect(ledger_url)
    answer = [dict(row) for row in await server.fetch(sql)]
    await server.close()
    return answer
