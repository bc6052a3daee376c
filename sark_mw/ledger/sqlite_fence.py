"""The fence in SQLite: which epoch of a shard may append. Each function works inside a transaction of the caller's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from sark_mw.ledger.base import Fence
from sark_mw.ledger.rows import EPOCH, PART, RESERVATION_ID, RESERVED_MS, SHARD, SHARD_SEQ, Row

_PUT = """
    insert into shard_epochs (shard, epoch, base_seq) values (?, ?, ?)
    on conflict (shard) do update set epoch = excluded.epoch, base_seq = excluded.base_seq,
        fenced_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
"""
_PRESENT = "select 1 from cost_tracking where reservation_id = ? and part = ? and reserved_ms = ?"
_TWIN = """
    select 1 from cost_tracking
    where shard = ? and shard_seq = ? and epoch = ? and not (reservation_id = ? and part = ?) limit 1
"""


def read_fence(connection: sqlite3.Connection, shard: int) -> Fence | None:
    """Read which epoch of a shard is in force."""
    row = connection.execute("select epoch, base_seq from shard_epochs where shard = ?", (shard,)).fetchone()
    return None if row is None else Fence(shard=shard, epoch=row[0], base_seq=row[1])


def put_fence(connection: sqlite3.Connection, fence: Fence) -> None:
    """Name the epoch from which on entries are taken."""
    connection.execute(_PUT, (fence.shard, fence.epoch, fence.base_seq))


def is_overtaken(connection: sqlite3.Connection, fence: Fence) -> bool:
    """Look for entries above the fence that are of another epoch."""
    sql = "select exists (select 1 from cost_tracking where shard = ? and shard_seq > ? and epoch <> ?)"
    return bool(connection.execute(sql, (fence.shard, fence.base_seq, fence.epoch)).fetchone()[0])


def adopt(connection: sqlite3.Connection, shard: int, found: str, epoch: str) -> bool:
    """Name another epoch, if the fence still names the one that was found."""
    sql = "update shard_epochs set epoch = ? where shard = ? and epoch = ?"
    return connection.execute(sql, (epoch, shard, found)).rowcount == 1


def divide(connection: sqlite3.Connection, rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Part rows into those that may go in and those that the fence keeps out; what is there already is in neither."""
    fences: dict[object, str] = dict(connection.execute("select shard, epoch from shard_epochs").fetchall())
    current, refused = [], []
    for row in rows:
        if fences.get(row[SHARD], row[EPOCH]) == row[EPOCH]:
            current.append(row)
        elif not connection.execute(_PRESENT, (row[RESERVATION_ID], row[PART], row[RESERVED_MS])).fetchone():
            refused.append(row)
    return current, refused


def forked(connection: sqlite3.Connection, rows: Sequence[Row]) -> set[tuple[int, str]]:
    """Name (shard, epoch) of rows whose sequence number another entry has: the store went back to older data."""
    twins = [
        row
        for row in rows
        if connection.execute(_TWIN, (row[SHARD], row[SHARD_SEQ], row[EPOCH], row[RESERVATION_ID], row[PART])).fetchone()
    ]
    return {(int(str(row[SHARD])), str(row[EPOCH])) for row in twins}
