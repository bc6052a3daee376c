"""Top-ups and overrides: written to the ledger's database with who and why, then put into force in the store.

The store gets sums with the number of events they are made of and takes only what is made of more, so a call may be repeated,
overtaken or sent by several processes at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.errors import ConfigurationError, LedgerUnavailableError, StoreError, StoreUnavailableError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import Adjustment, EventFilter, EventKind, LimitEvent
from sark_mw.limit import DEFAULT_ROOT, Limit, Unit, in_units
from sark_mw.limit_index import LimitIndex
from sark_mw.money import MAX_LIMIT_NANOS
from sark_mw.reservation import lines_for, new_reservation_id
from sark_mw.store.base import Grant, ReservationStore
from sark_mw.window import canonical

#: Longest that an override may last from now.
MAX_OVERRIDE_MS = 366 * 86_400_000
#: What is in force already is sent again for so long: a commit may become visible later than its time says.
_SENT_AGAIN_MS = 600_000
_MOST_SENT_AGAIN = 1_000
_AT_ONCE = 500
#: An override that has ended: any instant that is long past.
_ENDED_MS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Which limit on which scope is meant: by its id, or by unit and window where several limits match the scope."""

    scope: str
    root: str = DEFAULT_ROOT
    limit_id: str | None = None
    unit: str | None = None
    window: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Who does it and why; `event_id` (made if empty) makes a repeated call do nothing."""

    actor: str = ""
    reason: str = ""
    event_id: str = ""


class Grants:
    """Top up and override. Raises `ConfigurationError`, `MoneyError`, or what ledger and store raise; then repeat the call."""

    def __init__(self, store: ReservationStore, ledger: Ledger, *, tables: LimitTables, clock: ServerClock) -> None:
        self._store = store
        self._ledger = ledger
        self._tables = tables
        self._clock = clock
        self._sent_ms: int | None = None

    async def top_up(self, which: Which, amount: Decimal, why: Why) -> LimitEvent:
        """Add to (negative: take from) what a limit allows on a scope in its present period, or for good if it has none."""
        limit = await self._find(which)
        if limit.unit == Unit.CONCURRENCY or limit.rolling_ms or limit.idle_ms:
            raise ConfigurationError(f"{limit.limit_id} has no balance that could be topped up: set or override its amount")
        units = in_units(limit.unit, abs(amount)) * (-1 if amount < 0 else 1)
        if not units:
            raise ConfigurationError("a top-up of 0 changes nothing")
        counter = limit.counter(which.scope, limit.period(self._clock.now_ms()))
        return await self._record(EventKind.TOP_UP, limit, which.scope, counter, units, None, why)

    async def override(self, which: Which, amount: Decimal | None, until_ms: int, why: Why) -> LimitEvent:
        """Put another amount in the place of a limit's on a scope until then; None ends an override."""
        limit = await self._find(which)
        now = self._clock.now_ms()
        if amount is not None and not now < until_ms <= now + MAX_OVERRIDE_MS:
            raise ConfigurationError("an override must end in the future, within 366 days")
        units = None if amount is None else in_units(limit.unit, amount)
        until = None if amount is None else until_ms
        return await self._record(EventKind.OVERRIDE, limit, which.scope, limit.base(which.scope), units, until, why)

    async def _find(self, which: Which) -> Limit:
        table = await self._tables.reload(which.root)
        window = canonical(which.window) if which.window else None
        if which.scope.endswith("*"):
            raise ConfigurationError(f"name one scope that a limit matches, not a pattern: {which.scope!r}")
        matching = LimitIndex(table.limits).on(which.scope)
        # Of several that would count the same only one does: an exact one before a pattern.
        counting = (line.limit for line in lines_for(matching, (which.scope,), self._clock.now_ms()))
        found = [
            limit
            for limit in counting
            if limit is not None
            and which.limit_id in (None, limit.limit_id)
            and which.unit in (None, limit.unit)
            and window in (None, limit.window)
        ]
        if len(found) == 1:
            return found[0]
        if not found:
            raise ConfigurationError(f"no limit of root {which.root!r} matches {which.scope!r} in this way")
        raise ConfigurationError(
            f"several limits match {which.scope!r}, say which: {', '.join(limit.limit_id for limit in found)}"
        )

    async def _record(
        self, kind: EventKind, limit: Limit, scope: str, counter: str, amount: int | None, until_ms: int | None, why: Why
    ) -> LimitEvent:
        event = LimitEvent(
            event_id=why.event_id or new_reservation_id(),
            kind=kind,
            root=limit.root,
            limit_id=limit.limit_id,
            scope=scope,
            counter=counter,
            unit=limit.unit,
            amount=amount,
            until_ms=until_ms,
            at_ms=self._clock.now_ms(),
            actor=why.actor,
            reason=why.reason,
        )
        if not await self._ledger.record_events([event]):
            event = await self._recorded(event)
        try:
            # Read after the commit: of two that come at once, whoever reads last has both.
            await self.send(await self._ledger.adjustments(limit.root, [counter]), {counter: self._ends(limit, until_ms)})
        except (StoreError, LedgerUnavailableError) as error:
            raise StoreUnavailableError(
                f"the {kind.replace('_', '-')} is recorded as {event.event_id!r} and comes into force by itself once the store "
                f"answers; to repeat it, name this id: {error}"
            ) from error
        return event

    async def _recorded(self, event: LimitEvent) -> LimitEvent:
        """Return the event that has this id already; raises `ConfigurationError` if it is about something else."""
        found = await self._ledger.events(EventFilter(event_id=event.event_id), 1)
        known = found[0].event if found else event
        told = [(e.kind, e.root, e.limit_id, e.scope, e.amount, e.until_ms) for e in (known, event)]
        if told[0] != told[1]:
            raise ConfigurationError(f"the event id {event.event_id!r} is that of another change: use a new one for each")
        return known

    def _ends(self, limit: Limit, until_ms: int | None) -> int:
        return until_ms or limit.period(self._clock.now_ms()).ends_ms

    async def send(self, adjustments: Iterable[Adjustment], ends: dict[str, int] | None = None) -> None:
        """Put adjustments into force; what is in force already is left."""
        await self._store.adjust([grant_of(each, (ends or {}).get(each.counter, 0)) for each in adjustments])

    async def send_again(self) -> None:
        """Send what was changed since this was last done, and at first everything: who changed it may not have come so far."""
        now = self._clock.now_ms()
        if self._sent_ms is None:
            adjustments = await self._ledger.adjustments()
        else:
            kinds = (EventKind.TOP_UP, EventKind.OVERRIDE)
            since = EventFilter(kinds=kinds, since_ms=self._sent_ms - _SENT_AGAIN_MS)
            recent = await self._ledger.events(since, _MOST_SENT_AGAIN)
            counters = list(dict.fromkeys(each.event.counter for each in recent))
            # More than can be named: all of them.
            some = counters if len(recent) < _MOST_SENT_AGAIN else ()
            adjustments = await self._ledger.adjustments(None, some) if counters else []
        for first in range(0, len(adjustments), _AT_ONCE):
            await self.send(adjustments[first : first + _AT_ONCE])
        self._sent_ms = now


def grant_of(each: Adjustment, ends_ms: int = 0) -> Grant:
    """Turn what the ledger knows into what the store keeps."""
    is_override = each.kind == EventKind.OVERRIDE
    return Grant(
        root=each.counter.partition("|")[0],
        counter=each.counter,
        amount=max(-MAX_LIMIT_NANOS, min(each.amount, MAX_LIMIT_NANOS)),
        count=each.count,
        until_ms=(each.until_ms or _ENDED_MS) if is_override else 0,
        keep_until_ms=ends_ms,
    )


def grant_fields(grants: Sequence[Grant]) -> list[tuple[str, str]]:
    """Write grants as fields of the store's hash."""
    return [(grant.field, grant.value) for grant in grants]
