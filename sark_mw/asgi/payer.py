"""Before anything is decided: the system is started, and it is known who pays."""

from __future__ import annotations

import logging

from sark_mw.asgi.principal import Principal, PrincipalResolver, Unnamed
from sark_mw.asgi.types import Scope
from sark_mw.errors import InvalidRequestError, LedgerUnavailableError, StoreError
from sark_mw.sark import Sark
from sark_mw.wire.base import Refusal, RefusalKind

_log = logging.getLogger(__name__)


async def start_late(sark: Sark, request_id: str) -> Refusal | None:
    """Start on the first request where the server has no lifespan; all who come meanwhile wait for the same start."""
    if sark.started:
        return None
    try:
        await sark.start()
    except (StoreError, LedgerUnavailableError) as error:
        _log.error("cannot start: %s", error)
        return unavailable("Spending cannot be checked at the moment.", "start", request_id)
    return None


async def payer_of(resolver: PrincipalResolver, scope: Scope, wire: str, request_id: str) -> Principal | Refusal:
    """Name who pays for a request in the dialect `wire`, or refuse it; raises `InvalidRequestError`."""
    try:
        found = await resolver.resolve(scope, wire)
    except InvalidRequestError:
        raise
    except Exception:  # noqa: BLE001  the hook boundary: a user's callable that fails must not let anybody in, nor the gateway down
        _log.exception("naming the principal failed")
        return unavailable("It cannot be told who pays for the request.", "principal", request_id)
    if isinstance(found, Unnamed):
        return Refusal(kind=RefusalKind.UNAUTHENTICATED, message=found.reason, request_id=request_id)
    return found


def unavailable(message: str, reason: str, request_id: str) -> Refusal:
    """Refuse for now, by no fault of the caller's."""
    return Refusal(kind=RefusalKind.UNAVAILABLE, message=message, request_id=request_id, reason=reason, retry_after_s=1.0)
