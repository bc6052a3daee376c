"""`SarkMiddleware`: enforcement around any ASGI app."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from sark_mw.asgi.administration import Administration
from sark_mw.asgi.answer import send_response
from sark_mw.asgi.idempotency import KeptResponses
from sark_mw.asgi.instead import Instead
from sark_mw.asgi.lifespan import Lifespan
from sark_mw.asgi.me import Me
from sark_mw.asgi.metering import Front, MeteredRequest
from sark_mw.asgi.principal import PrincipalResolver, PrincipalSource
from sark_mw.asgi.recipient import ExchangeOptions
from sark_mw.asgi.routes import Passes, Router
from sark_mw.asgi.types import App, Receive, Scope, Send
from sark_mw.errors import ConfigurationError
from sark_mw.instrumentation.base import Instrumentation, RequestFinished, RequestOutcome
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.pricing.base import CostEstimator
from sark_mw.sark import Sark
from sark_mw.settings import AnySettings
from sark_mw.wire import WIRES
from sark_mw.wire.base import Refusal, RefusalKind

#: In the scope: which middleware has taken the request, so that a second one in the same chain is noticed.
_MOUNTED = "sark_mw.mounted"
_TWICE = "SarkMiddleware is mounted twice in one chain: every request would be charged twice"
_PASSED = RequestFinished(outcome=RequestOutcome.PASSED, wire="", operation="")
_UNMETERED = RequestFinished(outcome=RequestOutcome.INVALID, wire="", operation="", status=404, reason="not_metered")
_BETRAYED = RequestFinished(outcome=RequestOutcome.INVALID, wire="", operation="", status=401, reason="admin_token")
_DRAIN_S = 10.0


class SarkMiddleware:
    """Keep the traffic of an ASGI app within budget.

    `settings` as `Sark` takes them; or a `sark` of yours, which stays yours to close if you started it. `principal` names who
    pays, given the ASGI scope (a `Principal`, a name, or None to go on to the configured sources); it may be async. `estimators`
    by provider are added to the built-in ones. An app that relays sets `scope["sark.reached_upstream"] = True` when a
    request went out and no answer came back: its expectation is booked then, whatever the app answers or raises. Raises
    `ConfigurationError` for settings that cannot work and for a second mount.
    """

    def __init__(
        self,
        app: App,
        settings: AnySettings = None,
        *,
        sark: Sark | None = None,
        principal: PrincipalSource | None = None,
        policies: PolicyPluginManager | None = None,
        estimators: Mapping[str, CostEstimator] | None = None,
        instrumentation: Instrumentation | None = None,
    ) -> None:
        if any(isinstance(each, SarkMiddleware) or _will_mount(each) for each in _chain(app)):
            raise ConfigurationError(_TWICE)
        parts = (settings, policies, estimators, instrumentation)
        if sark is not None and any(part is not None for part in parts):
            raise ConfigurationError("give SarkMiddleware either a sark or the parts to make one of, not both")
        self.app = app
        self.sark = sark or Sark(settings, policies=policies, estimators=estimators, instrumentation=instrumentation)
        http = self.sark.settings.http
        self._router = Router(self.sark.settings.routes, self.sark.estimators, inject_stream_usage=http.inject_stream_usage)
        self._metered_only = http.metered_only
        self._front = Front(
            app=app,
            sark=self.sark,
            resolver=PrincipalResolver(self.sark.settings.principal, principal),
            options=ExchangeOptions(drain_on_disconnect=http.drain_on_disconnect, drain_timeout_s=http.drain_timeout_s),
            instead=Instead(self.sark.settings.instead, self.sark),
            kept=KeptResponses(http.idempotency_keep_bytes, http.idempotency_keep_s),
        )
        self._me = Me(http.me_path, self.sark, self._front.resolver)
        self._administration = Administration(self.sark)
        self._tell = self.sark.instrumentation.request_finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._not_http(scope, receive, send)
        self._mark(scope)
        about_caller = self._me.takes(scope)
        if not about_caller and self._administration.takes(scope):
            self._tell(_PASSED)
            return await self._administration.answer(scope, receive, send)
        if self._administration.is_betrayed_by(scope):
            return await self._refuse(scope, send, _BETRAYED, "The token of the admin API opens nothing else.", 401)
        if about_caller:
            self._tell(_PASSED)
            return await self._me.answer(scope, send)
        route = self._router.match(scope["method"], scope["path"], scope.get("root_path") or "")
        if route is None and self._metered_only:
            return await self._refuse(scope, send, _UNMETERED, "Nothing is served here under this method and path.", 404)
        if route is None or route is Passes.FREE:
            self._tell(_PASSED)
            return await self.app(scope, receive, send)
        return await MeteredRequest(self._front, route, scope, receive, send).run()

    def _mark(self, scope: Scope) -> None:
        if scope.setdefault(_MOUNTED, self) is not self:
            raise ConfigurationError(_TWICE)

    async def _not_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._mark(scope)
        if scope["type"] == "lifespan":
            await Lifespan(self.app, self._start, self._stop).run(scope, receive, send)
        elif scope["type"] == "websocket" and (self._metered_only or self._administration.is_betrayed_by(scope)):
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "this does not pass here"})
        else:
            await self.app(scope, receive, send)

    async def _refuse(self, scope: Scope, send: Send, told: RequestFinished, message: str, status: int) -> None:
        self._tell(told)
        refusal = Refusal(kind=RefusalKind.INVALID, message=message, status_override=status)
        await send_response(scope, send, WIRES["plain"].refuse(refusal), close=True)

    async def _start(self) -> None:
        self._owner = not self.sark.started
        await self.sark.start()

    async def _stop(self) -> None:
        if self._front.background:
            await asyncio.wait([*self._front.background], timeout=_DRAIN_S)
        if self._owner:
            await self.sark.aclose(_DRAIN_S)


def _chain(app: object) -> Iterator[object]:
    """Walk down a chain of middlewares, by the attribute that nearly all of them have."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        seen.add(id(app))
        yield app
        app = getattr(app, "app", None)


def _will_mount(app: object) -> bool:
    """Tell whether an app of Starlette's kind is going to wrap itself in this middleware."""
    planned = getattr(app, "user_middleware", None)
    classes = [getattr(each, "cls", None) for each in planned] if isinstance(planned, list) else []
    return any(isinstance(cls, type) and issubclass(cls, SarkMiddleware) for cls in classes)
