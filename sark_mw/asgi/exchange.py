"""One admitted request: replays its body, lets its response pass, reads usage on the way, and ends its reservation once.

How a request ends is decided here, by DESIGN's table of faults:

| what happened | what is booked |
|---|---|
| success, usage read | the usage's price; an explicit 0 is 0 |
| success, price per call | the price |
| success, no usage | counted here, flagged estimated |
| 4xx or 5xx before any output; the app raised before it answered (the server makes that a 500) | nothing: released |
| the same, and `scope["sark.reached_upstream"]` is true: the provider had the request and was not heard | expected, estimated |
| an error event as the first of a stream | nothing: released |
| stream ended midway | what it produced, flagged estimated unless its usage had come |
| client gone, response not read to its end; task cancelled | max(known so far, expected), flagged estimated |
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from sark_mw.asgi.booking import Ended, counted, spent_on, spent_per_call
from sark_mw.asgi.recipient import Recipient
from sark_mw.asgi.routes import Route
from sark_mw.asgi.types import App, Message, RawHeaders, Receive, Scope, header
from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.money import from_nanos
from sark_mw.wire.base import Call, UsageTap

_log = logging.getLogger(__name__)

#: How often a long stream notes what it has cost so far; the renewal of its lease books that.
_REPORT_S = 5.0
#: A JSON response of at most this length that comes in one piece carries its own cost in a header.
_MAX_PRICED_BYTES = 256 * 1024
#: How much of a JSON response is kept for an own estimator that reads actual costs from it.
_MAX_KEPT_BYTES = 1024 * 1024
#: An app sets this in the scope when the request has gone out to the provider and no answer came back: what it cost is unknown
#: then, whatever the app tells the client.
REACHED_UPSTREAM = "sark.reached_upstream"
_OWN_HEADERS = b"x-sark-"


class Exchange:
    """The ASGI `receive` and `send` of one admitted request. After `run` its reservation is ended, whatever happened.

    `ask` is given where an estimator of the user's reads actual costs: it is handed what to book should that fail and the JSON
    body (None if there is none, or it is long), and settles. `notes` are headers that the response gets. `status` is what the app
    answered and `answered_after` the seconds that it took to begin, None if it did not.
    """

    __slots__ = (
        "_admission", "_ask", "_asked", "_body", "_call", "_complete", "_finished", "_held_start", "_kept", "_notes",
        "_receive", "_recipient", "_replayed", "_report_at", "_route", "_scope", "_started", "_tap", "_whole", "answered_after",
        "status",
    )  # fmt: skip

    def __init__(
        self,
        *,
        admission: Admission,
        route: Route,
        call: Call,
        body: bytes,
        receive: Receive,
        recipient: Recipient,
        notes: RawHeaders,
        ask: Callable[[Spent, bytes | None], None] | None = None,
    ) -> None:
        self._admission = admission
        self._route = route
        self._call = call
        self._body = body
        self._receive = receive
        self._recipient = recipient
        self._notes = notes
        self._tap: UsageTap | None = None
        self._replayed = self._complete = self._finished = False
        self._held_start: Message | None = None
        self._report_at = 0.0
        self._ask = ask
        self._kept: bytearray | None = None
        self._whole: Spent | None = None
        self._scope: Scope = {}
        self._asked = False
        self._started = 0.0
        self.status: int | None = None
        self.answered_after: float | None = None

    async def run(self, app: App, scope: Scope) -> None:
        """Call the app."""
        self._scope = scope
        self._started = time.monotonic()
        ended = Ended.CUT
        try:
            await app(scope, self.receive, self.send)
            await self._pass_held()
        except asyncio.CancelledError:
            ended = Ended.GONE
            raise
        finally:
            try:
                self._stopped(ended)
            finally:
                self._end_for_sure()

    # --- the request -------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """Replay the body, then tell what the server tells; a client's leaving only once the response is read, or time is up."""
        if not self._replayed:
            self._replayed = True
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._recipient.gone or self._complete:
            message = await self._receive()
            if message["type"] != "http.disconnect" or self._complete:
                return message
            self._recipient.leave()
        if not self._complete:
            await self._recipient.drained()
        return {"type": "http.disconnect"}

    # --- the response ------------------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Pass a message on, reading what it says."""
        kind = message["type"]
        if kind == "http.response.body":
            await self._body_message(message)
        elif kind == "http.response.start":
            await self._start(message)
        else:
            await self._pass_held()
            await self._recipient.take(message)
            if kind == "http.response.pathsend":
                self._response_ended()

    async def _start(self, message: Message) -> None:
        status: int = message["status"]
        sent = ((bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ()))
        # What is said here of costs and budgets is said by us alone.
        headers: RawHeaders = [pair for pair in sent if not pair[0].startswith(_OWN_HEADERS)]
        self.status = status
        now = time.monotonic()
        self.answered_after = now - self._started
        self._tap = self._route.wire.tap(self._call, status, headers)
        self._report_at = now + _REPORT_S
        kind = header(headers, b"content-type") or b""
        is_json = b"json" in kind
        if self._ask is not None and is_json:
            self._kept = bytearray()
        if self._call.usage_injected and not is_json:
            # A chunk may be taken out of the stream, so that a length would no longer be true.
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        message = {**message, "headers": [*headers, *self._own_headers()]}
        if is_json and status < 300 and _short(header(headers, b"content-length")):
            self._held_start = message  # until the body's first piece: if that is all of it, the headers can say its cost
        else:
            await self._recipient.take(message)

    def _own_headers(self) -> RawHeaders:
        own = [(b"x-sark-request-id", self._admission.request_id.encode()), *self._notes]
        remaining = self._admission.remaining_nanos
        if remaining is not None:
            own.append((b"x-sark-budget-remaining", f"{from_nanos(remaining):f}".encode()))
        return own

    async def _body_message(self, message: Message) -> None:
        chunk: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        tap = self._tap
        if tap is None or self._complete:
            return await self._recipient.take(message)  # an app that breaks the protocol: the server says so
        if type(chunk) is not bytes:
            chunk = bytes(chunk)
        out = tap.feed(chunk)
        if self._kept is not None:
            self._keep_piece(chunk)
        if self._held_start is not None:
            self._price_held(chunk, more)
            await self._pass_held()
        if not more and self._call.usage_injected:
            out += self._finish()
        if out is not chunk:
            message = {**message, "body": out}
        if out or not more:
            await self._recipient.take(message)
        if more:
            self._note_progress(tap)
        else:
            self._response_ended()
        return None

    def _keep_piece(self, chunk: bytes) -> None:
        assert self._kept is not None
        self._kept += chunk
        if len(self._kept) > _MAX_KEPT_BYTES:
            self._kept = None

    def _price_held(self, chunk: bytes, more: bool) -> None:
        """Say the cost in the headers that were held back, if the whole body is there."""
        held, tap = self._held_start, self._tap
        assert held is not None and tap is not None
        length = header(held["headers"], b"content-length")
        if self._ask is not None or (more and str(len(chunk)).encode() != length):
            return
        self._finish()
        self._whole = spent = self._spent(Ended.WHOLE)
        if spent is not None:
            held["headers"].append((b"x-sark-cost", f"{from_nanos(spent.cost_nanos):f}".encode()))

    async def _pass_held(self) -> None:
        if self._held_start is not None:
            message, self._held_start = self._held_start, None
            await self._recipient.take(message)

    def _note_progress(self, tap: UsageTap) -> None:
        now = time.monotonic()
        if now < self._report_at:
            return
        self._report_at = now + _REPORT_S
        if not self._route.per_call and self.status is not None and (tap.usage is not None or tap.output_chars):
            self._admission.report(counted(self._admission, self._route.meter, tap, self.status))

    def _finish(self) -> bytes:
        if self._finished or self._tap is None:
            return b""
        self._finished = True
        try:
            return self._tap.finish()
        except Exception:  # noqa: BLE001  whatever a response makes of its reader, the request is booked
            _log.exception("the end of a response could not be read")
            return b""

    # --- the end -----------------------------------------------------------------------------------------------------

    def _response_ended(self) -> None:
        """End the reservation as soon as the response is out: what the app does after it is not the request's."""
        self._complete = True
        self._finish()
        self._recipient.end(whole=self._is_whole())
        self._book(Ended.WHOLE)

    def _is_whole(self) -> bool:
        """Tell whether the response is all there is. A stream that was cut behind the app ends as any other, but has no usage."""
        tap = self._tap
        if tap is None or tap.failed:
            return False
        return not self._call.stream or (tap.usage is not None and tap.usage.complete)

    def _stopped(self, ended: Ended) -> None:
        """End the reservation of a response that did not come to its end."""
        if self._complete:
            return
        self._complete = True
        self._recipient.end(whole=False)
        if self._recipient.gone:
            ended = Ended.GONE
        if self._tap is not None:
            self._finish()
            self._book(ended)
        elif ended is Ended.GONE or self._reached_upstream():
            self._admission.settle(self._admission.expected())
        else:
            self._admission.release(500)

    def _reached_upstream(self) -> bool:
        return bool(self._scope.get(REACHED_UPSTREAM))

    def _end_for_sure(self) -> None:
        """End a reservation that a fault of ours left open: nobody else would, and its lease would be renewed for ever."""
        if self._admission.ended is not None or self._asked:
            return
        _log.error("a response of %s could not be booked; its expectation is", self._route.wire.name)
        self._admission.settle(self._admission.expected(self.status))

    def _book(self, ended: Ended) -> None:
        spent = self._spent(ended)
        if spent is None:
            self._admission.release(self.status)
            return
        if self._ask is not None:
            self._asked = True
            self._ask(spent, bytes(self._kept) if self._kept else None)
            return
        self._admission.settle(spent)
        if spent.usage is not None and not spent.estimated and self._route.meter is not None:
            self._route.meter.observe(spent.usage, self._admission.estimate)

    def _spent(self, ended: Ended) -> Spent | None:
        if self._whole is not None:
            return self._whole
        assert self._tap is not None and self.status is not None
        if self.status >= 400:
            return self._admission.expected(self.status) if self._reached_upstream() else None
        if self._route.per_call:
            return spent_per_call(self._admission, self._tap, self.status)
        if self.status >= 300 and self._route.wire.name != "plain":
            return None  # a provider that redirects has done nothing yet
        return spent_on(self._admission, self._route.meter, self._tap, self.status, ended)


def _short(length: bytes | None) -> bool:
    return length is not None and length.isdigit() and int(length[:20]) <= _MAX_PRICED_BYTES
