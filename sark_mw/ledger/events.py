"""What happens to limits beside spending: who changed them, which thresholds fired, what was carried over.

Administrators' events are written by whoever acts for them; `threshold` and `rollover` come from the scripts, through the outbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sark_mw.ledger.outbox import OutboxRecord
from sark_mw.limit import from_units

_INT64 = 2**63
#: How long after it happened an event may still be claimed for delivery.
CLAIMED_FOR_MS = 3 * 86_400_000


class EventKind(StrEnum):
    """What happened to a limit or a counter."""

    SET = "set"
    DELETE = "delete"
    TOP_UP = "top_up"
    OVERRIDE = "override"
    ROLLOVER = "rollover"
    THRESHOLD = "threshold"
    RELEASE = "release"
    REPAIR = "repair"
    APPROVAL = "approval"
    PLUGIN = "plugin"
    RULE = "rule"


#: What travels through the outbox beside the entries: no sequence number, no fence, no counter moved.
EVENT_KINDS = frozenset({EventKind.THRESHOLD, EventKind.ROLLOVER})


#: What administrators decide of policies: read on by every process. Spelt out in the index of migration 0008 too.
POLICY_KINDS = (EventKind.PLUGIN, EventKind.RULE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitEvent:
    """One thing that happened; `event_id` makes it happen once. `amount` in the unit's integer (signed, int64).

    `counter` is what it concerns: a counter, or the base of an override. An override without an amount ends the one in force.
    """

    event_id: str
    kind: str
    root: str
    limit_id: str = ""
    scope: str = ""
    counter: str = ""
    unit: str = ""
    amount: int | None = None
    until_ms: int | None = None
    at_ms: int = 0
    actor: str = ""
    reason: str = ""
    detail_json: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """An event as it lies in the ledger: `seq` grows, `done` names the receivers that have it while others still lack it."""

    seq: int
    event: LimitEvent
    delivered: bool
    attempts: int
    done: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events to list; None (and no kinds) means any. `since_ms <= at_ms`, `seq < before_seq`."""

    event_id: str | None = None
    root: str | None = None
    limit_id: str | None = None
    scope: str | None = None
    kinds: tuple[str, ...] = ()
    actor: str | None = None
    since_ms: int | None = None
    before_seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """What `count` events make of a counter or a base together.

    `top_up`: the sum of all top-ups of the counter. `override`: the newest one of the base, in force while `now < until_ms`; one
    that was ended has `until_ms` 0.
    """

    counter: str
    kind: str
    amount: int
    count: int
    until_ms: int = 0


_UNITS = "usd|requests|input_tokens|output_tokens|tokens|concurrency"
#: Greedy, so that the last unit counts: a scope may hold `/usd/day` itself, window and zone cannot.
_NAME = re.compile(rf"(?P<scope>.+)/(?P<unit>{_UNITS})/(?P<window>[a-z]+(?::[A-Za-z0-9-]+)?(?:@[A-Za-z0-9_+/-]+)?)")
_WHOLE = re.compile(r"-?[0-9]{1,19}")


def event_of(record: OutboxRecord) -> LimitEvent:
    """Read an entry of one of `EVENT_KINDS`; whatever its JSON says, the event comes to be.

    What the JSON does not say of scope, unit and limit is read off the counter's name.
    """
    said = _object(record.entry_json)
    counter = _text(said, "counter") or _text(said, "base")
    scope, unit, limit_id = read_counter(counter)
    return LimitEvent(
        event_id=record.reservation_id,
        kind=record.kind,
        root=record.root,
        limit_id=_text(said, "limit_id") or limit_id,
        scope=_text(said, "scope") or scope,
        counter=counter,
        unit=_text(said, "unit") or unit,
        amount=_amount(said.get("amount")),
        at_ms=record.booked_ms,
        detail_json=_written(said, _text(said, "unit") or unit) if said else '{"malformed":true}',
    )


def read_counter(counter: str) -> tuple[str, str, str]:
    """Read scope (cleaned), unit and limit id off a counter or base, `<root>|<name>|…`; all empty where it is none."""
    parts = counter.split("|")
    if len(parts) not in (3, 4):
        return "", "", ""
    name = parts[1]
    if found := _NAME.fullmatch(name):
        return found["scope"], found["unit"], name
    # Of a limit on a pattern, which follows behind `<`; a scope may hold that too, but only the pattern begins as the scope does.
    for mark in re.finditer("<", name):
        found, pattern = _NAME.fullmatch(name[: mark.start()]), name[mark.end() :]
        # Of what is too long a name has only the beginning, then `%~` and a digest.
        if found and (found["scope"].startswith(pattern.removesuffix("*")) or "%~" in found["scope"] + pattern):
            return found["scope"], found["unit"], f"{pattern}/{found['unit']}/{found['window']}"
    return "", "", ""


def _written(said: Mapping[str, object], unit: str) -> str:
    """Write a detail with its amounts as people read them: dollars for usd."""
    amounts = {key: _amount(said.get(key)) for key in ("amount", "spent")}
    shown = {key: f"{from_units(unit, amount):f}" for key, amount in amounts.items() if amount is not None}
    return json.dumps({**said, **shown}, separators=(",", ":"))


def _object(text: str) -> Mapping[str, object]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _text(said: Mapping[str, object], key: str) -> str:
    value = said.get(key)
    return value if isinstance(value, str) else ""


def _amount(value: object) -> int | None:
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64:
        return value
    return None
