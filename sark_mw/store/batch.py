"""Calls that arrive in the same turn of the event loop travel together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Batch(Generic[Request, Reply]):
    """Collect requests until the loop's turn ends, then send them in groups of at most `most`.

    `send` answers one reply per request, in order; when it raises, every caller of the group gets the exception. A caller that is
    cancelled does not take the others down: its answer is dropped.
    """

    def __init__(self, send: Callable[[Sequence[Request]], Awaitable[Sequence[Reply]]], *, most: int = 64) -> None:
        self._send = send
        self._most = most
        self._waiting: list[tuple[Request, asyncio.Future[Reply]]] = []
        self._tasks: set[asyncio.Future[Sequence[Reply]]] = set()

    def submit(self, request: Request) -> asyncio.Future[Reply]:
        """Put a request into this turn's group."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((request, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), self._most):
            self._start(waiting[start : start + self._most])

    def _start(self, group: list[tuple[Request, asyncio.Future[Reply]]]) -> None:
        task = asyncio.ensure_future(self._send([request for request, _ in group]))  # noqa: RUF006  # kept in _tasks
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._deliver(done, group))

    def _deliver(self, task: asyncio.Future[Sequence[Reply]], group: list[tuple[Request, asyncio.Future[Reply]]]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        for n, (_, future) in enumerate(group):
            if future.done():
                continue
            if task.cancelled():
                future.cancel()
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(task.result()[n])

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._tasks or self._waiting:
            await (asyncio.wait([*self._tasks]) if self._tasks else asyncio.sleep(0))
