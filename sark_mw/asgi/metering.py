"""One metered request from its first byte to its answer: name the principal, read, admit, then exchange or refuse."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sark_mw.asgi.answer import refuse_body, send_response
from sark_mw.asgi.asserted import Asserted, asserted_by
from sark_mw.asgi.body import BodyFault, discard_body, forwarded_headers, read_body
from sark_mw.asgi.booking import ask_estimator
from sark_mw.asgi.exchange import Exchange
from sark_mw.asgi.idempotency import Kept, KeptResponses, idempotency_of
from sark_mw.asgi.instead import Attempt, Instead, target_of
from sark_mw.asgi.invocation import Incoming, invocation_for
from sark_mw.asgi.payer import payer_of, start_late
from sark_mw.asgi.principal import Principal, PrincipalResolver
from sark_mw.asgi.recipient import ExchangeOptions, Recipient
from sark_mw.asgi.routes import MAX_PATH_CHARS, Route
from sark_mw.asgi.types import App, Message, Receive, Scope, Send
from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.enforcement.refuse import outcome_of, reason_of
from sark_mw.enforcer import Idempotency, Invocation
from sark_mw.errors import InvalidRequestError
from sark_mw.instrumentation.base import RequestFinished, RequestOutcome
from sark_mw.pricing.base import InvocationResult
from sark_mw.sark import Sark
from sark_mw.wire.base import Call, Refusal, RefusalKind
from sark_mw.wire.body import parse
from sark_mw.wire.refusal import kind_of

#: How a request is told of whose idempotency key has been here.
_REPEATED = {RefusalKind.IN_FLIGHT: "in_flight", RefusalKind.ALREADY_DONE: "done", RefusalKind.IDEMPOTENCY: "reused"}

Asker = Callable[[Spent, bytes | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What all requests of one middleware share. `background` holds tasks that settle after their response."""

    app: App
    sark: Sark
    resolver: PrincipalResolver
    options: ExchangeOptions
    instead: Instead
    kept: KeptResponses
    background: set[asyncio.Task[None]] = field(default_factory=set)


class MeteredRequest:
    """The state of one metered request."""

    def __init__(self, front: Front, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        self._front = front
        self._route = route
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.perf_counter()
        self._waited = 0.0
        self._unread = True
        self._principal: Principal | None = None
        self._call: Call | None = None
        self._said = Asserted()
        self._idempotency: Idempotency | None = None
        self._request_id = f"req_{secrets.token_hex(12)}"

    async def run(self) -> None:
        """Serve the request; tells of its end exactly once."""
        try:
            answer = await self._admit()
        except BaseException as error:
            # Whoever counts requests hears of its end all the same.
            gone = isinstance(error, asyncio.CancelledError)
            self._tell(RequestOutcome.INVALID, None, reason=BodyFault.CLIENT_GONE.value if gone else "fault")
            raise
        if isinstance(answer, Attempt):
            await self._exchange(answer)
        elif isinstance(answer, Refusal):
            await self._replay_or_refuse(answer)
        elif isinstance(answer, Kept):
            await self._replay(answer)
        elif answer is BodyFault.CLIENT_GONE:
            self._tell(RequestOutcome.INVALID, None, reason=answer.value)
        else:
            await self._pass_free()

    # --- before the app ----------------------------------------------------------------------------------------------

    async def _admit(self) -> Attempt | Refusal | BodyFault | Kept | None:
        """Decide: an attempt that was admitted, or why nothing was; None lets a message pass that costs nothing."""
        front = self._front
        if refused := self._refuse_unread():
            return refused
        if unready := await start_late(front.sark, self._request_id):
            return unready
        try:
            payer = await payer_of(front.resolver, self._scope, self._route.wire.name, self._request_id)
            if isinstance(payer, Refusal):
                return payer
            self._principal = payer
            body = await self._read_body()
            if isinstance(body, Refusal | BodyFault):
                return body
            call = self._route.wire.read(self._route.operation, self._scope["path"], self._scope["headers"], body)
            self._call = call
            if call.wire == "mcp" and not call.tools:
                return None
            self._said = asserted_by(payer, self._route, call, self._scope["headers"])
            if front.sark.settings.http.idempotency == "on" and not payer.anonymous:
                self._idempotency = idempotency_of(payer, self._scope, body)
            if kept := front.kept.find(self._idempotency, self._scope["headers"]):
                return kept  # it costs nothing: no policy is to count it, nor to ask for another approval
            attempt = await front.instead.admit(self._route.wire, call, self._scope, self._invoke)
        except InvalidRequestError as error:
            return self._refusal(kind_of(error), str(error), param=error.param)
        return attempt.answer if isinstance(attempt.answer, Refusal) else attempt

    def _refuse_unread(self) -> Refusal | None:
        """Refuse what cannot be metered whatever its body says."""
        if len(self._scope["path"]) > MAX_PATH_CHARS:
            message = f"The path is longer than {MAX_PATH_CHARS} characters."
            return replace(self._refusal(RefusalKind.INVALID, message, reason="path_too_long"), status_override=414)
        if self._route.estimator is None:
            message = "Requests of this kind have no price here, so they are refused. A rule in [[routes]] can give them one."
            return self._refusal(RefusalKind.INVALID, message, reason="no_estimator")
        return None

    async def _read_body(self) -> bytes | Refusal | BodyFault:
        http = self._front.sark.settings.http
        before = time.perf_counter()
        body = await read_body(self._receive, self._scope["headers"], http.max_body_bytes, http.body_timeout_s)
        self._waited = time.perf_counter() - before
        if isinstance(body, bytes):
            self._unread = False
        elif body is not BodyFault.CLIENT_GONE:
            self._unread = body is BodyFault.TOO_LARGE
            return refuse_body(body, http.max_body_bytes, self._request_id)
        return body

    def _invoke(self, call: Call) -> Invocation:
        assert self._principal is not None and self._route.estimator is not None
        return invocation_for(
            Incoming(
                route=self._route,
                estimator=self._route.estimator,
                call=call,
                principal=self._principal,
                scope=self._scope,
                request_id=self._request_id,
                said=self._said,
                idempotency=self._idempotency,
            )
        )

    def _refusal(self, kind: RefusalKind, message: str, *, reason: str | None = None, param: str | None = None) -> Refusal:
        return Refusal(kind=kind, message=message, request_id=self._request_id, reason=reason, param=param)

    # --- the answer --------------------------------------------------------------------------------------------------

    async def _replay_or_refuse(self, refusal: Refusal) -> None:
        """Answer what has been answered before as it was answered then, where that is still here."""
        outcome = _REPEATED.get(refusal.kind)
        kept = None
        if refusal.kind in (RefusalKind.ALREADY_DONE, RefusalKind.IN_FLIGHT):
            # In flight: its response is out, and only what it cost is not booked yet.
            kept = self._front.kept.find(self._idempotency, self._scope["headers"])
        if outcome is not None:
            self._front.sark.instrumentation.idempotent_replayed(outcome if kept is None else "replayed")
        if kept is None:
            return await self._refuse(refusal)
        return await self._send_kept(kept)

    async def _replay(self, kept: Kept) -> None:
        self._front.sark.instrumentation.idempotent_replayed("replayed")
        await self._send_kept(kept)

    async def _send_kept(self, kept: Kept) -> None:
        self._tell(RequestOutcome.PASSED, kept.status, reason="replayed")
        await send_response(self._scope, self._send, kept.response)

    async def _refuse(self, refusal: Refusal) -> None:
        call = self._call
        status = None
        try:
            response = self._route.wire.refuse(refusal, stream=call is not None and call.stream, call=call)
            status = response.status
        finally:
            # Whatever goes wrong, whoever counts requests hears of its end.
            self._tell(outcome_of(refusal), status, reason=reason_of(refusal), limit_id=refusal.limit or "")
        timed_out = refusal.reason == BodyFault.TIMED_OUT
        close = timed_out or (self._unread and not await discard_body(self._receive))
        await send_response(self._scope, self._send, response, close=close)

    async def _pass_free(self) -> None:
        """Let a message pass that costs nothing, with its body replayed."""
        assert self._call is not None
        self._tell(RequestOutcome.PASSED, None)
        body: bytes | None = self._call.raw

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await self._receive()
            message: Message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        await self._front.app(self._scope, replay, self._send)

    async def _exchange(self, attempt: Attempt) -> None:
        scope, admission = self._scope, attempt.answer
        assert isinstance(admission, Admission)
        moved = attempt.call.path != scope["path"]
        received = {name: scope[name] for name in ("headers", *(("path", "raw_path") if moved else ())) if name in scope}
        self._call = attempt.call
        try:
            exchange = self._prepare(attempt, admission)
        except BaseException:
            admission.release()
            raise
        added = self._added()
        try:
            await exchange.run(self._front.app, scope)
        finally:
            # What is around us sees the request as it came.
            scope.update(received)
            self._tell(RequestOutcome.ADMITTED, exchange.status, added=added, upstream=exchange.answered_after)

    def _prepare(self, attempt: Attempt, admission: Admission) -> Exchange:
        scope, call = self._scope, attempt.call
        rewritten = self._route.wire.request_body(call)
        recording = self._front.kept.recording(self._idempotency, self._owner(), scope["headers"])
        scope["headers"] = forwarded_headers(scope["headers"], rewritten, identity=call.strip_accept_encoding)
        if call.path != scope["path"] and (target := target_of(scope, call.path)):
            scope["path"], raw_path = target
            if raw_path is not None:
                scope["raw_path"] = raw_path
        scope["sark.request_id"] = self._request_id
        return Exchange(
            admission=admission,
            route=self._route,
            call=call,
            body=call.raw if rewritten is None else rewritten,
            receive=self._receive,
            recipient=Recipient(self._send, self._front.options, recording),
            notes=attempt.notes,
            ask=self._asker(admission, attempt.invocation),
        )

    def _owner(self) -> str:
        principal = self._principal
        return f"{principal.root} {principal.principal_id}" if principal else ""

    # --- after it ----------------------------------------------------------------------------------------------------

    def _asker(self, admission: Admission, invocation: Invocation) -> Asker | None:
        """Return what settles by the word of a user's own estimator; None where usage or price decide."""
        estimator = invocation.estimator
        if self._route.meter is not None or not estimator.supports_actual_cost():
            return None

        async def settle(spent: Spent, body: bytes | None) -> None:
            result = InvocationResult(
                success=True,
                result=None if body is None else parse(body),
                metadata={"usage": spent.usage} if spent.usage is not None else {},
                duration_ms=(time.perf_counter() - self._started) * 1000,
            )
            told = spent
            try:
                told = await ask_estimator(estimator, invocation.request, result, invocation.resource_metadata, spent)
            finally:
                admission.settle(told)

        def ask(spent: Spent, body: bytes | None) -> None:
            task = asyncio.ensure_future(settle(spent, body))
            self._front.background.add(task)
            task.add_done_callback(self._front.background.discard)

        return ask

    def _added(self) -> float:
        return time.perf_counter() - self._started - self._waited

    def _tell(
        self,
        outcome: RequestOutcome,
        status: int | None,
        *,
        reason: str = "",
        limit_id: str = "",
        added: float | None = None,
        upstream: float | None = None,
    ) -> None:
        call, principal, estimator = self._call, self._principal, self._route.estimator
        self._front.sark.instrumentation.request_finished(
            RequestFinished(
                outcome=outcome,
                wire=self._route.wire.name,
                operation=(call.operation if call else self._route.operation).value,
                provider=estimator.provider_name if estimator else "",
                status=status,
                reason=reason,
                added_seconds=self._added() if added is None else added,
                upstream_seconds=upstream,
                request_id=self._request_id,
                root=principal.root or "" if principal else "",
                principal_id=principal.principal_id if principal else "",
                model=call.model if call else None,
                limit_id=limit_id,
            )
        )
