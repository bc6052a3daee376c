"""How workers come to be: those that die on the way, starts that hang, callers that leave, and systems that are none."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sark_mw import PolicyPluginManager
from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.isolated import IsolationOptions, isolate, zygote_process
from sark_mw.policy.isolated import pool as pools
from sark_mw.policy.isolated.link import Link
from tests.isolation.plugins import DOER, asked, loaded
from tests.isolation.processes import descendants, descriptors, runs, until

pytestmark = pytest.mark.wall_clock


async def test_a_worker_that_dies_between_ready_and_being_seated_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = await loaded()
    send, killed = Link.send, []

    def shot_in_time(link: Link, frame: bytes) -> None:
        send(link, frame)
        if b"class Doer" in frame and not killed:
            killed.append(link.pid)
            # The loop is busy until both its word and its end are there to be read.
            asyncio.get_running_loop().call_soon(lambda: (time.sleep(0.1), os.kill(link.pid, signal.SIGKILL), time.sleep(0.05)))

    try:
        monkeypatch.setattr(Link, "send", shot_in_time)
        with pytest.raises(PolicyEvaluationError):
            await plugin.evaluate(asked("exit"))
        await until(lambda: bool(plugin.pids) and bool(killed))
        assert killed[0] not in plugin.pids and runs(plugin.pids[0])
        assert (await plugin.evaluate(asked("allow"))).allowed is True
        assert plugin.figures()[0]["deaths"] == 2
    finally:
        await plugin.on_unload()


async def test_a_plugin_that_says_twice_that_it_is_ready_is_refused() -> None:
    twice = (
        DOER
        + b"""
_write = os.write
def twice(handle, data):
    return _write(handle, bytes(data) * 2 if b'"ready"' in bytes(data) else data) and len(data)
os.write = twice
"""
    )
    with pytest.raises(ConfigurationError, match="spoke without being asked"):
        await isolate(twice, "plugin.py")


@pytest.mark.parametrize("after_s", [None, 0.0, 0.02, 0.06], ids=["at its first step", "at once", "soon", "later"])
async def test_a_loading_that_is_cancelled_leaves_nothing(after_s: float | None) -> None:
    before = descendants(), descriptors()
    held = dict(zygote_process._zygotes)
    loading = asyncio.create_task(isolate(DOER, "plugin.py"))
    if after_s is not None:
        await asyncio.sleep(after_s)
    loading.cancel()
    await asyncio.sleep(0)
    loading.cancel()  # also while it lets go
    await asyncio.gather(loading, return_exceptions=True)
    await until(lambda: (descendants(), descriptors()) == before)
    assert zygote_process._zygotes == held


@pytest.mark.parametrize("put", [False, True], ids=["registered", "put in the place of another"])
async def test_a_plugin_that_cannot_be_registered_leaves_nothing_behind(put: bool) -> None:
    manager = PolicyPluginManager()
    if put:
        await manager.register_plugin(await isolate(DOER, "plugin.py"))
    before, held = (len(descendants()), descriptors()), dict(zygote_process._zygotes)
    for _ in range(2):
        bad_from = repr(time.time() + 1).encode()
        plugin = await isolate(
            DOER.replace(b"self._asked = 0", b"self._asked = 0; assert time.time() < " + bad_from), "plugin.py"
        )
        await asyncio.sleep(1.1)
        with pytest.raises(ConfigurationError, match="AssertionError"):
            await (manager.put_plugin(plugin) if put else manager.register_plugin(plugin))
        await until(lambda: (len(descendants()), descriptors()) == before)
        assert zygote_process._zygotes == held
    await manager.unregister_plugin("doer")


async def test_a_plugin_that_is_loaded_twice_has_the_workers_of_one() -> None:
    plugin = await loaded(workers=2)
    try:
        await until(lambda: len(plugin.pids) == 2)
        pids = plugin.pids
        await plugin.on_load()
        await asyncio.sleep(0.1)
        assert plugin.pids == pids
    finally:
        await plugin.on_unload()


@pytest.mark.parametrize("timeout", ["10**400", "-1", "0", "float('nan')", "float('inf')", "True", "3601", "'1'"])
async def test_a_time_out_that_is_none_is_refused_with_the_reason(timeout: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"the plugin plugin\.py: its timeout must be a number of seconds above 0|in a reply"
    ):
        await isolate(DOER.replace(b"timeout = 0.5", f"timeout = {timeout}".encode()), "plugin.py")


async def test_a_refusal_that_nobody_could_encode_is_told_without_what_has_no_utf_8() -> None:
    refuses = b"""
import os
body = b'{"refused":"no \\\\ud800 and no \\\\n more"}'
os.write(0, len(body).to_bytes(4, "big") + body)
"""
    with pytest.raises(ConfigurationError) as caught:
        await isolate(refuses, "plugin.py")
    assert str(caught.value).encode() == b"the plugin plugin.py: no ? and no   more"


@pytest.mark.parametrize("fault", [OverflowError("int too large"), RuntimeError(), AttributeError("no such thing")])
async def test_any_fault_of_a_start_is_counted_and_the_next_one_comes(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = await loaded(breaker_deaths=3, backoff_s=0.01, breaker_s=0.05)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(pools, "start", _failing(fault))
            with pytest.raises(PolicyEvaluationError, match=r"it exited \(3\)"):
                await plugin.evaluate(asked("exit"))
            await until(lambda: plugin.figures()[0]["broken"], 3.0)
            with pytest.raises(PolicyEvaluationError, match="not asked, since its workers keep dying"):
                await plugin.evaluate(asked("allow"))
        await until(lambda: bool(plugin.pids))
        assert (await plugin.evaluate(asked("allow"))).allowed is True
    finally:
        await plugin.on_unload()


def _failing(fault: Exception) -> Callable[..., Awaitable[Any]]:
    async def start(*_: object) -> Any:
        raise fault

    return start


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("worker_cpu_s", value) for value in (2**33, 1.5, 0, 10**5000)],
        *[("memory_bytes", value) for value in (2**65, 2**62, -1, "64")],
        *[("timeout_s", value) for value in (float("inf"), float("nan"), 0, 10**400)],
        *[("queue", float("inf")), ("workers", 9), ("workers", True), ("backoff_most_s", -1), ("breaker_most_s", 0)],
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_options_that_no_worker_can_have_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"isolation {option} must be "):
        IsolationOptions(**{option: value})


async def test_starts_that_hang_open_the_breaker_although_each_takes_longer_than_its_share_of_the_window() -> None:
    hangs_later = DOER.replace(b"self._asked = 0", b"self._asked = 0\n        if time.time() > %r: time.sleep(100)")
    bad_from = time.time() + 3.0
    plugin = await loaded(
        hangs_later.replace(b"%r", repr(bad_from).encode()),
        start_timeout_s=1.0,
        breaker_deaths=3,
        breaker_window_s=1.5,
        backoff_s=0.01,
    )
    try:
        await asyncio.sleep(max(bad_from - time.time(), 0) + 0.05)
        with pytest.raises(PolicyEvaluationError, match=r"it exited \(3\)"):
            await plugin.evaluate(asked("exit"))
        await until(lambda: plugin.figures()[0]["broken"])
        with pytest.raises(PolicyEvaluationError, match="not asked, since its workers keep dying"):
            await plugin.evaluate(asked("allow"))
    finally:
        await plugin.on_unload()
