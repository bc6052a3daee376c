"""What a shard needs to be rebuilt: which sums to ask the ledger for, and the counters that they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sark_mw.ledger.base import EpochBooks, EpochQuery, Interval, ScopeTotal
from sark_mw.ledger.rows import clean_name
from sark_mw.limit import Limit
from sark_mw.reservation import Line, lines_for
from sark_mw.store.base import RestoredCounter, RestoredReservation

#: Resolved reservations that a rebuilt shard remembers, those booked last: a repeated settle of an older one counts twice.
MOST_RESOLVED = 10_000


class RebuildPlan:
    """The counters of one shard's limits in the periods that hold `at_ms`, the server's time.

    The periods before are not restored: no limit looks at them any more, and what is still settled into them is in the ledger. A
    rolling window gets the sum of its width as if it were spent just now.
    """

    def __init__(self, limits: Sequence[Limit], at_ms: int) -> None:
        self._at_ms = at_ms
        self._limits = limits
        self._exact: dict[tuple[str, str], list[Limit]] = {}
        self._patterns: dict[str, list[Limit]] = {}
        for limit in limits:
            if limit.scope.endswith("*"):
                self._patterns.setdefault(limit.root, []).append(limit)
            else:
                # By the name under which the ledger has the scope.
                self._exact.setdefault((limit.root, clean_name(limit.scope)), []).append(limit)

    def query(self, retention_ms: int) -> EpochQuery:
        """Ask for each interval once, however many limits share it."""
        lines = (line for limit in self._limits for line in lines_for((limit,), (limit.scope,), self._at_ms))
        return EpochQuery(
            intervals=tuple(dict.fromkeys(self._interval(line) for line in lines)),
            resolved_since_ms=self._at_ms - retention_ms,
            most_resolved=MOST_RESOLVED,
        )

    def counters(self, books: EpochBooks) -> list[RestoredCounter]:
        """Make the counters that are not 0, one for each scope in the ledger that a pattern matches."""
        sums = {interval: {(t.root, t.scope): t for t in totals} for interval, totals in books.totals.items()}
        found = dict.fromkeys(key for by_scope in sums.values() for key in by_scope)
        return [
            RestoredCounter(line=line, spent=spent)
            for root, scope in found
            for line in self._lines(root, scope)
            if (spent := _amount(sums[self._interval(line)].get((root, scope)), line.unit))
        ]

    @staticmethod
    def resolved(books: EpochBooks) -> list[RestoredReservation]:
        """Say what must be remembered of reservations: a repeated call about them changes nothing."""
        return [
            RestoredReservation(
                reservation_id=each.reservation_id,
                resolution="held" if each.unended else each.resolution,
                entries=each.last_part,
                made_ms=each.reserved_ms,
                known=each.known,
                estimated=each.estimated,
            )
            for each in books.resolved
        ]

    def _lines(self, root: str, scope: str) -> Iterable[Line]:
        exact = self._exact.get((root, scope), [])
        touched = [*exact, *(limit for limit in self._patterns.get(root, ()) if limit.matches(scope))]
        return lines_for(touched, (exact[0].scope if exact else scope,), self._at_ms)

    def _interval(self, line: Line) -> Interval:
        if line.rolling_ms:
            return max(self._at_ms - line.rolling_ms, line.starts_ms), None
        return line.starts_ms, line.ends_ms or None


def _amount(total: ScopeTotal | None, unit: str) -> int:
    return total.amount(unit) if total else 0
