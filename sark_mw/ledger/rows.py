"""Ledger entries as rows: which columns there are, and what a database can never take made harmless."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any, TypeAlias

from sark_mw.ledger.base import LedgerEntry
from sark_mw.limit import Limit
from sark_mw.limit_options import limit_options, options_of_limit

Cell: TypeAlias = str | int | bool | tuple[str, ...] | None
Row: TypeAlias = tuple[Cell, ...]

#: In the order of `LedgerEntry`'s fields, and named like them, except for `metadata_json`.
COLUMNS: tuple[str, ...] = tuple("metadata" if field.name == "metadata_json" else field.name for field in fields(LedgerEntry))
SCOPES = COLUMNS.index("scopes")
RESERVATION_ID, PART, RESERVED_MS = (COLUMNS.index(name) for name in ("reservation_id", "part", "reserved_ms"))
SHARD, SHARD_SEQ, EPOCH = (COLUMNS.index(name) for name in ("shard", "shard_seq", "epoch"))

#: Names that are indexed: a B-tree entry of PostgreSQL holds some 2,700 bytes.
_MAX_NAME = 512
_NAMES = frozenset({"principal_id", "resource_id", "capability_id", "provider", "model", "root", "request_id", "kind", "epoch"})
#: 9999-12-31, the last day that every tool can show.
MAX_MS = 253_402_300_799_999

LIMIT_COLUMNS = ("root", "scope", "unit", "amount", "limit_window", "timezone", "mode", "since_ms", "options")


_FIELDS = tuple(field.name for field in fields(LedgerEntry))


def row_of(entry: LedgerEntry) -> Row:
    """Lay out an entry in the order of `COLUMNS`, without characters that no database takes."""
    return tuple(_cell(name, getattr(entry, name)) for name in _FIELDS)


def _cell(name: str, value: Cell) -> Cell:
    if isinstance(value, str):
        if name == "metadata_json":
            return clean_json(value)
        return clean_name(value) if name in _NAMES else clean_text(value)
    if isinstance(value, tuple):
        return tuple(clean_name(item) for item in value)
    return value


def clean_name(name: str) -> str:
    """Clean and shorten a name that is indexed: what a row holds, and what a filter must ask for."""
    return clean_text(name)[:_MAX_NAME]


def clean_text(text: str) -> str:
    """Replace NUL, which PostgreSQL refuses, and lone surrogates, which UTF-8 cannot write, with U+FFFD."""
    if text.isascii():
        return text.replace("\0", "\ufffd") if "\0" in text else text
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_json(text: str) -> str:
    """Rewrite a JSON object so that `jsonb` takes it; what is none becomes `{"malformed": true}`."""
    if text == "{}":
        return text
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError
        return json.dumps(_clean(value), separators=(",", ":"), ensure_ascii=False)
    except (ValueError, RecursionError):
        return '{"malformed":true}'


def _clean(value: object) -> object:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def limit_of(row: Sequence[Any]) -> Limit:
    """Make a limit of a row of `LIMIT_COLUMNS`."""
    root, scope, unit, amount, window, timezone, mode, since_ms, options = row
    return Limit(
        root=root,
        scope=scope,
        unit=unit,
        amount=Decimal(amount),
        window=window,
        timezone=timezone,
        mode=mode,
        since_ms=since_ms,
        **limit_options(json.loads(options)),
    )


def limit_row(limit: Limit) -> tuple[str | Decimal | int, ...]:
    """Lay out a limit: its id, then `LIMIT_COLUMNS`."""
    rule = (str(limit.unit), limit.amount, limit.window, limit.timezone, str(limit.mode), limit.since_ms)
    options = json.dumps(options_of_limit(limit), separators=(",", ":"))
    return limit.limit_id, limit.root, limit.scope, *rule, options


def content_of(row: Row) -> tuple[str, str]:
    """Write a rejected row in full as ASCII JSON; return (its digest, the text)."""
    content = json.dumps(dict(zip(COLUMNS, row, strict=True)), default=str)
    return hashlib.sha256(content.encode()).hexdigest(), content
