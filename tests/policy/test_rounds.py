"""Plugins that are asked at the same time, deadlines that they share, and what becomes of an error that is to be skipped."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sark_mw import Obligation, PolicyContext, PolicyDecision, PolicyOutcome, PolicyPlugin, PolicyPluginManager
from tests.policy.samples import Judge, Sample, a_context, allow, deny, hang


class Concurrent(Sample):
    concurrent = True  # type: ignore[assignment]


async def managed(*plugins: PolicyPlugin, **words: Any) -> PolicyPluginManager:
    manager = PolicyPluginManager(**words)
    for plugin in plugins:
        await manager.register_plugin(plugin)
    return manager


async def test_concurrent_plugins_of_one_request_are_started_together() -> None:
    started: list[str] = []
    all_there = asyncio.Event()

    def meeting(name: str) -> Judge:
        async def judge(context: PolicyContext) -> PolicyDecision:
            started.append(name)
            if len(started) == 3:
                all_there.set()
            await all_there.wait()  # one after the other, nobody would ever get past this
            return PolicyDecision(True, name)

        return judge

    manager = await managed(*(Concurrent(name, meeting(name)) for name in "abc"))
    assert [each.reason for each in await manager.evaluate_all(a_context())] == ["a", "b", "c"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 3)), max_size=8))
def test_the_first_denial_by_priority_is_the_answer_whoever_is_done_first(plan: list[tuple[int, bool, bool, int]]) -> None:
    def plugin(number: int, priority: int, concurrent: bool, allows: bool, turns: int) -> Sample:
        async def judge(context: PolicyContext) -> PolicyDecision:
            for _ in range(turns):
                await asyncio.sleep(0)
            return PolicyDecision(allows, str(number))

        return (Concurrent if concurrent else Sample)(str(number), judge, priority=priority)

    async def run() -> list[PolicyDecision]:
        manager = await managed(*(plugin(number, *each) for number, each in enumerate(plan)))
        return await manager.evaluate_all(a_context())

    order = sorted(range(len(plan)), key=lambda number: (plan[number][0], number))
    denials = [place for place, number in enumerate(order) if not plan[number][2]]
    expected = order[: denials[0] + 1] if denials else order
    assert [each.plugin_name for each in asyncio.run(run())] == [str(number) for number in expected]


async def test_a_denial_cancels_those_that_are_still_asked_and_leaves_no_task() -> None:
    cleaned: list[str] = []

    async def slow(context: PolicyContext) -> PolicyDecision:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("slow")
        raise AssertionError("unreachable")

    before = asyncio.all_tasks()
    manager = await managed(Concurrent("no", deny), Concurrent("slow", slow), Concurrent("hangs", hang))
    decisions = await manager.evaluate_all(a_context())
    assert [each.plugin_name for each in decisions] == ["no"]
    assert cleaned == ["slow"] and asyncio.all_tasks() == before


async def test_a_plugin_in_front_that_denies_keeps_the_concurrent_ones_from_being_asked() -> None:
    asked = Concurrent("a"), Concurrent("b")
    manager = await managed(Sample("first", deny, priority=1), *asked)
    assert [each.plugin_name for each in await manager.evaluate_all(a_context())] == ["first"]
    assert [plugin.asked for plugin in asked] == [[], []]


async def test_a_request_that_is_cancelled_takes_its_concurrent_plugins_along() -> None:
    before = asyncio.all_tasks()
    manager = await managed(Concurrent("a", hang), Concurrent("b", hang))
    asking = asyncio.create_task(manager.evaluate_all(a_context()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_concurrent_plugin_that_swallows_its_cancellation_does_not_hold_the_answer_up() -> None:
    async def stubborn(context: PolicyContext) -> PolicyDecision:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    manager = await managed(Concurrent("no", deny), Concurrent("stubborn", stubborn, timeout=0.05))
    decisions = await manager.evaluate_all(a_context())
    assert [each.allowed for each in decisions] == [False]
    while manager.abandoned("stubborn") == 0 and len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", [Sample, Concurrent])
async def test_all_plugins_together_take_no_longer_than_the_chain_may(kind: type[Sample]) -> None:
    late = kind("late", priority=2)
    manager = await managed(kind("hangs", hang, on_error="allow", priority=1), late, Sample("last", priority=3))
    decisions = await manager.evaluate_all(a_context(), timeout=60, chain_timeout=0.02)
    assert decisions[0].outcome is PolicyOutcome.TIMED_OUT and decisions[0].metadata["timeout"] is True
    # Nothing is left for those behind it: they are not asked any more, and deny as they would for a time-out of their own.
    assert decisions[-1].allowed is False and "timed out" in decisions[-1].reason
    assert decisions[-1].plugin_name == ("late" if kind is Sample else "last")


async def test_a_chain_that_is_in_time_is_as_if_it_had_no_deadline() -> None:
    manager = await managed(Sample("a"), Sample("b"))
    assert await manager.evaluate_all(a_context(), chain_timeout=30) == await manager.evaluate_all(a_context())


@pytest.mark.parametrize("fails", ["raises", "hangs", "obliges to nonsense"])
async def test_an_error_that_is_skipped_is_counted_and_the_next_plugin_is_asked(fails: str) -> None:
    async def judge(context: PolicyContext) -> PolicyDecision:
        if fails == "raises":
            raise ValueError("broken")
        if fails == "hangs":
            return await hang(context)
        return PolicyDecision(True, obligations=(Obligation("fly", 1),))

    heard: list[tuple[str, str]] = []

    class Observer:
        def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
            heard.append((name, outcome))

    manager = await managed(Sample("broken", judge, on_error="skip", timeout=0.01), Sample("next", deny))
    manager.observe(Observer())
    skipped, denied = await manager.evaluate_all(a_context())
    assert (skipped.allowed, skipped.outcome, skipped.obligations) == (True, PolicyOutcome.SKIPPED, ())
    assert denied.outcome is PolicyOutcome.DENIED
    assert heard == [("broken", "skipped"), ("next", "denied")]


async def test_obligations_come_with_the_decisions_that_allow() -> None:
    tag, cap = Obligation("add_tag", "night"), Obligation("cap_output_tokens", 100)

    async def obliges(context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(True, obligations=(tag, cap))

    async def denies(context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(False, obligations=(tag,))

    decisions = await (await managed(Sample("a", obliges), Sample("b"), Sample("c", denies))).evaluate_all(a_context())
    assert [each.obligations for each in decisions] == [(tag, cap), (), ()]


@pytest.mark.parametrize(
    "obligation",
    [
        "add_tag",
        Obligation("fly", "high"),
        Obligation("add_tag", 3),
        Obligation("add_tag", ""),
        Obligation("add_tag", "line\nbreak"),
        Obligation("require_scope", "x" * 201),
        Obligation("cap_output_tokens", 0),
        Obligation("cap_output_tokens", True),
        Obligation("cap_output_tokens", "100"),
        Obligation("use_model", "not-of-the-list"),
    ],
)
async def test_an_obligation_that_may_not_be_is_a_failure_of_its_plugin(obligation: Any) -> None:
    async def obliges(context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(True, obligations=(obligation,))

    manager = await managed(Sample("a", obliges), obligation_models=frozenset({"gpt-4o-mini"}))
    (decision,) = await manager.evaluate_all(a_context())
    assert (decision.allowed, decision.outcome) == (False, PolicyOutcome.FAILED)


async def test_a_flood_of_obligations_is_a_failure_and_an_allowed_model_is_none() -> None:
    async def flood(context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(True, obligations=tuple(Obligation("add_tag", str(n)) for n in range(17)))

    async def chooses(context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(True, obligations=(Obligation("use_model", "gpt-4o-mini"),))

    models = frozenset({"gpt-4o-mini"})
    assert (await (await managed(Sample("a", flood))).evaluate_all(a_context()))[0].outcome is PolicyOutcome.FAILED
    assert (await (await managed(Sample("a", chooses), obligation_models=models)).evaluate_all(a_context()))[0].allowed


async def test_decisions_carry_the_version_that_judged() -> None:
    class Versioned(Sample):
        version = "3.1.4"  # type: ignore[assignment]

    async def broken(context: PolicyContext) -> PolicyDecision:
        raise ValueError

    for judge in (allow, broken):
        (decision,) = await (await managed(Versioned("a", judge))).evaluate_all(a_context())
        assert decision.plugin_version == "3.1.4"


async def test_a_plugin_with_something_to_let_go_of_is_unloaded_after_the_rounds_that_began_with_it() -> None:
    order: list[str] = []
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def wait(context: PolicyContext) -> PolicyDecision:
        arrived.set()
        await go_on.wait()
        return PolicyDecision(True)

    async def second(context: PolicyContext) -> PolicyDecision:
        order.append("asked")
        return PolicyDecision(True)

    class Holding(Sample):
        async def on_unload(self) -> None:
            order.append("unloaded")

    manager = await managed(Sample("first", wait, priority=1), Holding("second", second, priority=2))
    asking = asyncio.create_task(manager.evaluate_all(a_context()))
    await arrived.wait()
    leaving = asyncio.create_task(manager.unregister_plugin("second"))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(asking, leaving)
    assert order == ["asked", "unloaded"]
    assert [each.plugin_name for each in await manager.evaluate_all(a_context())] == ["first"]


@pytest.mark.parametrize("kind", [Sample, Concurrent])
async def test_a_round_does_not_wait_for_itself_when_a_plugin_unregisters_another(kind: type[Sample]) -> None:
    async def unregister(_: PolicyContext) -> PolicyDecision:
        await manager.unregister_plugin("other")
        return PolicyDecision(True)

    other = kind("other", priority=2)
    manager = await managed(kind("switch", unregister, priority=1, timeout=30), other)
    async with asyncio.timeout(5):
        decisions = await manager.evaluate_all(a_context())
    assert [each.outcome for each in decisions] == ["allowed", "allowed"] and other.hooks == ["load", "unload"]
