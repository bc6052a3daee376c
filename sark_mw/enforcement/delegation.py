"""Handing out parts of a budget: who names a parent is bound by it, and the parts sum up to no more than the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sark_mw.errors import ConfigurationError
from sark_mw.limit import Limit, from_units
from sark_mw.limit_index import LimitIndex
from sark_mw.window_words import per


def check_delegation(limits: Sequence[Limit]) -> None:
    """Check all limits of a root against each other; raises `ConfigurationError` naming the limit at fault."""
    parts = [limit for limit in limits if limit.parent]
    if not parts:
        return
    index = LimitIndex(limits)
    for parent in dict.fromkeys(limit.parent for limit in parts):
        wholes = index.on(parent)
        if not wholes:
            child = next(limit for limit in parts if limit.parent == parent)
            raise ConfigurationError(f"{child.limit_id}: its parent {parent!r} has no limit, so there is nothing to be a part of")
        for whole in wholes:
            if whole.scope == parent or not any(_is_part(whole, other) and other.scope == parent for other in wholes):
                _check_sum(whole, parent, [limit for limit in parts if limit.parent == parent and _is_part(whole, limit)])
    for part in parts:
        _check_cycle(part, index)


def _is_part(whole: Limit, limit: Limit) -> bool:
    """Tell whether amounts of the two can be compared: the same unit over the same window, in whatever zone."""
    return (whole.unit, whole.window) == (limit.unit, limit.window)


def _check_sum(whole: Limit, parent: str, parts: Iterable[Limit]) -> None:
    if whole.overcommit:
        return
    handed_out = 0
    for part in parts:
        if part.is_pattern:
            raise ConfigurationError(
                f"{part.limit_id}: a part for each of {part.scope} has no sum that {parent} could hold; "
                f"let {whole.limit_id} overcommit"
            )
        handed_out += part.amount_units
    if handed_out > whole.amount_units:
        raise ConfigurationError(
            f"{parent} has {whole.amount:f} {whole.unit} {per(whole.window) or 'in all'} and would hand out "
            f"{from_units(whole.unit, handed_out):f}; hand out less, or let {whole.limit_id} overcommit"
        )


def _check_cycle(part: Limit, index: LimitIndex) -> None:
    scope, path = part.parent, [part.scope]
    waiting = [(scope, path)]
    while waiting:
        scope, path = waiting.pop()
        if scope in path:
            raise ConfigurationError(f"parents go in a circle: {' -> '.join([*path, scope])}")
        # Of a pattern its own parent is a member too: a team of all teams is no circle.
        above = (limit.parent for limit in index.on(scope) if limit.parent and limit.parent != scope)
        waiting += [(parent, [*path, scope]) for parent in above]
