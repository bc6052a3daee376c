"""Handing out parts of a budget: who names a parent is bound by it, and the parts sum up to no more than the whole.

All of it is linear in the number of limits: an administrator may set ten thousand at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sark_mw.errors import ConfigurationError
from sark_mw.limit import Limit, from_units
from sark_mw.limit_index import LimitIndex
from sark_mw.window_words import per

#: Unit and window: amounts of such limits can be compared, in whatever zone.
_Measure: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class _Parts:
    """What is handed out of one measure of a parent; `pattern` is one of which nobody can say how much it hands out."""

    amount: int = 0
    pattern: Limit | None = None


def check_delegation(limits: Sequence[Limit]) -> None:
    """Check all limits of a root against each other; raises `ConfigurationError` naming the limit at fault."""
    parts = [limit for limit in limits if limit.parent]
    if not parts:
        return
    index = LimitIndex(limits)
    first = {part.parent: part for part in reversed(parts)}
    handed_out = _handed_out(parts)
    touching = {parent: index.on(parent) for parent in dict.fromkeys(part.parent for part in parts)}
    for parent, wholes in touching.items():
        if not wholes:
            raise ConfigurationError(
                f"{first[parent].limit_id}: its parent {parent!r} has no limit, so there is nothing to be a part of"
            )
        exact = {_measure(whole) for whole in wholes if whole.scope == parent}
        for whole in wholes:
            if whole.scope == parent or _measure(whole) not in exact:
                _check_sum(whole, parent, handed_out.get((parent, _measure(whole)), _Parts()))
    _check_circles(parts, touching)


def _measure(limit: Limit) -> _Measure:
    return limit.unit, limit.window


def _handed_out(parts: Sequence[Limit]) -> dict[tuple[str, _Measure], _Parts]:
    found: dict[tuple[str, _Measure], _Parts] = {}
    for part in parts:
        sums = found.setdefault((part.parent, _measure(part)), _Parts())
        if part.is_pattern:
            sums.pattern = sums.pattern or part
        else:
            sums.amount += part.amount_units
    return found


def _check_sum(whole: Limit, parent: str, parts: _Parts) -> None:
    if whole.overcommit:
        return
    if parts.pattern is not None:
        raise ConfigurationError(
            f"{parts.pattern.limit_id}: a part for each of {parts.pattern.scope} has no sum that {parent} could hold; "
            f"let {whole.limit_id} overcommit"
        )
    if parts.amount > whole.amount_units:
        raise ConfigurationError(
            f"{parent} has {whole.amount:f} {whole.unit} {per(whole.window) or 'in all'} and would hand out "
            f"{from_units(whole.unit, parts.amount):f}; hand out less, or let {whole.limit_id} overcommit"
        )


def _check_circles(parts: Sequence[Limit], touching: dict[str, list[Limit]]) -> None:
    """Walk up from every parent, through each scope once."""
    # Of a pattern its own parent is a member too: a team of all teams is no circle.
    above = {
        scope: list(dict.fromkeys(limit.parent for limit in limits if limit.parent and limit.parent != scope))
        for scope, limits in touching.items()
    }
    for part in parts:
        if not part.is_pattern:
            above.setdefault(part.scope, []).append(part.parent)
    done: set[str] = set()
    for start in above:
        path = {start: None} if start not in done else {}
        while path:
            scope = next(reversed(path))
            while above.get(scope):
                parent = above[scope].pop()
                if parent in path:
                    circle = [*path][[*path].index(parent) :]
                    raise ConfigurationError(f"parents go in a circle: {' -> '.join([*circle, parent])}")
                if parent not in done:
                    path[parent] = None
                    break
            else:
                done.add(scope)
                del path[scope]
