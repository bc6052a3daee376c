"""Top-ups and overrides: written to the ledger's database with who and why, then put into force in the store.

The store gets sums with the number of events they are made of and takes only what is made of more, so a call may be repeated,
overtaken or sent by several processes at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.errors import LedgerUnavailableError, LimitFieldError, StoreError, StoreUnavailableError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.event_rows import event_name
from sark_mw.ledger.events import Adjustment, EventFilter, EventKind, LimitEvent
from sark_mw.limit import DEFAULT_ROOT, Limit, Unit, in_units
from sark_mw.limit_index import LimitIndex
from sark_mw.money import MAX_LIMIT_NANOS, to_decimal
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """How much, in the unit's integer, and until when; `for_s` where it was asked for so long."""

    amount: int | None = None
    until_ms: int | None = None
    for_s: int | None = None


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
            raise LimitFieldError(f"{limit.limit_id} has no balance that could be topped up: set or override its amount", "scope")
        value = to_decimal(amount)
        units = in_units(limit.unit, value.copy_abs()) * (-1 if value.is_signed() else 1)
        if not units:
            raise LimitFieldError("a top-up of 0 changes nothing", "amount")
        counter = limit.counter(which.scope, limit.period(self._clock.now_ms()))
        return await self._record(EventKind.TOP_UP, limit, which.scope, counter, _Asked(amount=units), why)

    async def override(
        self, which: Which, amount: Decimal | None, until_ms: int, why: Why, for_s: int | None = None
    ) -> LimitEvent:
        """Put another amount in the place of a limit's on a scope, until then or for so long; None ends an override."""
        limit = await self._find(which)
        base = limit.base(which.scope)
        if amount is None:
            return await self._record(EventKind.OVERRIDE, limit, which.scope, base, _Asked(), why)
        units, now = in_units(limit.unit, to_decimal(amount)), self._clock.now_ms()
        if for_s is not None and until_ms:
            raise LimitFieldError("an override ends at a time or after so long, not both", "for_s")
        ends_ms = until_ms if for_s is None else now + for_s * 1000
        if not now < ends_ms <= now + MAX_OVERRIDE_MS and not await self._known(why.event_id):
            field = "until" if for_s is None else "for_s"
            raise LimitFieldError("an override must end in the future, within 366 days", field)
        asked = _Asked(amount=units, until_ms=ends_ms, for_s=for_s)
        return await self._record(EventKind.OVERRIDE, limit, which.scope, base, asked, why)

    async def _find(self, which: Which) -> Limit:
        table = await self._tables.reload(which.root)
        window = canonical(which.window) if which.window else None
        if which.scope.endswith("*"):
            raise LimitFieldError(f"name one scope that a limit matches, not a pattern: {which.scope!r}", "scope")
        lines = lines_for(LimitIndex(table.limits).on(which.scope), (which.scope,), self._clock.now_ms())
        found = [
            (limit, line.displaced)
            for line in lines
            for limit in [line.limit]
            if limit is not None
            and which.limit_id in (None, limit.limit_id)
            and which.unit in (None, limit.unit)
            and window in (None, limit.window)
        ]
        # Of several that would count the same only one decides: an exact one before a pattern.
        deciding = [limit for limit, displaced in found if not displaced]
        if len(deciding) == 1:
            return deciding[0]
        if not found:
            raise LimitFieldError(f"no limit of root {which.root!r} matches {which.scope!r} in this way", "scope")
        if not deciding:
            raise LimitFieldError(f"{found[0][0].limit_id} only counts on {which.scope!r}: another limit decides there", "scope")
        raise LimitFieldError(
            f"several limits match {which.scope!r}, say which: {', '.join(limit.limit_id for limit in deciding)}", "scope"
        )

    async def _record(self, kind: EventKind, limit: Limit, scope: str, counter: str, asked: _Asked, why: Why) -> LimitEvent:
        event = LimitEvent(
            event_id=why.event_id or new_reservation_id(),
            kind=kind,
            root=limit.root,
            limit_id=limit.limit_id,
            scope=scope,
            counter=counter,
            unit=limit.unit,
            amount=asked.amount,
            until_ms=asked.until_ms,
            at_ms=self._clock.now_ms(),
            actor=why.actor,
            reason=why.reason,
            detail_json="{}" if asked.for_s is None else json.dumps({"for_s": asked.for_s}, separators=(",", ":")),
        )
        if not await self._ledger.record_events([event]):
            event = await self._recorded(event)
        try:
            # Read after the commit: of two that come at once, whoever reads last has both.
            adjusted = await self._ledger.adjustments(limit.root, [event.counter])
            await self.send(adjusted, {event.counter: self._ends(limit, event.until_ms)})
        except (StoreError, LedgerUnavailableError) as error:
            raise StoreUnavailableError(
                f"the {kind.replace('_', '-')} is recorded as {event.event_id!r} and comes into force by itself once the store "
                f"answers; to repeat it, name this id: {error}"
            ) from error
        return event

    async def _recorded(self, event: LimitEvent) -> LimitEvent:
        """Return the event that has this id already; raises `ConfigurationError` if it is about something else."""
        known = await self._known(event.event_id) or event
        if _told(known) != _told(event):
            raise LimitFieldError(f"{event.event_id!r} came with another change before: use a new one for each", "event_id")
        return known

    async def _known(self, event_id: str) -> LimitEvent | None:
        found = await self._ledger.events(EventFilter(event_id=event_id), 1) if event_id else []
        return found[0].event if found else None

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


def _told(event: LimitEvent) -> tuple[object, ...]:
    """Tell what an event is about, as the ledger writes it, and how long it was asked to last."""
    names = [event_name(column, getattr(event, column)) for column in ("root", "limit_id", "scope")]
    asked_for = json.loads(event.detail_json).get("for_s")
    return event.kind, *names, event.amount, (event.until_ms if asked_for is None else None, asked_for)


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
