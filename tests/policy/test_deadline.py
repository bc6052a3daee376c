"""Deadlines, cancellation and abandonment, seen through the manager."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
from collections.abc import Awaitable, Generator
from typing import Any, cast

import pytest

from sark_mw import PolicyContext, PolicyDecision, PolicyOutcome, PolicyPluginManager
from sark_mw.policy import deadline
from sark_mw.policy.asking import MAX_STUCK
from tests.policy.samples import Judge, Sample, a_context, allow, hang

pytestmark = pytest.mark.wall_clock

SHORT = 0.01


async def ask(judge: Judge, timeout: float = SHORT, **members: Any) -> PolicyDecision:
    manager = PolicyPluginManager()
    await manager.register_plugin(Sample("slow", judge, **members))
    return (await manager.evaluate_all(a_context(), timeout=timeout))[0]


async def swallow(context: PolicyContext) -> PolicyDecision:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


@pytest.mark.parametrize("on_error", ["deny", "allow"])
async def test_a_plugin_past_its_deadline_is_decided_by_its_on_error(on_error: str) -> None:
    decision = await ask(hang, on_error=on_error)
    assert decision.allowed is (on_error == "allow")
    assert "timed out" in decision.reason and decision.metadata["timeout"] is True
    assert decision.outcome is PolicyOutcome.TIMED_OUT
    assert decision.metadata["abandoned"] is False


async def test_a_plugins_own_timeout_goes_before_the_managers() -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(Sample("slow", hang, timeout=SHORT))
    decision = (await manager.evaluate_all(a_context(), timeout=3600))[0]
    assert decision.metadata["timeout_seconds"] == SHORT


async def test_a_plugin_that_ends_in_time_is_heard() -> None:
    async def slow(context: PolicyContext) -> PolicyDecision:
        for _ in range(3):
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        return PolicyDecision(False, "thought about it")

    decision = await ask(slow, timeout=60)
    assert decision.reason == "thought about it" and decision.outcome is PolicyOutcome.DENIED


@pytest.mark.parametrize("yields", [0, 0.001])
async def test_a_plugin_that_never_ends_but_yields_is_stopped(yields: float) -> None:
    async def busy(context: PolicyContext) -> PolicyDecision:
        while True:
            await asyncio.sleep(yields)

    assert (await ask(busy)).outcome is PolicyOutcome.TIMED_OUT


async def test_a_swallowed_cancellation_does_not_hold_the_decision_and_is_counted() -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(Sample("stubborn", swallow))
    decision = (await manager.evaluate_all(a_context(), timeout=SHORT))[0]
    assert decision.outcome is PolicyOutcome.TIMED_OUT and decision.metadata["abandoned"] is True
    assert manager.abandoned("stubborn") == 1 and manager.abandoned("unknown") == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_late_answer_is_not_heard_even_if_it_allows() -> None:
    async def late(context: PolicyContext) -> PolicyDecision:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return PolicyDecision(True, "fine")

    async def broken(context: PolicyContext) -> PolicyDecision:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise ValueError("late") from None
        raise AssertionError("unreachable")

    for judge in (late, broken):
        decision = await ask(judge)
        assert decision.allowed is False and decision.outcome is PolicyOutcome.TIMED_OUT
        assert decision.metadata["abandoned"] is False


async def test_a_clean_up_that_waits_is_finished_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "GRACE_S", 60)
    closed: list[str] = []

    async def tidy(context: PolicyContext) -> PolicyDecision:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            await asyncio.create_task(asyncio.sleep(0))
            closed.append("connection")
        raise AssertionError("unreachable")

    decision = await ask(tidy, timeout=0.5)
    assert closed == ["connection"] and decision.metadata["abandoned"] is False


async def test_a_task_that_swallows_cancellation_inside_a_plugin_does_not_hold_the_decision() -> None:
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    inner = asyncio.create_task(stubborn())

    async def waiting(context: PolicyContext) -> PolicyDecision:
        await inner
        raise AssertionError("unreachable")

    decision = await ask(waiting)
    assert decision.outcome is PolicyOutcome.TIMED_OUT and not inner.done()
    release.set()
    await inner


async def test_a_plugin_that_cannot_even_be_closed_is_kept_and_after_many_not_asked_any_more() -> None:
    release = asyncio.Event()
    release_now = [False]

    async def immortal(context: PolicyContext) -> PolicyDecision:
        while not release_now[0]:
            try:
                await release.wait()
            except BaseException:
                continue
        return PolicyDecision(True, "at last")

    manager, plugin = PolicyPluginManager(), Sample("immortal", immortal)
    await manager.register_plugin(plugin)
    decisions = [(await manager.evaluate_all(a_context(), timeout=0.001))[0] for _ in range(MAX_STUCK + 3)]
    gc.collect()
    assert not any(decision.allowed for decision in decisions)
    assert manager.abandoned("immortal") == len(plugin.asked) == MAX_STUCK
    assert decisions[-1].outcome is PolicyOutcome.FAILED and "stuck" in decisions[-1].metadata["error"]
    release_now[0] = True


@pytest.mark.parametrize("judge", [hang, swallow])
async def test_a_cancelled_caller_is_cancelled_whatever_the_plugin_makes_of_it(judge: Judge) -> None:
    ended: list[str] = []

    async def noted(context: PolicyContext) -> PolicyDecision:
        try:
            return cast(PolicyDecision, await judge(context))
        finally:
            ended.append("plugin")

    manager, second = PolicyPluginManager(), Sample("second", priority=200)
    await manager.register_plugin(Sample("slow", noted, timeout=0.05))
    await manager.register_plugin(second)
    caller = asyncio.create_task(manager.evaluate_all(a_context()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert caller.cancelled() and ended == ["plugin"] and second.asked == []


async def test_a_cancelled_caller_cancels_what_its_plugin_waits_for() -> None:
    inner = asyncio.create_task(asyncio.sleep(3600))

    async def waiting(context: PolicyContext) -> PolicyDecision:
        await inner
        raise AssertionError("unreachable")

    caller = asyncio.create_task(ask(waiting, timeout=3600))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert inner.cancelled()


async def test_a_plugins_inner_timeout_ends_the_plugins_wait_and_not_the_request() -> None:
    async def careful(context: PolicyContext) -> PolicyDecision:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(3600)
        except TimeoutError:
            pass
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(3600), 0.001)
        return PolicyDecision(True, "the service was slow")

    decision = await ask(careful, timeout=60)
    assert decision.reason == "the service was slow"
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_failing_task_group_inside_a_plugin_is_the_plugins_error() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async def grouped(context: PolicyContext) -> PolicyDecision:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(3600)
        raise AssertionError("unreachable")

    decision = await ask(grouped, timeout=60)
    assert decision.outcome is PolicyOutcome.FAILED and decision.metadata["error_type"] == "ExceptionGroup"


async def test_an_outer_timeout_around_the_policies_works() -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(Sample("slow", hang))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SHORT):
            await manager.evaluate_all(a_context(), timeout=3600)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(manager.evaluate_all(a_context(), timeout=3600), SHORT)


async def test_awaiting_what_was_cancelled_elsewhere_is_the_plugins_error_not_the_callers_cancellation() -> None:
    cancelled = asyncio.get_running_loop().create_future()

    async def waiting(context: PolicyContext) -> PolicyDecision:
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(cancelled.cancel)
        await cancelled
        raise AssertionError("unreachable")

    assert (await ask(waiting, timeout=60)).outcome is PolicyOutcome.FAILED


async def test_a_plugin_sees_the_callers_context_variables_and_task() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    variable.set("request 7")
    seen: list[object] = []

    async def looking(context: PolicyContext) -> PolicyDecision:
        seen.extend([variable.get(), asyncio.current_task()])
        await asyncio.sleep(0)
        seen.extend([variable.get(), asyncio.current_task()])
        return await allow(context)

    await ask(looking, timeout=60)
    assert seen == ["request 7", asyncio.current_task()] * 2


async def test_a_plugin_that_awaits_no_future_of_this_loop_fails_clearly() -> None:
    class Odd(Awaitable[None]):
        def __init__(self, value: object) -> None:
            self.value = value

        def __await__(self) -> Generator[Any, None, None]:
            yield self.value

    other = asyncio.new_event_loop()
    foreign = other.create_future()
    for value, complaint in ((42, "no future of asyncio"), (asyncio.get_running_loop().create_future(), "no future of asyncio")):

        async def odd(context: PolicyContext, value: object = value) -> PolicyDecision:
            await Odd(value)
            raise AssertionError("unreachable")

        assert complaint in (await ask(odd, timeout=60)).metadata["error"]

    async def wrong_loop(context: PolicyContext) -> PolicyDecision:
        await foreign
        raise AssertionError("unreachable")

    assert "another event loop" in (await ask(wrong_loop, timeout=60)).metadata["error"]
    other.close()


async def test_a_closed_evaluation_closes_its_plugin() -> None:
    ended: list[str] = []

    async def noted(context: PolicyContext) -> PolicyDecision:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("plugin")
        raise AssertionError("unreachable")

    manager = PolicyPluginManager()
    await manager.register_plugin(Sample("slow", noted))
    evaluation = manager.evaluate_all(a_context())
    evaluation.send(None)
    evaluation.close()
    assert ended == ["plugin"]


async def test_a_thousand_evaluations_leave_no_task_and_no_timer() -> None:
    async def varied(context: PolicyContext) -> PolicyDecision:
        number = context.arguments["number"]
        if number % 4 == 0:
            await asyncio.sleep(0)
        if number % 4 == 1:
            await asyncio.create_task(asyncio.sleep(0))
        return PolicyDecision(True, "ok")

    async def sometimes(context: PolicyContext) -> PolicyDecision:
        return await (swallow if context.arguments["number"] % 100 == 2 else allow)(context)

    manager = PolicyPluginManager()
    await manager.register_plugin(Sample("varied", varied, timeout=3600))
    await manager.register_plugin(Sample("sometimes", sometimes, timeout=SHORT))
    contexts = [a_context(arguments={"number": number}) for number in range(1000)]
    answers = await asyncio.gather(*(manager.evaluate_all(context) for context in contexts))
    assert sum(decisions[-1].allowed for decisions in answers) == 990
    assert manager.abandoned("sometimes") == 10
    assert asyncio.all_tasks() == {asyncio.current_task()}
    timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert timers == []
