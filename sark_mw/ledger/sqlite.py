"""The ledger in SQLite: for one host, without a server; the file may be shared by several processes."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sark_mw.errors import ConfigurationError, LedgerError
from sark_mw.ledger.base import (
    Appended,
    CostFilter,
    CostTotal,
    EpochBooks,
    EpochQuery,
    Fence,
    LedgerEntry,
    ResolvedReservation,
    ScopeTotal,
)
from sark_mw.ledger.rows import COLUMNS, SCOPES, Row, clean_text, content_of, row_of
from sark_mw.ledger.schema import Migration, migrations
from sark_mw.ledger.sqlite_connection import mapped, open_file, transaction
from sark_mw.ledger.sqlite_fence import adopt, divide, forked, is_overtaken, put_fence, read_fence
from sark_mw.ledger.sqlite_limits import SqliteLimits
from sark_mw.ledger.sqlite_sums import SUMS, joined, last_sequence, resolved, scope_totals
from sark_mw.ledger.summary import COUNTED, LOOK_BACK, Spelling, base_after, is_complete, sum_query, total_of

_T = TypeVar("_T")
#: What an entry raises that will raise it again however often it is tried.
_NEVER_FITS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError)
_INSERT = f"insert into cost_tracking ({', '.join(COLUMNS)}) values ({', '.join('?' * len(COLUMNS))}) on conflict do nothing"  # noqa: S608
_REJECT = "insert into ledger_rejected (digest, reservation_id, reason, content) values (?, ?, ?, ?) on conflict do nothing"
_SPELLING = Spelling(
    from_ms="reserved_ms >= {}",
    until_ms="reserved_ms < {}",
    scope="id in (select entry from cost_tracking_scopes where scope = {})",
    parameter="?",
)
_MIGRATIONS_TABLE = """
    create table if not exists schema_migrations (
        track text not null, version integer not null, name text not null, description text not null,
        applied_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')), primary key (track, version)
    )
"""


class SqliteLedger(SqliteLimits):
    """Keep the ledger in a file (`sqlite:///relative`, `sqlite:////absolute`) or in memory (`sqlite:///:memory:`).

    All work is done in one thread of its own, so the event loop never waits for the disk; `deadline_s` bounds the wait for
    another process's lock. Raises `ConfigurationError` for any other address.
    """

    def __init__(self, url: str, *, deadline_s: float = 5.0) -> None:
        if not url.startswith("sqlite:///") or not url.removeprefix("sqlite:///"):
            raise ConfigurationError(f"a SQLite ledger reads sqlite:///path or sqlite:///:memory:, not {url!r}")
        self._path = url.removeprefix("sqlite:///")
        self._deadline_s = deadline_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sark-ledger")
        self._opened: sqlite3.Connection | None = None
        self._rejected_rows = 0
        self._closed = False

    @property
    def rejected_rows(self) -> int:
        """Entries that this process put into `ledger_rejected`."""
        return self._rejected_rows

    async def append(self, entries: Sequence[LedgerEntry]) -> int:
        """Insert what is not there yet, in one transaction; return how many rows were new."""
        rows = [row_of(entry) for entry in entries]

        def append(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                new, rejected = _append(connection, rows)
            self._rejected_rows += rejected
            return new

        return await self._work(append)

    async def append_fenced(self, entries: Sequence[LedgerEntry]) -> Appended:
        """Append as `append` does, but keep out entries of an epoch that is not the fence's."""
        rows = [row_of(entry) for entry in entries]
        came = {id(row): entry for row, entry in zip(rows, entries, strict=True)}

        def append(connection: sqlite3.Connection) -> Appended:
            with transaction(connection):
                current, refused = divide(connection, rows)
                twins = forked(connection, current)
                new, rejected = _append(connection, current)
            self._rejected_rows += rejected
            return Appended(new=new, refused=tuple(came[id(row)] for row in refused), forked=frozenset(twins))

        return await self._work(append)

    async def begin_epoch(self, shard: int, epoch: str, query: EpochQuery) -> EpochBooks:
        """Put up the fence for a new epoch of a shard, and read what there is, in one step."""

        def begin(connection: sqlite3.Connection) -> EpochBooks:
            with transaction(connection):
                last = last_sequence(connection, shard, None)
                fence = Fence(shard=shard, epoch=epoch, base_seq=base_after(last))
                put_fence(connection, fence)
                return EpochBooks(
                    fence=fence,
                    totals={interval: scope_totals(connection, shard, *interval) for interval in query.intervals},
                    resolved=resolved(connection, shard, query.resolved_since_ms, query.most_resolved),
                )

        return await self._work(begin)

    async def fence(self, shard: int) -> Fence | None:
        """Tell which epoch of a shard is taken."""
        return await self._work(lambda connection: read_fence(connection, shard))

    async def is_overtaken(self, fence: Fence) -> bool:
        """Tell whether another epoch has lived since a fence was put up."""
        return await self._work(lambda connection: is_overtaken(connection, fence))

    async def adopt_epoch(self, shard: int, found: str, epoch: str) -> bool:
        """Let the fence that names `found` name `epoch`."""
        return await self._work(lambda connection: adopt(connection, shard, found, epoch))

    async def total(self, query: CostFilter, group_by: str | None = None) -> CostTotal:
        """Sum rows; `group_by` is one of principal_id, resource_id, capability_id, provider, model."""
        asked = sum_query(query, group_by, _SPELLING)
        sql = f"select {asked.group}, count(*), {SUMS} from cost_tracking{asked.where}{asked.group_by}"  # noqa: S608
        rows = await self._work(lambda connection: connection.execute(sql, asked.parameters).fetchall())
        groups = [(name, count, tuple(joined(halves))) for name, count, *halves in rows]
        return total_of(groups, grouped=asked.grouped)

    async def last_sequence(self, shard: int, epoch: str | None = None) -> int:
        """Return the highest `shard_seq` stored for a shard (of one epoch), 0 if none."""
        return await self._work(lambda connection: last_sequence(connection, shard, epoch))

    async def recent(self, shard: int, since_booked_ms: int) -> list[tuple[str, int]]:
        """List (reservation id, last part) of reservations with an entry booked since then."""
        sql = "select reservation_id, max(part) from cost_tracking where shard = ? and booked_ms >= ? group by 1 order by 1"
        return await self._work(lambda connection: connection.execute(sql, (shard, since_booked_ms)).fetchall())

    async def has(self, reservation_id: str) -> bool:
        """Tell whether any entry of a reservation is there."""
        sql = "select exists (select 1 from cost_tracking where reservation_id = ?)"
        name = (clean_text(reservation_id),)
        return bool((await self._work(lambda connection: connection.execute(sql, name).fetchone()))[0])

    async def complete_up_to(self, shard: int, epoch: str, seq: int) -> bool:
        """Tell whether the shard's entries up to `seq` have all arrived, looking at the last 10,000 of that epoch."""
        sql = COUNTED.format(*"????")
        asked = (shard, epoch, seq - LOOK_BACK, seq)

        def ask(connection: sqlite3.Connection) -> bool:
            rows, first = connection.execute(sql, asked).fetchone()
            fence = read_fence(connection, shard)
            return is_complete(seq, rows, first, fence.base_seq if fence and fence.epoch == epoch else None)

        return await self._work(ask)

    async def resolved(self, shard: int, since_booked_ms: int) -> list[ResolvedReservation]:
        """Sum up the reservations of a shard with an entry booked since then."""
        return await self._work(lambda connection: resolved(connection, shard, since_booked_ms, -1))

    async def scope_totals(self, shard: int, from_ms: int, until_ms: int | None = None) -> list[ScopeTotal]:
        """Sum every scope of a shard in one pass, over reservations of `from_ms <= t < until_ms`."""
        return await self._work(lambda connection: scope_totals(connection, shard, from_ms, until_ms))

    async def migrate(self) -> list[str]:
        """Bring the schema up to date; return the names of the migrations that ran."""
        return await self._work(_migrate)

    async def schema_version(self) -> tuple[int, int]:
        """Return (installed, newest) schema versions."""
        return await self._work(_installed), len(migrations("sqlite"))

    async def aclose(self) -> None:
        """Close the file after what is under way."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    async def _work(self, task: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._closed:
            raise LedgerError("the ledger is closed")

        def run() -> _T:
            with mapped():
                return task(self._connection())

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            if self._path != ":memory:":
                Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            self._opened = open_file(self._path, self._deadline_s)
        return self._opened


def _append(connection: sqlite3.Connection, rows: Iterable[Row]) -> tuple[int, int]:
    """Insert rows; return how many were new, and how many were put aside."""
    new = rejected = 0
    for row in rows:
        try:
            new += _insert(connection, row)
        except _NEVER_FITS as error:
            digest, content = content_of(row)
            reason = f"{type(error).__name__}: {error}"
            rejected += connection.execute(_REJECT, (digest, str(row[0]), reason, content)).rowcount
    return new, rejected


def _insert(connection: sqlite3.Connection, row: Row) -> int:
    scopes = row[SCOPES]
    names = scopes if isinstance(scopes, tuple) else ()
    cursor = connection.execute(_INSERT, (*row[:SCOPES], json.dumps(names, ensure_ascii=False), *row[SCOPES + 1 :]))
    if cursor.rowcount != 1:
        return 0
    links = [(scope, cursor.lastrowid) for scope in dict.fromkeys(names)]
    connection.executemany("insert into cost_tracking_scopes (scope, entry) values (?, ?)", links)
    return 1


def _installed(connection: sqlite3.Connection) -> int:
    if not connection.execute("select 1 from sqlite_master where name = 'schema_migrations'").fetchone():
        return 0
    return int(connection.execute("select count(*) from schema_migrations").fetchone()[0])


def _migrate(connection: sqlite3.Connection) -> list[str]:
    # One write transaction for all: a second process waits for the lock, and then finds everything done.
    with transaction(connection):
        connection.execute(_MIGRATIONS_TABLE)
        missing = migrations("sqlite")[_installed(connection) :]
        for migration in missing:
            _run_script(connection, migration)
    return [migration.label for migration in missing]


def _run_script(connection: sqlite3.Connection, migration: Migration) -> None:
    # executescript() would commit the transaction first.
    statement = ""
    for line in migration.sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    connection.execute(
        "insert into schema_migrations (track, version, name, description) values (?, ?, ?, ?)",
        (migration.track, migration.version, migration.name, migration.description),
    )
