"""Top-ups and overrides over HTTP, each once by its idempotency key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sark_mw.admin.inputs import OverrideBody, TopUpBody
from sark_mw.admin.problem import ProblemError
from sark_mw.enforcement.status import LimitStatus
from sark_mw.errors import LimitFieldError
from sark_mw.ledger.events import EventKind
from sark_mw.sark import Sark


async def top_up(sark: Sark, body: TopUpBody, actor: str, key: str | None) -> LimitStatus:
    """Add to what a limit allows."""
    with _reuse_told():
        return await sark.limits.top_up(
            body.scope,
            body.amount,
            limit_id=body.limit_id,
            unit=body.unit,
            window=body.window,
            root=body.root,
            actor=actor,
            reason=body.reason,
            event_id=_event_id(EventKind.TOP_UP, key),
        )


async def override(sark: Sark, body: OverrideBody, actor: str, key: str | None) -> LimitStatus:
    """Put another amount in the place of a limit's, or end that."""
    with _reuse_told():
        return await sark.limits.override(
            body.scope,
            body.amount,
            round(body.until.timestamp() * 1000) if body.until else 0,
            for_s=body.for_s,
            limit_id=body.limit_id,
            unit=body.unit,
            window=body.window,
            root=body.root,
            actor=actor,
            reason=body.reason,
            event_id=_event_id(EventKind.OVERRIDE, key),
        )


def _event_id(kind: EventKind, key: str | None) -> str | None:
    return f"{kind}:{key}" if key else None


@contextmanager
def _reuse_told() -> Iterator[None]:
    try:
        yield
    except LimitFieldError as error:
        if error.field != "event_id":
            raise
        raise ProblemError(
            422, "This key came with another request before: use a new one for each.", "idempotency-key"
        ) from error
