"""Top-ups and overrides over HTTP, each once by its idempotency key."""

from __future__ import annotations

from decimal import Decimal

from sark_mw.admin.inputs import OverrideBody, TopUpBody
from sark_mw.admin.problem import ProblemError
from sark_mw.enforcement.grants import MAX_OVERRIDE_MS
from sark_mw.enforcement.status import LimitStatus
from sark_mw.errors import ConfigurationError
from sark_mw.ledger.events import EventFilter, EventKind, LimitEvent
from sark_mw.limit import in_units
from sark_mw.sark import Sark

#: Events among which a key is looked for to tell whether it came with another request.
_LOOKED_THROUGH = 1000


async def top_up(sark: Sark, body: TopUpBody, actor: str, key: str | None) -> LimitStatus:
    """Add to what a limit allows."""
    event_id = f"{EventKind.TOP_UP}:{key}" if key else None
    before = await _before(sark, EventKind.TOP_UP, body.root, event_id)
    if before is not None and (before.scope, before.amount) != (body.scope, _units(before.unit, body.amount)):
        raise _reused()
    try:
        return await sark.limits.top_up(
            body.scope,
            body.amount,
            limit_id=body.limit_id,
            unit=body.unit,
            window=body.window,
            root=body.root,
            actor=actor,
            reason=body.reason,
            event_id=event_id,
        )
    except ConfigurationError as error:
        raise ProblemError(422, str(error), "scope") from error


async def override(sark: Sark, body: OverrideBody, actor: str, key: str | None) -> LimitStatus:
    """Put another amount in the place of a limit's, or end that."""
    await sark.limits.list(body.root)  # it brings the server's time
    now = sark.clock.now_ms()
    until_ms = round(body.until.timestamp() * 1000) if body.until else now + (body.for_s or 0) * 1000
    event_id = f"{EventKind.OVERRIDE}:{key}" if key else None
    before = await _before(sark, EventKind.OVERRIDE, body.root, event_id)
    if before is not None:
        amount = None if body.amount is None else _units(before.unit, body.amount)
        moved = body.until is not None and before.until_ms != until_ms
        if moved or (before.scope, before.amount) != (body.scope, amount):
            raise _reused()
        # What lasts so long from now on was asked for then.
        until_ms = before.until_ms or 0
    elif body.amount is not None and not now < until_ms <= now + MAX_OVERRIDE_MS:
        raise ProblemError(422, "An override must end in the future, within 366 days.", "until" if body.until else "for_s")
    try:
        return await sark.limits.override(
            body.scope,
            body.amount,
            until_ms,
            limit_id=body.limit_id,
            unit=body.unit,
            window=body.window,
            root=body.root,
            actor=actor,
            reason=body.reason,
            event_id=event_id,
        )
    except ConfigurationError as error:
        raise ProblemError(422, str(error), "scope") from error


async def _before(sark: Sark, kind: EventKind, root: str, event_id: str | None) -> LimitEvent | None:
    if event_id is None:
        return None
    found = await sark.limits.history(EventFilter(root=root, kinds=(kind,)), _LOOKED_THROUGH)
    return next((each.event for each in found if each.event.event_id == event_id), None)


def _units(unit: str, amount: Decimal) -> int:
    return in_units(unit, abs(amount)) * (-1 if amount < 0 else 1)


def _reused() -> ProblemError:
    return ProblemError(422, "This key came with another request before: use a new one for each.", "idempotency-key")
