"""Events of limits as rows: which columns there are, how a filter is spelt, and names cut so that every index takes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from hashlib import blake2b
from typing import Any

from sark_mw.errors import MoneyError
from sark_mw.ledger.events import Adjustment, EventFilter, EventKind, LimitEvent, RecordedEvent
from sark_mw.ledger.rows import MAX_MS, clean_json, clean_text

_INT64_MAX = 2**63 - 1

#: In the order of `LimitEvent`'s fields, and named like them, except for `detail_json`.
EVENT_COLUMNS: tuple[str, ...] = tuple("detail" if f.name == "detail_json" else f.name for f in fields(LimitEvent))
NUMBERS = frozenset({"amount", "until_ms", "at_ms"})
#: Longest UTF-8 of names that are indexed; an entry of a B-tree of PostgreSQL holds some 2,700 bytes. Counters, which must stay
#: whole, have a hash index there.
_LONGEST = {"event_id": 2000, "root": 800, "limit_id": 1000, "scope": 1000, "kind": 100}

EventRow = tuple[str | int | None, ...]


def event_row(event: LimitEvent) -> EventRow:
    """Lay out an event in the order of `EVENT_COLUMNS`; an amount beyond int64 raises `MoneyError`."""
    return tuple(_cell(column, getattr(event, field.name)) for column, field in zip(EVENT_COLUMNS, fields(event), strict=True))


def _cell(column: str, value: str | int | None) -> str | int | None:
    if isinstance(value, str):
        return clean_json(value) if column == "detail" else event_name(column, value)
    if value is None or column not in NUMBERS:
        return value
    if column != "amount":
        return min(max(value, 0), MAX_MS)
    if not -_INT64_MAX - 1 <= value <= _INT64_MAX:
        raise MoneyError(f"an event's amount must be within int64: {value}")
    return value


def event_name(column: str, name: str) -> str:
    """Clean a name as its column holds it; what is too long keeps its beginning, and a digest stands for the rest."""
    text = clean_text(name)
    longest = _LONGEST.get(column)
    if longest is None or len(encoded := text.encode()) <= longest:
        return text
    return f"{encoded[: longest - 33].decode(errors='ignore')}~{blake2b(encoded, digest_size=16).hexdigest()}"


#: What `recorded_of` reads, in its order.
RECORDED_COLUMNS = ("seq", *EVENT_COLUMNS, "delivered_at is not null", "attempts", "delivered_to")


def recorded_of(row: Sequence[Any]) -> RecordedEvent:
    """Make an event of a row of `RECORDED_COLUMNS`."""
    seq, *cells, delivered, attempts, delivered_to = row
    event = LimitEvent(**{field.name: cell for field, cell in zip(fields(LimitEvent), cells, strict=True)})
    done = tuple(json.loads(delivered_to))
    return RecordedEvent(seq=seq, event=event, delivered=bool(delivered), attempts=attempts, done=done)


def event_conditions(query: EventFilter, among: Callable[[str], str]) -> list[tuple[str, object]]:
    """Spell a filter as conditions with `{}` for their value; `among(column)` is the one that takes a list."""
    found: list[tuple[str, object]] = []
    for column in ("event_id", "root", "limit_id", "scope", "actor"):
        name = getattr(query, column)
        if name is not None:
            found.append((f"{column} = {{}}", event_name(column, name)))
    if query.kinds:
        found.append((among("kind"), list(query.kinds)))
    if query.since_ms is not None:
        found.append(("at_ms >= {}", min(max(query.since_ms, 0), _INT64_MAX)))
    if query.before_seq is not None:
        found.append(("seq < {}", min(max(query.before_seq, 0), _INT64_MAX)))
    return found


def adjustment_of(kind: str, counter: str, count: int, *, newest: tuple[int | None, int | None], total: int) -> Adjustment:
    """Make an adjustment of what a counter's events are: the newest one's amount and end, and the sum of all amounts."""
    if kind == EventKind.TOP_UP:
        return Adjustment(counter=counter, kind=kind, amount=total, count=count)
    amount, until_ms = newest
    if amount is None:
        return Adjustment(counter=counter, kind=kind, amount=0, count=count)
    return Adjustment(counter=counter, kind=kind, amount=amount, count=count, until_ms=until_ms or 0)
