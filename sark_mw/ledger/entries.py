"""From the outbox to the ledger: what a caller writes into its entry, and what becomes of it.

The caller's entry is one JSON object without newlines that waits in the store beside its hold, so its keys are short; a key that
is absent has its default. This table is the only place where they are defined.

| key | field of `CallerEntry` and `LedgerEntry` | JSON |
|---|---|---|
| `p` | principal_id | string |
| `r` | resource_id | string |
| `c` | capability_id | string |
| `s` | scopes | list of strings |
| `v` | provider | string |
| `m` | model | string |
| `h` | held_nanos | integer |
| `e` | expected_nanos | integer |
| `a` | actual_nanos | integer |
| `i` | input_tokens (with both cached parts) | integer |
| `cr` | cache_read_tokens | integer |
| `cw` | cache_write_tokens | integer |
| `o` | output_tokens (with the reasoning) | integer |
| `t` | reasoning_tokens | integer |
| `st` | status | integer |
| `x` | stream | true |
| `q` | request_id | string |
| `d` | metadata | object |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from sark_mw.ledger.base import LedgerEntry
from sark_mw.ledger.outbox import OutboxRecord

_INT64 = 2**63
_BOOKED = {
    "usd": "cost_nanos",
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "booked_input_tokens",
    "output_tokens": "booked_output_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerEntry:
    """What only the caller knows of a reservation; the store carries it unread to the ledger. Money in nanos."""

    principal_id: str = ""
    resource_id: str = ""
    capability_id: str = ""
    scopes: tuple[str, ...] = ()
    provider: str | None = None
    model: str | None = None
    held_nanos: int = 0
    expected_nanos: int = 0
    actual_nanos: int | None = None
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    status: int | None = None
    stream: bool = False
    request_id: str = ""
    metadata: Mapping[str, object] | None = None

    def to_json(self) -> str:
        """Write the entry: ASCII, no newlines, starts with `{`, defaults left out; `metadata` must be JSON."""
        written = {key: getattr(self, name) for key, name in _KEYS.items() if getattr(self, name) != _DEFAULTS[name]}
        return json.dumps(written, separators=(",", ":"))


_KEYS = {
    "p": "principal_id",
    "r": "resource_id",
    "c": "capability_id",
    "s": "scopes",
    "v": "provider",
    "m": "model",
    "h": "held_nanos",
    "e": "expected_nanos",
    "a": "actual_nanos",
    "i": "input_tokens",
    "cr": "cache_read_tokens",
    "cw": "cache_write_tokens",
    "o": "output_tokens",
    "t": "reasoning_tokens",
    "st": "status",
    "x": "stream",
    "q": "request_id",
    "d": "metadata",
}
_DEFAULTS = {field.name: field.default for field in fields(CallerEntry)}


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError


def _whole(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64:
        return value
    raise ValueError


def _truth(value: object) -> bool:
    if value in (True, False):
        return bool(value)
    raise ValueError


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(dict.fromkeys(value))
    raise ValueError


def _object(value: object) -> dict[str, object]:
    if isinstance(value, dict):
        return value
    raise ValueError


_READERS: Mapping[str, Callable[[object], object]] = {"scopes": _texts, "stream": _truth, "metadata": _object} | {
    name: _text if isinstance(default, str) or name in ("provider", "model") else _whole
    for name, default in _DEFAULTS.items()
    if name not in ("scopes", "stream", "metadata")
}


def parse_entry(entry_json: str) -> tuple[CallerEntry, bool]:
    """Read a caller's entry; the second value is False if something in it could not be read, which then has its default."""
    try:
        body = _object(json.loads(entry_json))
    except (ValueError, RecursionError):
        return CallerEntry(), False
    values: dict[str, object] = {}
    sound = True
    for key, name in _KEYS.items():
        if body.get(key) is None:
            continue
        try:
            values[name] = _READERS[name](body[key])
        except ValueError:
            sound = False
    return CallerEntry(**values), sound  # type: ignore[arg-type]  # each reader returns its field's type


def ledger_entry(record: OutboxRecord) -> LedgerEntry:
    """Turn an entry of the outbox into a row of the ledger.

    Whatever the caller wrote, the row comes to be: what cannot be read has its default, and the metadata say `malformed`.
    Units without a column (there is none today) are kept in the metadata under `booked`.
    """
    caller, sound = parse_entry(record.entry_json)
    metadata = dict(caller.metadata or {})
    if not sound:
        metadata["malformed"] = True
    booked = dict.fromkeys(_BOOKED.values(), 0)
    for unit, amount in record.booked:
        if unit in _BOOKED:
            booked[_BOOKED[unit]] += amount
        elif amount:
            metadata["booked"] = [*_listed(metadata.get("booked")), [unit, amount]]
    return LedgerEntry(
        reservation_id=record.reservation_id,
        part=record.part,
        kind=record.kind,
        root=record.root,
        shard=record.shard,
        shard_seq=record.shard_seq,
        epoch=record.epoch,
        reserved_ms=record.reserved_ms,
        booked_ms=record.booked_ms,
        estimated=record.estimated,
        late=record.late,
        metadata_json=_written(metadata),
        cost_nanos=booked["cost_nanos"],
        requests=booked["requests"],
        tokens=booked["tokens"],
        booked_input_tokens=booked["booked_input_tokens"],
        booked_output_tokens=booked["booked_output_tokens"],
        **{name: getattr(caller, name) for name in _DEFAULTS if name != "metadata"},
    )


def _written(metadata: dict[str, object]) -> str:
    try:
        return json.dumps(metadata, separators=(",", ":"))
    except RecursionError:  # what was just deep enough to be read may be too deep to be written
        return '{"malformed":true}'


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []
