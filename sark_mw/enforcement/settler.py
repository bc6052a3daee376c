"""Settling off the client's path: tried until the store has it, kept in the journal where it never does."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from sark_mw.enforcement.ending import end_tasks
from sark_mw.enforcement.journal import Journal
from sark_mw.enforcement.tables import ServerClock
from sark_mw.errors import StoreDataLostError, StoreError, StoreUnavailableError
from sark_mw.instrumentation.base import Instrumentation, Settled
from sark_mw.limit import Unit
from sark_mw.reservation import Outcome, Resolution, Settle, SettleReply
from sark_mw.store.base import ReservationStore

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.05
#: Then a settle waits in the journal: there it survives the process, and thousands of them are no tasks.
_ATTEMPTS = 6
_UNSETTLED = (Outcome.FORGOTTEN, Outcome.OUT_OF_RANGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleContext:
    """What the metrics and the audit trail say of a settle besides the settle itself."""

    request_id: str = ""
    principal_id: str = ""
    provider: str = ""
    model: str | None = None
    expected_nanos: int = 0
    actual_nanos: int | None = None
    #: What this call books on its own, where it is a part of a lease that many requests share.
    booked: tuple[tuple[str, int], ...] = ()


class Settling(Protocol):
    """Whatever takes settles in an admission's stead: the settler, or the books of the lease it was granted from."""

    def submit(self, settle: Settle, context: SettleContext | None = None) -> asyncio.Task[SettleReply | None]:
        """Send a settle in the background; the task ends with its answer."""


def _booked(settle: Settle, context: SettleContext) -> tuple[tuple[str, int], ...]:
    # Of a reservation's own partial settles only the last is told, with all that it cost.
    return context.booked or (() if settle.kind is Resolution.PARTIAL else settle.amounts)


class Settler:
    """Send settles and releases in the background, exactly once as the store counts, until they are answered."""

    def __init__(
        self,
        store: ReservationStore,
        *,
        clock: ServerClock,
        journal: Journal,
        instrumentation: Instrumentation,
        rebuild: Callable[[], Awaitable[object]],
    ) -> None:
        self._store = store
        self._clock = clock
        self._journal = journal
        self._instrumentation = instrumentation
        self._rebuild = rebuild
        self._tasks: dict[asyncio.Task[SettleReply | None], Settle] = {}

    @property
    def pending(self) -> int:
        """Count the settles that are not answered yet."""
        return len(self._tasks)

    def submit(self, settle: Settle, context: SettleContext | None = None) -> asyncio.Task[SettleReply | None]:
        """Send a settle in the background; the task ends with its answer, or None if it went to the journal."""
        task = asyncio.ensure_future(self._persist(settle, context or SettleContext()))
        self._tasks[task] = settle
        task.add_done_callback(self._tasks.pop)
        return task

    async def keep(self, settle: Settle) -> None:
        """Write down what to book of a request without a hold, should this process die before it says: raises `OSError`."""
        await self._journal.open(settle)

    async def _persist(self, settle: Settle, context: SettleContext) -> SettleReply | None:
        if settle in self._journal:
            await self._write_down(settle, "ended")
        pause = _FIRST_PAUSE_S
        for _ in range(_ATTEMPTS):
            started = time.perf_counter()
            try:
                reply = await self._store.settle(settle)
            except StoreDataLostError:
                self._tell(settle, context, None, started)
                await self._try_rebuild()
            except StoreUnavailableError:
                self._tell(settle, context, None, started)
            else:
                self._clock.heard(reply.at_ms)
                self._tell(settle, context, reply, started)
                if reply.outcome in _UNSETTLED:
                    await self._write_down(settle, reply.outcome)
                    return None
                await self._strike_out(settle)
                return reply
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311  spreads retries, guards nothing
            pause *= 2
        await self._write_down(settle, "unavailable")
        return None

    async def _write_down(self, settle: Settle, reason: str) -> None:
        try:
            await self._journal.add(settle, reason=reason)
        except OSError as error:
            _log.error("the journal cannot be written, what it should keep is in memory only: %s", error)

    async def _strike_out(self, settle: Settle) -> None:
        try:
            await self._journal.remove(settle)
        except OSError as error:
            # Read again, it is a repeated settle.
            _log.warning("the journal cannot be written: %s", error)

    async def _try_rebuild(self) -> None:
        try:
            await self._rebuild()
        except StoreError:
            return

    def _tell(self, settle: Settle, context: SettleContext, reply: SettleReply | None, started: float) -> None:
        failed = reply is None or reply.outcome in _UNSETTLED
        self._instrumentation.settled(
            Settled(
                outcome="unavailable" if reply is None else reply.outcome,
                kind=settle.kind,
                seconds=time.perf_counter() - started,
                reservation_id=settle.reservation_id,
                request_id=context.request_id,
                root=settle.root,
                principal_id=context.principal_id,
                provider=context.provider,
                model=context.model,
                booked=() if failed else _booked(settle, context),
                overrun=() if reply is None else _limited(settle, reply.overrun),
                estimated_nanos=context.expected_nanos,
                actual_nanos=context.actual_nanos,
                repeated=reply is not None and reply.repeated,
                late=reply is not None and reply.late,
            )
        )

    async def drain(self, deadline_s: float) -> int:
        """Wait for what is under way; what is not answered by the deadline goes to the journal. Returns how many did."""
        if self._tasks:
            await asyncio.wait([*self._tasks], timeout=deadline_s)
        left = [*self._tasks.items()]
        for task, settle in left:
            task.cancel()
            await self._write_down(settle, "shutdown")
        await end_tasks(task for task, _ in left)
        return len(left)


def _limited(settle: Settle, overrun: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """Leave out what nobody limits: a hold of one token stands for no guess that could be overrun. Money always counts."""
    units = {Unit.USD, *(line.unit for line in settle.lines)}
    return tuple((unit, amount) for unit, amount in overrun if unit in units)
