"""What changes of limits come to: compared with what is in force, merged, and written as events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias

from sark_mw.enforcement.delegation import check_delegation
from sark_mw.enforcement.grants import Why
from sark_mw.errors import ConfigurationError
from sark_mw.ledger.events import EventKind, LimitEvent
from sark_mw.limit import Limit
from sark_mw.limit_options import limit_options, written_options
from sark_mw.reservation import new_reservation_id

#: What a limit says beside what it limits: its amount in the unit's integer, its mode, its options.
Rule: TypeAlias = tuple[object, ...]

_written = attrgetter(
    "scope", "root", "unit", "amount", "window", "timezone", "mode", "parent", "overcommit", "thresholds", "rollover"
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What would have to be done to have the limits that are wanted; `replaced` are those in force that `put` replaces."""

    put: tuple[Limit, ...]
    replaced: tuple[Limit, ...]
    drop: tuple[Limit, ...]
    unchanged: tuple[Limit, ...]


def changes_between(in_force: Iterable[Limit], wanted: Sequence[Limit], *, prune: bool) -> Changes:
    """Compare; with `prune` all others go. Raises `ConfigurationError` for what cannot be together, as a change would."""
    known = {limit.limit_id: limit for limit in in_force}
    named = {limit.limit_id: limit for limit in wanted}
    if len(named) < len(wanted):
        raise ConfigurationError("the same limit is named twice")
    same = {limit_id for limit_id, limit in named.items() if limit_id in known and _written(known[limit_id]) == _written(limit)}
    changes = Changes(
        put=tuple(limit for limit_id, limit in named.items() if limit_id not in same),
        replaced=tuple(known[limit_id] for limit_id in named if limit_id in known and limit_id not in same),
        drop=tuple(limit for limit_id, limit in known.items() if prune and limit_id not in named),
        unchanged=tuple(named[limit_id] for limit_id in named if limit_id in same),
    )
    check_delegation(merged(known.values(), changes.put, [limit.limit_id for limit in changes.drop]))
    return changes


def merged(limits: Iterable[Limit], put: Iterable[Limit], drop: Iterable[str]) -> list[Limit]:
    """List the limits that there are after a change."""
    after = {limit.limit_id: limit for limit in limits} | {limit.limit_id: limit for limit in put}
    for limit_id in drop:
        after.pop(limit_id, None)
    return [*after.values()]


def by_root(limits: Iterable[Limit]) -> dict[str, list[Limit]]:
    """Sort limits by their roots, in the order in which these first come."""
    found: dict[str, list[Limit]] = {}
    for limit in limits:
        found.setdefault(limit.root, []).append(limit)
    return found


def changed(kind: EventKind, limits: Iterable[Limit], before: Mapping[str, Limit], at_ms: int, why: Why) -> list[LimitEvent]:
    """Write down that limits were set or deleted; `before` are those in force by id, of which these replace some."""
    return [_event(kind, limit, before.get(limit.limit_id), at_ms, why) for limit in limits]


def _event(kind: EventKind, limit: Limit, before: Limit | None, at_ms: int, why: Why) -> LimitEvent:
    detail: dict[str, object] = {"mode": limit.mode, **written_options(limit)}
    if before is not None:
        detail["before"] = {"amount": f"{before.amount:f}", "mode": before.mode, **written_options(before)}
    return LimitEvent(
        event_id=new_reservation_id(),
        kind=kind,
        root=limit.root,
        limit_id=limit.limit_id,
        scope=limit.scope,
        unit=limit.unit,
        amount=limit.amount_units,
        at_ms=at_ms,
        actor=why.actor,
        reason=why.reason,
        detail_json=json.dumps(detail, separators=(",", ":")),
    )


def rule_of(limit: Limit) -> Rule:
    """Tell what a limit says."""
    return limit.amount_units, str(limit.mode), limit_options(written_options(limit))


def rule_set_by(event: LimitEvent) -> Rule | None:
    """Tell what a `set` event made a limit say; None where nobody can tell."""
    try:
        said = json.loads(event.detail_json)
        return event.amount, str(said["mode"]), limit_options(said)
    except (ArithmeticError, KeyError, TypeError, ValueError):
        return None
