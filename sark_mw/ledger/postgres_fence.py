"""The fence in PostgreSQL: which epoch of a shard may append. Each function works inside a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from sark_mw.ledger.base import Fence
from sark_mw.ledger.rows import EPOCH, PART, RESERVATION_ID, RESERVED_MS, SHARD, Row

_Connection: TypeAlias = Any  # see postgres.py

#: First half of the advisory locks, the shard is the second. Appending shares a shard's lock, fencing has it alone: what
#: was appended before a fence is in its sums, and nothing of another epoch comes after it.
_LOCK_SPACE = 0x5A2B_1ED6
_SHARE = "select pg_advisory_xact_lock_shared($1::integer, shard) from unnest($2::integer[]) as shard"
_PUT = """
    insert into shard_epochs (shard, epoch, base_seq) values ($1, $2, $3)
    on conflict (shard) do update set epoch = excluded.epoch, base_seq = excluded.base_seq, fenced_at = now()
"""
_PRESENT = """
    select reservation_id, part, (extract(epoch from reserved_at) * 1000)::bigint from cost_tracking
    where reservation_id = any($1::text[])
"""
# Twins were reserved near each other: the bound spares the older chunks of a hypertable.
_TWINS = """
    select distinct incoming.shard, incoming.epoch
    from sark_incoming as incoming join cost_tracking as stored using (shard, shard_seq, epoch)
    where (stored.reservation_id, stored.part) <> (incoming.reservation_id, incoming.part)
    and stored.reserved_at >= timestamptz 'epoch' + $1::bigint * interval '1 millisecond'
"""
_DAY_MS = 86_400_000


async def lock(connection: _Connection, shard: int) -> None:
    """Keep appends to a shard out until the transaction ends; those under way end first."""
    await connection.execute("select pg_advisory_xact_lock($1::integer, $2::integer)", _LOCK_SPACE, shard)


async def read_fence(connection: _Connection, shard: int) -> Fence | None:
    """Read which epoch of a shard is in force."""
    row = await connection.fetchrow("select epoch, base_seq from shard_epochs where shard = $1", shard)
    return None if row is None else Fence(shard=shard, epoch=row["epoch"], base_seq=row["base_seq"])


async def put_fence(connection: _Connection, fence: Fence) -> None:
    """Name the epoch from which on entries are taken."""
    await connection.execute(_PUT, fence.shard, fence.epoch, fence.base_seq)


async def is_overtaken(connection: _Connection, fence: Fence) -> bool:
    """Look for entries above the fence that are of another epoch."""
    sql = "select exists (select 1 from cost_tracking where shard = $1 and shard_seq > $2 and epoch <> $3)"
    return bool(await connection.fetchval(sql, fence.shard, fence.base_seq, fence.epoch))


async def adopt(connection: _Connection, shard: int, found: str, epoch: str) -> bool:
    """Name another epoch, if the fence still names the one that was found."""
    sql = "update shard_epochs set epoch = $3 where shard = $1 and epoch = $2"
    status: str = await connection.execute(sql, shard, found, epoch)
    return status == "UPDATE 1"


async def divide(connection: _Connection, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Part rows into those that may go in and those that the fence keeps out; what is there already is in neither."""
    shards = sorted({int(str(row[SHARD])) for row in rows})
    await connection.execute(_SHARE, _LOCK_SPACE, shards)
    found = await connection.fetch("select shard, epoch from shard_epochs where shard = any($1::bigint[])", shards)
    fences: dict[object, str] = dict(found)
    current = [row for row in rows if fences.get(row[SHARD], row[EPOCH]) == row[EPOCH]]
    if len(current) == len(rows):
        return current, []
    foreign = [row for row in rows if fences.get(row[SHARD], row[EPOCH]) != row[EPOCH]]
    present = {tuple(key) for key in await connection.fetch(_PRESENT, [row[RESERVATION_ID] for row in foreign])}
    return current, [row for row in foreign if (row[RESERVATION_ID], row[PART], row[RESERVED_MS]) not in present]


async def forked(connection: _Connection, rows: Sequence[Row]) -> set[tuple[int, str]]:
    """Name (shard, epoch) of staged rows whose sequence number another entry has: the store went back to older data."""
    since = min(int(str(row[RESERVED_MS])) for row in rows) - _DAY_MS
    return {(shard, epoch) for shard, epoch in await connection.fetch(_TWINS, since)}
