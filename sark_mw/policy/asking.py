"""Ask plugins: one under its deadline, and a round of them where some are asked at the same time or all share a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from collections.abc import Set as AbstractSet
from time import perf_counter
from typing import Any

from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.base import PolicyContext, PolicyDecision
from sark_mw.policy.deadline import GRACE_S, DeadlineExceededError, finish_within
from sark_mw.policy.entries import Chain, Entry
from sark_mw.policy.judging import failed, judgement, timed_out

#: As many evaluations of one plugin may be stuck (nothing could end them); after that it is not asked any more.
MAX_STUCK = 64


async def ask(
    entry: Entry, context: PolicyContext, seconds: float, models: AbstractSet[str], ends: float | None = None
) -> PolicyDecision:
    """Ask one plugin; whatever it does, there is a decision. `ends` is when, by `perf_counter`, the whole round has to.

    The watchdog finds this function's `entry` on the stack of a blocked loop.
    """
    plugin = entry.plugin
    started = perf_counter()
    try:
        own_seconds = plugin.timeout
        if own_seconds is not None:
            # What is not trusted may ask for less time than the settings give, never for more.
            seconds = min(own_seconds, seconds) if entry.isolated and entry.file is not None else own_seconds
        to_kill = seconds
        if ends is not None and ends - started < seconds:
            seconds = ends - started
            if seconds <= 0:
                raise DeadlineExceededError
        if len(entry.stuck) >= MAX_STUCK:
            raise PolicyEvaluationError(f"{MAX_STUCK} evaluations of it are stuck", plugin_name=entry.name)
        shown = context.view() if entry.lens is None else entry.lens.show(context)
        # What judges in another process ends that one at the deadline: cancelling here would leave it at work. What others
        # left of the chain's time ends only our waiting: it is none of this plugin's doing, and honest ones would die of it.
        within = getattr(plugin, "evaluate_within", None) if entry.isolated else None
        running = plugin.evaluate(shown) if within is None else within(shown, to_kill)
        return judgement(await finish_within(running, seconds), entry, started, models)
    except DeadlineExceededError as late:
        return timed_out(entry, late, seconds, started)
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  # the plugin boundary: the gateway lives on
        return failed(entry, error, started)


class Round:
    """One request before a chain of plugins.

    When the first concurrent one is due, all of them are started; they are judged in the order of the chain all the same, and
    those that a denial leaves over are cancelled.
    """

    __slots__ = ("_chain", "_context", "_ends", "_models", "_running", "_seconds", "_tasks")

    def __init__(
        self, chain: Chain, context: PolicyContext, seconds: float, models: AbstractSet[str], chain_seconds: float | None
    ) -> None:
        self._chain = chain
        self._context = context
        self._seconds = seconds
        self._models = models
        self._ends = None if chain_seconds is None else perf_counter() + chain_seconds
        self._running: dict[Entry, asyncio.Task[PolicyDecision]] = {}
        self._tasks: list[object] = [asyncio.current_task()]

    def runs_in(self, task: object) -> bool:
        """Tell whether this task asks here: one that waited for the end of this round would wait for itself."""
        return task in self._tasks

    async def run(self, tell: Callable[[PolicyDecision], None]) -> list[PolicyDecision]:
        """Return the decisions, a denial last; `tell` hears of each."""
        for entry in self._chain.tracked:
            entry.rounds.add(self)
        try:
            return await self._judge(tell)
        finally:
            for entry in self._chain.tracked:
                entry.rounds.discard(self)
            if self._running:
                await self._cancel()

    async def _judge(self, tell: Callable[[PolicyDecision], None]) -> list[PolicyDecision]:
        decisions = []
        entries = self._chain.entries
        for place, entry in enumerate(entries):
            decision = await self._decision(entry, entries[place:])
            decisions.append(decision)
            tell(decision)
            if not decision.allowed:
                break
        return decisions

    async def _decision(self, entry: Entry, left: Sequence[Entry]) -> PolicyDecision:
        if entry.concurrent and entry not in self._running:
            together = [each for each in left if each.concurrent]
            if len(together) > 1:
                self._running |= {each: asyncio.ensure_future(self._ask(each)) for each in together}
                self._tasks += self._running.values()
        task = self._running.pop(entry, None)
        if task is None:
            return await self._ask(entry)
        try:
            return await task
        finally:
            task.cancel()  # if we are cancelled here, it would go on for nobody

    def _ask(self, entry: Entry) -> Coroutine[Any, Any, PolicyDecision]:
        return ask(entry, self._context, self._seconds, self._models, self._ends)

    async def _cancel(self) -> None:
        """Cancel what nobody waits for any more, and give it a moment to end; the answer does not wait longer than that."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=GRACE_S)
