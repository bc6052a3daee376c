"""The processes of one event loop, and who waits for one.

They are started, and waited for when they are dead, in a thread: both can take long, and a process asks to die with the thread
that started it, so that thread lives as long as the pool.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING

from sark_mw.errors import ConfigurationError
from sark_mw.policy.engines.child import Child, ChildEndedError, started

if TYPE_CHECKING:
    import socket
    import subprocess

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
_REAP_S = 5.0
#: More than these do not wait: they would be late, and each holds its document.
MAX_WAITING = 1024


class Pool:
    """As many processes as are `wanted`, made by `begin`; of the loop that makes this, closed in it or when it has stopped."""

    def __init__(self, plugin: str, wanted: int, begin: Callable[[Pool], Awaitable[Child]]) -> None:
        self.loop = asyncio.get_running_loop()
        self.all: list[Child] = []
        self._plugin = plugin
        self._wanted = wanted
        self._begin = begin
        self._closed = False
        self._pause_s = _FIRST_PAUSE_S
        self._idle: deque[Child] = deque()
        self._waiting: dict[asyncio.Future[Child], None] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1, f"policy-{plugin}")
        self._reaping: set[Future[None]] = set()

    def add(self, child: Child) -> None:
        """Take a process in that is ready; raises `ChildEndedError` for one that has ended since. One too many is ended."""
        if self._closed:
            child.end("it is unloaded")
        if child.ended:
            raise ChildEndedError(child.ended)
        if len(self.all) >= self._wanted:
            # One died while the first ones were started: that start makes up for it, and so does its replacement.
            child.end("there are enough")
            return
        self.all.append(child)
        self._free(child)

    async def take(self, seconds: float) -> Child:
        """Return a process that is free, as soon as there is one; raises `ChildEndedError` after so many seconds without."""
        if self._idle:
            return self._idle.popleft()
        if self._closed or len(self._waiting) >= MAX_WAITING:
            raise ChildEndedError("it is unloaded" if self._closed else f"{MAX_WAITING:,} requests wait for a process")
        waiter: asyncio.Future[Child] = self.loop.create_future()
        self._waiting[waiter] = None
        try:
            async with asyncio.timeout(seconds):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._free(waiter.result())  # it came in the same moment
            if isinstance(error, TimeoutError):
                raise ChildEndedError(f"no process was free within {seconds} s", late=True) from None
            raise
        finally:
            self._waiting.pop(waiter, None)

    def fill(self) -> None:
        """Have as many started as are missing."""
        for _ in range(self._wanted - len(self.all) - len(self._starting)):
            task = self.loop.create_task(self._start_again())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def started(self, command: Sequence[str]) -> Child:
        """Start a process, in the thread; raises OSError where that cannot be."""
        job = self._thread.submit(started, command)
        try:
            popen, sock = await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            job.add_done_callback(_dropped)
            raise
        return Child(popen, sock, self._answered, self._gone)

    def close(self) -> None:
        """End all processes; whoever asks or waits is told."""
        self._closed = True
        for task in tuple(self._starting):
            # A task of a loop that is closed can be cancelled no more, and goes no further.
            with suppress(RuntimeError):
                task.cancel()
        for child in tuple(self.all):
            child.end("it is unloaded")
        for waiter in tuple(self._waiting):
            if not waiter.done() and not self.loop.is_closed():
                waiter.set_exception(ChildEndedError("it is unloaded"))

    async def ended(self) -> None:
        """Wait until the processes of a closed pool are gone."""
        if self._starting and self.loop is asyncio.get_running_loop():
            await asyncio.wait(set(self._starting))
        if self._reaping:
            await asyncio.wait([asyncio.wrap_future(job) for job in tuple(self._reaping)])
        self._thread.shutdown(wait=False)

    def _answered(self, child: Child) -> None:
        if child in self.all:  # and not only greeted
            self._pause_s = _FIRST_PAUSE_S
            self._free(child)

    def _free(self, child: Child) -> None:
        if child.ended:
            return
        while self._waiting:
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if not waiter.done():
                waiter.set_result(child)
                return
        self._idle.append(child)

    def _gone(self, child: Child) -> None:
        try:
            job = self._thread.submit(_reap, child.popen)
        except RuntimeError:
            _reap(child.popen)  # the thread is gone already, and this takes no longer than the kernel needs to clear away
        else:
            self._reaping.add(job)
            job.add_done_callback(self._reaping.discard)
        if child in self.all:
            self.all.remove(child)
            if child in self._idle:
                self._idle.remove(child)
            if not self._closed:
                self.fill()

    async def _start_again(self) -> None:
        while not self._closed:
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
            try:
                self.add(await self._begin(self))
            except (ConfigurationError, ChildEndedError, OSError, RuntimeError) as error:  # also no descriptor, memory, thread
                logger.warning("policy plugin %r: its process cannot be started: %s", self._plugin, error)
            else:
                return


def _reap(popen: subprocess.Popen[bytes]) -> None:
    # One that could not be killed is not waited for: `subprocess` clears it away when it is gone.
    with suppress(TimeoutExpired):
        popen.wait(_REAP_S)


def _dropped(job: Future[tuple[subprocess.Popen[bytes], socket.socket]]) -> None:
    # In the thread: nobody waits for this process any more.
    if not job.cancelled() and job.exception() is None:
        popen, sock = job.result()
        sock.close()
        popen.kill()
        popen.wait()
