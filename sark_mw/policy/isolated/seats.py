"""A request on its way, and a worker with the requests that it has been sent."""

from __future__ import annotations

import asyncio
from collections import deque

from sark_mw.policy.base import PolicyDecision
from sark_mw.policy.isolated.link import Link

#: A worker that has so much still to read gets no more.
_UNREAD_BYTES = 1 << 20


class Call:
    """A request on its way: at most twice, as the first worker may die of another one."""

    __slots__ = ("body", "due", "future", "number", "seat", "sends", "timeout", "timer")

    def __init__(self, body: bytes, timeout: float, future: asyncio.Future[PolicyDecision], now: float) -> None:
        self.body = body
        self.timeout = timeout
        self.future = future
        self.due = now + timeout
        self.number = 0
        self.sends = 0
        self.seat: Seat | None = None
        self.timer: asyncio.TimerHandle | None = None

    def fail(self, error: Exception) -> None:
        """Tell the caller, if it still listens: the callers of an event loop that was closed do not."""
        if not self.future.done() and not self.future.get_loop().is_closed():
            self.future.set_exception(error)

    def forget(self) -> None:
        """Nothing more is to be watched."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Seat:
    """A worker with the calls it has been sent. It answers in their order, so the first is the one it is busy with."""

    __slots__ = ("calls", "cpu", "cpu_looked", "idle", "link", "retired", "since")

    def __init__(self, link: Link, now: float) -> None:
        self.link = link
        self.calls: deque[Call] = deque()
        #: When the first call became that, and the worker's processor time then.
        self.since = now
        self.cpu = self.cpu_looked = link.cpu_seconds()
        self.idle = True
        self.retired = False

    def takes(self, in_flight: int) -> bool:
        """Tell whether one more request may be sent to it."""
        return len(self.calls) < in_flight and not self.retired and self.link.unread_bytes < _UNREAD_BYTES

    def next_call(self, now: float) -> None:
        """The call before is done: time counts for the one after it."""
        self.since = now
        self.cpu = self.link.cpu_seconds()
