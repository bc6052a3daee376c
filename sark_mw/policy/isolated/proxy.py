"""An isolated plugin as the manager sees it: a plugin like any other, which asks its workers."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import date, time
from typing import Any

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import PolicyDecision, PolicyPlugin
from sark_mw.policy.context import PolicyContext
from sark_mw.policy.isolated.breaker import State
from sark_mw.policy.isolated.hardening import elsewhere
from sark_mw.policy.isolated.link import MalformedReplyError, Source, WorkerEndedError, start
from sark_mw.policy.isolated.options import Hardening, IsolationOptions
from sark_mw.policy.isolated.pool import Pool
from sark_mw.policy.isolated.replies import Description
from sark_mw.policy.isolated.requests import written_context
from sark_mw.policy.isolated.zygote_process import Zygote, hold_zygote, zygote_released
from sark_mw.policy.unsendable import UnsendableRequestError, denial

logger = logging.getLogger(__name__)

#: As metrics know them, the worse the higher.
_BREAKER: dict[State, int] = {"closed": 0, "probing": 1, "open": 2}
_FAILURES = (OSError, WorkerEndedError, MalformedReplyError)


class IsolatedPlugin(PolicyPlugin):
    """What `isolate` makes. Each event loop that asks it has workers of its own; `on_unload` ends them all."""

    def __init__(self, source: Source, isolation: IsolationOptions, description: Description, hardening: Hardening) -> None:
        self._source = source
        self._isolation = isolation
        self._said = description
        self._hardening = hardening
        self._lock = threading.Lock()
        self._pools: dict[int, Pool] = {}
        self._zygote: Zygote | None = None
        self._unloaded = False
        #: Hears each `breaker_state` that differs from the one before.
        self.on_breaker: Callable[[int], None] | None = None
        self.breaker_state = 0

    @property
    def name(self) -> str:
        return self._said.name

    @property
    def version(self) -> str:
        return self._said.version

    @property
    def description(self) -> str:
        return self._said.description

    @property
    def priority(self) -> int:
        return self._said.priority

    @property
    def timeout(self) -> float | None:
        return self._said.timeout

    @property
    def on_error(self) -> str:
        return self._said.on_error

    @property
    def needs(self) -> frozenset[str] | None:
        return self._said.needs

    @property
    def concurrent(self) -> bool:
        return True

    @property
    def isolated(self) -> bool:
        return True

    @property
    def hardening(self) -> Hardening:
        """Tell which layers hold its workers, for metrics and health."""
        return self._hardening

    def figures(self) -> list[dict[str, Any]]:
        """Tell of the workers, deaths and breaker in each event loop."""
        return [pool.figures() for pool in tuple(self._pools.values())]

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers that are ready."""
        return tuple(pid for pool in tuple(self._pools.values()) for pid in pool.pids)

    async def on_load(self) -> None:
        """Start the workers of this event loop; whatever it raises, nothing is left of them."""
        self._unloaded = False
        try:
            await self._pool().open()
        except BaseException as error:
            await self.on_unload()
            if isinstance(error, _FAILURES):
                raise _refusal(self._source.name, error) from error
            raise

    async def on_unload(self) -> None:
        """End all workers, wherever they serve, and wait until they are gone."""
        here = asyncio.get_running_loop()
        with self._lock:
            self._unloaded = True
            pools, self._pools = tuple(self._pools.values()), {}
            zygote, self._zygote = self._zygote, None
        for pool in pools:
            if pool.loop is here or not pool.loop.is_running():
                pool.close()
            else:
                pool.loop.call_soon_threadsafe(pool.close)
            if pool.loop is here:
                await pool.ended()
        if zygote is not None:
            await zygote_released(zygote)

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        """Ask a worker, which has the plugin's own time or else that of `IsolationOptions`; see `evaluate_within`."""
        return await self.evaluate_within(context, self._said.timeout or self._isolation.timeout_s)

    async def evaluate_within(self, context: PolicyContext, seconds: float) -> PolicyDecision:
        """Ask a worker, which is killed if that takes longer than `seconds`.

        A request that cannot be shown to it is denied, whatever `on_error` says: the caller made it so.
        """
        isolation = self._isolation
        if self._said.timeout is None:
            seconds = min(seconds, isolation.timeout_s)
        try:
            body = written_context(context, isolation.shown_bytes, isolation.shown_values)
            return await self._pool().ask(body, seconds)
        except UnsendableRequestError as error:
            return denial(error)

    def _breaker_moved(self) -> None:
        """Tell of the worst of the event loops."""
        state = max((_BREAKER[pool.breaker] for pool in tuple(self._pools.values())), default=0)
        changed, self.breaker_state = state != self.breaker_state, state
        if changed and self.on_breaker is not None:
            self.on_breaker(state)

    def _pool(self) -> Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(id(loop))
        if pool is not None and pool.loop is loop:
            return pool
        with self._lock:
            if self._unloaded:
                # Asked by a round that began before: nobody would end what it started now.
                raise PolicyEvaluationError("the plugin has been unloaded")
            if self._zygote is None:
                self._zygote = hold_zygote(self._isolation.preload, namespaces=self._isolation.namespaces)
            for key, other in list(self._pools.items()):
                if other.loop.is_closed():
                    other.close()
                    del self._pools[key]
            pool = self._pools[id(loop)] = Pool(self._zygote, self._source, self._isolation, self._breaker_moved)
        return pool


async def isolate(
    source: bytes,
    name: str,
    class_name: str | None = None,
    options: Mapping[str, Any] | None = None,
    isolation: IsolationOptions | None = None,
) -> IsolatedPlugin:
    """Load a plugin's source in a worker and return the plugin that asks such workers; `on_load` starts them.

    `name` is that of the file, for messages; `options` go to the constructor as JSON, dates and times as ISO spells them. Raises
    `ConfigurationError` with the reason: invalid Python, a constructor that refuses, options that are no JSON, or a layer that
    mode `require` misses.
    """
    isolation = isolation or IsolationOptions()
    wanted = Source(source=source, name=name, class_name=class_name, options=_plain(name, options or {}))
    try:
        hardening, description = await _tried(wanted, isolation)
    except ConfigurationError as error:
        raise ConfigurationError(f"the plugin {name}: {error}{_way_out(str(error))}") from error
    except _FAILURES as error:
        raise _refusal(name, error) from error
    if not hardening.complete:
        logger.warning("plugin %r runs with LESS ISOLATION than it should: missing %s", name, dict(hardening.lacking))
    return IsolatedPlugin(wanted, isolation, description, hardening)


def _way_out(error: str) -> str:
    if "from 'sark_mw'" in error:
        return "; what counts in the store or hears of requests' ends does not run isolated: isolated = false, if you trust it"
    if "No module named" in error:
        return "; isolated plugins import the standard library only, and what `preload` names in their settings"
    return ""


async def _tried(source: Source, isolation: IsolationOptions) -> tuple[Hardening, Description]:
    lacking = elsewhere()
    if lacking is not None and isolation.mode == "require":
        lacking.require()  # before anything is started, which may not even be possible there
    zygote = hold_zygote(isolation.preload, namespaces=isolation.namespaces)
    try:
        link, hardening, description = await start(zygote, source, isolation)
        link.end("it was a trial")
    finally:
        await zygote_released(zygote)
    assert description is not None
    return hardening, description


def _plain(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(options), default=_iso))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the plugin {name}: its options must be plain data (as JSON): {error}") from error
    return plain


def _iso(value: object) -> str:
    """Write a date or time, which TOML has and JSON has not."""
    if isinstance(value, (date, time)):  # a datetime is a date
        return value.isoformat()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _refusal(name: str, error: BaseException) -> ConfigurationError:
    reason = str(error) or ("it did not start in time" if isinstance(error, TimeoutError) else type(error).__name__)
    return ConfigurationError(f"the plugin {name} cannot be isolated: {reason}")
