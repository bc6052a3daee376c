"""The ledger in PostgreSQL, with TimescaleDB or without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg

from sark_mw.errors import LedgerError, LedgerUnavailableError
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
from sark_mw.ledger.postgres_fence import adopt, divide, forked, is_overtaken, lock, put_fence, read_fence
from sark_mw.ledger.postgres_limits import PostgresLimits
from sark_mw.ledger.postgres_schema import Policies, migrate, schema_version
from sark_mw.ledger.postgres_sums import INSTANT, last_sequence, resolved, scope_totals
from sark_mw.ledger.rows import COLUMNS, MAX_MS, Row, clean_text, content_of, row_of
from sark_mw.ledger.summary import COUNTED, LOOK_BACK, SUMMED, Spelling, base_after, is_complete, sum_query, total_of

_Connection: TypeAlias = Any  # asyncpg's pool hands out proxies that its own annotations do not cover

#: The database says that it cannot now, not that it never will.
_NOT_NOW = (
    OSError,  # also TimeoutError
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.TransactionRollbackError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.InternalClientError,
)
#: What an entry raises that will raise it again however often it is tried; the last three come from the driver.
_NEVER_FITS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    OverflowError,
    ValueError,
    TypeError,
)


class _NeverFitsError(Exception):
    """A row that the database will not take, now or later."""


_BOOLEANS = frozenset({"estimated", "late", "stream"})
_TEXTS = frozenset({"reservation_id", "kind", "root", "epoch", "principal_id", "resource_id", "capability_id", "request_id"})
_SPECIAL = {"scopes": "text[]", "provider": "text", "model": "text", "metadata": "text"}
_NULLABLE = frozenset({"provider", "model", "actual_nanos", "status"})


def _staged(column: str) -> str:
    sort = "boolean" if column in _BOOLEANS else "text" if column in _TEXTS else _SPECIAL.get(column, "bigint")
    check = f" check ({column} between 0 and {MAX_MS})" if column in ("reserved_ms", "booked_ms") else ""
    return f"{column} {sort}{'' if column in _NULLABLE else ' not null'}{check}"


def _stored(column: str) -> tuple[str, str]:
    """Name the column of `cost_tracking` that a staged column becomes, and the expression that makes it."""
    if column in ("reserved_ms", "booked_ms"):
        return column.replace("_ms", "_at"), INSTANT.format(column)
    return column, "metadata::jsonb" if column == "metadata" else column


# COPY knows no ON CONFLICT: rows are copied into a table of the connection's own, and go on from there.
_STAGE = f"create temporary table if not exists sark_incoming ({', '.join(map(_staged, COLUMNS))}) on commit delete rows"
# In the order of the key, so that two flushers with the same rows wait for each other and never in a circle.
_INSERT = (
    f"insert into cost_tracking ({', '.join(_stored(column)[0] for column in COLUMNS)}) "  # noqa: S608
    f"select {', '.join(_stored(column)[1] for column in COLUMNS)} from sark_incoming "
    "order by reservation_id, part, reserved_ms on conflict do nothing"
)
_REJECT = """
    insert into ledger_rejected (digest, reservation_id, reason, content) values ($1, $2, $3, $4)
    on conflict do nothing returning 1
"""
_SPELLING = Spelling(
    from_ms="reserved_at >= " + INSTANT.format("{}::bigint"),
    until_ms="reserved_at < " + INSTANT.format("{}::bigint"),
    scope="scopes @> array[{}::text]",
    parameter="${}",
)
_SUMS = ", ".join(f"coalesce(sum({column}), 0)" for column in SUMMED)


@dataclass(slots=True)
class _Inserted:
    new: int = 0
    refused: list[Row] = field(default_factory=list)
    forked: set[tuple[int, str]] = field(default_factory=set)


class PostgresLedger(PostgresLimits):
    """Keep the ledger in the database of `dsn` (`postgresql://user@host/database`).

    `deadline_s` bounds every statement, `migrate_deadline_s` one of a migration. With TimescaleDB, `retention` drops chunks whose
    rows are all older (None keeps everything; more than 35 days, see `Policies`) and `compress_after` compresses them.
    """

    def __init__(
        self,
        dsn: str,
        *,
        deadline_s: float = 5.0,
        migrate_deadline_s: float = 600.0,
        connections: int = 4,
        retention: timedelta | None = None,
        compress_after: timedelta = timedelta(days=14),
    ) -> None:
        self._dsn = dsn
        self._deadline_s = deadline_s
        self._migrate_deadline_s = migrate_deadline_s
        self._connections = connections
        self._policies = Policies(retention=retention, compress_after=compress_after)
        self._pool: asyncpg.Pool[Any] | None = None
        self._closed = False
        self._rejected_rows = 0

    @property
    def rejected_rows(self) -> int:
        """Entries that this process put into `ledger_rejected`."""
        return self._rejected_rows

    async def append(self, entries: Sequence[LedgerEntry]) -> int:
        """Insert what is not there yet, in one transaction; return how many rows were new.

        When a row makes the transaction fail, halves are tried until that row stands alone.
        """
        return (await self._append([row_of(entry) for entry in entries], fenced=False)).new

    async def append_fenced(self, entries: Sequence[LedgerEntry]) -> Appended:
        """Append as `append` does, but keep out entries of an epoch that is not the fence's."""
        rows = [row_of(entry) for entry in entries]
        came = {id(row): entry for row, entry in zip(rows, entries, strict=True)}
        done = await self._append(rows, fenced=True)
        return Appended(new=done.new, refused=tuple(came[id(row)] for row in done.refused), forked=frozenset(done.forked))

    async def _append(self, rows: Sequence[Row], *, fenced: bool) -> _Inserted:
        if not rows:
            return _Inserted()
        try:
            return await self._insert(rows, fenced=fenced)
        except _NeverFitsError as error:
            if len(rows) == 1:
                await self._reject(rows[0], str(error))
                return _Inserted()
        middle = len(rows) // 2
        first, second = await self._append(rows[:middle], fenced=fenced), await self._append(rows[middle:], fenced=fenced)
        return _Inserted(first.new + second.new, [*first.refused, *second.refused], first.forked | second.forked)

    async def _insert(self, rows: Sequence[Row], *, fenced: bool) -> _Inserted:
        done = _Inserted()
        async with self._connection() as connection:
            try:
                async with connection.transaction():
                    await connection.execute(_STAGE)
                    if fenced:
                        rows, done.refused = await divide(connection, rows)
                    if rows:
                        await connection.copy_records_to_table("sark_incoming", records=rows, columns=COLUMNS)
                        if fenced:
                            done.forked = await forked(connection, rows)
                        status: str = await connection.execute(_INSERT)
                        done.new = int(status.rpartition(" ")[2])
            except _NEVER_FITS as error:
                raise _NeverFitsError(f"{type(error).__name__}: {error}") from error
        return done

    async def begin_epoch(self, shard: int, epoch: str, query: EpochQuery) -> EpochBooks:
        """Put up the fence for a new epoch of a shard, and read what there is, in one step."""
        patience = self._migrate_deadline_s
        async with self._connection(patience) as connection, connection.transaction():
            await lock(connection, shard)
            last = await last_sequence(connection, shard, None)
            fence = Fence(shard=shard, epoch=epoch, base_seq=base_after(last))
            await put_fence(connection, fence)
            return EpochBooks(
                fence=fence,
                totals={each: await scope_totals(connection, shard, *each, patience) for each in query.intervals},
                resolved=await resolved(connection, shard, query.resolved_since_ms, query.most_resolved, patience),
            )

    async def fence(self, shard: int) -> Fence | None:
        """Tell which epoch of a shard is taken."""
        async with self._connection() as connection:
            return await read_fence(connection, shard)

    async def is_overtaken(self, fence: Fence) -> bool:
        """Tell whether another epoch has lived since a fence was put up."""
        async with self._connection() as connection:
            return await is_overtaken(connection, fence)

    async def adopt_epoch(self, shard: int, found: str, epoch: str) -> bool:
        """Let the fence that names `found` name `epoch`."""
        async with self._connection() as connection:
            return await adopt(connection, shard, found, epoch)

    async def _reject(self, row: Row, reason: str) -> None:
        digest, content = content_of(row)
        async with self._connection() as connection:
            new = await connection.fetchval(_REJECT, digest, str(row[0]), reason, content)
        self._rejected_rows += new is not None

    async def total(self, query: CostFilter, group_by: str | None = None) -> CostTotal:
        """Sum rows; `group_by` is one of principal_id, resource_id, capability_id, provider, model."""
        asked = sum_query(query, group_by, _SPELLING)
        sql = f"select {asked.group}, count(*), {_SUMS} from cost_tracking{asked.where}{asked.group_by}"  # noqa: S608
        async with self._connection() as connection:
            rows = await connection.fetch(sql, *asked.parameters)
        groups = [(name, count, tuple(int(amount) for amount in amounts)) for name, count, *amounts in rows]
        return total_of(groups, grouped=asked.grouped)

    async def last_sequence(self, shard: int, epoch: str | None = None) -> int:
        """Return the highest `shard_seq` stored for a shard (of one epoch), 0 if none."""
        async with self._connection() as connection:
            return await last_sequence(connection, shard, epoch)

    async def recent(self, shard: int, since_booked_ms: int) -> list[tuple[str, int]]:
        """List (reservation id, last part) of reservations with an entry booked since then."""
        since = INSTANT.format("$2::bigint")
        sql = (
            f"select reservation_id, max(part) from cost_tracking where shard = $1 and booked_at >= {since} group by 1 order by 1"  # noqa: S608
        )
        async with self._connection() as connection:
            rows = await connection.fetch(sql, shard, min(max(since_booked_ms, 0), MAX_MS))
        return [(name, part) for name, part in rows]

    async def has(self, reservation_id: str) -> bool:
        """Tell whether any entry of a reservation is there."""
        async with self._connection() as connection:
            found = await connection.fetchval(
                "select exists (select 1 from cost_tracking where reservation_id = $1)", clean_text(reservation_id)
            )
        return bool(found)

    async def complete_up_to(self, shard: int, epoch: str, seq: int) -> bool:
        """Tell whether the shard's entries up to `seq` have all arrived, looking at the last 10,000 of that epoch."""
        sql = COUNTED.format("$1", "$2", "$3", "$4")
        async with self._connection() as connection:
            rows, first = await connection.fetchrow(sql, shard, epoch, seq - LOOK_BACK, seq)
            fence = await read_fence(connection, shard)
        return is_complete(seq, rows, first, fence.base_seq if fence and fence.epoch == epoch else None)

    async def resolved(self, shard: int, since_booked_ms: int) -> list[ResolvedReservation]:
        """Sum up the reservations of a shard with an entry booked since then."""
        async with self._connection() as connection:
            return await resolved(connection, shard, since_booked_ms, None, self._deadline_s)

    async def scope_totals(self, shard: int, from_ms: int, until_ms: int | None = None) -> list[ScopeTotal]:
        """Sum every scope of a shard in one pass, over reservations of `from_ms <= t < until_ms`."""
        async with self._connection() as connection:
            return await scope_totals(connection, shard, from_ms, until_ms, self._deadline_s)

    async def migrate(self) -> list[str]:
        """Bring the schema up to date; return what was done, and what TimescaleDB's licence did not allow.

        Several processes may call it at once: one migrates, the others wait and find nothing to do.
        """
        async with self._mapped():
            connection = await asyncpg.connect(self._dsn, timeout=self._deadline_s, command_timeout=self._migrate_deadline_s)
            try:
                return await migrate(connection, self._policies)
            finally:
                await _close(connection, self._deadline_s)

    async def schema_version(self) -> tuple[int, int]:
        """Return (installed, newest): numbers of migrations; those that TimescaleDB would add count where it is there."""
        async with self._connection() as connection:
            return await schema_version(connection)

    async def aclose(self) -> None:
        """Let go of connections."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), self._deadline_s)
            except TimeoutError:
                pool.terminate()

    @asynccontextmanager
    async def _connection(self, deadline_s: float | None = None) -> AsyncIterator[_Connection]:
        async with self._mapped():
            if self._closed:
                raise LedgerError("the ledger is closed")
            if self._pool is None:
                # Of size 0, so that making it connects to nothing and cannot fail.
                self._pool = asyncpg.create_pool(
                    self._dsn, min_size=0, max_size=self._connections, timeout=self._deadline_s, command_timeout=self._deadline_s
                )
            # Each statement has the deadline; all of them together, with connecting and giving back, three of it.
            async with asyncio.timeout(3 * (deadline_s or self._deadline_s)):
                await self._pool  # does nothing the second time
                async with self._pool.acquire(timeout=self._deadline_s) as connection:
                    try:
                        yield connection
                    except asyncpg.ReadOnlySQLTransactionError:
                        # A session stays read-only when its server is demoted or full: the next ones are new.
                        await self._pool.expire_connections()
                        raise

    @asynccontextmanager
    async def _mapped(self) -> AsyncIterator[None]:
        try:
            yield
        except _NOT_NOW as error:
            raise LedgerUnavailableError(f"PostgreSQL: {type(error).__name__}: {error}") from error
        except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
            raise LedgerError(f"the ledger's schema is not there or too old, run `sark-mw migrate`: {error}") from error
        except (asyncpg.PostgresError, ValueError, OverflowError) as error:
            raise LedgerError(f"PostgreSQL: {type(error).__name__}: {error}") from error
        except asyncpg.InterfaceError as error:  # such as a connection that was lost between two statements
            raise LedgerUnavailableError(f"PostgreSQL: {error}") from error


async def _close(connection: _Connection, deadline_s: float) -> None:
    try:
        await connection.close(timeout=deadline_s)
    except _NOT_NOW:
        connection.terminate()
