"""What PostgreSQL keeps of limits: how they were set, and what happened to them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from sark_mw.ledger.event_rows import (
    EVENT_COLUMNS,
    NUMBERS,
    RECORDED_COLUMNS,
    adjustment_of,
    event_conditions,
    event_name,
    event_row,
    recorded_of,
)
from sark_mw.ledger.events import CLAIMED_FOR_MS, POLICY_KINDS, Adjustment, EventFilter, LimitEvent, RecordedEvent
from sark_mw.ledger.rows import LIMIT_COLUMNS, limit_of, limit_row
from sark_mw.limit import Limit

_Connection: TypeAlias = Any  # see postgres.py

_PUT_LIMIT = f"""
    insert into principal_budgets (limit_id, {", ".join(LIMIT_COLUMNS)}) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    on conflict (root, limit_id) do update set scope = excluded.scope, amount = excluded.amount, mode = excluded.mode,
        since_ms = excluded.since_ms, options = excluded.options, updated_at = now(), deleted_at = null
"""  # noqa: S608
_DROP_LIMIT = "update principal_budgets set deleted_at = now() where root = $1 and limit_id = $2 and deleted_at is null"

#: One records at a time: `seq` is then the order in which events can be seen, so that who reads on from one misses none.
_ALONE = "select pg_advisory_xact_lock(6506573824771588)"
_ARRAYS = ", ".join(f"${n}::{'bigint' if c in NUMBERS else 'text'}[]" for n, c in enumerate(EVENT_COLUMNS, start=1))
_COLUMNS = ", ".join(EVENT_COLUMNS)
_RECORD = f"""
    insert into limit_events ({_COLUMNS})
    select {", ".join("detail::json" if column == "detail" else column for column in EVENT_COLUMNS)}
    from unnest({_ARRAYS}) with ordinality as incoming ({_COLUMNS}, place) order by place
    on conflict (event_id) do nothing returning event_id
"""  # noqa: S608
_EVENTS = f"select {', '.join(RECORDED_COLUMNS)} from limit_events"  # noqa: S608
# The kinds stand in the text, so that the index of just these is used.
_DECIDED = ", ".join(f"'{kind}'" for kind in POLICY_KINDS)
_POLICY_EVENTS = f"{_EVENTS} where kind in ({_DECIDED}) and seq >= $1::bigint order by seq limit $2::bigint"
_ADJUSTMENTS = """
    select kind, counter, count(*), (array_agg(amount order by seq desc))[1], (array_agg(until_ms order by seq desc))[1],
        coalesce(sum(amount), 0)
    from limit_events where kind in ('top_up', 'override')
"""
_CLAIM = f"""
    with due as (
        select seq as due_seq from limit_events where delivered_at is null and kind = any($1::text[])
        and at_ms >= $4::bigint and next_attempt_ms <= $2::bigint order by seq limit $5::bigint for update skip locked
    )
    update limit_events set attempts = attempts + 1, next_attempt_ms = $3::bigint from due where seq = due_seq
    returning {", ".join(RECORDED_COLUMNS)}
"""  # noqa: S608
_DELIVERED = "update limit_events set delivered_at = now() where delivered_at is null and seq = any($1::bigint[])"
_POSTPONE = """
    update limit_events set next_attempt_ms = $2::bigint, delivered_to = $3::json, attempts = greatest(attempts - $4::integer, 0)
    where seq = $1::bigint
"""


class PostgresLimits(ABC):
    """The part of the ledger about limits; the other part has the connections."""

    @abstractmethod
    def _connection(self, deadline_s: float | None = None) -> AbstractAsyncContextManager[_Connection]:
        """Lend a connection; raise what a ledger raises."""

    async def save_limits(self, put: Sequence[Limit], drop: Sequence[tuple[str, str]]) -> None:
        """Keep limits in `principal_budgets`; `drop` names (root, limit_id)."""
        async with self._connection() as connection, connection.transaction():
            await connection.executemany(_DROP_LIMIT, drop)
            await connection.executemany(_PUT_LIMIT, [limit_row(limit) for limit in put])

    async def load_limits(self) -> list[Limit]:
        """Read every limit that was saved and not dropped."""
        sql = f"select {', '.join(LIMIT_COLUMNS)} from principal_budgets where deleted_at is null order by root, limit_id"  # noqa: S608
        async with self._connection() as connection:
            return [limit_of(row) for row in await connection.fetch(sql)]

    async def record_events(self, events: Sequence[LimitEvent]) -> int:
        """Record what happened to limits, each event once by its id; return how many were new."""
        return len(await self.record_new(events))

    async def record_new(self, events: Sequence[LimitEvent]) -> list[LimitEvent]:
        """Record as `record_events` does; return those that were new."""
        if not events:
            return []
        first: dict[object, LimitEvent] = {}
        rows = [event_row(event) for event in events]
        for row, event in zip(rows, events, strict=True):
            first.setdefault(row[0], event)
        async with self._connection() as connection, connection.transaction():
            await connection.execute(_ALONE)
            new = await connection.fetch(_RECORD, *map(list, zip(*rows, strict=True)))
        return [first[event_id] for (event_id,) in new]

    async def events(self, query: EventFilter, most: int = 100) -> list[RecordedEvent]:
        """List what happened to limits, the newest first."""
        conditions = event_conditions(query, lambda column: f"{column} = any({{}}::text[])")
        named = [sql.format(f"${number}") for number, (sql, _) in enumerate(conditions, start=1)]
        where = " where " + " and ".join(named) if named else ""
        sql = f"{_EVENTS}{where} order by seq desc limit ${len(named) + 1}::bigint"
        async with self._connection() as connection:
            rows = await connection.fetch(sql, *(value for _, value in conditions), max(most, 0))
        return [recorded_of(row) for row in rows]

    async def policy_events(self, from_seq: int, most: int = 1000) -> list[RecordedEvent]:
        """List what administrators decided of policies from `from_seq` on, that one included, the oldest first."""
        async with self._connection() as connection:
            rows = await connection.fetch(_POLICY_EVENTS, from_seq, max(most, 0))
        return [recorded_of(row) for row in rows]

    async def adjustments(self, root: str | None = None, counters: Sequence[str] = ()) -> list[Adjustment]:
        """Sum up top-ups and find the newest overrides: of a root (None: all), of these counters and bases if any are given."""
        sql, values = _ADJUSTMENTS, list[object]()
        if root is not None:
            values.append(event_name("root", root))
            sql = f"{sql} and root = ${len(values)}"
        if counters:
            values.append([event_name("counter", counter) for counter in counters])
            sql = f"{sql} and counter = any(${len(values)}::text[])"
        async with self._connection() as connection:
            rows = await connection.fetch(f'{sql} group by counter, kind order by counter collate "C", kind', *values)
        return [
            adjustment_of(kind, counter, count, newest=(amount, until_ms), total=int(total))
            for kind, counter, count, amount, until_ms, total in rows
        ]

    async def claim_events(self, kinds: Sequence[str], now_ms: int, retry_ms: int, most: int) -> list[RecordedEvent]:
        """Take undelivered events whose next attempt is due, and put that attempt off."""
        due = (list(kinds), now_ms, now_ms + retry_ms, now_ms - CLAIMED_FOR_MS, most)
        async with self._connection() as connection:
            rows = await connection.fetch(_CLAIM, *due)
        return sorted((recorded_of(row) for row in rows), key=lambda recorded: recorded.seq)

    async def delivered(self, seqs: Sequence[int]) -> None:
        """Note that events were delivered: nobody claims them again."""
        async with self._connection() as connection:
            await connection.execute(_DELIVERED, list(seqs))

    async def postpone(self, seq: int, until_ms: int, done: Sequence[str] = (), *, tried: bool = True) -> None:
        """Let an event be claimed again from `until_ms` on, and note which receivers have it already.

        Not `tried`: the claim was no attempt.
        """
        async with self._connection() as connection:
            await connection.execute(_POSTPONE, seq, until_ms, json.dumps(list(done)), 0 if tried else 1)
