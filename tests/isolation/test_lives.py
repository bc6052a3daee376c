"""Lives and deaths: of the zygote, the gateway, event loops and threads. Nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from sark_mw.policy.base import PolicyDecision
from tests.isolation.plugins import asked, loaded
from tests.isolation.processes import descendants, descriptors, runs, until

pytestmark = pytest.mark.wall_clock

_ROOT = Path(__file__).parent.parent.parent


async def test_a_dead_zygote_is_replaced() -> None:
    plugin = await loaded()
    try:
        zygote = plugin._zygote
        assert zygote is not None and zygote.pid is not None
        old, workers = zygote.pid, plugin.pids
        os.kill(old, signal.SIGKILL)
        await until(lambda: not any(runs(pid) for pid in workers))
        await until(lambda: bool(plugin.pids) and plugin.pids != workers)
        assert (await plugin.evaluate(asked("allow"))).allowed is True
        assert zygote.pid != old
    finally:
        await plugin.on_unload()


async def test_a_stopped_zygote_only_delays_new_workers() -> None:
    plugin = await loaded()
    try:
        assert plugin._zygote is not None and plugin._zygote.pid is not None
        os.kill(plugin._zygote.pid, signal.SIGSTOP)
        assert (await plugin.evaluate(asked("allow"))).allowed is True
        os.kill(plugin._zygote.pid, signal.SIGCONT)
    finally:
        await plugin.on_unload()


async def test_a_signal_that_asks_every_process_to_end_leaves_the_requests_to_the_gateway_that_drains() -> None:
    plugin = await loaded()
    try:
        zygote = plugin._zygote
        assert zygote is not None and zygote.pid is not None
        policing = (zygote.pid, *plugin.pids)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asking = [asyncio.ensure_future(plugin.evaluate(asked("allow"))) for _ in range(10)]
            await asyncio.sleep(0)
            for pid in policing:
                os.kill(pid, number)
            assert all(answer.allowed for answer in await asyncio.gather(*asking))
        await asyncio.sleep(0.1)
        assert (zygote.pid, *plugin.pids) == policing and all(runs(pid) for pid in policing)
    finally:
        await plugin.on_unload()


async def test_unloading_ends_every_process_and_closes_every_descriptor() -> None:
    before = descendants(), descriptors()
    plugins = [await loaded(workers=2) for _ in range(3)]
    assert len(descendants() - before[0]) >= 1 + 3
    for plugin in plugins:
        await plugin.on_unload()
    assert (descendants(), descriptors()) == before


async def test_unloading_while_workers_start_and_requests_wait_ends_all_the_same() -> None:
    before = descendants(), descriptors()
    plugin = await loaded(workers=8)
    asking = asyncio.gather(*(plugin.evaluate(asked(word)) for word in ["hang", "exit", "allow"] * 10), return_exceptions=True)
    await asyncio.sleep(0.02)
    await plugin.on_unload()
    assert len(await asking) == 30
    assert (descendants(), descriptors()) == before


async def test_who_asks_after_unloading_is_refused_and_starts_no_process() -> None:
    before = descendants(), descriptors()
    plugin = await loaded()
    await plugin.on_unload()
    refused: list[BaseException | PolicyDecision] = []

    async def ask() -> None:
        refused.extend(await asyncio.gather(plugin.evaluate(asked("allow")), return_exceptions=True))

    await ask()
    await asyncio.to_thread(lambda: asyncio.run(ask()))
    assert [str(each) for each in refused] == ["the plugin has been unloaded"] * 2
    assert not plugin.pids and descendants() == before[0]
    await plugin.on_load()
    assert (await plugin.evaluate(asked("allow"))).allowed is True
    await plugin.on_unload()
    assert (descendants(), descriptors()) == before


async def test_threads_with_event_loops_of_their_own_each_have_workers() -> None:
    before = descendants(), descriptors()
    plugin = await loaded()
    found: list[bool] = []

    async def serve() -> None:
        found.extend([(await plugin.evaluate(asked("allow"))).allowed for _ in range(20)])

    threads = [threading.Thread(target=lambda: asyncio.run(serve())) for _ in range(3)]
    for thread in threads:
        thread.start()
    await serve()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert found == [True] * 80
    await plugin.on_unload()
    assert (descendants(), descriptors()) <= (before[0], before[1] + 2)  # this loop's own executor may have come


def test_an_event_loop_that_ended_without_unloading_is_cleaned_up_after() -> None:
    # Other tests' servers may be children of this process too.
    before, others = descriptors(), descendants()
    plugin = asyncio.run(loaded())

    async def again() -> None:
        assert (await plugin.evaluate(asked("allow"))).allowed is True
        await plugin.on_unload()

    asyncio.run(again())
    assert descendants() <= others
    assert descriptors() == before


def test_an_event_loop_that_was_closed_with_calls_under_way_is_cleaned_up_after_by_the_next_one() -> None:
    others, loop = descendants(), asyncio.new_event_loop()
    plugin = loop.run_until_complete(loaded(workers=2))

    async def leave_unfinished() -> list[asyncio.Task[PolicyDecision]]:
        await until(lambda: len(plugin.pids) == 2)
        hanging = [asyncio.ensure_future(plugin.evaluate(asked("hang"))) for _ in range(2)]
        await asyncio.sleep(0.05)
        return hanging

    async def again(old: tuple[int, ...]) -> None:
        assert (await plugin.evaluate(asked("allow"))).allowed is True
        await until(lambda: not any(runs(pid) for pid in old))
        await plugin.on_unload()

    hanging = loop.run_until_complete(leave_unfinished())
    old = plugin.pids
    loop.close()
    asyncio.run(again(old))
    assert descendants() <= others
    for task in hanging:  # nobody will ever end them, and asyncio says so
        task._log_destroy_pending = False  # type: ignore[attr-defined]


_GATEWAY = textwrap.dedent("""
    import asyncio, os, sys
    from tests.isolation.plugins import asked, loaded
    async def main():
        plugin = await loaded(workers=2)
        while len(plugin.pids) < 2:
            await asyncio.sleep(0.01)
        {body}
        print(plugin._zygote.pid, *plugin.pids, flush=True)
        await asyncio.sleep(600)
    asyncio.run(main())
""")


async def _gateway_dies(how: signal.Signals, body: str = "pass") -> None:
    gateway = subprocess.Popen([sys.executable, "-c", _GATEWAY.format(body=body)], cwd=_ROOT, stdout=subprocess.PIPE, text=True)
    assert gateway.stdout is not None
    with gateway.stdout:
        pids = [int(pid) for pid in (await asyncio.to_thread(gateway.stdout.readline)).split()]
        assert len(pids) == 3 and all(runs(pid) for pid in pids)
        gateway.send_signal(how)
        await asyncio.to_thread(gateway.wait)
        await until(lambda: not any(runs(pid) for pid in pids))


async def test_everything_goes_with_a_gateway_that_is_killed() -> None:
    await _gateway_dies(signal.SIGKILL)


async def test_everything_goes_with_a_gateway_that_is_interrupted() -> None:
    await _gateway_dies(signal.SIGINT)


async def test_everything_goes_although_a_fork_of_the_gateway_holds_its_descriptors() -> None:
    await _gateway_dies(signal.SIGKILL, "os.fork() or (os.setsid(), os.close(1), __import__('time').sleep(20), os._exit(0))")


def test_a_gateway_that_was_started_with_sigchld_ignored_keeps_its_zygote() -> None:
    script = textwrap.dedent("""
        import asyncio, signal
        from tests.isolation.plugins import asked, loaded
        from tests.isolation.processes import until
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        async def main():
            one, other = await loaded(), await loaded()
            zygote, workers = one._zygote.pid, other.pids
            for _ in range(3):
                await asyncio.gather(one.evaluate(asked("exit")), return_exceptions=True)
                await until(lambda: bool(one.pids))
                assert (await one.evaluate(asked("allow"))).allowed and (await other.evaluate(asked("allow"))).allowed
            print(zygote == one._zygote.pid, workers == other.pids, other.figures()[0]["deaths"])
            await one.on_unload()
            await other.on_unload()
        asyncio.run(main())
    """)
    ended = subprocess.run([sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.split() == ["True", "True", "0"], ended.stderr


def test_a_fork_of_the_gateway_has_a_zygote_of_its_own() -> None:
    script = textwrap.dedent("""
        import asyncio, os, sys
        from tests.isolation.plugins import asked, loaded
        plugin = asyncio.run(loaded())
        async def ask():
            answer = await plugin.evaluate(asked("allow"))
            return answer.allowed, plugin._zygote.pid
        child = os.fork()
        if child == 0:
            print("child", *asyncio.run(ask()), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print("parent", *asyncio.run(ask()), flush=True)
        asyncio.run(plugin.on_unload())
    """)
    ended = subprocess.run([sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True, timeout=60, check=True)
    child, parent = (line.split() for line in ended.stdout.splitlines())
    assert child[1] == parent[1] == "True"
    assert child[2] != parent[2]
