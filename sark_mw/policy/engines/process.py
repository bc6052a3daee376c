"""The gateway's side of an engine's processes: started clean, asked one at a time, killed at the deadline, started again."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.document import MAX_REPLY_BYTES

logger = logging.getLogger(__name__)

_BOOT = Path(__file__).with_name("boot.py")
#: Layers without which a process of policies is not held; namespaces are a bonus.
_REQUIRED = ("uid", "no_new_privs", "landlock_fs", "seccomp", "rlimits")
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine's processes are held; `hardening` as in the settings of the isolated plugins."""

    workers: int = 1
    deadline_s: float = 0.25
    memory_bytes: int = 64 << 20
    start_timeout_s: float = 10.0
    hardening: Literal["require", "best-effort"] = "require"

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 8:
            raise ConfigurationError(f"workers must be 1 to 8, not {self.workers!r}")
        if not 0 < self.deadline_s <= 60:
            raise ConfigurationError(f"deadline_s must be above 0 and at most 60 seconds, not {self.deadline_s!r}")
        if self.memory_bytes < 16 << 20:
            raise ConfigurationError(f"memory_bytes must be 16 MiB at least, not {self.memory_bytes!r}")
        if self.hardening not in ("require", "best-effort"):
            raise ConfigurationError(f"hardening is require or best-effort, not {self.hardening!r}")


class EngineProcesses:
    """The processes of one plugin; each event loop that asks has its own."""

    def __init__(
        self, plugin: str, engine: tuple[str, str], setup: Mapping[str, Any], body: bytes, options: EngineOptions
    ) -> None:
        """Take the engine's name and package, its setup, and as `body` the policy."""
        self._plugin = plugin
        self._options = options
        own = {"memory_bytes": options.memory_bytes, "namespaces": True}
        self._hello = _framed(json.dumps({**setup, **own}).encode()) + _framed(body)
        self._arguments = (engine[0], _folder_of(*engine))
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}

    async def start(self) -> None:
        """Start the processes; raises `ConfigurationError` with the engine's reason, or the layer that is missing here."""
        pool = self._pool()
        while len(pool.all) < self._options.workers:
            pool.add(await self._begin())

    async def ask(self, document: bytes) -> dict[str, Any]:
        """Send one document and return the answer; raises `PolicyEvaluationError`, and ends the process that is late or dies."""
        pool = self._pool()
        try:
            async with asyncio.timeout(self._options.deadline_s):
                if not pool.all and not pool.starting:
                    self._renew(pool)
                process = await pool.take()
                try:
                    answer = await process.ask(document)
                except BaseException:
                    self._lose(pool, process)
                    raise
                pool.give_back(process)
        except TimeoutError:
            raise PolicyEvaluationError(
                f"no answer within {self._options.deadline_s} s", plugin_name=self._plugin, timeout=True
            ) from None
        except (OSError, EOFError, ValueError) as error:
            raise PolicyEvaluationError(f"its process died or babbled: {error}", plugin_name=self._plugin) from error
        pool.pause_s = _FIRST_PAUSE_S
        return answer

    async def stop(self) -> None:
        """End all processes."""
        for pool in list(self._pools.values()):
            pool.close()
        self._pools.clear()

    @property
    def pids(self) -> list[int]:
        """List the processes that are alive."""
        return [process.pid for pool in self._pools.values() for process in pool.all]

    def _pool(self) -> _Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for closed in [each for each in self._pools if each.is_closed()]:
                self._pools.pop(closed).close()
            pool = self._pools[loop] = _Pool()
        return pool

    async def _begin(self) -> _Process:
        process = _Process(self._arguments)
        try:
            async with asyncio.timeout(self._options.start_timeout_s):
                ready = await process.greet(self._hello)
        except TimeoutError:
            process.kill()
            raise ConfigurationError(f"{self._plugin}: its process did not start in {self._options.start_timeout_s} s") from None
        except (OSError, EOFError, ValueError) as error:
            process.kill()
            raise ConfigurationError(f"{self._plugin}: its process died at the start: {error}") from error
        except BaseException:
            process.kill()
            raise
        if "layers" not in ready:
            process.kill()
            raise ConfigurationError(f"{self._plugin}: {str(ready.get('error'))[:2000]}")
        missing = {name: ready["layers"].get(name) for name in _REQUIRED if ready["layers"].get(name) is not True}
        if missing and self._options.hardening == "require":
            process.kill()
            told = ", ".join(f"{name} ({why})" for name, why in missing.items())
            raise ConfigurationError(f"{self._plugin}: this system cannot hold a policy's process: {told}")
        if missing:
            logger.warning("policy plugin %r runs without %s: hardening is best-effort", self._plugin, ", ".join(missing))
        return process

    def _lose(self, pool: _Pool, process: _Process) -> None:
        process.kill()
        pool.remove(process)
        if not pool.is_closed():
            self._renew(pool)

    def _renew(self, pool: _Pool) -> None:
        task = asyncio.get_running_loop().create_task(self._start_again(pool))
        pool.starting.add(task)
        task.add_done_callback(pool.starting.discard)

    async def _start_again(self, pool: _Pool) -> None:
        while not pool.is_closed():
            await asyncio.sleep(pool.pause_s)
            pool.pause_s = min(pool.pause_s * 2, _LONGEST_PAUSE_S)
            try:
                process = await self._begin()
            except ConfigurationError as error:
                logger.warning("policy plugin %r: %s", self._plugin, error)
                continue
            if pool.is_closed():
                process.kill()
            else:
                pool.add(process)
            return


class _Pool:
    """The processes of one event loop, and who waits for one."""

    def __init__(self) -> None:
        self.all: list[_Process] = []
        self.starting: set[asyncio.Task[None]] = set()
        self._closed = False
        self.pause_s = _FIRST_PAUSE_S
        self._idle: deque[_Process] = deque()
        self._waiting: deque[asyncio.Future[_Process]] = deque()

    def is_closed(self) -> bool:
        return self._closed

    def add(self, process: _Process) -> None:
        self.all.append(process)
        self.give_back(process)

    def remove(self, process: _Process) -> None:
        if process in self.all:
            self.all.remove(process)

    async def take(self) -> _Process:
        if self._idle:
            return self._idle.popleft()
        waiter: asyncio.Future[_Process] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give_back(waiter.result())
            raise

    def give_back(self, process: _Process) -> None:
        if self._closed:
            process.kill()
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(process)
                return
        self._idle.append(process)

    def close(self) -> None:
        self._closed = True
        for task in self.starting:
            # A task of a loop that is closed can be cancelled no more, and goes no further.
            with contextlib.suppress(RuntimeError):
                task.cancel()
        for process in self.all:
            process.kill()
        self.all.clear()
        self._idle.clear()


class _Process:
    """One process and the socket to it."""

    def __init__(self, arguments: tuple[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            # Started by this very thread: the process asks to die with the thread that made it.
            self._popen = subprocess.Popen(  # noqa: S603  # this very interpreter and a file of ours
                [sys.executable, "-I", "-S", str(_BOOT), *arguments, str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )
        self.pid = self._popen.pid

    async def greet(self, hello: bytes) -> dict[str, Any]:
        await asyncio.get_running_loop().sock_sendall(self._socket, hello)
        return await self._read()

    async def ask(self, document: bytes) -> dict[str, Any]:
        await asyncio.get_running_loop().sock_sendall(self._socket, _framed(document))
        return await self._read()

    async def _read(self) -> dict[str, Any]:
        size = int.from_bytes(await self._receive(4), "big")
        if size > MAX_REPLY_BYTES + 1024:
            raise ValueError(f"a reply of {size:,} bytes")
        try:
            answer = json.loads(await self._receive(size))
        except RecursionError:
            raise ValueError("a reply nested too deep") from None
        if not isinstance(answer, dict):
            raise ValueError("a reply that is no object")
        return answer

    async def _receive(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        parts = bytearray()
        while len(parts) < size:
            part = await loop.sock_recv(self._socket, size - len(parts))
            if not part:
                raise EOFError("it closed the connection")
            parts += part
        return bytes(parts)

    def kill(self) -> None:
        self._popen.kill()
        self._socket.close()
        # It is dead already, but for what the kernel has to clear away.
        self._popen.wait()


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _folder_of(engine: str, package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(f"{engine} policies need the package {package}: install sark-mw[{engine}]")
    return str(Path(next(iter(spec.submodule_search_locations))).parent)
