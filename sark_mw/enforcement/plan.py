"""What a shard needs to be rebuilt: which sums to ask the ledger for, and the counters and grants that they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sark_mw.enforcement.carries import carry_of, intervals, periods_before
from sark_mw.enforcement.grants import grant_of
from sark_mw.ledger.base import EpochBooks, EpochQuery, Interval, ScopeTotal
from sark_mw.ledger.events import Adjustment, EventKind, read_counter
from sark_mw.ledger.rows import clean_name
from sark_mw.limit import Limit, run_limit
from sark_mw.limit_index import Touched
from sark_mw.reservation import Line, lines_for
from sark_mw.store.base import RestoredCounter, RestoredReservation

#: Resolved reservations that a rebuilt shard remembers, those booked last: a repeated settle of an older one counts twice.
MOST_RESOLVED = 10_000
#: An idle window gets what was spent in so many times its width: when it began is not known.
_IDLE_WIDTHS = 7

Sums = dict[Interval, dict[tuple[str, str], ScopeTotal]]


class RebuildPlan:
    """The counters of one shard's limits in the periods that hold `at_ms`, the server's time.

    The periods before are not restored, but for limits with rollover the last one: no other limit looks at them any more, and
    what is still settled into them is in the ledger. A rolling window gets the sum of its width as if it were spent just now.
    """

    def __init__(
        self,
        limits: Sequence[Limit],
        at_ms: int,
        adjustments: Sequence[Adjustment] = (),
        changed_ms: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        self._at_ms = at_ms
        self._limits = limits
        self._adjustments = adjustments
        #: When each limit, by root and id, was changed last.
        self._changed_ms = changed_ms or {}
        self._exact: dict[tuple[str, str], list[Limit]] = {}
        self._patterns: dict[str, list[Limit]] = {}
        for limit in limits:
            if limit.is_pattern:
                self._patterns.setdefault(limit.root, []).append(limit)
            else:
                # By the name under which the ledger has the scope.
                self._exact.setdefault((limit.root, clean_name(limit.scope)), []).append(limit)

    def query(self, retention_ms: int) -> EpochQuery:
        """Ask for each interval once, however many limits share it."""
        every = [*self._limits, run_limit("-", "run:-")]
        lines = (line for limit in every for line in lines_for((limit,), (limit.scope,), self._at_ms))
        asked = [*(self._interval(line) for line in lines), *intervals(self._limits, self._at_ms)]
        return EpochQuery(
            intervals=tuple(dict.fromkeys(asked)),
            resolved_since_ms=self._at_ms - retention_ms,
            most_resolved=MOST_RESOLVED,
        )

    def counters(self, books: EpochBooks) -> list[RestoredCounter]:
        """Make the counters that are not 0, one for each scope in the ledger that a pattern matches."""
        sums = _sums(books)
        found = dict.fromkeys(key for by_scope in sums.values() for key in by_scope)
        current = [
            RestoredCounter(line=line, spent=spent)
            for root, scope in found
            for line in self._lines(root, scope)
            if (spent := _amount(sums[self._interval(line)].get((root, scope)), line.unit))
        ]
        return [*current, *(counter for counter, _ in self._carries(sums) if counter.spent)]

    def grants(self, books: EpochBooks) -> list[tuple[str, str]]:
        """Write top-ups, overrides and what is carried over as fields of the grants hash."""
        current = (each for each in self._adjustments if self._is_looked_at(each))
        fields = [(grant.field, grant.value) for each in current for grant in (grant_of(each),)]
        return [*fields, *(field for _, carried in self._carries(_sums(books)) for field in carried)]

    def _is_looked_at(self, each: Adjustment) -> bool:
        """Tell whether a limit looks at what was adjusted: in its present period, or with rollover in the one before."""
        if each.kind == EventKind.OVERRIDE:
            return each.until_ms > self._at_ms
        root, _, period, _ = each.counter.split("|")
        _, _, limit_id = read_counter(each.counter)
        for limit in self._limits:
            if limit.root == root and limit.limit_id == limit_id:
                before = periods_before(limit, self._at_ms)[:1] if limit.rollover_units else []
                return period in {at.name for at in (limit.period(self._at_ms), *before)}
        return False

    def _carries(self, sums: Sums) -> Iterator[tuple[RestoredCounter, list[tuple[str, str]]]]:
        topped_up = {each.counter: each.amount for each in self._adjustments if each.kind == EventKind.TOP_UP}
        known = dict.fromkeys(key for by_scope in sums.values() for key in by_scope) | dict.fromkeys(self._exact)
        for root, name in known:
            for limit in self._touching(root, name):
                if not limit.rollover_units:
                    continue
                scope = name if limit.is_pattern else limit.scope

                def spent(interval: Interval, key: tuple[str, str] = (root, name), unit: str = limit.unit) -> int:
                    return _amount(sums.get(interval, {}).get(key), unit)

                changed_ms = self._changed_ms.get((root, limit.limit_id), 0)
                found = carry_of(limit, scope, self._at_ms, spent, topped_up, changed_ms)
                if found is not None:
                    yield found

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

    def _touching(self, root: str, scope: str) -> list[Limit]:
        exact = self._exact.get((root, scope), [])
        return [*exact, *(limit for limit in self._patterns.get(root, ()) if limit.matches(scope))]

    def _lines(self, root: str, scope: str) -> Iterable[Line]:
        exact = self._exact.get((root, scope), [])
        runs = (run_limit(root, scope),) if scope.startswith("run:") else ()
        named = exact[0].scope if exact else scope
        return Touched((named,), tuple(self._touching(root, scope)), runs).lines(self._at_ms)

    def _interval(self, line: Line) -> Interval:
        if line.rolling_ms:
            return max(self._at_ms - line.rolling_ms, line.starts_ms), None
        if line.idle_ms:
            return max(self._at_ms - _IDLE_WIDTHS * line.idle_ms, line.starts_ms), None
        return line.starts_ms, line.ends_ms or None


def _sums(books: EpochBooks) -> Sums:
    return {interval: {(t.root, t.scope): t for t in totals} for interval, totals in books.totals.items()}


def _amount(total: ScopeTotal | None, unit: str) -> int:
    return total.amount(unit) if total else 0
