"""What SQLite keeps of limits: how they were set, and what happened to them."""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TypeVar

from sark_mw.ledger.event_rows import (
    EVENT_COLUMNS,
    RECORDED_COLUMNS,
    EventRow,
    adjustment_of,
    event_conditions,
    event_name,
    event_row,
    recorded_of,
)
from sark_mw.ledger.events import CLAIMED_FOR_MS, POLICY_KINDS, Adjustment, EventFilter, LimitEvent, RecordedEvent
from sark_mw.ledger.rows import LIMIT_COLUMNS, limit_of, limit_row
from sark_mw.ledger.sqlite_connection import transaction
from sark_mw.limit import Limit

_T = TypeVar("_T")
_NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
_PUT_LIMIT = f"""
    insert into principal_budgets (limit_id, {", ".join(LIMIT_COLUMNS)}) values ({", ".join("?" * (len(LIMIT_COLUMNS) + 1))})
    on conflict (root, limit_id) do update set scope = excluded.scope, amount = excluded.amount, mode = excluded.mode,
        since_ms = excluded.since_ms, options = excluded.options, updated_at = {_NOW}, deleted_at = null
"""  # noqa: S608
_DROP_LIMIT = f"update principal_budgets set deleted_at = {_NOW} where root = ? and limit_id = ? and deleted_at is null"  # noqa: S608

_RECORD = (
    f"insert into limit_events ({', '.join(EVENT_COLUMNS)}) values ({', '.join('?' * len(EVENT_COLUMNS))}) "  # noqa: S608
    "on conflict (event_id) do nothing"
)
_EVENTS = f"select {', '.join(RECORDED_COLUMNS)} from limit_events"  # noqa: S608
# The kinds stand in the text, so that the index of just these is used.
_DECIDED = ", ".join(f"'{kind}'" for kind in POLICY_KINDS)
_POLICY_EVENTS = f"{_EVENTS} where kind in ({_DECIDED}) and seq >= ? order by seq limit ?"
# sum() stops at int64, so the halves are summed apart; beside a max(), plain columns are of its row.
_ADJUSTMENTS = """
    select kind, counter, count(*), amount, until_ms, max(seq),
        coalesce(sum(amount >> 32), 0), coalesce(sum(amount & 4294967295), 0)
    from limit_events where kind in ('top_up', 'override')
"""
_DUE = """
    select seq from limit_events where delivered_at is null and kind in (select value from json_each(?))
    and at_ms >= ? and next_attempt_ms <= ? order by seq limit ?
"""
_AMONG = "in (select value from json_each(?))"


class SqliteLimits(ABC):
    """The part of the ledger about limits; the other part has the connection."""

    @abstractmethod
    async def _work(self, task: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do something with the connection, in its thread."""

    async def save_limits(self, put: Sequence[Limit], drop: Sequence[tuple[str, str]]) -> None:
        """Keep limits in `principal_budgets`; `drop` names (root, limit_id)."""

        def save(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.executemany(_DROP_LIMIT, drop)
                connection.executemany(_PUT_LIMIT, [_textual(limit_row(limit)) for limit in put])

        await self._work(save)

    async def load_limits(self) -> list[Limit]:
        """Read every limit that was saved and not dropped."""
        sql = f"select {', '.join(LIMIT_COLUMNS)} from principal_budgets where deleted_at is null order by root, limit_id"  # noqa: S608
        return [limit_of(row) for row in await self._work(lambda connection: connection.execute(sql).fetchall())]

    async def record_events(self, events: Sequence[LimitEvent]) -> int:
        """Record what happened to limits, each event once by its id; return how many were new."""
        return len(await self.record_new(events))

    async def record_new(self, events: Sequence[LimitEvent]) -> list[LimitEvent]:
        """Record as `record_events` does; return those that were new."""
        rows = [event_row(event) for event in events]

        def record(connection: sqlite3.Connection) -> list[LimitEvent]:
            with transaction(connection):
                return [event for event, row in zip(events, rows, strict=True) if _is_new(connection, row)]

        return await self._work(record) if rows else []

    async def events(self, query: EventFilter, most: int = 100) -> list[RecordedEvent]:
        """List what happened to limits, the newest first."""
        conditions = event_conditions(query, lambda column: f"{column} {_AMONG}".replace("?", "{}"))
        where = " where " + " and ".join(sql.format("?") for sql, _ in conditions) if conditions else ""
        values = [json.dumps(value) if isinstance(value, list) else value for _, value in conditions]
        sql = f"{_EVENTS}{where} order by seq desc limit ?"
        rows = await self._work(lambda connection: connection.execute(sql, (*values, max(most, 0))).fetchall())
        return [recorded_of(row) for row in rows]

    async def policy_events(self, from_seq: int, most: int = 1000) -> list[RecordedEvent]:
        """List what administrators decided of policies from `from_seq` on, that one included, the oldest first."""
        rows = await self._work(lambda connection: connection.execute(_POLICY_EVENTS, (from_seq, max(most, 0))).fetchall())
        return [recorded_of(row) for row in rows]

    async def adjustments(self, root: str | None = None, counters: Sequence[str] = ()) -> list[Adjustment]:
        """Sum up top-ups and find the newest overrides: of a root (None: all), of these counters and bases if any are given."""
        where, values = "", []
        if root is not None:
            where, values = " and root = ?", [event_name("root", root)]
        if counters:
            where, values = f"{where} and counter {_AMONG}", [*values, json.dumps([event_name("counter", c) for c in counters])]
        sql = f"{_ADJUSTMENTS}{where} group by counter, kind order by counter, kind"
        rows = await self._work(lambda connection: connection.execute(sql, values).fetchall())
        return [
            adjustment_of(kind, counter, count, newest=(amount, until_ms), total=(high << 32) + low)
            for kind, counter, count, amount, until_ms, _, high, low in rows
        ]

    async def claim_events(self, kinds: Sequence[str], now_ms: int, retry_ms: int, most: int) -> list[RecordedEvent]:
        """Take undelivered events whose next attempt is due, and put that attempt off."""
        due = (json.dumps(list(kinds)), now_ms - CLAIMED_FOR_MS, now_ms, most)

        def claim(connection: sqlite3.Connection) -> list[RecordedEvent]:
            with transaction(connection):
                seqs = json.dumps([seq for (seq,) in connection.execute(_DUE, due)])
                sql = f"update limit_events set attempts = attempts + 1, next_attempt_ms = ? where seq {_AMONG}"  # noqa: S608
                connection.execute(sql, (now_ms + retry_ms, seqs))
                rows = connection.execute(f"{_EVENTS} where seq {_AMONG} order by seq", (seqs,)).fetchall()
            return [recorded_of(row) for row in rows]

        return await self._work(claim)

    async def delivered(self, seqs: Sequence[int]) -> None:
        """Note that events were delivered: nobody claims them again."""
        sql = f"update limit_events set delivered_at = {_NOW} where delivered_at is null and seq {_AMONG}"  # noqa: S608
        await self._work(lambda connection: connection.execute(sql, (json.dumps(list(seqs)),)).rowcount)

    async def postpone(self, seq: int, until_ms: int, done: Sequence[str] = (), *, tried: bool = True) -> None:
        """Let an event be claimed again from `until_ms` on, and note which receivers have it already.

        Not `tried`: the claim was no attempt.
        """
        sql = "update limit_events set next_attempt_ms = ?, delivered_to = ?, attempts = max(attempts - ?, 0) where seq = ?"
        row = (until_ms, json.dumps(list(done)), 0 if tried else 1, seq)
        await self._work(lambda connection: connection.execute(sql, row).rowcount)


def _is_new(connection: sqlite3.Connection, row: EventRow) -> bool:
    return connection.execute(_RECORD, row).rowcount == 1


def _textual(row: tuple[str | Decimal | int, ...]) -> tuple[str | int, ...]:
    # A Decimal goes in as text: SQLite's own numbers would round it.
    return tuple(value if isinstance(value, int) else str(value) for value in row)
