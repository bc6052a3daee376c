"""Setting limits: checked, kept in the ledger's database for good, in force through the store within its next answer."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import TypeVar
from weakref import WeakValueDictionary

from sark_mw.enforcement.changes import Changes, Rule, by_root, changed, changes_between, merged, rule_of, rule_set_by
from sark_mw.enforcement.delegation import check_delegation
from sark_mw.enforcement.grants import Grants, Which, Why
from sark_mw.enforcement.recovery import Recovery
from sark_mw.enforcement.status import LimitStatus, StatusReader
from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.errors import ConfigurationError, LimitsChangedError, StoreDataLostError, StoreUnavailableError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.event_rows import event_name
from sark_mw.ledger.events import EventFilter, EventKind, LimitEvent, RecordedEvent
from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.store.base import LimitTable, ReservationStore

__all__ = ["Changes", "LimitRegistry", "LimitStatus", "detail_of"]

_ATTEMPTS = 20
_PAUSE_S = 0.005
#: So many limits are computed with at once; more of them in a thread, or with turns for others in between.
_MANY = 500
#: Scopes whose limits are read at one instant.
_SCOPES_AT_ONCE = 100
#: Who sets what the settings file says.
SETTINGS = "settings"
_PAGE = 1_000

_T = TypeVar("_T")


class LimitRegistry:
    """Set, drop, list and adjust limits; every change is recorded with who and why.

    Raises `ConfigurationError` or `MoneyError` before anything is written; `LedgerUnavailableError` or `StoreUnavailableError`:
    repeat the call then (`LimitsChangedError`: others were first, nothing was changed).
    """

    def __init__(
        self,
        store: ReservationStore,
        ledger: Ledger,
        *,
        tables: LimitTables,
        recovery: Recovery,
        clock: ServerClock | None = None,
        on_event: Callable[[LimitEvent], None] | None = None,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._tables = tables
        self._recovery = recovery
        self._clock = clock or tables.clock
        self._on_event = on_event
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.grants = Grants(store, ledger, tables=tables, clock=self._clock)
        self._status = StatusReader(store, ledger, tables=tables, clock=self._clock)

    async def set(self, *limits: Limit, actor: str = "", reason: str = "") -> None:
        """Add limits, or replace those that limit the same; a replaced one keeps what it has counted."""
        for root, own in by_root(limits).items():
            await self.change(root, own, (), actor=actor, reason=reason)

    async def drop(self, root: str, *limit_ids: str, actor: str = "", reason: str = "") -> None:
        """Remove limits by id; unknown ids are nothing."""
        await self.change(root, (), limit_ids, actor=actor, reason=reason)

    async def change(self, root: str, put: Sequence[Limit], drop: Sequence[str], *, actor: str = "", reason: str = "") -> None:
        """Set and drop limits of one root in one step."""
        if any(limit.root != root for limit in put):
            raise ConfigurationError(f"a change is of one root, {root!r}")
        why = Why(actor=actor, reason=reason)
        # One change of a root at a time in this process: those of other processes are enough to be overtaken by.
        lock = self._changing.setdefault(root, asyncio.Lock())
        async with lock:
            # What is dropped is recorded as long as the database has it, so that a call that failed half way may be repeated.
            saved = [limit for limit in await self._ledger.load_limits() if limit.root == root] if drop else []
            before, after = await self._apply(root, put, drop)
            await self._record(put, drop, (*saved, *before.limits), why)
            await self._save_what_is_in_force(after, [*(limit.limit_id for limit in put), *drop])

    async def _save_what_is_in_force(self, table: LimitTable, limit_ids: Sequence[str]) -> None:
        """Let the database say of these limits what the store says, with the time from which they count."""
        for tried in range(_ATTEMPTS):
            await _pause(tried)
            known = _named(table, limit_ids)
            gone = [(table.root, limit_id) for limit_id in limit_ids if limit_id not in known]
            await self._ledger.save_limits([*known.values()], gone)
            table = await self._table(table.root)
            # Whoever changed one of them meanwhile may have saved before this did.
            if _named(table, limit_ids) == known:
                return
        raise StoreUnavailableError("what was changed is in force, but others changed the same limits while it was saved")

    async def _apply(self, root: str, put: Sequence[Limit], drop: Sequence[str]) -> tuple[LimitTable, LimitTable]:
        """Check a change against the table in force and make it; if that has changed meanwhile, anew. Return it, and the next."""
        put_ids = [limit.limit_id for limit in put]
        for tried in range(_ATTEMPTS):
            await _pause(tried)
            table = await self._table(root)
            try:
                await _computed(len(table.limits) + len(put), partial(_check, table, put, drop))
            except ConfigurationError:
                if tried:
                    # Another change was first: the database says again what is in force.
                    await self._save_what_is_in_force(table, put_ids)
                raise
            # The database first: what is in force after a loss of the store is at least what was asked for.
            await self._ledger.save_limits(await _computed(len(put), partial(_as_in_force, table, put)), ())
            after = await self._change(table, put, drop)
            if after is not None:
                return table, after
        await self._save_what_is_in_force(await self._table(root), put_ids)
        raise LimitsChangedError(
            f"the limits of root {root!r} were changed by others at the same time, nothing was changed: repeat"
        )

    async def _change(self, table: LimitTable, put: Sequence[Limit], drop: Sequence[str]) -> LimitTable | None:
        try:
            after = await self._store.change_limits(table, put, drop)
        except StoreDataLostError:
            await self._recovery.rebuild()
            after = None
        self._tables.forget(table.root)
        return after

    async def list(self, root: str = DEFAULT_ROOT) -> tuple[Limit, ...]:
        """List the limits of a root as the store enforces them now."""
        return (await self._table(root)).limits

    async def roots(self) -> tuple[str, ...]:
        """List the roots that have limits."""
        return tuple(sorted({limit.root for limit in await self._ledger.load_limits()}))

    async def seed(self, limits: Sequence[Limit]) -> None:
        """Set at start what the settings file says, where it is new there or says something else than when it was set last.

        What administrators did since with a limit that stands there unchanged stays done, deletions too.
        """
        for root, wanted in by_root(limits).items():
            if len({limit.limit_id for limit in wanted}) < len(wanted):
                raise ConfigurationError("the same limit is named twice")
            applied = await self._applied(root, frozenset(event_name("limit_id", limit.limit_id) for limit in wanted))
            fresh = [each for each in wanted if applied.get(event_name("limit_id", each.limit_id)) != rule_of(each)]
            if not fresh:
                continue
            changes = await self.plan(root, fresh, prune=False)
            if changes.put:
                await self.change(root, changes.put, (), actor=SETTINGS, reason="set at start")
            # What was in force already is from now on what the file was when it was set last.
            await self._record(changes.unchanged, (), (), Why(actor=SETTINGS, reason="set at start"))

    async def _applied(self, root: str, limit_ids: frozenset[str]) -> dict[str, Rule | None]:
        """Tell as what the settings file set these limits last."""
        found: dict[str, Rule | None] = {}
        query = EventFilter(root=root, kinds=(EventKind.SET,), actor=SETTINGS)
        while len(found) < len(limit_ids):
            page = await self._ledger.events(query, _PAGE)
            for each in page:
                if each.event.limit_id in limit_ids:
                    found.setdefault(each.event.limit_id, rule_set_by(each.event))
            if len(page) < _PAGE:
                break
            query = replace(query, before_seq=page[-1].seq)
        return found

    async def plan(self, root: str, wanted: Sequence[Limit], *, prune: bool) -> Changes:
        """Compare the limits that are wanted with those in force; with `prune` all others go. Checks them as `set` does."""
        table = await self._table(root)
        many = len(wanted) + len(table.limits)
        return await _computed(many, partial(changes_between, table.limits, wanted, prune=prune))

    async def top_up(
        self,
        scope: str,
        amount: Decimal,
        *,
        limit_id: str | None = None,
        unit: str | None = None,
        window: str | None = None,
        root: str = DEFAULT_ROOT,
        actor: str = "",
        reason: str = "",
        event_id: str | None = None,
    ) -> LimitStatus:
        """Add to (negative: take from) what a limit allows on one scope in its present period, or for good without periods.

        Which limit is meant is told by its id, or by unit and window where several match. The same `event_id` counts once.
        """
        which = Which(scope=scope, root=root, limit_id=limit_id, unit=unit, window=window)
        await self._table(root)
        return await self._adjusted(await self.grants.top_up(which, amount, _why(actor, reason, event_id)))

    async def override(
        self,
        scope: str,
        amount: Decimal | None,
        until_ms: int = 0,
        *,
        for_s: int | None = None,
        limit_id: str | None = None,
        unit: str | None = None,
        window: str | None = None,
        root: str = DEFAULT_ROOT,
        actor: str = "",
        reason: str = "",
        event_id: str | None = None,
    ) -> LimitStatus:
        """Put another amount in the place of a limit's on one scope; an amount of None ends that.

        It lasts until then (Unix milliseconds), or `for_s` seconds from now.
        """
        which = Which(scope=scope, root=root, limit_id=limit_id, unit=unit, window=window)
        await self._table(root)
        return await self._adjusted(await self.grants.override(which, amount, until_ms, _why(actor, reason, event_id), for_s))

    async def _adjusted(self, event: LimitEvent) -> LimitStatus:
        await self._told([event])
        for each in await self.status(event.root, (event.scope,)):
            if (event_name("limit_id", each.limit.limit_id), each.scope) == (event_name("limit_id", event.limit_id), event.scope):
                return each
        raise LimitsChangedError(f"{event.event_id!r} is recorded, but {event.limit_id} was dropped at the same time")

    async def status(
        self, root: str, scopes: Sequence[str], asserted: Sequence[str] = (), *, within_s: float = 0.0
    ) -> tuple[LimitStatus, ...]:
        """Read every limit that these scopes touch, parents included; which limits there are may be so many seconds old."""
        if not within_s or not self._tables.was_read(root, within_s):
            await self._table(root)
        return await self._status.status(root, scopes, asserted)

    async def status_of_all(self, root: str) -> tuple[LimitStatus, ...]:
        """Read every limit on a single scope, each once."""
        named = dict.fromkeys(limit.scope for limit in (await self._table(root)).limits if not limit.is_pattern)
        found: dict[str, LimitStatus] = {}
        for scopes in _portions(named, _SCOPES_AT_ONCE):
            # A parent is touched by each part of it.
            found |= {each.counter: each for each in await self._status.status(root, scopes)}
        return tuple(found.values())

    async def history(self, query: EventFilter, most: int = 100) -> Sequence[RecordedEvent]:
        """List what happened to limits, the newest first."""
        return await self._ledger.events(query, most)

    async def _table(self, root: str) -> LimitTable:
        try:
            return await self._tables.reload(root)
        except StoreDataLostError:
            await self._recovery.rebuild()
            return await self._tables.reload(root)

    async def _record(self, put: Sequence[Limit], drop: Sequence[str], before: Iterable[Limit], why: Why) -> None:
        now = self._clock.now_ms()
        known = {limit.limit_id: limit for limit in before}
        dropped = [known[limit_id] for limit_id in drop if limit_id in known]
        # In portions: no other change waits for the database, and no request for this process, until thousands are written.
        for some in _portions(put, _MANY):
            await self.record(*changed(EventKind.SET, some, known, now, why))
        for some in _portions(dropped, _MANY):
            await self.record(*changed(EventKind.DELETE, some, {}, now, why))

    async def record(self, *events: LimitEvent) -> None:
        """Record what an administrator did, each event once by its id, and tell logs and metrics of it."""
        await self._told(await self._ledger.record_new(events))

    async def _told(self, events: Iterable[LimitEvent]) -> None:
        if self._on_event is None:
            return
        for some in _portions(events, _SCOPES_AT_ONCE):
            for event in some:
                self._on_event(event)
            await asyncio.sleep(0)


def detail_of(event: LimitEvent) -> str:
    """Write what an audit trail must say of an event besides its kind and limit: who, why, how much, until when."""
    said = {"actor": event.actor, "reason": event.reason, "amount": event.amount, "until_ms": event.until_ms}
    detail = {**json.loads(event.detail_json), **{name: value for name, value in said.items() if value not in ("", None)}}
    return json.dumps(detail, separators=(",", ":"))


def _why(actor: str, reason: str, event_id: str | None) -> Why:
    return Why(actor=actor, reason=reason, event_id=event_id or "")


def _portions(items: Iterable[_T], size: int) -> Iterator[tuple[_T, ...]]:
    left = iter(items)
    while some := tuple(islice(left, size)):
        yield some


def _check(table: LimitTable, put: Sequence[Limit], drop: Sequence[str]) -> None:
    check_delegation(merged(table.limits, put, drop))


def _named(table: LimitTable, limit_ids: Iterable[str]) -> dict[str, Limit]:
    known = {limit.limit_id: limit for limit in table.limits}
    return {limit_id: known[limit_id] for limit_id in limit_ids if limit_id in known}


def _as_in_force(table: LimitTable, put: Sequence[Limit]) -> list[Limit]:
    """Keep from when on limits count and carry over: top-ups depend on the one, what is carried on the other."""
    known = {limit.limit_id: limit for limit in table.limits}
    found = []
    for limit in put:
        old = known.get(limit.limit_id)
        carries = old.carries_since_ms if old and limit.rollover_units else 0
        found.append(replace(limit, since_ms=old.since_ms if old else 0, carries_since_ms=carries))
    return found


async def _pause(tried: int) -> None:
    if tried:
        await asyncio.sleep(_PAUSE_S * 2 ** min(tried, 6) * random.random())  # noqa: S311  spreads attempts, guards nothing


async def _computed(many: int, compute: Callable[[], _T]) -> _T:
    """Compute something about limits; about many of them in a thread, since requests wait for the loop."""
    return await asyncio.to_thread(compute) if many > _MANY else compute()
