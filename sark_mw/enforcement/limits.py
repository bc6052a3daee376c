"""Setting limits: checked, kept in the ledger's database for good, in force through the store within its next answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from sark_mw.enforcement.delegation import check_delegation
from sark_mw.enforcement.grants import Grants, Which, Why
from sark_mw.enforcement.recovery import Recovery
from sark_mw.enforcement.status import LimitStatus, StatusReader
from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.errors import ConfigurationError, StoreDataLostError, StoreUnavailableError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import EventFilter, EventKind, LimitEvent, RecordedEvent
from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.limit_options import options_of_limit
from sark_mw.reservation import new_reservation_id
from sark_mw.store.base import LimitTable, ReservationStore

__all__ = ["Changes", "LimitRegistry", "LimitStatus", "detail_of"]

_ATTEMPTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What would have to be done to have the limits that are wanted; `replaced` are those in force that `put` replaces."""

    put: tuple[Limit, ...]
    replaced: tuple[Limit, ...]
    drop: tuple[Limit, ...]
    unchanged: tuple[Limit, ...]


class LimitRegistry:
    """Set, drop, list and adjust limits; every change is recorded with who and why.

    Raises `ConfigurationError` or `MoneyError` before anything is written; `LedgerUnavailableError` or `StoreUnavailableError`:
    repeat the call then.
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
        self.grants = Grants(store, ledger, tables=tables, clock=self._clock)
        self._status = StatusReader(store, ledger, tables=tables, clock=self._clock)

    async def set(self, *limits: Limit, actor: str = "", reason: str = "") -> None:
        """Add limits, or replace those that limit the same; a replaced one keeps what it has counted."""
        for root in dict.fromkeys(limit.root for limit in limits):
            await self.change(root, [limit for limit in limits if limit.root == root], (), actor=actor, reason=reason)

    async def drop(self, root: str, *limit_ids: str, actor: str = "", reason: str = "") -> None:
        """Remove limits by id; unknown ids are nothing."""
        await self.change(root, (), limit_ids, actor=actor, reason=reason)

    async def change(self, root: str, put: Sequence[Limit], drop: Sequence[str], *, actor: str = "", reason: str = "") -> None:
        """Set and drop limits of one root in one step."""
        if any(limit.root != root for limit in put):
            raise ConfigurationError(f"a change is of one root, {root!r}")
        # What is dropped is recorded as long as the database has it, so that a call that failed half way may be repeated.
        saved = [limit for limit in await self._ledger.load_limits() if limit.root == root] if drop else []
        before = await self._apply(root, put, drop)
        await self._record(root, put, drop, (*saved, *before.limits), Why(actor=actor, reason=reason))
        await self._save_what_is_in_force(root, [*(limit.limit_id for limit in put), *drop])

    async def _save_what_is_in_force(self, root: str, limit_ids: Sequence[str]) -> None:
        """Let the database say what the store says, with the time from which limits count, whoever changes them meanwhile."""
        table = await self._table(root)
        for _ in range(_ATTEMPTS):
            known = {limit.limit_id: limit for limit in table.limits}
            gone = [(root, limit_id) for limit_id in limit_ids if limit_id not in known]
            await self._ledger.save_limits([known[limit_id] for limit_id in limit_ids if limit_id in known], gone)
            saved, table = table, await self._table(root)
            if (table.epoch, table.version) == (saved.epoch, saved.version):
                return
        raise StoreUnavailableError("the limits kept changing while they were saved")

    async def _apply(self, root: str, put: Sequence[Limit], drop: Sequence[str]) -> LimitTable:
        """Check a change against the table in force and make it, unless that has changed meanwhile: then anew. Return it."""
        table = await self._table(root)
        for tried in range(_ATTEMPTS):
            try:
                check_delegation(_merged(table.limits, put, drop))
            except ConfigurationError:
                if tried:
                    # Another change was first: the database says again what is in force.
                    await self._save_what_is_in_force(root, [limit.limit_id for limit in put])
                raise
            # The database first: what is in force after a loss of the store is at least what was asked for. With the time from
            # which a limit counts: what it was topped up with depends on that.
            since = {limit.limit_id: limit.since_ms for limit in table.limits}
            await self._ledger.save_limits([replace(each, since_ms=since.get(each.limit_id, 0)) for each in put], ())
            after = await self._change(table, put, drop)
            if after is not None:
                return table
            table = await self._table(root)
        raise StoreUnavailableError("the limits kept changing while they were set")

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
        """Set those limits that are not in force as they stand here: what the settings file says at start."""
        for root in dict.fromkeys(limit.root for limit in limits):
            changes = await self.plan(root, [limit for limit in limits if limit.root == root], prune=False)
            if changes.put:
                await self.set(*changes.put, actor="settings", reason="set at start")

    async def plan(self, root: str, wanted: Sequence[Limit], *, prune: bool) -> Changes:
        """Compare the limits that are wanted with those in force; with `prune` all others go. Checks them as `set` does."""
        table = await self._table(root)
        known = {limit.limit_id: limit for limit in table.limits}
        ids = {limit.limit_id for limit in wanted}
        if len(ids) < len(wanted):
            raise ConfigurationError("the same limit is named twice")
        put = tuple(limit for limit in wanted if _written(known.get(limit.limit_id)) != _written(limit))
        drop = tuple(limit for limit in table.limits if prune and limit.limit_id not in ids)
        check_delegation(_merged(table.limits, put, [limit.limit_id for limit in drop]))
        return Changes(
            put=put,
            replaced=tuple(known[limit.limit_id] for limit in put if limit.limit_id in known),
            drop=drop,
            unchanged=tuple(limit for limit in wanted if limit not in put),
        )

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
        limit_id: str | None = None,
        unit: str | None = None,
        window: str | None = None,
        root: str = DEFAULT_ROOT,
        actor: str = "",
        reason: str = "",
        event_id: str | None = None,
    ) -> LimitStatus:
        """Put another amount in the place of a limit's on one scope until then (Unix milliseconds); None ends an override."""
        which = Which(scope=scope, root=root, limit_id=limit_id, unit=unit, window=window)
        await self._table(root)
        return await self._adjusted(await self.grants.override(which, amount, until_ms, _why(actor, reason, event_id)))

    async def _adjusted(self, event: LimitEvent) -> LimitStatus:
        self._told([event])
        found = await self.status(event.root, (event.scope,))
        return next(each for each in found if each.limit.limit_id == event.limit_id and each.scope == event.scope)

    async def status(self, root: str, scopes: Sequence[str], asserted: Sequence[str] = ()) -> tuple[LimitStatus, ...]:
        """Read every limit that these scopes touch, parents included."""
        await self._table(root)
        return await self._status.status(root, scopes, asserted)

    async def history(self, query: EventFilter, most: int = 100) -> Sequence[RecordedEvent]:
        """List what happened to limits, the newest first."""
        return await self._ledger.events(query, most)

    async def _table(self, root: str) -> LimitTable:
        try:
            return await self._tables.reload(root)
        except StoreDataLostError:
            await self._recovery.rebuild()
            return await self._tables.reload(root)

    async def _record(self, root: str, put: Sequence[Limit], drop: Sequence[str], before: Iterable[Limit], why: Why) -> None:
        known = {limit.limit_id: limit for limit in before}
        events = [_event(EventKind.SET, limit, known.get(limit.limit_id), self._clock.now_ms(), why) for limit in put]
        dropped = (known[limit_id] for limit_id in drop if limit_id in known)
        events += [_event(EventKind.DELETE, limit, None, self._clock.now_ms(), why) for limit in dropped]
        await self.record(*events)

    async def record(self, *events: LimitEvent) -> None:
        """Record what an administrator did, each event once by its id, and tell logs and metrics of it."""
        self._told(await self._ledger.record_new(events))

    def _told(self, events: Iterable[LimitEvent]) -> None:
        for event in events if self._on_event else ():
            assert self._on_event is not None
            self._on_event(event)


def detail_of(event: LimitEvent) -> str:
    """Write what an audit trail must say of an event besides its kind and limit: who, why, how much, until when."""
    said = {"actor": event.actor, "reason": event.reason, "amount": event.amount, "until_ms": event.until_ms}
    detail = {**json.loads(event.detail_json), **{name: value for name, value in said.items() if value not in ("", None)}}
    return json.dumps(detail, separators=(",", ":"))


def _why(actor: str, reason: str, event_id: str | None) -> Why:
    return Why(actor=actor, reason=reason, event_id=event_id or "")


def _merged(limits: Iterable[Limit], put: Iterable[Limit], drop: Iterable[str]) -> list[Limit]:
    after = {limit.limit_id: limit for limit in limits} | {limit.limit_id: limit for limit in put}
    for limit_id in drop:
        after.pop(limit_id, None)
    return [*after.values()]


def _written(limit: Limit | None) -> Limit | None:
    return replace(limit, since_ms=0) if limit else None


def _event(kind: EventKind, limit: Limit, before: Limit | None, at_ms: int, why: Why) -> LimitEvent:
    detail: dict[str, object] = {"mode": limit.mode, **options_of_limit(limit)}
    if before is not None:
        detail["before"] = {"amount": f"{before.amount:f}", "mode": before.mode, **options_of_limit(before)}
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
