"""What a caller may know of itself: its limits and what is left of them, as JSON. Never metered, never passed to the app.

As nothing else bounds it, each process answers a principal so many times a second and no more, and reads the limits of a root
from the store once a second at most.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable

from sark_mw.asgi.answer import send_response
from sark_mw.asgi.payer import payer_of, start_late, unavailable
from sark_mw.asgi.principal import Principal, PrincipalResolver
from sark_mw.asgi.types import Scope, Send
from sark_mw.enforcement.status import LimitStatus
from sark_mw.errors import InvalidRequestError, LedgerUnavailableError, StoreError
from sark_mw.limit import Unit
from sark_mw.money import from_nanos
from sark_mw.sark import Sark
from sark_mw.wire import WIRES
from sark_mw.wire.base import Refusal, RefusalKind, Response
from sark_mw.wire.refusal import instant, kind_of

MAX_PER_SECOND = 10
#: How old the limits may be; what is spent and held of them is read each time.
_LIMITS_S = 1.0
_MAX_CALLERS = 10_000


class Me:
    """Answers a GET of `path`; an empty one is nowhere."""

    def __init__(self, path: str, sark: Sark, resolver: PrincipalResolver) -> None:
        self._path = path
        self._sark = sark
        self._resolver = resolver
        self._asked = Asked(MAX_PER_SECOND)

    def takes(self, scope: Scope) -> bool:
        """Tell whether a request is for this page, by its path with and without the mount's."""
        if not self._path or scope["method"] not in ("GET", "HEAD"):
            return False
        path: str = scope["path"]
        root = (scope.get("root_path") or "").rstrip("/")
        return path == self._path or bool(root and path == root + self._path)

    async def answer(self, scope: Scope, send: Send) -> None:
        """Answer with the caller's limits, or with why not."""
        request_id = f"req_{secrets.token_hex(12)}"
        try:
            told = await self._tell(scope, request_id)
        except InvalidRequestError as error:
            told = Refusal(kind=kind_of(error), message=str(error), param=error.param, request_id=request_id)
        except (StoreError, LedgerUnavailableError):
            told = unavailable("The limits cannot be read at the moment.", "store", request_id)
        response = WIRES["plain"].refuse(told) if isinstance(told, Refusal) else _page(told)
        await send_response(scope, send, response)

    async def _tell(self, scope: Scope, request_id: str) -> Refusal | dict[str, object]:
        if unready := await start_late(self._sark, request_id):
            return unready
        payer = await payer_of(self._resolver, scope, "plain", request_id)
        if isinstance(payer, Refusal):
            return payer
        root = payer.root or self._sark.settings.principal.root
        if not self._asked.once_more(root, payer.principal_id):
            message = f"This is answered {MAX_PER_SECOND} times a second."
            return Refusal(kind=RefusalKind.RATE_LIMIT, message=message, request_id=request_id, retry_after_s=1)
        statuses = await self._sark.limits.status(root, payer.scopes, within_s=_LIMITS_S)
        return _about(payer, root, statuses)


class Asked:
    """How often each principal has asked in the present second."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._second = 0
        self._times: dict[tuple[str, str], int] = {}

    def once_more(self, root: str, principal_id: str) -> bool:
        """Count one question; False if that is one too many."""
        second = int(self._clock())
        if second != self._second or len(self._times) >= _MAX_CALLERS:
            self._second, self._times = second, {}
        times = self._times[root, principal_id] = self._times.get((root, principal_id), 0) + 1
        return times <= self._most


def _about(payer: Principal, root: str, statuses: tuple[LimitStatus, ...]) -> dict[str, object]:
    return {
        "principal": payer.principal_id,
        "root": root,
        "scopes": list(payer.scopes),
        "limits": [_limit(status) for status in statuses],
    }


def _limit(status: LimitStatus) -> dict[str, object]:
    limit = status.limit

    def shown(amount: int) -> str | int:
        return f"{from_nanos(amount):f}" if limit.unit == Unit.USD else amount

    return {
        "limit": limit.limit_id,
        "scope": status.scope,
        "unit": limit.unit,
        "window": limit.window,
        "timezone": limit.timezone,
        "mode": limit.mode,
        "amount": shown(status.amount),
        "spent": shown(status.spent),
        "held": shown(status.held),
        "remaining": shown(status.remaining),
        "topped_up": shown(status.topped_up),
        "carried": shown(status.carried),
        "override_until": instant(status.override_until_ms),
        "resets_at": instant(status.period.ends_ms),
    }


def _page(about: dict[str, object]) -> Response:
    body = json.dumps(about, separators=(",", ":")).encode("ascii")
    length = (b"content-length", str(len(body)).encode())
    return Response(
        status=200, headers=((b"content-type", b"application/json"), length, (b"cache-control", b"no-store")), body=body
    )
