"""The isolated tier: what asking a plugin in another process costs, what a worker weighs, and what a storm does to the others."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, Options, p50_p99, percentile
from sark_mw import PolicyContext
from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.context import with_read_bytes
from sark_mw.policy.deadline import DeadlineExceededError
from sark_mw.policy.isolated import IsolatedPlugin, IsolationOptions, isolate, probe

_SOURCE = b"""
import os, time
from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin

kept = []

class Plugin(PolicyPlugin):
    name = "measured"
    timeout = 30

    async def evaluate(self, context):
        if context.principal_id == "exit":
            os._exit(1)
        if context.principal_id == "hang":
            time.sleep(60)
        if context.principal_id == "hoard":
            while True:
                kept.append(bytearray(b"x") * 1_000_000)
        if context.principal_id == "flood":
            while True:
                os.write(0, b"x" * 65536)
        model = context.environment["model"]
        return PolicyDecision(model.startswith("gpt-4"), "by model", {"model": model})
"""
_HOSTILE = _SOURCE.replace(b"timeout = 30", b"timeout = 0.2")


def _context(principal: str = "user:1") -> PolicyContext:
    environment = {"provider": "openai", "model": "gpt-4o", "root": "acme", "scopes": ("user:1",), "estimated_nanos": 1000}
    arguments = {"model": "gpt-4o", "temperature": 0.2, "max_tokens": 500}
    return with_read_bytes(PolicyContext(principal, "gpt-4o", "chat", "invoke", arguments, environment), 120)  # over HTTP


async def _loaded(source: bytes = _SOURCE, **options: object) -> IsolatedPlugin:
    plugin = await isolate(source, "measured.py", isolation=IsolationOptions(**options))  # type: ignore[arg-type]  # its fields
    await plugin.on_load()
    return plugin


async def _one_at_a_time(plugin: IsolatedPlugin, times: int) -> list[float]:
    took = []
    for _ in range(times):
        context = _context()
        started = time.perf_counter()
        await plugin.evaluate(context)
        took.append(time.perf_counter() - started)
    return took


_ECHO = """
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as other:
    while data := other.recv(64):
        other.send(data)
"""


@contextlib.contextmanager
def _neighbour() -> Iterator[socket.socket]:
    """Run a process that sends back whatever it is sent."""
    ours, theirs = socket.socketpair()
    with ours, subprocess.Popen([sys.executable, "-S", "-c", _ECHO, str(theirs.fileno())], pass_fds=[theirs.fileno()]):
        theirs.close()
        ours.setblocking(False)
        try:
            yield ours
        finally:
            ours.close()  # it ends then


async def _beside_the_machines_own(plugin: IsolatedPlugin, times: int) -> tuple[list[float], list[float]]:
    """Ask the plugin and send a byte there and back between two processes, in turn: how much of the time is the machine's."""
    loop, asked, bare = asyncio.get_running_loop(), list[float](), list[float]()
    with _neighbour() as other:
        for _ in range(times):
            asked.extend(await _one_at_a_time(plugin, 1))
            started = time.perf_counter()
            await loop.sock_sendall(other, b"x")
            await loop.sock_recv(other, 64)
            bare.append(time.perf_counter() - started)
    return asked, bare


async def _pipelined(plugin: IsolatedPlugin, times: int) -> float:
    async def client(asks: int) -> None:
        for _ in range(asks):
            await plugin.evaluate(_context())

    started = time.perf_counter()
    await asyncio.gather(*(client(times // 64 + 1) for _ in range(64)))
    return 64 * (times // 64 + 1) / (time.perf_counter() - started)


def _megabytes(pid: int) -> float:
    """Read a process's proportional share of memory; 0.0 where only root may."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


async def _weights() -> list[Figure]:
    plugins = [await _loaded() for _ in range(8)]
    for plugin in plugins:
        await _one_at_a_time(plugin, 200)
    eight = [_megabytes(plugin.pids[0]) for plugin in plugins]
    for plugin in plugins[1:]:
        await plugin.on_unload()
    await asyncio.sleep(0.1)
    alone = _megabytes(plugins[0].pids[0])
    await plugins[0].on_unload()
    if not alone:
        return []
    return [
        Figure(name="memory of the only worker (PSS)", value=alone, unit="MB", most=12.0),
        Figure(name="memory per worker of 8 (PSS)", value=sum(eight) / 8, unit="MB", most=12.0),
    ]


async def _starts(options: Options) -> list[Figure]:
    stateless = await _loaded(stateless=True, workers=2)
    fresh = await _one_at_a_time(stateless, options.count(500))
    started = time.perf_counter()
    cold = await isolate(_SOURCE, "measured.py")
    loading = time.perf_counter() - started
    await stateless.on_unload()
    del cold
    return [
        *p50_p99("stateless, a process per request", fresh),
        Figure(name="loading a plugin beside others", value=loading * 1e3, unit="ms"),
    ]


async def _latencies(plugin: IsolatedPlugin, seconds: float) -> list[float]:
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            took.extend(await _one_at_a_time(plugin, 1))
            await asyncio.sleep(0.05)

    await asyncio.gather(*(client() for _ in range(64)))
    return took


async def _storm(plugin: IsolatedPlugin) -> None:
    for crime in itertools.cycle(("exit", "hang", "hoard", "flood")):
        with contextlib.suppress(PolicyEvaluationError, DeadlineExceededError):
            await plugin.evaluate(_context(crime))


async def _stormy(options: Options) -> list[Figure]:
    seconds = 0.3 if options.tiny else 2.0 if options.quick else 10.0
    honest, hostile = await _loaded(), await _loaded(_HOSTILE, breaker_deaths=10**6, backoff_most_s=0.05)
    calm = await _latencies(honest, seconds)
    storm = asyncio.create_task(_storm(hostile))
    stormy = await _latencies(honest, seconds)
    storm.cancel()
    deaths = hostile.figures()[0]["deaths"]
    await honest.on_unload()
    await hostile.on_unload()
    ratio = percentile(stormy, 99) / percentile(calm, 99)
    return [
        *p50_p99("64 clients, calm", calm),
        *p50_p99("64 clients, while another plugin storms", stormy),
        Figure(name="storm ÷ calm, p99", value=ratio, unit="×", most=2.0, note=f"{deaths} workers killed meanwhile"),
    ]


async def run(options: Options) -> list[Figure]:
    """Measure one worker asked one at a time and pipelined, its weight, fresh processes, and neighbours in a storm."""
    missing = await asyncio.to_thread(lambda: dict(probe().missing))
    plugin = await _loaded()
    await _one_at_a_time(plugin, 200)
    single = await _one_at_a_time(plugin, options.count(20_000))
    asked, bare = await _beside_the_machines_own(plugin, options.count(5_000))
    rate = await _pipelined(plugin, options.count(100_000))
    await plugin.on_unload()
    return [
        Figure(name="layers that are missing here", value=len(missing), unit="", note=", ".join(missing)),
        Figure(name="one call at a time, p50", value=percentile(single, 50) * 1e6, unit="µs", most=250),
        Figure(name="one call at a time, p99", value=percentile(single, 99) * 1e6, unit="µs", note=f"n = {len(single)}"),
        Figure(name="a byte to a process and back, p50", value=percentile(bare, 50) * 1e6, unit="µs", note="the machine's own"),
        Figure(name="one call ÷ a byte there and back, p50", value=percentile(asked, 50) / percentile(bare, 50), unit="×"),
        Figure(name="decisions per second and worker, 64 at once", value=rate, unit="/s", least=10_000),
        *await _weights(),
        *await _starts(options),
        *await _stormy(options),
    ]
