"""Whoever watches a gateway is told whether an isolated plugin is asked at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sark_mw import PolicyPluginManager
from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.isolated import IsolatedPlugin, IsolationOptions
from tests.isolation.plugins import DOER, asked
from tests.isolation.processes import until

pytestmark = pytest.mark.wall_clock

QUICK = IsolationOptions(breaker_deaths=2, breaker_s=0.05, backoff_s=0.01)
#: It stays open as long as a test lasts.
PATIENT = IsolationOptions(breaker_deaths=2, breaker_s=600, breaker_most_s=600, backoff_s=0.01)


class Watcher:
    """Hears of breakers, and of nothing else."""

    def __init__(self) -> None:
        self.states: list[tuple[str, int]] = []

    def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
        pass

    def plugin_breaker_changed(self, name: str, state: int) -> None:
        self.states.append((name, state))


class Failing(Watcher):
    """Fails at whatever it hears."""

    def plugin_breaker_changed(self, name: str, state: int) -> None:
        raise RuntimeError("a watcher that fails")


@pytest.fixture
def watcher() -> Watcher:
    """Hear of breakers."""
    return Watcher()


@pytest.fixture(params=[PATIENT], ids=["patient"])
async def manager(watcher: Watcher, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[PolicyPluginManager]:
    """Keep the plugin that does as told; a watcher that fails is told before the other."""
    manager = PolicyPluginManager(Failing())
    manager.observe(watcher)
    file = tmp_path / "doer.py"
    file.write_bytes(DOER)
    await manager.load_from_file(file, isolation=request.param)
    yield manager
    await manager.unregister_plugin("doer")


async def _killed(manager: PolicyPluginManager, times: int = 2) -> IsolatedPlugin:
    plugin = manager.get_plugin("doer")
    assert isinstance(plugin, IsolatedPlugin)
    for _ in range(times):
        await until(lambda: bool(plugin.pids))
        await manager.evaluate_all(asked("exit"))
    return plugin


@pytest.mark.parametrize("manager", [QUICK], indirect=True, ids=["quick"])
async def test_opening_probing_and_closing_are_told_once_each(manager: PolicyPluginManager, watcher: Watcher) -> None:
    assert watcher.states == []
    plugin = await _killed(manager)
    assert watcher.states == [("doer", 2)]
    await until(lambda: bool(plugin.pids))
    await manager.evaluate_all(asked("exit"))  # the probe fails
    assert watcher.states == [("doer", 2), ("doer", 1), ("doer", 2)]
    await until(lambda: bool(plugin.pids))
    (decision,) = await manager.evaluate_all(asked("allow"))
    assert decision.allowed
    assert [state for _, state in watcher.states] == [2, 1, 2, 1, 0]


async def test_a_plugin_that_goes_takes_its_open_breaker_along(manager: PolicyPluginManager, watcher: Watcher) -> None:
    await _killed(manager)
    await manager.unregister_plugin("doer")
    assert watcher.states == [("doer", 2), ("doer", 0)]


async def test_a_version_that_is_replaced_is_not_heard_of_any_more(manager: PolicyPluginManager, watcher: Watcher) -> None:
    old = await _killed(manager)
    await manager.reload_plugin("doer")
    assert watcher.states == [("doer", 2), ("doer", 0)]
    await manager.retired()
    with pytest.raises(PolicyEvaluationError, match="unloaded"):
        await old.evaluate(asked("exit"))
    await _killed(manager)
    assert watcher.states == [("doer", 2), ("doer", 0), ("doer", 2)]


async def test_who_comes_later_hears_how_it_stands(manager: PolicyPluginManager, watcher: Watcher) -> None:
    await _killed(manager)
    late = Watcher()
    manager.observe(late)
    assert late.states == [("doer", 2)]


@pytest.mark.parametrize("manager", [QUICK], indirect=True, ids=["quick"])
async def test_the_worst_of_the_event_loops_is_told(manager: PolicyPluginManager, watcher: Watcher) -> None:
    def elsewhere(word: str) -> None:
        async def ask() -> None:
            await manager.evaluate_all(asked(word))

        asyncio.run(ask())

    plugin = await _killed(manager)
    await asyncio.to_thread(elsewhere, "allow")
    assert watcher.states[0] == ("doer", 2)
    assert ("doer", 0) not in watcher.states  # the other loop's breaker is closed; this one's is not
    await until(lambda: bool(plugin.figures()[0]["workers"]))
    await manager.evaluate_all(asked("allow"))
    assert watcher.states[-1] == ("doer", 0)
