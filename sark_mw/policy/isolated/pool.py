"""The workers of one plugin in one event loop: who is asked what, who is to blame, and who comes after the dead."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any

from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.base import PolicyDecision
from sark_mw.policy.deadline import DeadlineExceededError
from sark_mw.policy.isolated.breaker import Breaker, State
from sark_mw.policy.isolated.link import MalformedReplyError, Source, start
from sark_mw.policy.isolated.options import Hardening, IsolationOptions
from sark_mw.policy.isolated.replies import Answer, read_answer
from sark_mw.policy.isolated.requests import numbered
from sark_mw.policy.isolated.seats import Call, Seat
from sark_mw.policy.isolated.zygote_process import Zygote
from sark_mw.policy.unsendable import UnsendableRequestError

logger = logging.getLogger(__name__)

#: How often idle workers are looked at, and how much processor time one may have used meanwhile.
_LOOK_S = 1.0
_IDLE_CPU_S = 0.25
#: No worker is killed before it was busy for so long with one request, however short its time is: honest ones are not to die of
#: a machine that was busy.
_LEAST_BUSY_S = 0.05
#: Whoever runs out of memory over a longer request does so by what its caller sent, over a shorter one by itself.
_LARGE_BYTES = 64 << 10
#: No timer rings sooner than this again.
_LEAST_S = 0.001


class Pool:
    """Workers of one plugin. All of it happens in the event loop it was made in."""

    def __init__(
        self, zygote: Zygote, source: Source, isolation: IsolationOptions, on_breaker: Callable[[], None] = lambda: None
    ) -> None:
        self._zygote = zygote
        self._source = source
        self._isolation = isolation
        self._loop = asyncio.get_running_loop()
        self._seats: list[Seat] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._waiting: deque[Call] = deque()
        self._breaker = Breaker(isolation, on_breaker)
        self._probe: Call | None = None
        self._held_bytes = 0
        self._in_flight = 1 if isolation.stateless else isolation.pipeline
        self._closed = False
        self._look: asyncio.TimerHandle | None = None
        self._reopening: asyncio.TimerHandle | None = None
        self.hardening: Hardening | None = None
        self.deaths = 0
        self.last_death = ""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that it lives in."""
        return self._loop

    @property
    def breaker(self) -> State:
        """Return the state of the breaker."""
        return self._breaker.state

    @property
    def broken(self) -> bool:
        """Tell whether the breaker keeps requests away."""
        return self._breaker.state != "closed"

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers that are ready."""
        return tuple(seat.link.pid for seat in self._seats)

    async def open(self) -> None:
        """Start the workers; raises what `start` raises where the first cannot be had."""
        if not self._seats:
            await self._seat_one()
        self._fill()

    async def ask(self, body: bytes, timeout: float) -> PolicyDecision:  # noqa: ASYNC109  # a limit that kills, not a wait
        """Send a request and return the decision; raises `DeadlineExceededError` or `PolicyEvaluationError`."""
        if self._closed:
            raise PolicyEvaluationError("the plugin has been unloaded")
        probing = self._breaker.state != "closed"
        if probing and (self._breaker.state == "open" or self._probe is not None):
            raise PolicyEvaluationError(f"not asked, since its workers keep dying: {self.last_death}")
        if len(self._waiting) >= self._isolation.queue or self._held_bytes + len(body) > self._isolation.queue_bytes:
            raise PolicyEvaluationError(f"{len(self._waiting)} requests are waiting for it already")
        now = self._loop.time()
        call = Call(body, timeout, self._loop.create_future(), now)
        call.timer = self._loop.call_later(min(timeout, self._isolation.cpu_s), self._ring, call)
        if probing:
            self._probe = call
        self._waiting.append(call)
        if not self._seats and not self._starting:
            self._fill()  # an event loop that never saw on_load
        self._hand_out()
        self._held_bytes += len(body)
        try:
            return await call.future
        finally:
            self._held_bytes -= len(body)
            if call.seat is None:
                self._leave(call)
            # Else a caller that is cancelled cancels the future only: the timer still watches the worker.

    def close(self) -> None:
        """End all workers; what still waits fails."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._look, self._reopening):
            if timer is not None:
                timer.cancel()
        for task in self._starting:
            if not self._loop.is_closed():
                task.cancel()
        for seat in list(self._seats):
            seat.retired = True
            seat.link.end("the plugin was unloaded")
        for call in self._waiting:
            call.forget()
            call.fail(PolicyEvaluationError("the plugin has been unloaded"))
        self._waiting.clear()

    async def ended(self) -> None:
        """Wait until nothing is being started any more."""
        await asyncio.gather(*self._starting, return_exceptions=True)

    def _hand_out(self) -> None:
        while self._waiting:
            free = [seat for seat in self._seats if seat.takes(self._in_flight)]
            if not free:
                return
            call = self._waiting.popleft()
            if call.future.done():
                self._drop(call)
                continue
            self._send(call, min(free, key=lambda seat: len(seat.calls)))

    def _leave(self, call: Call) -> None:
        """Let nobody count or keep a call among those that wait whose caller does not."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(call)
        self._drop(call)

    def _drop(self, call: Call) -> None:
        """Nobody watches it any more; if it was the probe, the next one is."""
        call.forget()
        if self._probe is call:
            self._probe = None

    def _send(self, call: Call, seat: Seat) -> None:
        # Nobody can answer what it has not seen: a reply that was sent ahead is one to nothing.
        call.number = secrets.randbits(53)
        call.sends += 1
        call.seat = seat
        if not seat.calls:
            seat.next_call(self._loop.time())
        seat.idle = False
        seat.calls.append(call)
        seat.link.send(numbered(call.number, call.body))

    def _heard(self, seat: Seat, frame: bytes) -> None:
        try:
            answer = read_answer(frame)
            if not seat.calls or answer.number != seat.calls[0].number:
                raise MalformedReplyError("a reply to what was not asked")
        except MalformedReplyError as error:
            seat.link.end(f"it sent {error}")
            return
        call, probe = seat.calls.popleft(), self._probe
        self._drop(call)
        if answer.failure is not None and answer.failure.metadata.get("error") == "MemoryError":
            self._out_of_memory(seat, call, answer)
            return
        self._deliver(call, answer)
        if not isinstance(answer.failure, UnsendableRequestError):
            self._breaker.answered(probe=probe is call)  # one that was not read proves nothing
        if seat.calls:
            seat.next_call(self._loop.time())
        elif self._isolation.stateless or seat.retired:
            self._retire(seat)
        self._hand_out()

    def _out_of_memory(self, seat: Seat, call: Call, answer: Answer) -> None:
        """Replace a worker that ends itself now; what it has been sent since is not to blame, nor it for a large request."""
        if len(call.body) > _LARGE_BYTES:
            call.fail(UnsendableRequestError(f"the plugin ran out of memory over its {len(call.body)} bytes"))
            seat.retired = True
        else:
            self._deliver(call, answer)
        self._put_back(seat)
        seat.link.end("it used more memory than it may")

    def _deliver(self, call: Call, answer: Answer) -> None:
        if call.future.done():
            return
        if answer.decision is not None:
            call.future.set_result(answer.decision)
        else:
            assert answer.failure is not None
            call.future.set_exception(answer.failure)

    def _ring(self, call: Call) -> None:
        """See what is to be done about a call that takes its time."""
        now = self._loop.time()
        call.timer = None
        seat = call.seat
        if now >= call.due:
            call.fail(DeadlineExceededError(abandoned=seat is not None))
            if seat is None:
                return  # its caller takes it out of those that wait
        # One that is not at work yet may be so right after this: nobody looks at its processor time before it rings again.
        waits = [self._isolation.cpu_s]
        if now < call.due:
            waits.append(call.due - now)
        if seat is not None and seat.calls and seat.calls[0] is call:
            used, busy = seat.link.cpu_seconds() - seat.cpu, now - seat.since
            most_s = max(call.timeout, _LEAST_BUSY_S)
            if used >= self._isolation.cpu_s or busy >= most_s:
                call.fail(DeadlineExceededError(abandoned=True))
                seat.link.end("it used more processor time than it may" if busy < most_s else "it did not answer in time")
                return
            waits += [self._isolation.cpu_s - used, most_s - busy]
        elif seat is not None:
            waits.append(call.timeout)
        call.timer = self._loop.call_later(max(min(waits), _LEAST_S), self._ring, call)

    def _put_back(self, seat: Seat) -> None:
        for call in reversed(seat.calls):
            call.seat = None
            if call.sends > 1 or self._closed:
                reason = "the plugin has been unloaded" if self._closed else "two workers died while it waited"
                self._drop(call)
                call.fail(PolicyEvaluationError(reason, plugin_name=self._source.name))
            elif call.future.done():
                self._drop(call)
            else:
                self._waiting.appendleft(call)
        seat.calls.clear()

    def _gone(self, seat: Seat, reason: str) -> None:
        if seat in self._seats:
            self._seats.remove(seat)
        guilty = seat.calls.popleft() if seat.calls else None
        if guilty is not None:
            self._drop(guilty)
            guilty.fail(PolicyEvaluationError(f"its worker ended: {reason}", plugin_name=self._source.name))
        self._put_back(seat)
        if self._closed:
            return
        if seat.retired and guilty is None:
            self._fill()
        else:
            self._replace(self._died(reason))
        self._hand_out()

    def _replace(self, delay: float) -> None:
        self._fill(delay)
        if self.broken and not self._starting:
            # It was to be renewed, and its successor is there: no start will lead out of the open breaker.
            if self._reopening is not None:
                self._reopening.cancel()
            self._reopening = self._loop.call_later(delay, self._breaker.started)

    def _died(self, reason: str, *, unborn: bool = False) -> float:
        self.deaths += 1
        self.last_death = reason
        self._probe = None
        was_open = self.broken
        delay = self._breaker.died(self._loop.time(), unborn=unborn)
        if self.deaths & (self.deaths - 1) == 0:
            logger.warning("a worker of plugin %r died (%d so far): %s", self._source.name, self.deaths, reason)
        if self.broken:
            if not was_open:
                logger.error("plugin %r is not asked for %.1f s: its workers keep dying: %s", self._source.name, delay, reason)
            for call in self._waiting:
                call.forget()
                call.fail(PolicyEvaluationError(f"its workers keep dying: {reason}", plugin_name=self._source.name))
            self._waiting.clear()
        return delay

    def _retire(self, seat: Seat) -> None:
        seat.retired = True
        if not seat.calls:
            seat.link.end("it has done its work")

    def _fill(self, delay: float = 0.0) -> None:
        alive = sum(not seat.retired for seat in self._seats)
        for _ in range(self._isolation.workers - alive - len(self._starting)):
            task = self._loop.create_task(self._start_later(delay))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start_later(self, delay: float) -> None:
        while not self._closed:
            await asyncio.sleep(delay)
            try:
                await self._seat_one()
            except Exception as error:  # noqa: BLE001  # the plugin boundary: a death like any other
                delay = max(self._died(str(error) or type(error).__name__, unborn=True), self._isolation.backoff_s)
            else:
                return

    async def _seat_one(self) -> None:
        link, self.hardening, _ = await start(self._zygote, self._source, self._isolation)
        if self._closed:
            link.end("the plugin was unloaded")
            return
        seat = Seat(link, self._loop.time())
        link.on_frame = lambda frame: self._heard(seat, frame)
        link.on_end = lambda reason: self._gone(seat, reason)
        self._seats.append(seat)
        self._breaker.started()
        if self._look is None:
            self._look = self._loop.call_later(_LOOK_S, self._look_around)
        self._hand_out()

    def _look_around(self) -> None:
        """End workers that work although nobody asked, and renew those whose life's processor time runs out."""
        self._look = self._loop.call_later(_LOOK_S, self._look_around) if self._seats and not self._closed else None
        for seat in list(self._seats):
            used = seat.link.cpu_seconds()
            if seat.idle and used - seat.cpu_looked > _IDLE_CPU_S:
                seat.link.end("it used processor time although nobody asked it")
            elif used > self._isolation.worker_cpu_s / 2 and not seat.retired:
                self._retire(seat)
                self._fill()
            seat.cpu_looked = used
            seat.idle = not seat.calls

    def figures(self) -> dict[str, Any]:
        """Tell how it is, for metrics and health."""
        return {"workers": len(self._seats), "deaths": self.deaths, "last_death": self.last_death, "broken": self.broken,
                "waiting": len(self._waiting)}  # fmt: skip
