"""Run a plugin's coroutine under a deadline that costs nothing until the plugin suspends.

The first step is taken directly. Only when the coroutine suspends there is a timer, and it goes on *in the caller's own task*:
moving a coroutine to another task after its first step breaks everything in it that remembers its task (`asyncio.timeout`,
`TaskGroup`, anyio's cancel scopes, hence httpx2, redis and most drivers): its own inner timeout would cancel the request.

At the deadline the coroutine gets a CancelledError. If it waits on after that (a clean-up, or it swallowed the cancellation) it
has a short grace, then it is closed and never awaited again. One that refuses even to be closed is `stuck`: nothing in the same
process can end it, so its owner keeps it (collecting it would only make noise) and counts it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Generator
from types import CoroutineType
from typing import Any, cast

from sark_mw.errors import PolicyEvaluationError

logger = logging.getLogger(__name__)

#: What a plugin gets for its clean-up after its deadline, at most; never more than its own timeout.
GRACE_S = 0.05


class DeadlineExceededError(Exception):
    """The plugin was not done in time; `abandoned` if it did not end when told to, `stuck` holds what could not be closed."""

    def __init__(self, *, abandoned: bool = False, stuck: tuple[object, ...] = ()) -> None:
        super().__init__()
        self.abandoned = abandoned
        self.stuck = stuck


async def finish_within(running: object, seconds: float) -> object:
    """Return what the coroutine `running` returns; raise `DeadlineExceededError` when it takes longer than `seconds`.

    Its exceptions pass. If the caller is cancelled, so is the coroutine, and CancelledError is raised whatever it makes of that.
    """
    # The exact type first: asking an ABC takes as long as the step itself.
    coro = running if type(running) is CoroutineType or isinstance(running, Coroutine) else _as_coroutine(running)
    try:
        waited = coro.send(None)
    except StopIteration as stop:
        return stop.value
    except asyncio.CancelledError:
        # Nobody was waited for, so nobody can have cancelled the caller.
        raise PolicyEvaluationError("the plugin raised CancelledError by itself") from None
    return await _Rest(coro, waited, seconds)


def _as_coroutine(running: object) -> Coroutine[Any, Any, object]:
    if not isinstance(running, Awaitable):
        raise PolicyEvaluationError(f"evaluate() must be async, it returned {type(running).__name__}")

    async def wait() -> object:
        return await running

    return wait()


class _Gate(asyncio.Future[None]):
    """What the task sleeps on while a plugin waits: opens when the plugin's own future is done, or at the deadline."""

    def __init__(self, waited: asyncio.Future[object], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._waited = waited

    def open(self, _: object = None) -> None:
        if not self.done():
            self.set_result(None)

    def cancel(self, msg: Any | None = None) -> bool:
        # The task is being cancelled: do to the plugin's future what the task would have done, and wake with it.
        return self._waited.cancel(msg)


class _Rest:
    """The rest of a coroutine after its first step."""

    def __init__(self, coro: Coroutine[Any, Any, object], waited: object, seconds: float) -> None:
        self._coro = coro
        self._waited = waited
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._cancels_before = self._task.cancelling()
        self._cancel_seen = False
        self._gate: _Gate | None = None
        self._timer = self._loop.call_later(seconds, self._ring)
        self._alarms = 0
        self._told = False

    def __await__(self) -> Generator[object, None, object]:
        value, error = None, None
        try:
            value = yield from self._drive()
        except GeneratorExit:
            self._coro.close()
            raise
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001  # judged below, then raised
            error = raised
        finally:
            self._timer.cancel()
        late = _close(self._coro) if value is _UNFINISHED else DeadlineExceededError()
        if self._cancel_seen and self._task.cancelling() > self._cancels_before:
            # The caller was cancelled, and that outranks whatever the plugin made of it.
            raise asyncio.CancelledError
        if self._told:
            raise late
        if isinstance(error, asyncio.CancelledError):
            raise PolicyEvaluationError("the plugin was cancelled from within") from error
        if error is not None:
            raise error
        return value

    def _drive(self) -> Generator[object, None, object]:
        while True:
            thrown = yield from self._pause()
            if self._alarms > 1:
                return _UNFINISHED
            if self._alarms and not self._told:
                self._told = True
                self._timer = self._loop.call_later(min(GRACE_S, self._seconds), self._ring)
                thrown = asyncio.CancelledError()
                if asyncio.isfuture(self._waited):
                    self._waited.cancel()
            try:
                self._waited = self._coro.send(None) if thrown is None else self._coro.throw(thrown)
            except StopIteration as stop:
                return stop.value

    def _ring(self) -> None:
        self._alarms += 1
        if self._gate is not None:
            self._gate.open()

    def _pause(self) -> Generator[object, None, BaseException | None]:
        """Sleep until what the plugin waits for is there, or the timer rings; return what to throw into the plugin."""
        try:
            if self._waited is None:  # asyncio.sleep(0): a bare yield, one turn of the loop
                yield None
                return None
            future = self._take_over(self._waited)
            self._gate = gate = _Gate(future, self._loop)
            future.add_done_callback(gate.open)
            try:
                yield from gate.__await__()
            finally:
                self._gate = None
                future.remove_done_callback(gate.open)
            if future.done():
                future.result()
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is, it belongs to the plugin, as in a plain await
            self._cancel_seen = self._cancel_seen or isinstance(error, asyncio.CancelledError)
            return error
        return None

    def _take_over(self, waited: object) -> asyncio.Future[object]:
        """Accept what a task would have accepted; the rules are those of asyncio's own tasks."""
        if not asyncio.isfuture(waited) or not waited._asyncio_future_blocking:
            raise RuntimeError(f"the plugin awaited {waited!r}, which is no future of asyncio")
        if waited.get_loop() is not self._loop:
            raise RuntimeError(f"the plugin awaited {waited!r}, which belongs to another event loop")
        waited._asyncio_future_blocking = False
        return waited


_UNFINISHED = object()


def _close(coro: Coroutine[Any, Any, object]) -> DeadlineExceededError:
    # Whichever of the nested coroutines refuses, the ones around it end and would let it go.
    nested: list[object] = []
    inner: object = coro
    while inner is not None:
        nested.append(inner)
        inner = getattr(inner, "cr_await", None)
    try:
        coro.close()
    except RuntimeError as error:
        if "ignored GeneratorExit" in str(error):
            return DeadlineExceededError(abandoned=True, stuck=tuple(nested))
    except Exception:  # its last words after the deadline change nothing
        logger.debug("a plugin raised while it was closed after its deadline", exc_info=True)
    return DeadlineExceededError(abandoned=True)
