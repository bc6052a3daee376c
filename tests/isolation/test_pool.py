"""The workers of a plugin: who is asked, who is blamed, who is asked again, and when nobody is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sark_mw import PolicyPluginManager
from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.base import PolicyDecision
from sark_mw.policy.deadline import DeadlineExceededError
from sark_mw.policy.isolated import IsolatedPlugin, isolate
from tests.isolation.abuse import whole
from tests.isolation.plugins import DOER, asked, loaded
from tests.isolation.processes import descendants, descriptors, runs, until

pytestmark = pytest.mark.wall_clock


@pytest.fixture
async def doer() -> AsyncIterator[IsolatedPlugin]:
    """Isolate the plugin that does as told."""
    plugin = await loaded()
    yield plugin
    await plugin.on_unload()


async def _outcomes(plugin: IsolatedPlugin, *words: str) -> list[object]:
    answers = await asyncio.gather(*(plugin.evaluate(asked(word)) for word in words), return_exceptions=True)
    return [answer.allowed if isinstance(answer, PolicyDecision) else type(answer) for answer in answers]


@pytest.mark.parametrize(
    ("crime", "verdict"),
    [
        ("exit", PolicyEvaluationError),
        ("hang", DeadlineExceededError),
        ("spin", DeadlineExceededError),
        ("hoard", PolicyEvaluationError),
    ],
)
async def test_one_request_kills_a_worker_and_those_behind_it_are_sent_again(
    doer: IsolatedPlugin, crime: str, verdict: type[Exception]
) -> None:
    (first,) = doer.pids
    # The others get their time anew neither: what is behind a hanging one must wait less than its own deadline.
    crimes = asyncio.create_task(_outcomes(doer, crime))
    await asyncio.sleep(0.3 if verdict is DeadlineExceededError else 0)
    assert await _outcomes(doer, *["allow", "deny"] * 10) == [True, False] * 10
    assert await crimes == [verdict]
    await until(lambda: not runs(first))
    assert first not in doer.pids


async def test_only_the_one_that_killed_the_worker_is_blamed(doer: IsolatedPlugin) -> None:
    for _ in range(4):  # one more would open the breaker
        outcomes = await _outcomes(doer, *["allow"] * 7, "exit", *["deny"] * 7)
        assert outcomes == [True] * 7 + [PolicyEvaluationError] + [False] * 7


async def test_a_request_is_sent_again_only_once(doer: IsolatedPlugin) -> None:
    outcomes = await _outcomes(doer, "exit", "exit", "allow")
    assert outcomes == [PolicyEvaluationError] * 3


async def test_a_caller_that_leaves_does_not_kill_the_worker(doer: IsolatedPlugin) -> None:
    (pid,) = doer.pids
    leaving = asyncio.create_task(doer.evaluate(asked("allow")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await _outcomes(doer, "allow") == [True]
    assert doer.pids == (pid,)


async def test_a_worker_that_hangs_is_killed_also_after_its_caller_left(doer: IsolatedPlugin) -> None:
    (pid,) = doer.pids
    leaving = asyncio.create_task(doer.evaluate(asked("hang")))
    await asyncio.sleep(0.05)
    leaving.cancel()
    await until(lambda: not runs(pid))
    assert await _outcomes(doer, "allow") == [True]


async def test_waiting_behind_others_is_no_crime() -> None:
    slow = DOER.replace(b'if word == "exit":', b'if word == "slow":\n            time.sleep(0.15)\n        if word == "exit":')
    plugin = await loaded(slow)
    try:
        (pid,) = plugin.pids
        outcomes = await _outcomes(plugin, *["slow"] * 8)
        assert outcomes.count(DeadlineExceededError) >= 3, outcomes
        assert set(outcomes) <= {False, DeadlineExceededError}
        await until(lambda: plugin.figures()[0]["waiting"] == 0)
        assert plugin.pids == (pid,) and runs(pid)
    finally:
        await plugin.on_unload()


async def test_processor_time_is_bounded_also_for_one_that_waited_behind_another() -> None:
    slow = DOER.replace(b'if word == "exit":', b'if word == "slow":\n            time.sleep(0.3)\n        if word == "exit":')
    plugin = await loaded(slow.replace(b"timeout = 0.5", b"timeout = 30"), cpu_s=0.2)
    try:
        (pid,) = plugin.pids
        async with asyncio.timeout(10):
            assert await _outcomes(plugin, "slow", "spin") == [False, DeadlineExceededError]
        await until(lambda: not runs(pid))
        assert "processor time" in plugin.figures()[0]["last_death"]
    finally:
        await plugin.on_unload()


@pytest.mark.parametrize(
    ("own", "times"),
    [("None", {"timeout": 0.2}), ("0.2", {"timeout": 5}), ("None", {"timeout": 0.4, "chain_timeout": 0.1})],
    ids=["the gateway's", "the plugin's", "the gateway's, after the chain's"],
)
async def test_a_worker_that_hangs_is_killed_at_the_deadline_of_its_request(own: str, times: dict[str, float]) -> None:
    plugin = await isolate(DOER.replace(b"timeout = 0.5", f"timeout = {own}".encode()), "doer.py")
    manager = PolicyPluginManager()
    await manager.register_plugin(plugin)
    try:
        (pid,) = plugin.pids
        (late,) = await manager.evaluate_all(asked("hang"), **times)
        assert late.metadata["timeout"] is True
        await until(lambda: not runs(pid), 1.0)
        await until(lambda: bool(plugin.pids))
        (prompt,) = await manager.evaluate_all(asked("allow"), **times)
        assert prompt.outcome == "allowed"
    finally:
        await manager.unregister_plugin("doer")


@pytest.mark.parametrize("left_s", [0.005, 0.08])
async def test_what_others_leave_of_a_chains_time_kills_no_honest_worker(left_s: float) -> None:
    slow = DOER.replace(b'if word == "exit":', b'if word == "slow":\n            time.sleep(0.2)\n        if word == "exit":')
    plugin = await isolate(slow, "doer.py")
    manager = PolicyPluginManager()
    await manager.register_plugin(plugin)
    try:
        (pid,) = plugin.pids
        for _ in range(6):
            (late,) = await manager.evaluate_all(asked("slow"), chain_timeout=left_s)
            assert late.metadata["timeout"] is True
            (prompt,) = await manager.evaluate_all(asked("deny"), timeout=5)
            assert prompt.outcome == "denied"
        assert plugin.pids == (pid,) and plugin.figures()[0]["deaths"] == 0
    finally:
        await manager.unregister_plugin("doer")


async def test_several_workers_serve_side_by_side() -> None:
    plugin = await loaded(workers=3)
    try:
        await until(lambda: len(plugin.pids) == 3)
        assert await _outcomes(plugin, "hang", "allow", "allow") == [DeadlineExceededError, True, True]
        await until(lambda: len(plugin.pids) == 3)
    finally:
        await plugin.on_unload()


async def test_state_lives_in_a_worker_and_not_in_a_stateless_one() -> None:
    keeping, stateless = await loaded(), await loaded(stateless=True, workers=2, timeout_s=30.0)
    try:
        counts = [[(await plugin.evaluate(asked("count"))).reason for _ in range(5)] for plugin in (keeping, stateless)]
        assert counts == [["1", "2", "3", "4", "5"], ["1"] * 5]
        assert await _outcomes(stateless, *["allow"] * 20) == [True] * 20
        assert stateless.figures()[0]["deaths"] == 0
    finally:
        await keeping.on_unload()
        await stateless.on_unload()


async def test_a_plugin_whose_workers_keep_dying_is_not_asked_until_a_probe_passes() -> None:
    plugin = await loaded(breaker_deaths=3, breaker_s=0.3, backoff_s=0.01)
    try:
        for _ in range(3):
            assert await _outcomes(plugin, "exit") == [PolicyEvaluationError]
        assert plugin.figures()[0]["broken"]
        with pytest.raises(PolicyEvaluationError, match=r"keep dying: it exited \(3\)"):
            await plugin.evaluate(asked("allow"))
        await until(lambda: bool(plugin.pids))
        # One is the probe, and it fails; others are not even asked.
        assert await _outcomes(plugin, "exit", "allow") == [PolicyEvaluationError] * 2
        assert not plugin.pids
        await until(lambda: bool(plugin.pids))
        assert await _outcomes(plugin, "allow") == [True]
        assert not plugin.figures()[0]["broken"]
        assert await _outcomes(plugin, "allow", "allow") == [True, True]
    finally:
        await plugin.on_unload()


async def test_too_many_waiting_requests_fail_at_once() -> None:
    plugin = await loaded(queue=3, pipeline=1)
    try:
        outcomes = await _outcomes(plugin, "hang", *["allow"] * 10)
        assert outcomes.count(PolicyEvaluationError) >= 7, outcomes
    finally:
        await plugin.on_unload()


async def test_callers_that_left_do_not_count_as_waiting() -> None:
    plugin = await loaded(DOER.replace(b"timeout = 0.5", b"timeout = 2"), queue=20, pipeline=1)
    try:
        hanging = asyncio.create_task(_outcomes(plugin, "hang"))
        await asyncio.sleep(0)
        for _ in range(3):
            leaving = [asyncio.create_task(plugin.evaluate(asked("allow"))) for _ in range(20)]
            await asyncio.sleep(0.02)
            assert plugin.figures()[0]["waiting"] == 20
            for each in leaving:
                each.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            assert plugin.figures()[0]["waiting"] == 0
        await asyncio.sleep(0.5)
        assert await _outcomes(plugin, *["allow"] * 20) == [True] * 20  # the hanging one is killed in time for them
        assert await hanging == [DeadlineExceededError]
    finally:
        await plugin.on_unload()


async def test_a_worker_that_works_although_nobody_asked_is_killed() -> None:
    idle = whole("idle", """
        class Idle(PolicyPlugin):
            name = "idle"
            async def evaluate(self, context):
                say(frame(reply(number())))
                while True: pass
    """)  # fmt: skip
    plugin = await loaded(idle.source.encode(), timeout_s=60, cpu_s=60)
    try:
        (pid,) = plugin.pids
        assert (await plugin.evaluate(asked("x"))).allowed is True
        await until(lambda: not runs(pid))
        assert "nobody asked" in plugin.figures()[0]["last_death"]
    finally:
        await plugin.on_unload()


async def test_a_worker_is_renewed_before_its_processor_time_is_up() -> None:
    work = b'if word == "work":\n            sum(range(3_000_000))\n        if word == "exit":'
    plugin = await loaded(DOER.replace(b'if word == "exit":', work), worker_cpu_s=1)
    try:
        (first,) = plugin.pids
        async with asyncio.timeout(60):
            while plugin.pids and first in plugin.pids:
                assert await _outcomes(plugin, "work") == [False]
                await asyncio.sleep(0.2)
        assert await _outcomes(plugin, "allow") == [True]
        assert plugin.figures()[0]["deaths"] == 0
    finally:
        await plugin.on_unload()


async def test_a_hundred_killings_leave_no_process_and_no_descriptor() -> None:
    before = descendants(), descriptors()
    plugin = await loaded(breaker_deaths=10**6, backoff_most_s=0.001, workers=2)
    for n in range(100):
        word = ("exit", "spin", "hoard")[n % 20 if n % 20 < 3 else 0]
        outcomes = await _outcomes(plugin, word, "allow")
        assert outcomes[1] is True or word == "spin"  # it may have had to wait behind that
    assert plugin.figures()[0]["deaths"] >= 100
    # The worker at work, its pidfd and socket, the zygote and its control socket; nothing grows.
    assert descriptors() - before[1] <= 2 * 2 + 2 + 2
    await plugin.on_unload()
    assert (descendants(), descriptors()) == before
