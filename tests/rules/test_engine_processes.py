"""The processes of Rego and WebAssembly: who leaves, dies, comes late or is unloaded takes nobody else along."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from sark_mw import PolicyDecision, PolicyEvaluationError, PolicyPlugin, PolicyPluginManager
from sark_mw.policy.engines import pool as pools
from sark_mw.policy.engines import process as processes
from sark_mw.policy.engines.plugin import EnginePlugin
from sark_mw.policy.rego import RegoPlugin
from tests.policy.samples import Sample, deny
from tests.rules.processes import children, descriptors, loaded, status, until_new
from tests.rules.requests import a_request, lending

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the isolation of engines needs Linux"),
    pytest.mark.wall_clock,
]

MINI = "gpt-4o-mini"
#: Some 0.1 s for the model `slow`, for ever for `o1`.
SOURCE = """
package sark
import rego.v1
decision if input.model == "gpt-4o-mini"
decision if {
    input.model == "slow"
    count([x | some a in numbers.range(1, 150); some b in numbers.range(1, 150); x := a * b]) > 0
}
decision if {
    input.model == "o1"
    some a in numbers.range(1, 3000)
    some b in numbers.range(1, 3000)
    some c in numbers.range(1, 3000)
    a * b * c == 0
}
"""


class Concurrent(Sample):
    concurrent = True  # type: ignore[assignment]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def replaced(plugin: EnginePlugin, old: set[int]) -> bool:
    return len(plugin.pids) == len(old) and set(plugin.pids) != old


@asynccontextmanager
async def registered(*plugins: PolicyPlugin) -> AsyncIterator[PolicyPluginManager]:
    manager = PolicyPluginManager()
    manager.bind(lending())
    for plugin in plugins:
        await manager.register_plugin(plugin)
    try:
        yield manager
    finally:
        for plugin in plugins:
            await manager.unregister_plugin(plugin.name)


async def test_a_caller_who_leaves_leaves_the_process_to_the_others():
    async with loaded(RegoPlugin(SOURCE, deadline_s=5)) as plugin:
        pids = plugin.pids
        for _ in range(5):
            gone = asyncio.ensure_future(plugin.evaluate(a_request("slow")))
            await asyncio.sleep(0.01)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert (await plugin.evaluate(a_request(MINI))).allowed
        assert plugin.pids == pids


async def test_a_denial_by_another_plugin_of_the_chain_costs_no_process():
    plugin = RegoPlugin(SOURCE, deadline_s=5, priority=50)
    async with registered(Concurrent("gate", deny, priority=1), plugin) as manager:
        pids = plugin.pids
        for _ in range(5):
            (decision,) = await manager.evaluate_all(a_request("slow"))
            assert decision.plugin_name == "gate"
        assert (await plugin.evaluate(a_request(MINI))).allowed
        assert plugin.pids == pids


async def test_whoever_waits_has_all_of_its_own_time_and_is_served_after_one_that_hangs():
    async with loaded(RegoPlugin(SOURCE, deadline_s=0.25)) as plugin:
        hanging = asyncio.ensure_future(plugin.evaluate(a_request("o1")))
        await asyncio.sleep(0.05)
        innocent = await asyncio.gather(*(plugin.evaluate(a_request(MINI)) for _ in range(5)))
        assert all(each.allowed for each in innocent)
        with pytest.raises(PolicyEvaluationError, match=r"no answer within 0\.25 s"):
            await hanging


async def test_who_has_waited_too_long_is_told_and_waits_no_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pools, "MAX_WAITING", 3)
    monkeypatch.setattr(processes, "_FREE_WITHIN_S", -4.9)
    async with loaded(RegoPlugin(SOURCE, deadline_s=5)) as plugin:
        gone = asyncio.ensure_future(plugin.evaluate(a_request("o1")))
        await asyncio.sleep(0.05)
        for _ in range(2):
            answers = await asyncio.gather(*(plugin.evaluate(a_request(MINI)) for _ in range(5)), return_exceptions=True)
            told = sorted(str(each)[:19] for each in answers)
            assert told == ["3 requests wait for"] * 2 + ["no process was free"] * 3
        waiting = [asyncio.ensure_future(plugin.evaluate(a_request(MINI))) for _ in range(3)]
        await asyncio.sleep(0.01)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
        with pytest.raises(PolicyEvaluationError, match="no process was free"):
            await plugin.evaluate(a_request(MINI))
        gone.cancel()


async def test_an_idle_process_that_dies_is_replaced_before_anybody_asks():
    async with loaded(RegoPlugin(SOURCE, workers=2)) as plugin:
        for _ in range(3):
            old = set(plugin.pids)
            os.kill(min(old), signal.SIGKILL)
            await until(partial(replaced, plugin, old))
            assert (await plugin.evaluate(a_request(MINI))).allowed


async def test_a_request_that_a_dying_process_never_read_is_put_to_another():
    async with loaded(RegoPlugin(SOURCE)) as plugin:
        os.kill(plugin.pids[0], signal.SIGSTOP)
        asked = asyncio.ensure_future(plugin.evaluate(a_request(MINI)))
        await asyncio.sleep(0.05)
        os.kill(plugin.pids[0], signal.SIGKILL)
        assert (await asked).allowed


async def test_a_process_that_cannot_be_started_for_a_while_is_started_after_that():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with loaded(RegoPlugin(SOURCE, workers=2)) as plugin:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() // 2, hard))
        try:
            os.kill(plugin.pids[0], signal.SIGKILL)
            await until(lambda: len(plugin.pids) == 1)
            await asyncio.sleep(0.2)
            assert (await plugin.evaluate(a_request(MINI))).allowed
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: len(plugin.pids) == 2)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in its own loop", "from another thread's loop"])
async def test_a_descriptor_is_not_watched_any_more_once_it_is_somebody_elses(elsewhere: bool):
    plugin = RegoPlugin(SOURCE, deadline_s=5)
    plugin.bind(lending())
    await plugin.on_load()
    pids = plugin.pids
    asking = asyncio.ensure_future(plugin.evaluate(a_request("o1")))
    await asyncio.sleep(0.05)
    if elsewhere:
        await asyncio.to_thread(asyncio.run, plugin.on_unload())
    else:
        await plugin.on_unload()
    with pytest.raises(PolicyEvaluationError, match="unloaded"):
        await asking
    await until(lambda: not set(pids) & children())
    # These take the numbers of the descriptors that were closed.
    pairs = [socket.socketpair() for _ in range(4)]
    for ours, theirs in pairs:
        with ours, theirs:
            ours.setblocking(False)
            theirs.sendall(b"hello")
            async with asyncio.timeout(2):
                assert await asyncio.get_running_loop().sock_recv(ours, 100) == b"hello"


#: Loads with the hardening given, is late once, and unloads.
_LATE = f"""
import asyncio, sys
from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.rego import RegoPlugin
from tests.rules.processes import children, until_new
from tests.rules.requests import a_request

async def main():
    plugin = RegoPlugin({SOURCE!r}, limits=False, hardening=sys.argv[1])
    try:
        await plugin.on_load()
    except ConfigurationError as refused:
        print(refused)
        return
    old = plugin.pids
    try:
        await plugin.evaluate(a_request("o1"))
    except PolicyEvaluationError as late:
        print(late)
    async with asyncio.timeout(5):
        await until_new(plugin, old)
    print((await plugin.evaluate(a_request("gpt-4o-mini"))).allowed)
    await plugin.on_unload()
    print(children())
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("hardening", "said"),
    [
        ("require", "rego: this system cannot hold a policy's process: uid (root without CAP_KILL"),
        ("best-effort", "no answer within 0.25 s\nTrue\nset()\n"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_root_without_the_power_to_kill_is_told_so_or_has_processes_that_it_can_end(hardening: str, said: str):
    lesser = ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill", sys.executable, "-c", _LATE, hardening]
    done = subprocess.run(lesser, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.startswith(said), done.stderr


async def test_a_process_that_may_not_be_killed_leaves_its_place_to_another(monkeypatch: pytest.MonkeyPatch):
    spared: list[subprocess.Popen[bytes]] = []

    def refused(popen: subprocess.Popen[bytes]) -> None:
        spared.append(popen)
        raise PermissionError(1, "Operation not permitted")

    async with loaded(RegoPlugin(SOURCE, deadline_s=0.1)) as plugin:
        old = plugin.pids
        with monkeypatch.context() as patch:
            patch.setattr(pools, "_REAP_S", 0.05)
            patch.setattr(subprocess.Popen, "kill", refused)
            with pytest.raises(PolicyEvaluationError, match=r"no answer within 0\.1 s"):
                await plugin.evaluate(a_request("o1"))
            await until_new(plugin, old)
            assert (await plugin.evaluate(a_request(MINI))).allowed
        assert [popen.pid for popen in spared] == old
        spared[0].kill()
        spared[0].wait()


async def test_a_process_that_dies_while_the_others_are_started_is_replaced_once():
    before = children()
    plugin = RegoPlugin(SOURCE, workers=3)
    plugin.bind(lending())
    loading = asyncio.ensure_future(plugin.on_load())
    await until(lambda: plugin.pids)
    os.kill(plugin.pids[0], signal.SIGKILL)
    await loading
    await asyncio.sleep(1)
    assert len(plugin.pids) == 3 and children() - before == set(plugin.pids)
    await plugin.on_unload()
    assert children() == before


async def test_a_plugin_that_is_loaded_twice_has_the_processes_of_one():
    before = children()
    async with loaded(RegoPlugin(SOURCE, workers=2)) as plugin:
        await plugin.on_load()
        await until(lambda: children() - before == set(plugin.pids) and len(plugin.pids) == 2)
        assert (await plugin.evaluate(a_request(MINI))).allowed
    assert children() == before


async def test_an_unloaded_plugin_starts_no_process():
    async with loaded(RegoPlugin(SOURCE)) as plugin:
        pass
    before = children()
    with pytest.raises(PolicyEvaluationError, match="unloaded"):
        await plugin.evaluate(a_request(MINI))
    with pytest.raises(PolicyEvaluationError, match="unloaded"):
        await asyncio.to_thread(asyncio.run, plugin.evaluate(a_request(MINI)))
    assert children() <= before and plugin.pids == []


async def test_a_plugin_that_is_unregistered_serves_those_who_began_with_it():
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_: object) -> PolicyDecision:
        arrived.set()
        await go_on.wait()
        return PolicyDecision(True)

    before = children()
    plugin = RegoPlugin(SOURCE, priority=50)
    async with registered(Sample("first", wait, priority=1), plugin) as manager:
        asking = asyncio.ensure_future(manager.evaluate_all(a_request(MINI)))
        await arrived.wait()
        leaving = asyncio.ensure_future(manager.unregister_plugin("rego"))
        await asyncio.sleep(0.05)
        assert not leaving.done()
        go_on.set()
        assert [each.outcome for each in await asking] == ["allowed", "allowed"]
        await leaving
        assert children() == before
        assert [each.plugin_name for each in await manager.evaluate_all(a_request(MINI))] == ["first"]


async def test_a_signal_to_all_processes_of_a_service_leaves_the_last_requests_their_policy():
    async with loaded(RegoPlugin(SOURCE, deadline_s=5)) as plugin:
        pids = plugin.pids
        asking = asyncio.ensure_future(plugin.evaluate(a_request("slow")))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pids[0], number)
        assert (await asking).allowed
        assert (await plugin.evaluate(a_request(MINI))).allowed
        assert plugin.pids == pids and os.getsid(pids[0]) != os.getsid(0)


async def test_starting_and_clearing_away_a_process_happens_beside_the_event_loop():
    here = threading.get_ident()
    seen: list[int] = []
    real = pools.started

    def noting(command: list[str]) -> object:
        seen.append(threading.get_ident())
        return real(command)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools, "started", noting)
        async with loaded(RegoPlugin(SOURCE, deadline_s=0.1)) as plugin:
            old = plugin.pids
            with suppress(PolicyEvaluationError):
                await plugin.evaluate(a_request("o1"))
            await until_new(plugin, old)
            await until(lambda: not set(old) & children())
    assert len(set(seen)) == 1 and here not in seen, "in one thread, which lives as long as they do"


def test_a_process_ends_with_the_gateway_that_started_it(tmp_path: Path):
    code = f"""
import asyncio, os, sys
from sark_mw.policy.rego import RegoPlugin
async def main():
    plugin = RegoPlugin({SOURCE!r})
    await plugin.on_load()
    print(plugin.pids[0], flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=False)
    pid = int(done.stdout)
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        try:
            if status(pid)["State"].startswith("Z"):
                return
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError("it lives on")


def test_a_loop_that_was_closed_with_a_request_under_way_leaves_nothing_to_the_next():
    plugin = RegoPlugin(SOURCE, deadline_s=5)
    plugin.bind(lending())
    before, open_before = children(), descriptors()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(plugin.on_load())
    asking = loop.create_task(plugin.evaluate(a_request("o1")))
    loop.run_until_complete(asyncio.sleep(0.05))
    asking.cancel()
    with suppress(asyncio.CancelledError):
        loop.run_until_complete(asking)
    loop.close()

    async def next_one() -> None:
        assert (await plugin.evaluate(a_request(MINI))).allowed
        await plugin.on_unload()

    asyncio.run(next_one())
    assert children() == before and descriptors() == open_before
