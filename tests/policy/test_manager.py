from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sark_mw import (
    ConfigurationError,
    PolicyContext,
    PolicyDecision,
    PolicyOutcome,
    PolicyPlugin,
    PolicyPluginManager,
    PolicyServices,
)
from tests.policy.samples import Sample, a_context, allow, deny


async def managed(*plugins: PolicyPlugin) -> PolicyPluginManager:
    manager = PolicyPluginManager()
    for plugin in plugins:
        await manager.register_plugin(plugin)
    return manager


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from(["allow", "deny", "off"])), max_size=12))
def test_plugins_are_asked_by_priority_then_registration_until_the_first_denial(plan: list[tuple[int, str]]) -> None:
    asked: list[int] = []

    def plugin(number: int, priority: int, verdict: str) -> Sample:
        async def judge(context: PolicyContext) -> PolicyDecision:
            asked.append(number)
            return PolicyDecision(verdict != "deny", str(number))

        return Sample(str(number), judge, priority=priority)

    async def run() -> list[PolicyDecision]:
        manager = PolicyPluginManager()
        for number, (priority, verdict) in enumerate(plan):
            await manager.register_plugin(plugin(number, priority, verdict), enabled=verdict != "off")
        return await manager.evaluate_all(a_context())

    decisions = asyncio.run(run())
    by_priority = sorted(range(len(plan)), key=lambda number: (plan[number][0], number))
    order = [number for number in by_priority if plan[number][1] != "off"]
    denials = [place for place, number in enumerate(order) if plan[number][1] == "deny"]
    expected = order[: denials[0] + 1] if denials else order
    assert asked == expected
    assert [decision.plugin_name for decision in decisions] == [str(number) for number in expected]
    assert [decision.allowed for decision in decisions] == [plan[number][1] == "allow" for number in expected]


async def test_defaults_are_those_that_are_promised() -> None:
    class Smallest(PolicyPlugin):
        name = "smallest"

        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            return PolicyDecision(True, "ok")

    plugin = Smallest()
    assert (plugin.version, plugin.description) == ("0.0.0", "")
    assert (plugin.priority, plugin.timeout, plugin.on_error) == (100, None, "deny")
    assert PolicyDecision(True, "ok") == PolicyDecision(allowed=True, reason="ok", metadata={}, plugin_name=None)
    manager = await managed(plugin)
    assert manager.list_plugins() == [plugin.get_metadata() | {"enabled": True}]
    assert (await manager.evaluate_all(a_context())) == [PolicyDecision(True, "ok", {}, "smallest")]


async def test_no_plugin_is_no_decision() -> None:
    assert await PolicyPluginManager().evaluate_all(a_context()) == []


async def test_a_name_is_registered_once_even_by_two_at_the_same_time() -> None:
    loading = asyncio.Event()

    class Slow(Sample):
        async def on_load(self) -> None:
            await loading.wait()

    manager = PolicyPluginManager()
    first = asyncio.create_task(manager.register_plugin(Slow("twin")))
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="'twin' is already registered"):
        await manager.register_plugin(Sample("twin"))
    assert manager.get_plugin("twin") is None and manager.list_plugins() == []
    loading.set()
    await first
    with pytest.raises(ValueError, match="already registered"):
        await manager.register_plugin(Sample("twin"))
    assert len(manager.list_plugins()) == 1


async def test_a_failing_on_load_propagates_and_leaves_nothing_behind() -> None:
    class Broken(Sample):
        async def on_load(self) -> None:
            raise OSError("no such model")

    manager = PolicyPluginManager()
    with pytest.raises(OSError, match="no such model"):
        await manager.register_plugin(Broken("one"))
    assert manager.get_plugin("one") is None and manager.list_plugins() == []
    assert await manager.evaluate_all(a_context()) == []
    await manager.register_plugin(Sample("one"))
    assert len(await manager.evaluate_all(a_context())) == 1


async def test_unregistering_unloads_and_a_failing_on_unload_is_logged_and_gone(caplog: pytest.LogCaptureFixture) -> None:
    class Clinging(Sample):
        async def on_unload(self) -> None:
            raise OSError("still busy")

    plugin = Sample("one")
    manager = await managed(plugin, Clinging("two"))
    await manager.unregister_plugin("one")
    await manager.unregister_plugin("two")
    await manager.unregister_plugin("unknown")
    assert plugin.hooks == ["load", "unload"]
    assert "still busy" in caplog.text and "two" in caplog.text
    assert manager.list_plugins() == [] and await manager.evaluate_all(a_context()) == []


async def test_a_disabled_plugin_is_not_asked_until_it_is_enabled() -> None:
    plugin = Sample("one", deny)
    manager = PolicyPluginManager()
    await manager.register_plugin(plugin, enabled=False)
    assert plugin.hooks == ["load"]
    assert await manager.evaluate_all(a_context()) == []
    assert manager.list_plugins(enabled_only=True) == [] and manager.list_plugins()[0]["enabled"] is False
    manager.enable_plugin("one")
    assert [d.allowed for d in await manager.evaluate_all(a_context())] == [False]
    manager.disable_plugin("one")
    manager.disable_plugin("unknown")
    assert await manager.evaluate_all(a_context()) == []
    with pytest.raises(ValueError, match="'unknown' is not registered"):
        manager.enable_plugin("unknown")


async def test_enabling_keeps_the_order_of_registration() -> None:
    manager = await managed(Sample("a"), Sample("b"), Sample("c", priority=1))
    manager.disable_plugin("a")
    manager.enable_plugin("a")
    assert [d.plugin_name for d in await manager.evaluate_all(a_context())] == ["c", "a", "b"]
    assert [listed["name"] for listed in manager.list_plugins()] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"name": ""}, "name of a plugin"),
        ({"priority": "high"}, "priority must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"on_error": "ignore"}, "on_error must be"),
    ],
)
async def test_attributes_that_make_no_sense_are_refused_at_registration(members: dict[str, Any], complaint: str) -> None:
    manager = PolicyPluginManager()
    with pytest.raises(ConfigurationError, match=complaint):
        await manager.register_plugin(Sample(**members))
    with pytest.raises(TypeError, match="PolicyPlugin"):
        await manager.register_plugin(Sample)  # type: ignore[arg-type]
    assert manager.list_plugins() == []


@pytest.mark.parametrize("answer", [1, "yes", [True], object(), None])
async def test_only_true_allows(answer: object) -> None:
    async def odd(context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(answer, "truthy")  # type: ignore[arg-type]

    decision = (await (await managed(Sample("odd", odd))).evaluate_all(a_context()))[0]
    assert decision.allowed is False and decision.outcome is PolicyOutcome.DENIED


@pytest.mark.parametrize("answer", [True, None, "allow", {"allowed": True}])
async def test_an_answer_that_is_no_decision_is_an_error(answer: object) -> None:
    async def odd(context: PolicyContext) -> Any:
        return answer

    decision = (await (await managed(Sample("odd", odd))).evaluate_all(a_context()))[0]
    assert decision.allowed is False and decision.outcome is PolicyOutcome.FAILED
    assert "evaluation failed" in decision.reason
    assert "must return a PolicyDecision" in decision.metadata["error"]


async def test_a_plugin_that_is_not_async_is_an_error_that_says_so() -> None:
    class Plain(Sample):
        def evaluate(self, context: PolicyContext) -> Any:
            return PolicyDecision(True, "ok")

    decision = (await (await managed(Plain("plain"))).evaluate_all(a_context()))[0]
    assert decision.allowed is False and "must be async" in decision.metadata["error"]


@pytest.mark.parametrize("error", [ValueError("bad data"), SystemExit(1), RecursionError(), asyncio.CancelledError(), KeyError()])
@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("on_error", ["deny", "allow"])
async def test_whatever_a_plugin_raises_is_decided_by_its_on_error(error: BaseException, suspends: bool, on_error: str) -> None:
    async def raising(context: PolicyContext) -> PolicyDecision:
        if suspends:
            await asyncio.sleep(0)
        raise error

    last = Sample("last", priority=200)
    manager = await managed(Sample("broken", raising, on_error=on_error), last)
    decisions = await manager.evaluate_all(a_context())
    assert decisions[0].allowed is (on_error == "allow") and decisions[0].outcome is PolicyOutcome.FAILED
    assert "evaluation failed" in decisions[0].reason and "bad data" not in decisions[0].reason
    assert decisions[0].metadata["error"]
    assert len(last.asked) == (on_error == "allow")


async def test_a_shared_decision_is_not_changed_by_the_manager() -> None:
    constant = PolicyDecision(True, "ok", {"a": 1})

    async def judge(context: PolicyContext) -> PolicyDecision:
        return constant

    decisions = await (await managed(Sample("a", judge), Sample("b", judge))).evaluate_all(a_context())
    decisions[0].metadata["a"] = 2
    assert [d.plugin_name for d in decisions] == ["a", "b"]
    assert constant == PolicyDecision(True, "ok", {"a": 1}) and decisions[1].metadata == {"a": 1}


async def test_evaluations_under_way_see_the_plugins_of_their_beginning() -> None:
    manager = PolicyPluginManager()
    gate = asyncio.Event()

    async def changing(context: PolicyContext) -> PolicyDecision:
        await manager.register_plugin(Sample("new", deny, priority=2))
        manager.disable_plugin("last")
        await gate.wait()
        return PolicyDecision(True, "ok")

    await manager.register_plugin(Sample("first", changing, priority=1))
    await manager.register_plugin(Sample("last", priority=3))
    running = asyncio.create_task(manager.evaluate_all(a_context()))
    await asyncio.sleep(0)
    gate.set()
    assert [d.plugin_name for d in await running] == ["first", "last"]
    manager.disable_plugin("first")
    assert [d.plugin_name for d in await manager.evaluate_all(a_context())] == ["new"]


async def test_observers_hear_every_outcome_and_cannot_break_the_decision(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[str, str, bool]] = []

    class Observer:
        def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
            heard.append((name, outcome, seconds > 0))

    class Broken:
        def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
            raise RuntimeError("metrics are down")

    manager = PolicyPluginManager(Broken())
    manager.observe(Observer())
    await manager.register_plugin(Sample("a"))
    await manager.register_plugin(Sample("b", deny))
    decisions = await manager.evaluate_all(a_context())
    assert heard == [("a", "allowed", True), ("b", "denied", True)]
    assert all(decision.duration_ms > 0 for decision in decisions)
    assert "metrics are down" in caplog.text


async def test_a_failing_plugin_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(context: PolicyContext) -> PolicyDecision:
        raise ValueError("bad data")

    manager = await managed(Sample("broken", broken))
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            await manager.evaluate_all(a_context())
    assert len(caplog.records) == 7
    assert caplog.records[0].exc_info is not None


async def test_services_reach_the_plugins_that_are_there_and_those_that_come() -> None:
    class Bound(Sample):
        services: PolicyServices | None = None

        def bind(self, services: PolicyServices) -> None:
            self.services = services
            self.hooks.append("bind")

    early, late, services = Bound("early"), Bound("late"), PolicyServices()
    manager = await managed(early)
    manager.bind(services)
    await manager.register_plugin(late)
    assert early.services is services and late.services is services
    assert late.hooks == ["bind", "load"]


def test_a_manager_made_outside_a_loop_works_in_several_at_the_same_time() -> None:
    async def waiting(context: PolicyContext) -> PolicyDecision:
        await asyncio.sleep(0.001)
        return await allow(context)

    manager = PolicyPluginManager()
    asyncio.run(manager.register_plugin(Sample("waiting", waiting)))
    results: list[bool] = []

    async def ask() -> None:
        for _ in range(20):
            results.extend(decision.allowed for decision in await manager.evaluate_all(a_context()))

    threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 60


@pytest.mark.parametrize("error", [BaseException("x"), GeneratorExit(), BaseExceptionGroup("x", [BaseException("y")])])
@pytest.mark.parametrize("concurrent", [False, True])
async def test_whatever_a_plugin_raises_there_is_a_decision(error: BaseException, concurrent: bool) -> None:
    async def raises(context: PolicyContext) -> PolicyDecision:
        raise error

    class Beside(Sample):
        concurrent = True  # type: ignore[assignment]

    kind = Beside if concurrent else Sample
    manager = await managed(kind("a", raises), kind("b", raises))
    (decision,) = await manager.evaluate_all(a_context())
    assert (decision.plugin_name, decision.allowed, decision.outcome) == ("a", False, "failed")


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("nobody may read this")


@pytest.mark.parametrize(("reason", "metadata"), [("no", [1, 2]), (Unreadable(), {}), ("no", 5)])
async def test_a_denial_is_one_however_odd_the_rest_of_it_is(reason: Any, metadata: Any) -> None:
    for allowed in (False, 1, "yes", None):

        async def judges(context: PolicyContext) -> PolicyDecision:
            return PolicyDecision(allowed, reason, metadata)  # noqa: B023  # type: ignore[arg-type]

        manager = PolicyPluginManager()
        await manager.register_plugin(Sample("odd", judges, on_error="allow"))
        (decision,) = await manager.evaluate_all(a_context())
        assert (decision.allowed, decision.outcome, decision.metadata) == (False, "denied", {})


async def test_a_plugin_that_is_not_trusted_gets_no_more_time_than_the_settings_give(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text(
        "from sark_mw import PolicyDecision, PolicyPlugin\n"
        "class Slow(PolicyPlugin):\n"
        "    name = 'slow'\n"
        "    timeout = 3600.0\n"
        "    async def evaluate(self, context):\n"
        "        while True: pass\n"
    )
    manager = PolicyPluginManager(isolation="best-effort")
    await manager.load_from_file(path)
    try:
        (decision,) = await manager.evaluate_all(a_context(), timeout=0.2)
        assert decision.outcome == "timed_out" and decision.metadata["timeout_seconds"] <= 0.2
    finally:
        await manager.unregister_plugin("slow")


async def test_members_may_be_set_on_the_instance() -> None:
    class Own(Sample):
        priority = PolicyPlugin.priority  # type: ignore[assignment]
        timeout = PolicyPlugin.timeout  # type: ignore[assignment]
        on_error = PolicyPlugin.on_error  # type: ignore[assignment]

        def __init__(self) -> None:
            super().__init__("own", deny)
            self.priority, self.timeout, self.on_error = 7, 0.5, "skip"  # type: ignore[method-assign,misc,assignment]
            self.version = "3"  # type: ignore[method-assign,misc,assignment]

    manager = await managed(Own())
    (listed,) = manager.list_plugins()
    told = (listed["priority"], listed["timeout"], listed["on_error"], listed["version"], listed["description"])
    assert told == (7, 0.5, "skip", "3", "")
