"""What rollover limits carry, reckoned from the ledger: for a store that lost its data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from sark_mw.ledger.base import Interval
from sark_mw.limit import Limit
from sark_mw.reservation import Line, lines_for
from sark_mw.store.base import RestoredCounter
from sark_mw.window import Period, period_before

#: How many periods back a carry is reckoned: what is older could only make it larger.
_MOST_PERIODS = 6

#: What a scope has spent of a unit in an interval, by the ledger.
Spent = Callable[[Interval], int]


def periods_before(limit: Limit, at_ms: int, changed_ms: int = 0) -> list[Period]:
    """List the periods before the one of `at_ms`, the latest first, back to when the limit began to carry over or was changed."""
    since_ms = max(limit.since_ms, limit.carries_since_ms, changed_ms)
    found: list[Period] = []
    period = limit.period(at_ms)
    while len(found) < _MOST_PERIODS:
        before = period_before(limit.window, limit.timezone, period)
        if before is None or before.ends_ms <= since_ms:
            break
        found.append(before)
        period = before
    return found


def interval_of(limit: Limit, period: Period) -> Interval:
    """Name what the ledger is asked for: a limit counts from when it was made."""
    return max(period.starts_ms, limit.since_ms), period.ends_ms


def intervals(limits: Iterable[Limit], at_ms: int) -> Iterator[Interval]:
    """List the intervals of past periods that rollover limits look at."""
    for limit in limits:
        if limit.rollover_units:
            for period in periods_before(limit, at_ms):
                yield interval_of(limit, period)


def carry_of(
    limit: Limit, scope: str, at_ms: int, spent: Spent, topped_up: Mapping[str, int], changed_ms: int
) -> tuple[RestoredCounter, list[tuple[str, str]]] | None:
    """Rebuild what one scope carries: the counter of the period before, and the fields that say so; None in the first period.

    Of the time before the limit was changed last (`changed_ms`) nothing is carried: what it allowed then is not known.
    """
    periods = periods_before(limit, at_ms, changed_ms)
    if not periods:
        return None
    carried = 0
    for period in reversed(periods[1:]):
        allowed = limit.amount_units + topped_up.get(limit.counter(scope, period), 0) + carried
        carried = min(limit.rollover_units, max(allowed - spent(interval_of(limit, period)), 0))
    current, before = limit.period(at_ms), periods[0]
    line = _line_of(limit, scope, before)
    amount = limit.amount_units
    record = (
        f"{current.ordinal} {limit.counter(scope, current)} a{amount} {limit.rollover_units} "
        f"{before.ordinal} {line.counter} a{amount} 0"
    )
    fields = [(f"{limit.base(scope)}|carry", record), (f"{line.counter}|carried", str(carried))]
    return RestoredCounter(line=line, spent=spent(interval_of(limit, before))), fields


def _line_of(limit: Limit, scope: str, period: Period) -> Line:
    return lines_for((limit,), (scope,), period.starts_ms)[0]
