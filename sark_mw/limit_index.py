"""Which limits a request touches: found by scope, with the parents that they name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sark_mw.limit import Limit
from sark_mw.reservation import Line, budgets_first, lines_for


@dataclass(frozen=True, slots=True)
class Touched:
    """The scopes that a request touches, with parents, and the limits on them."""

    scopes: tuple[str, ...]
    limits: tuple[Limit, ...]
    extra: tuple[Limit, ...] = ()

    def lines(self, at_ms: int) -> tuple[Line, ...]:
        """Lay the limits out at a server time; one of the request's own takes no other's place, whatever it counts."""
        lines = lines_for(self.limits, self.scopes, at_ms)
        if not self.extra:
            return lines
        return budgets_first((*lines, *lines_for(self.extra, self.scopes, at_ms)))


class LimitIndex:
    """The limits of one root, by scope: ten thousand exact ones cost a request no more than one."""

    def __init__(self, limits: Iterable[Limit]) -> None:
        self._exact: dict[str, list[Limit]] = {}
        self._patterns: list[Limit] = []
        for limit in limits:
            if limit.is_pattern:
                self._patterns.append(limit)
            else:
                self._exact.setdefault(limit.scope, []).append(limit)

    def on(self, scope: str) -> list[Limit]:
        """List the limits that match a scope."""
        return [*self._exact.get(scope, ()), *(limit for limit in self._patterns if limit.matches(scope))]

    def touch(self, scopes: Sequence[str], asserted: Sequence[str] = (), extra: Sequence[Limit] = ()) -> Touched:
        """Find what a request touches: its scopes, the parents of the limits on them, asserted scopes that a limit is about.

        `extra` are limits of the request's own.
        """
        touched = dict.fromkeys(scopes)
        found: dict[Limit, None] = {}
        waiting = [*scopes, *asserted]
        # Each scope is looked at once, so parents that name each other end too.
        looked = set(waiting)
        for scope in waiting:
            limits = self.on(scope)
            if limits:
                touched[scope] = None
            for limit in limits:
                found[limit] = None
                if limit.parent and limit.parent not in looked:
                    looked.add(limit.parent)
                    touched[limit.parent] = None
                    waiting.append(limit.parent)
        return Touched(tuple(touched), tuple(found), tuple(extra))
