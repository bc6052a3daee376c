"""The gateway's side of an engine's processes: started clean, asked one at a time, killed at the deadline, started again."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.engines.child import Child, ChildEndedError
from sark_mw.policy.engines.pool import Pool

logger = logging.getLogger(__name__)

_BOOT = Path(__file__).with_name("boot.py")
#: Layers without which a process of policies is not held; namespaces are a bonus.
_REQUIRED = ("uid", "no_new_privs", "landlock_fs", "seccomp", "rlimits")
_FREE_WITHIN_S = 1.0
_CAP_KILL = 1 << 5


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

    @property
    def wait_s(self) -> float:
        """How long a request may wait for a process: past one that hangs. Its own deadline begins after that."""
        return self.deadline_s + _FREE_WITHIN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What holds an engine's process, by layer: whether it is there, or why not; and which of those that are required lack."""

    layers: Mapping[str, Any]
    lacking: tuple[str, ...]


class EngineProcesses:
    """The processes of one plugin; each event loop that asks has its own. After `stop` there are none, and none are started."""

    def __init__(
        self, plugin: str, engine: tuple[str, str], setup: Mapping[str, Any], body: bytes, options: EngineOptions
    ) -> None:
        """Take the engine's name and package, its setup, and as `body` the policy."""
        self._plugin = plugin
        self._options = options
        own = {"memory_bytes": options.memory_bytes, "namespaces": True, "own_user": _kills_other_users()}
        self._hello = _framed(json.dumps({**setup, **own}).encode()) + _framed(body)
        self._arguments = (engine[0], _folder_of(*engine))
        self._pools: dict[asyncio.AbstractEventLoop, Pool] = {}
        self._lock = threading.Lock()
        self._stopped = False
        #: What holds its processes, once one has started.
        self.held: Held | None = None

    async def start(self) -> None:
        """Start the processes; raises `ConfigurationError` with the engine's reason, or the layer that is missing here."""
        pool = self._pool()
        while len(pool.all) < self._options.workers:
            try:
                pool.add(await self._begin(pool))
            except (OSError, ChildEndedError) as error:
                raise ConfigurationError(f"{self._plugin}: its process cannot be started: {error}") from error

    async def ask(self, document: bytes) -> dict[str, Any]:
        """Send one document and return the answer; raises `PolicyEvaluationError`.

        A process that is late is ended. Who is cancelled leaves a process that finishes, and is free after that. What a process
        has never read, since it died before, another one is asked.
        """
        pool = self._pool()
        pool.fill()
        message = _framed(document)
        try:
            child = await pool.take(self._options.wait_s)
            try:
                return await child.ask(message, self._options.deadline_s)
            except ChildEndedError as error:
                if not error.unheard:
                    raise
            child = await pool.take(self._options.wait_s)
            return await child.ask(message, self._options.deadline_s)
        except ChildEndedError as error:
            raise PolicyEvaluationError(str(error), plugin_name=self._plugin, timeout=error.late) from error

    async def stop(self) -> None:
        """End all processes, whichever loop they serve, and let nobody start others."""
        with self._lock:
            self._stopped = True
            pools = list(self._pools.values())
            self._pools.clear()
        here = asyncio.get_running_loop()
        for pool in pools:
            if pool.loop is here or not pool.loop.is_running():
                pool.close()
                await pool.ended()
            else:
                with suppress(RuntimeError):  # closed by now: whatever it had ends with its thread
                    pool.loop.call_soon_threadsafe(pool.close)

    @property
    def pids(self) -> list[int]:
        """List the processes that are alive."""
        return [child.pid for pool in tuple(self._pools.values()) for child in tuple(pool.all)]

    def _pool(self) -> Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is not None:
            return pool
        with self._lock:
            if self._stopped:
                raise PolicyEvaluationError("it is unloaded", plugin_name=self._plugin)
            for closed in [each for each in self._pools if each.is_closed()]:
                self._pools.pop(closed).close()
            pool = self._pools[loop] = Pool(self._plugin, self._options.workers, self._begin)
        return pool

    async def _begin(self, pool: Pool) -> Child:
        command = [sys.executable, "-I", "-S", str(_BOOT), *self._arguments, str(os.getpid())]
        child = await pool.started(command)
        try:
            ready = await child.ask(self._hello, self._options.start_timeout_s)
            self._check(ready)
        except ChildEndedError as error:
            raise ConfigurationError(f"{self._plugin}: its process did not start: {error}") from error
        except BaseException:
            child.end("it did not start")
            raise
        return child

    def _check(self, ready: Mapping[str, Any]) -> None:
        layers = ready.get("layers")
        if not isinstance(layers, dict):
            # What it read and compiled may have written this.
            told = str(ready.get("error"))[:2000].encode(errors="replace").decode()
            raise ConfigurationError(f"{self._plugin}: {told}")
        missing = {name: layers.get(name) for name in _REQUIRED if layers.get(name) is not True}
        self.held = Held(layers=layers, lacking=tuple(missing))
        if missing and self._options.hardening == "require":
            told = ", ".join(f"{name} ({why})" for name, why in missing.items())
            raise ConfigurationError(f"{self._plugin}: this system cannot hold a policy's process: {told}")
        if missing:
            logger.warning("policy plugin %r runs without %s: hardening is best-effort", self._plugin, ", ".join(missing))


def _kills_other_users() -> bool:
    """Tell whether this process may end one that gave up root; an ordinary user's stay that user's."""
    if 0 not in (os.getuid(), os.geteuid()):
        return True
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return True  # no Linux: there are no capabilities to lack
    return any(int(line.split()[1], 16) & _CAP_KILL for line in lines if line.startswith("CapEff:"))


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _folder_of(engine: str, package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(f"{engine} policies need the package {package}: install sark-mw[{engine}]")
    return str(Path(next(iter(spec.submodule_search_locations))).parent)
