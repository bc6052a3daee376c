"""An open breaker always leads to a probe, and only that one's answer closes it."""

from __future__ import annotations

import asyncio

import pytest

from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.deadline import DeadlineExceededError
from sark_mw.policy.isolated import IsolatedPlugin
from sark_mw.policy.isolated import pool as pools
from sark_mw.policy.isolated.link import Link
from tests.isolation.plugins import DOER, asked, loaded
from tests.isolation.processes import until

pytestmark = pytest.mark.wall_clock

_OPEN, _PROBING, _CLOSED = 2, 1, 0


async def _open(plugin: IsolatedPlugin) -> None:
    while plugin.breaker_state != _OPEN:
        await until(lambda: bool(plugin.pids))
        with pytest.raises(PolicyEvaluationError):
            await plugin.evaluate(asked("exit"))


async def test_a_probe_that_dies_with_a_worker_that_is_being_renewed_is_followed_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pools, "_LOOK_S", 0.02)
    plugin = await loaded(breaker_deaths=1, breaker_s=0.1, worker_cpu_s=1000, cpu_s=1000)
    try:
        await _open(plugin)
        await until(lambda: plugin.breaker_state == _PROBING)
        deaths, (old,) = plugin.figures()[0]["deaths"], plugin.pids
        monkeypatch.setattr(Link, "cpu_seconds", lambda link: 501.0 if link.pid == old else 0.0)
        probe = asyncio.create_task(plugin.evaluate(asked("hang")))
        await until(lambda: len(plugin.pids) == 2)  # the one with the probe, and its successor
        with pytest.raises(DeadlineExceededError):
            await probe
        assert plugin.breaker_state == _OPEN and plugin.figures()[0]["deaths"] == deaths + 1
        await until(lambda: plugin.breaker_state == _PROBING)
        assert (await plugin.evaluate(asked("allow"))).allowed is True
        assert plugin.breaker_state == _CLOSED
    finally:
        await plugin.on_unload()


async def test_a_late_answer_of_an_older_worker_closes_no_breaker() -> None:
    slow = DOER.replace(b'if word == "exit":', b'if word == "slow":\n            time.sleep(1.0)\n        if word == "exit":')
    plugin = await loaded(slow.replace(b"timeout = 0.5", b"timeout = 20"), workers=2, breaker_deaths=1, breaker_s=20)
    try:
        await until(lambda: len(plugin.pids) == 2)
        late = asyncio.create_task(plugin.evaluate(asked("slow")))
        await asyncio.sleep(0.05)
        await _open(plugin)
        assert (await late).allowed is False
        assert plugin.breaker_state == _OPEN
        with pytest.raises(PolicyEvaluationError, match="not asked, since its workers keep dying"):
            await plugin.evaluate(asked("allow"))
    finally:
        await plugin.on_unload()


async def test_nor_does_one_that_comes_while_a_probe_is_under_way() -> None:
    slow = DOER.replace(b'if word == "exit":', b'if word == "slow":\n            time.sleep(1.0)\n        if word == "exit":')
    plugin = await loaded(slow.replace(b"timeout = 0.5", b"timeout = 20"), workers=2, breaker_deaths=1, breaker_s=0.05)
    try:
        await until(lambda: len(plugin.pids) == 2)
        late = asyncio.create_task(plugin.evaluate(asked("slow")))
        await asyncio.sleep(0.05)
        await _open(plugin)
        await until(lambda: plugin.breaker_state == _PROBING)
        probe = asyncio.create_task(plugin.evaluate(asked("slow")))
        assert (await late).allowed is False
        assert plugin.breaker_state == _PROBING and not probe.done()
        assert (await probe).allowed is False
        assert plugin.breaker_state == _CLOSED
    finally:
        await plugin.on_unload()


async def test_a_probe_that_ran_out_of_memory_in_a_worker_that_is_being_renewed_is_followed_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pools, "_LOOK_S", 0.02)
    runs_out = b'if word == "full":\n            time.sleep(1.0)\n            raise MemoryError\n        if word == "exit":'
    full = DOER.replace(b'if word == "exit":', runs_out)
    plugin = await loaded(
        full.replace(b"timeout = 0.5", b"timeout = 20"), breaker_deaths=1, breaker_s=0.1, worker_cpu_s=1000, cpu_s=1000
    )
    try:
        await _open(plugin)
        await until(lambda: plugin.breaker_state == _PROBING)
        (old,) = plugin.pids
        monkeypatch.setattr(Link, "cpu_seconds", lambda link: 501.0 if link.pid == old else 0.0)
        with pytest.raises(PolicyEvaluationError):
            await plugin.evaluate(asked("full"))
        await until(lambda: bool(plugin.pids) and old not in plugin.pids)
        assert (await plugin.evaluate(asked("allow"))).allowed is True
        assert plugin.breaker_state == _CLOSED
    finally:
        await plugin.on_unload()
