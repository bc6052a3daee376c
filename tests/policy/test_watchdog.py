"""A plugin in the gateway's process that blocks the event loop is named."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from sark_mw import PolicyContext, PolicyDecision, PolicyPluginManager
from tests.policy.samples import Sample, a_context
from tests.policy.versions import Listener

pytestmark = pytest.mark.wall_clock


async def until_heard(listener: Listener) -> None:
    while not listener.blocked:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("suspends", [False, True])
async def test_the_plugin_that_blocks_the_loop_is_named_once_with_how_long(
    suspends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def blocking(context: PolicyContext) -> PolicyDecision:
        if suspends:
            await asyncio.sleep(0.001)
        time.sleep(0.5)
        return PolicyDecision(True)

    listener = Listener()
    manager = PolicyPluginManager(listener)
    await manager.register_plugin(Sample("innocent"))
    await manager.register_plugin(Sample("blocking", blocking))
    manager.watch_loop(0.05)
    with caplog.at_level(logging.ERROR):
        await manager.evaluate_all(a_context())
        await asyncio.wait_for(until_heard(listener), 20)
    manager.stop_watching()
    ((name, seconds),) = listener.blocked
    assert name == "blocking" and seconds >= 0.05
    assert [record.getMessage() for record in caplog.records if "blocks the event loop" in record.getMessage()]
    assert "test_watchdog.py" in caplog.text


async def test_a_loop_that_somebody_else_blocks_and_a_plugin_that_waits_are_not_told_of() -> None:
    async def waiting(context: PolicyContext) -> PolicyDecision:
        await asyncio.sleep(0.2)
        return PolicyDecision(True)

    listener = Listener()
    manager = PolicyPluginManager(listener)
    await manager.register_plugin(Sample("waiting", waiting))
    manager.watch_loop(0.03)
    await manager.evaluate_all(a_context())
    time.sleep(0.2)
    await asyncio.sleep(0.1)
    manager.stop_watching()
    assert listener.blocked == []


def test_the_watch_ends_with_its_loop() -> None:
    async def watched() -> PolicyPluginManager:
        manager = PolicyPluginManager()
        manager.watch_loop(0.01)
        return manager

    manager = asyncio.run(watched())
    manager.stop_watching()
    for thread in threading.enumerate():
        if thread.name == "sark-policy-watchdog":
            thread.join(60)
            assert not thread.is_alive()
