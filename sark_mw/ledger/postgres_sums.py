"""Sums over the ledger in PostgreSQL."""

from __future__ import annotations

from typing import Any, TypeAlias

from sark_mw.ledger.base import ResolvedReservation, ScopeTotal
from sark_mw.ledger.rows import MAX_MS
from sark_mw.ledger.summary import SUMMED, resolved_of

_Connection: TypeAlias = Any  # see postgres.py

INSTANT = "timestamptz 'epoch' + {} * interval '1 millisecond'"


async def last_sequence(connection: _Connection, shard: int, epoch: str | None) -> int:
    """Return the highest `shard_seq` of a shard (of one epoch), 0 if none."""
    sql = "select max(shard_seq) from cost_tracking where shard = $1"
    if epoch is None:
        return await connection.fetchval(sql, shard) or 0
    # The fence bounds the search: an epoch without entries would have all of the shard's read.
    sql += " and epoch = $2 and shard_seq > (select coalesce(max(base_seq), 0) from shard_epochs where shard = $1 and epoch = $2)"
    return await connection.fetchval(sql, shard, epoch) or 0


async def resolved(
    connection: _Connection, shard: int, since_booked_ms: int, most: int | None, deadline_s: float
) -> list[ResolvedReservation]:
    """Sum up the reservations with an entry booked since then: the `most` that were booked last, or all for None."""
    since = INSTANT.format("$2::bigint")
    sql = f"""
        select reservation_id, part, kind, (extract(epoch from reserved_at) * 1000)::bigint, {", ".join(SUMMED)}
        from cost_tracking where shard = $1 and reservation_id in (
            select reservation_id from cost_tracking where shard = $1 and booked_at >= {since}
            group by reservation_id order by max(booked_at) desc limit $3
        ) order by reservation_id, part
    """  # noqa: S608
    return resolved_of(await connection.fetch(sql, shard, min(max(since_booked_ms, 0), MAX_MS), most, timeout=deadline_s))


async def scope_totals(
    connection: _Connection, shard: int, from_ms: int, until_ms: int | None, deadline_s: float
) -> list[ScopeTotal]:
    """Sum every scope of a shard in one pass."""
    since, until = INSTANT.format("$2::bigint"), INSTANT.format("$3::bigint")
    sql = f"""
        select root, scope, {", ".join(f"sum({column})" for column in SUMMED)}
        from cost_tracking cross join lateral (select distinct unnest(scopes) as scope) as each_scope
        where shard = $1 and reserved_at >= {since} and reserved_at < {until} group by root, scope order by root, scope
    """  # noqa: S608
    last = MAX_MS + 1 if until_ms is None else min(max(until_ms, 0), MAX_MS + 1)
    rows = await connection.fetch(sql, shard, min(max(from_ms, 0), MAX_MS), last, timeout=deadline_s)
    sums = ((root, scope, dict(zip(SUMMED, map(int, amounts), strict=True))) for root, scope, *amounts in rows)
    return [ScopeTotal(root=root, scope=scope, **amounts) for root, scope, amounts in sums]
