"""Hold the plugins of one gateway and ask them, in order, until one denies."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import PolicyContext, PolicyDecision, PolicyObserver, PolicyOutcome, PolicyPlugin, PolicyServices
from sark_mw.policy.deadline import DeadlineExceededError, finish_within
from sark_mw.policy.loading import forget_module, load_plugin

logger = logging.getLogger(__name__)

#: As many evaluations of one plugin may be stuck (nothing could end them); after that it is not asked any more.
MAX_STUCK = 64


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    name: str
    plugin: PolicyPlugin
    priority: int
    enabled: bool
    loaded: bool = False
    failures: int = 0
    abandoned: int = 0
    stuck: list[tuple[object, ...]] = field(default_factory=list)


class PolicyPluginManager:
    """The plugins of one gateway: registered, ordered by priority, asked one after the other.

    May be built outside an event loop and used in several. Evaluations that are under way see the plugins as they were
    when they began, whatever is registered or disabled meanwhile.
    """

    def __init__(self, observer: PolicyObserver | None = None, services: PolicyServices | None = None) -> None:
        self._entries: dict[str, _Entry] = {}
        self._chain: tuple[_Entry, ...] = ()
        self._observers: tuple[PolicyObserver, ...] = () if observer is None else (observer,)
        self._services = services or PolicyServices()
        self._lock = threading.Lock()

    @property
    def active(self) -> bool:
        """Tell whether there is anybody to ask."""
        return bool(self._chain)

    def observe(self, observer: PolicyObserver) -> None:
        """Tell `observer` of every decision from now on."""
        self._observers = (*self._observers, observer)

    def bind(self, services: PolicyServices) -> None:
        """Lend `services` to every plugin, those that are registered later included."""
        self._services = services
        for entry in tuple(self._entries.values()):
            entry.plugin.bind(services)

    async def register_plugin(self, plugin: PolicyPlugin, enabled: bool = True) -> None:
        """Add a plugin; its `on_load` has ended when this returns.

        Raises `ValueError` for a name that is taken, `ConfigurationError` for attributes that make no sense, and whatever
        `on_load` raises: then nothing of the plugin is left.
        """
        entry = _entry_of(plugin, enabled)
        with self._lock:
            if entry.name in self._entries:
                raise ValueError(f"plugin {entry.name!r} is already registered")
            # Taken from here on, so that two registrations at the same time cannot both load.
            self._entries[entry.name] = entry
        try:
            plugin.bind(self._services)
            await plugin.on_load()
        except BaseException:
            self._drop(entry)
            raise
        entry.loaded = True
        self._order()

    async def unregister_plugin(self, name: str) -> None:
        """Remove a plugin; an unknown name is nothing, a failing `on_unload` is logged."""
        entry = self._entries.get(name)
        if entry is None or not entry.loaded:
            return
        self._drop(entry)
        try:
            await entry.plugin.on_unload()
        except Exception:
            logger.exception("policy plugin %r failed to unload; it is gone all the same", name)
        finally:
            forget_module(type(entry.plugin))

    async def load_from_file(
        self, path: Path | str, enabled: bool = True, *, class_name: str | None = None, **options: Any
    ) -> PolicyPlugin:
        """Run a Python file and register the one plugin class that it defines, built with `options`.

        The file runs inside this process and can do whatever the gateway can: load none that you do not trust. `class_name`
        says which class where there are several. Raises `ConfigurationError` with the file and the reason; a failure leaves
        nothing behind.
        """
        plugin = load_plugin(Path(path), class_name, options)
        try:
            await self.register_plugin(plugin, enabled)
        except BaseException:
            forget_module(type(plugin))
            raise
        return plugin

    def enable_plugin(self, name: str) -> None:
        """Ask this plugin from now on; raises `ValueError` for an unknown one."""
        if name not in self._entries:
            raise ValueError(f"plugin {name!r} is not registered")
        self._switch(name, on=True)

    def disable_plugin(self, name: str) -> None:
        """Do not ask this plugin any more; an unknown one is not asked anyway."""
        self._switch(name, on=False)

    def get_plugin(self, name: str) -> PolicyPlugin | None:
        """Return the plugin of this name, or None."""
        entry = self._entries.get(name)
        return None if entry is None or not entry.loaded else entry.plugin

    def list_plugins(self, enabled_only: bool = False) -> list[dict[str, Any]]:
        """Describe the plugins (their metadata and `enabled`) in the order in which they are asked."""
        listed = [entry for entry in self._sorted() if entry.enabled or not enabled_only]
        return [entry.plugin.get_metadata() | {"enabled": entry.enabled} for entry in listed]

    def abandoned(self, name: str) -> int:
        """Count the evaluations of a plugin that went on after their deadline and had to be dropped."""
        entry = self._entries.get(name)
        return 0 if entry is None else entry.abandoned

    async def evaluate_all(self, context: PolicyContext, timeout: float = 5.0) -> list[PolicyDecision]:  # noqa: ASYNC109  # promised
        """Ask the enabled plugins in order of priority until one denies; return their decisions, the denial last.

        `timeout` in seconds is that of each plugin without one of its own. Whatever a plugin does, this returns: a time-out or an
        exception is decided by the plugin's `on_error`.
        """
        decisions = []
        for entry in self._chain:
            decision = await self._ask(entry, context, timeout)
            decisions.append(decision)
            if self._observers:
                self._tell(decision)
            if not decision.allowed:
                break
        return decisions

    async def _ask(self, entry: _Entry, context: PolicyContext, seconds: float) -> PolicyDecision:
        plugin = entry.plugin
        started = perf_counter()
        try:
            own_seconds = plugin.timeout
            if own_seconds is not None:
                seconds = own_seconds
            if len(entry.stuck) >= MAX_STUCK:
                raise PolicyEvaluationError(f"{MAX_STUCK} evaluations of it are stuck", plugin_name=entry.name)
            return _judgement(await finish_within(plugin.evaluate(context.view()), seconds), entry.name, started)
        except DeadlineExceededError as late:
            return _timed_out(entry, late, seconds, started)
        except asyncio.CancelledError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  # the plugin boundary: the gateway lives on
            return _failed(entry, error, started)

    def _tell(self, decision: PolicyDecision) -> None:
        assert decision.plugin_name is not None and decision.outcome is not None
        for observer in self._observers:
            try:
                observer.plugin_evaluated(decision.plugin_name, decision.outcome, decision.duration_ms / 1000)
            except Exception:
                logger.exception("a policy observer failed")

    def _switch(self, name: str, *, on: bool) -> None:
        entry = self._entries.get(name)
        if entry is not None:
            entry.enabled = on
            self._order()

    def _drop(self, entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(entry.name) is entry:
                del self._entries[entry.name]
        self._order()

    def _sorted(self) -> list[_Entry]:
        # Python's sort is stable and dicts keep their order, so equal priorities stay in the order of registration.
        return sorted((entry for entry in tuple(self._entries.values()) if entry.loaded), key=lambda entry: entry.priority)

    def _order(self) -> None:
        with self._lock:
            self._chain = tuple(entry for entry in self._sorted() if entry.enabled)


def _entry_of(plugin: PolicyPlugin, enabled: bool) -> _Entry:
    if not isinstance(plugin, PolicyPlugin):
        raise TypeError(f"a plugin must be an instance of a PolicyPlugin subclass, not {plugin!r}")
    name, priority, timeout, on_error = plugin.name, plugin.priority, plugin.timeout, plugin.on_error
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"the name of a plugin must be a string that is not empty, not {name!r}")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ConfigurationError(f"plugin {name!r}: priority must be a whole number, not {priority!r}")
    if on_error not in ("deny", "allow"):
        raise ConfigurationError(f"plugin {name!r}: on_error must be 'deny' or 'allow', not {on_error!r}")
    if timeout is not None and not (isinstance(timeout, (int, float)) and math.isfinite(timeout) and timeout > 0):
        raise ConfigurationError(f"plugin {name!r}: timeout must be a number of seconds above 0, not {timeout!r}")
    return _Entry(name=name, plugin=plugin, priority=priority, enabled=enabled)


def _judgement(answer: object, name: str, started: float) -> PolicyDecision:
    if not isinstance(answer, PolicyDecision):
        raise PolicyEvaluationError(f"evaluate() must return a PolicyDecision, not {type(answer).__name__}", plugin_name=name)
    allowed = answer.allowed is True
    return PolicyDecision(
        allowed,
        str(answer.reason),
        dict(answer.metadata or {}),
        name,
        PolicyOutcome.ALLOWED if allowed else PolicyOutcome.DENIED,
        (perf_counter() - started) * 1000,
    )


def _timed_out(entry: _Entry, late: DeadlineExceededError, seconds: float, started: float) -> PolicyDecision:
    entry.abandoned += late.abandoned
    if late.stuck:
        entry.stuck.append(late.stuck)
    metadata = {"timeout": True, "timeout_seconds": seconds, "abandoned": late.abandoned}
    return _by_on_error(entry, f"plugin {entry.name!r} timed out", metadata, PolicyOutcome.TIMED_OUT, started)


def _failed(entry: _Entry, error: BaseException, started: float) -> PolicyDecision:
    entry.failures += 1
    # Every 1st, 2nd, 4th, 8th … with its traceback: whoever makes a plugin fail must not fill the log.
    if entry.failures & (entry.failures - 1) == 0:
        logger.warning("policy plugin %r failed (%d times so far)", entry.name, entry.failures, exc_info=error)
    metadata = {"error": _text(error), "error_type": type(error).__name__}
    # The exception's text stays out of the reason, which may reach the client.
    return _by_on_error(entry, f"plugin {entry.name!r} evaluation failed", metadata, PolicyOutcome.FAILED, started)


def _text(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001  # the plugin's own __str__
        return type(error).__name__


def _by_on_error(entry: _Entry, reason: str, metadata: dict[str, Any], outcome: PolicyOutcome, started: float) -> PolicyDecision:
    on_error = "deny"
    try:
        on_error = entry.plugin.on_error
    except Exception:  # noqa: BLE001  # the plugin's own property: no answer denies
        logger.warning("policy plugin %r has no readable on_error: deny", entry.name)
    duration_ms = (perf_counter() - started) * 1000
    return PolicyDecision(on_error == "allow", reason, metadata, entry.name, outcome, duration_ms)
