"""Sums over the ledger in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from sark_mw.ledger.base import ResolvedReservation, ScopeTotal
from sark_mw.ledger.rows import MAX_MS
from sark_mw.ledger.summary import SUMMED, resolved_of

# SQLite's sum() stops at int64: the upper and the lower 32 bits are summed apart and put together in Python.
SUMS = ", ".join(f"coalesce(sum({column} >> 32), 0), coalesce(sum({column} & 4294967295), 0)" for column in SUMMED)


def last_sequence(connection: sqlite3.Connection, shard: int, epoch: str | None) -> int:
    """Return the highest `shard_seq` of a shard (of one epoch), 0 if none."""
    sql = "select coalesce(max(shard_seq), 0) from cost_tracking where shard = ?"
    if epoch is None:
        return int(connection.execute(sql, (shard,)).fetchone()[0])
    # The fence bounds the search: an epoch without entries would have all of the shard's read.
    sql += " and epoch = ? and shard_seq > (select coalesce(max(base_seq), 0) from shard_epochs where shard = ? and epoch = ?)"
    return int(connection.execute(sql, (shard, epoch, shard, epoch)).fetchone()[0])


def resolved(connection: sqlite3.Connection, shard: int, since_booked_ms: int, most: int) -> list[ResolvedReservation]:
    """Sum up the reservations with an entry booked since then: the `most` that were booked last, or all for -1."""
    sql = f"""
        select reservation_id, part, kind, reserved_ms, {", ".join(SUMMED)} from cost_tracking
        where shard = ? and reservation_id in (
            select reservation_id from cost_tracking where shard = ? and booked_ms >= ?
            group by reservation_id order by max(booked_ms) desc limit ?
        ) order by reservation_id, part
    """  # noqa: S608
    return resolved_of(connection.execute(sql, (shard, shard, since_booked_ms, most)).fetchall())


def scope_totals(connection: sqlite3.Connection, shard: int, from_ms: int, until_ms: int | None) -> list[ScopeTotal]:
    """Sum every scope of a shard in one pass."""
    sql = f"""
        select root, scope, {SUMS} from cost_tracking join cost_tracking_scopes on entry = id
        where shard = ? and reserved_ms >= ? and reserved_ms < ? group by root, scope order by root, scope
    """  # noqa: S608
    rows = connection.execute(sql, (shard, from_ms, MAX_MS + 1 if until_ms is None else until_ms)).fetchall()
    sums = ((root, scope, dict(zip(SUMMED, joined(halves), strict=True))) for root, scope, *halves in rows)
    return [ScopeTotal(root=root, scope=scope, **amounts) for root, scope, amounts in sums]


def joined(halves: Sequence[int]) -> Iterator[int]:
    """Put the halves of sums together."""
    for high, low in zip(halves[::2], halves[1::2], strict=True):
        yield (high << 32) + low
