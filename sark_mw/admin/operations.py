"""What the admin API can do: each operation with what it takes and answers, and what it does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from datetime import datetime

from sark_mw.admin import inputs
from sark_mw.admin.answers import HoldAnswer, HoldsAnswer, RefusalsAnswer, ReleasedAnswer
from sark_mw.admin.approvals import APPROVALS
from sark_mw.admin.grants import override, top_up
from sark_mw.admin.operation import Asked, Operation
from sark_mw.admin.plugins import PLUGINS
from sark_mw.admin.problem import ProblemError
from sark_mw.admin.rules import RULES
from sark_mw.enforcement.limits import Changes
from sark_mw.enforcement.status import LimitStatus
from sark_mw.ledger.entries import parse_entry
from sark_mw.ledger.events import EventFilter, EventKind, LimitEvent
from sark_mw.limit import Limit, Unit
from sark_mw.limit_answers import (
    ChangesAnswer,
    EventAnswer,
    EventsAnswer,
    LimitAnswer,
    LimitsAnswer,
    StatusAnswer,
    StatusesAnswer,
)
from sark_mw.limit_documents import apply_limits, limits_of
from sark_mw.reservation import Resolution, Settle
from sark_mw.sark import Sark
from sark_mw.store.base import LiveHold, RemembersRefusals

#: As many live holds as the store looks through.
_MOST_HOLDS = 1000


async def list_limits(sark: Sark, asked: Asked) -> LimitsAnswer:
    """List what is enforced."""
    assert isinstance(asked.query, inputs.RootQuery)
    return await asyncio.to_thread(_listed, asked.query.root, await sark.limits.list(asked.query.root))


def _listed(root: str, limits: Iterable[Limit]) -> LimitsAnswer:
    return LimitsAnswer(root=root, limits=tuple(LimitAnswer.of(limit) for limit in limits))


async def put_limits(sark: Sark, asked: Asked) -> ChangesAnswer:
    """Set limits; the others stay."""
    assert isinstance(asked.query, inputs.PutQuery) and isinstance(asked.body, inputs.LimitsBody)
    return await _apply(sark, asked, asked.body, dry_run=asked.query.dry_run)


async def import_limits(sark: Sark, asked: Asked) -> ChangesAnswer:
    """Set limits, and drop the others if asked."""
    assert isinstance(asked.query, inputs.ImportQuery) and isinstance(asked.body, inputs.LimitsBody)
    query = asked.query
    return await _apply(sark, asked, asked.body, dry_run=query.dry_run, prune=query.prune, root=query.root)


async def _apply(
    sark: Sark, asked: Asked, body: inputs.LimitsBody, *, dry_run: bool, prune: bool = False, root: str | None = None
) -> ChangesAnswer:
    changes = await apply_limits(
        sark.limits,
        # Thousands of limits, in a thread: requests wait for the loop.
        await asyncio.to_thread(limits_of, body.limits, root=root),
        root=root,
        prune=prune,
        dry_run=dry_run,
        actor=asked.actor,
        reason=body.reason,
    )
    return await asyncio.to_thread(ChangesAnswer.of, changes, dry_run=dry_run)


async def delete_limit(sark: Sark, asked: Asked) -> ChangesAnswer:
    """Drop one limit."""
    assert isinstance(asked.query, inputs.DeleteQuery)
    query = asked.query
    known = {limit.limit_id: limit for limit in await sark.limits.list(query.root)}
    if asked.name not in known:
        raise ProblemError(404, f"Root {query.root!r} has no limit {asked.name!r}.", "limit_id")
    if not query.dry_run:
        await sark.limits.drop(query.root, asked.name, actor=asked.actor, reason=query.reason)
    dropped = Changes(put=(), replaced=(), drop=(known[asked.name],), unchanged=())
    return ChangesAnswer.of([dropped], dry_run=query.dry_run)


async def read_status(sark: Sark, asked: Asked) -> StatusesAnswer:
    """Read what is allowed, spent, held and left."""
    assert isinstance(asked.query, inputs.StatusQuery)
    root, scopes = asked.query.root, asked.query.scope
    found = await sark.limits.status(root, scopes) if scopes else await sark.limits.status_of_all(root)
    return await asyncio.to_thread(_standing, root, found)


def _standing(root: str, statuses: Sequence[LimitStatus]) -> StatusesAnswer:
    return StatusesAnswer(root=root, limits=tuple(StatusAnswer.of(each) for each in statuses))


async def list_holds(sark: Sark, asked: Asked) -> HoldsAnswer:
    """List what is held now."""
    assert isinstance(asked.query, inputs.ListQuery)
    holds = await sark.store.holds(asked.query.root, asked.query.most)
    return HoldsAnswer(root=asked.query.root, holds=tuple(HoldAnswer.of(hold) for hold in holds))


async def release_hold(sark: Sark, asked: Asked) -> ReleasedAnswer:
    """Release a hold whose request will not end it; if it does after all, that is still booked."""
    assert isinstance(asked.query, inputs.ReleaseQuery)
    root = asked.query.root
    hold = next((each for each in await sark.store.holds(root, _MOST_HOLDS) if each.reservation_id == asked.name), None)
    if hold is None:
        raise ProblemError(404, f"Root {root!r} has no live hold {asked.name!r} among the {_MOST_HOLDS} that end first.", "id")
    # Recorded first, once however often it is repeated: nothing is released of which nobody can tell who did it.
    await sark.limits.record(_release(root, hold, asked.actor, asked.query.reason, sark.clock.now_ms()))
    by_hand = Settle(
        reservation_id=hold.reservation_id,
        root=root,
        lines=(),
        amounts=(),
        part=0,
        kind=Resolution.RELEASE,
        # If it has expired meanwhile, what that booked is taken back from its scopes.
        entry=hold.entry_json,
    )
    await sark.store.settle(by_hand)
    return ReleasedAnswer(released=HoldAnswer.of(hold))


def _release(root: str, hold: LiveHold, actor: str, reason: str, at_ms: int) -> LimitEvent:
    entry, _ = parse_entry(hold.entry_json)
    held = {unit: str(amount) for unit, amount in hold.held.items()}
    detail = {"reservation_id": hold.reservation_id, "request_id": entry.request_id, "held": held}
    return LimitEvent(
        event_id=f"release:{hold.reservation_id}",
        kind=EventKind.RELEASE,
        root=root,
        scope=entry.principal_id,
        unit=Unit.USD,
        amount=hold.held.get(Unit.USD),
        at_ms=at_ms,
        actor=actor,
        reason=reason,
        detail_json=json.dumps(detail, separators=(",", ":")),
    )


async def list_refusals(sark: Sark, asked: Asked) -> RefusalsAnswer:
    """List who was refused lately, and why."""
    assert isinstance(asked.query, inputs.ListQuery)
    root, store = asked.query.root, sark.store
    found = await store.recent_refusals(root, asked.query.most) if isinstance(store, RemembersRefusals) else []
    return RefusalsAnswer.of(root, found)


async def list_events(sark: Sark, asked: Asked) -> EventsAnswer:
    """List what happened to limits."""
    assert isinstance(asked.query, inputs.EventsQuery)
    query = asked.query
    chosen = EventFilter(
        root=query.root,
        limit_id=query.limit_id,
        scope=query.scope,
        kinds=query.kind,
        since_ms=_ms(query.since),
        before_seq=query.before_seq,
    )
    found = await sark.limits.history(chosen, query.most)
    return EventsAnswer(events=tuple(EventAnswer.of(each) for each in found))


async def add_top_up(sark: Sark, asked: Asked) -> StatusAnswer:
    """Top a balance up."""
    assert isinstance(asked.body, inputs.TopUpBody)
    return StatusAnswer.of(await top_up(sark, asked.body, asked.actor, asked.key))


async def add_override(sark: Sark, asked: Asked) -> StatusAnswer:
    """Override an amount, or end an override."""
    assert isinstance(asked.body, inputs.OverrideBody)
    return StatusAnswer.of(await override(sark, asked.body, asked.actor, asked.key))


def _ms(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)


OPERATIONS = (
    Operation(
        method="GET",
        path="/limits",
        summary="List the limits of a root as they are enforced now.",
        query=inputs.RootQuery,
        answer=LimitsAnswer,
        run=list_limits,
    ),
    Operation(
        method="PUT",
        path="/limits",
        summary="Set limits, one or many, each root in one step; what limits the same is replaced and keeps what it has counted.",
        query=inputs.PutQuery,
        body=inputs.LimitsBody,
        answer=ChangesAnswer,
        run=put_limits,
    ),
    Operation(
        method="POST",
        path="/limits/import",
        summary="Set limits as a file has them; with prune drop all others of the roots that are named.",
        query=inputs.ImportQuery,
        body=inputs.LimitsBody,
        answer=ChangesAnswer,
        run=import_limits,
    ),
    Operation(
        method="DELETE",
        path="/limits/{limit_id}",
        summary="Remove a limit.",
        query=inputs.DeleteQuery,
        answer=ChangesAnswer,
        run=delete_limit,
    ),
    Operation(
        method="POST",
        path="/top-ups",
        summary="Add to what a limit allows on one scope in its present period, or for good where it has none.",
        query=inputs.NoQuery,
        body=inputs.TopUpBody,
        answer=StatusAnswer,
        run=add_top_up,
        keyed=True,
    ),
    Operation(
        method="POST",
        path="/overrides",
        summary="Put another amount in the place of a limit's on one scope until some time, or end that.",
        query=inputs.NoQuery,
        body=inputs.OverrideBody,
        answer=StatusAnswer,
        run=add_override,
        keyed=True,
    ),
    Operation(
        method="GET",
        path="/status",
        summary="Read where limits stand: allowed, spent, held, left.",
        query=inputs.StatusQuery,
        answer=StatusesAnswer,
        run=read_status,
    ),
    Operation(
        method="GET",
        path="/holds",
        summary="List what is held by requests in flight, those whose lease ends first at the head.",
        query=inputs.ListQuery,
        answer=HoldsAnswer,
        run=list_holds,
    ),
    Operation(
        method="DELETE",
        path="/holds/{id}",
        summary="Release a hold by hand; what its request settles after all is still booked.",
        query=inputs.ReleaseQuery,
        answer=ReleasedAnswer,
        run=release_hold,
    ),
    Operation(
        method="GET",
        path="/refusals",
        summary="List the last refusals of all processes, with their reason.",
        query=inputs.ListQuery,
        answer=RefusalsAnswer,
        run=list_refusals,
    ),
    Operation(
        method="GET",
        path="/events",
        summary="List what happened to limits, the newest first: who changed them and why, what fired, what was carried over.",
        query=inputs.EventsQuery,
        answer=EventsAnswer,
        run=list_events,
    ),
    *APPROVALS,
    *PLUGINS,
    *RULES,
)
