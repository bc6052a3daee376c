"""From settings to plugins: loaded at the start, all or none, and kept up to date while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

from sark_mw.enforcement.rules import UnlistedModelError, rule_plugin
from sark_mw.errors import ConfigurationError
from sark_mw.instrumentation.base import Instrumentation
from sark_mw.policy.base import PolicyPlugin
from sark_mw.policy.builtin import BUILTIN_PLUGINS, builtin_plugin_path
from sark_mw.policy.files import PluginFile, plugin_files
from sark_mw.policy.installed import installed_plugin
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.policy.packages import Lock
from sark_mw.policy.packages.inspection import reader_at_hand
from sark_mw.policy.reloading import FileWatch
from sark_mw.rule_files import RULES, RuleWatch, make_rules
from sark_mw.settings import PluginSettings, PolicySettings
from sark_mw.settings_policy import RuleSettings

_log = logging.getLogger(__name__)


def make_policies(settings: PolicySettings) -> PolicyPluginManager:
    """Make the manager, without any plugin."""
    lock = None if settings.lock is None else Lock(path=settings.lock)
    models = frozenset(settings.obligation_models)
    return PolicyPluginManager(isolation=settings.isolation, obligation_models=models, lock=lock)


def policies_for(given: PolicyPluginManager | None, settings: PolicySettings) -> PolicyPluginManager:
    """Return the manager that is given, or make one; raises `ConfigurationError` where it contradicts the settings."""
    if given is None:
        return make_policies(settings)
    _to_take(given, settings)
    return given


def _to_take(manager: PolicyPluginManager, settings: PolicySettings) -> list[str]:
    """Name what the settings say and a manager that was given leaves at its default."""
    wanted, default = _said_by(make_policies(settings)), _said_by(PolicyPluginManager())
    has = _said_by(manager)
    # No lock says nothing: TOML cannot even write it.
    differ = [each for each in wanted if each in settings.model_fields_set and wanted[each] not in (has[each], None)]
    for each in differ:
        if has[each] != default[each]:
            raise ConfigurationError(
                f"policy.{each} of the settings is {wanted[each]!r}, but {each} of the PolicyPluginManager that was given is "
                f"{has[each]!r}: say it in one of them only, or the same in both"
            )
    return differ


def _said_by(manager: PolicyPluginManager) -> dict[str, object]:
    lock = manager.packages.lock
    return {
        "isolation": manager.isolation,
        "obligation_models": sorted(manager.obligation_models),
        "lock": None if lock is None else str(lock.path.resolve()),
    }


def _take(manager: PolicyPluginManager, settings: PolicySettings) -> Callable[[], None]:
    """Have a manager that was given heed the settings; what it loaded before must be as their lock pins it.

    Returns what gives it back its own: the next one's settings may say nothing.
    """
    taken, wanted = _to_take(manager, settings), make_policies(settings)
    before = (manager.packages.lock, manager.isolation, manager.obligation_models)
    if "lock" in taken:
        for name, (file, digest) in manager.loaded_files().items():
            if not file.builtin and replace(file, packages=wanted.packages).read().digest != digest:
                raise ConfigurationError(f"plugin {name!r} was loaded from {file.path} as policy.lock does not pin it")
        manager.packages.lock = wanted.packages.lock
    if "isolation" in taken:  # from what is strictest: what was loaded before is held at least as well
        manager.isolation = wanted.isolation
    if "obligation_models" in taken:
        manager.obligation_models = wanted.obligation_models

    def give_back() -> None:
        manager.packages.lock, manager.isolation, manager.obligation_models = before

    return give_back


async def load_plugins(manager: PolicyPluginManager, settings: PolicySettings) -> list[str]:
    """Load the plugins that the settings name, then those of the folder, and return their names.

    Raises `ConfigurationError` with the plugin that does not load and why; then none of them is left.
    """
    loaded: list[str] = []
    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(manager.packages.together())
            if settings.folder is not None or any(plugin.path is not None for plugin in settings.plugins):
                await stack.enter_async_context(reader_at_hand())
            for plugin in settings.plugins:
                loaded.append((await _loaded(_said(plugin), _load(manager, plugin))).name)  # noqa: PERF401  # kept if one fails
            for at, rule in enumerate(settings.rules, 1):
                loaded.append((await _load_rule(manager, rule, rule_name(rule, at))).name)
            for file in folder_files(manager, settings):
                loaded.append((await _loaded(str(file.path), manager.load_file(file))).name)  # noqa: PERF401  # likewise
    except BaseException:
        for name in loaded:
            await manager.unregister_plugin(name)
        raise
    return loaded


def rule_name(rule: RuleSettings, at: int) -> str:
    """Name the plugin that the settings' rule at this place (from 1) is."""
    return rule.name or f"rule-{at}"


def folder_files(manager: PolicyPluginManager, settings: PolicySettings) -> list[PluginFile]:
    """List the plugins of the settings' folder; raises `ConfigurationError`."""
    if settings.folder is None:
        return []
    isolation = None if manager.isolation == "off" else manager.isolation_options()
    return [replace(file, packages=manager.packages) for file in plugin_files(settings.folder, isolation)]


class PluginUpkeep:
    """The settings' plugins while a gateway runs: loaded, changed files taken up, a blocked loop seen, unloaded.

    Raises `ConfigurationError` for a manager that another one has and has not closed: its plugins would be lent the services of
    the wrong one, and switched by both. And for one that cannot heed the settings any more.
    """

    def __init__(self, manager: PolicyPluginManager, settings: PolicySettings) -> None:
        user = None if manager.used_by is None else manager.used_by()
        if user is not None:
            raise ConfigurationError("another Sark that is not closed has this PolicyPluginManager: give each one of its own")
        self._give_back = _take(manager, settings)
        manager.used_by = ref(self)
        self._manager = manager
        self._settings = settings
        self._watching: list[asyncio.Task[None]] = []
        self._loaded: list[str] = []
        self.rules = RuleWatch(manager, settings.plugins)

    async def load(self) -> None:
        """Load the plugins that the settings name; raises `ConfigurationError`."""
        self._loaded = await load_plugins(self._manager, self._settings)

    def start(self) -> None:
        """Begin to watch, as far as the settings ask for it."""
        settings = self._settings
        if settings.reload_s:
            in_folder = None if settings.folder is None else self._in_folder
            watches = (FileWatch(self._manager, settings.reload_s, in_folder).run(), self.rules.run(settings.reload_s))
            self._watching = [asyncio.ensure_future(each) for each in watches]
        if settings.blocked_after_s:
            self._manager.watch_loop(settings.blocked_after_s)

    async def reload(self, name: str) -> None:
        """Take up the files of a plugin as they are now, in this process.

        Raises `ValueError` for an unknown name, `ConfigurationError` for what cannot be loaded: then the old version stays.
        """
        if name in self.rules:
            await self.rules.reload(name)
        else:
            await self._manager.reload_plugin(name)

    async def aclose(self, drain_s: float = 0) -> None:
        """End, and unload the plugins that were loaded and what the folder has brought since; their rounds have `drain_s`."""
        self._manager.stop_watching()
        for watching in self._watching:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        ends = time.monotonic() + drain_s
        folder = self._settings.folder
        files = self._manager.loaded_files()
        came = [name for name, (file, _) in files.items() if folder is not None and folder in file.path.parents]
        for name in dict.fromkeys((*self._loaded, *came)):
            await self._manager.unregister_plugin(name, max(ends - time.monotonic(), 0))
        await self._manager.retired(max(ends - time.monotonic(), 0))
        self._give_back()
        self._manager.used_by = None

    def _in_folder(self) -> list[PluginFile]:
        return folder_files(self._manager, self._settings)


def missing_layers(manager: PolicyPluginManager) -> tuple[str, ...]:
    """Name the layers of isolation that isolated plugins run without: by best effort, on a system that lacks them."""
    plugins = (manager.get_plugin(listed["name"]) for listed in manager.list_plugins())
    held_by = [getattr(plugin, "hardening", None) for plugin in plugins]
    return tuple(dict.fromkeys(layer for each in held_by for layer in getattr(each, "lacking", ())))


def tell_isolation(manager: PolicyPluginManager, instrumentation: Instrumentation) -> None:
    """Say loudly which layers are missing."""
    missing = missing_layers(manager)
    if missing:
        _log.warning(
            "policy plugins run without these layers of isolation, which this system lacks: %s; one that you do not trust may "
            "get out",
            ", ".join(missing),
        )
    instrumentation.policy_isolation(missing)


def _said(plugin: PluginSettings) -> str:
    return f"plugin {plugin.name or plugin.installed or plugin.path}"


async def _loaded(said: str, loading: Any) -> PolicyPlugin:
    try:
        plugin: PolicyPlugin = await loading
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:  # the plugin boundary: `on_load` may raise anything
        raise ConfigurationError(f"{said} cannot be loaded: {type(error).__name__}: {error}") from error
    return plugin


async def _load(manager: PolicyPluginManager, plugin: PluginSettings) -> PolicyPlugin:
    if plugin.installed is not None:
        made, _ = installed_plugin(plugin.installed, plugin.options)
        await manager.register_plugin(made, plugin.enabled)
        return made
    if plugin.name in RULES:
        made = make_rules(manager, plugin)
        unlisted: frozenset[str] = getattr(made, "models", frozenset()) - manager.obligation_models
        if unlisted:
            models = ", ".join(map(repr, sorted(unlisted)))
            raise UnlistedModelError(f"plugin {made.name!r}: {models} is not among policy.obligation_models of the settings")
        await manager.register_plugin(made, plugin.enabled)
        return made
    return await manager.load_from_file(
        _path(plugin),
        plugin.enabled,
        class_name=plugin.class_name,
        isolated=plugin.isolated,
        isolation=_isolation(manager, plugin),
        **plugin.options,
    )


async def _load_rule(manager: PolicyPluginManager, rule: RuleSettings, name: str) -> PolicyPlugin:
    plugin = rule_plugin(rule, name, manager.obligation_models)
    try:
        await manager.register_plugin(plugin, rule.enabled)
    except ValueError as taken:
        raise ConfigurationError(f"rule {name!r}: {taken}") from taken
    return plugin


def _path(plugin: PluginSettings) -> Path:
    if plugin.path is not None:
        return plugin.path
    assert plugin.name is not None
    if plugin.name not in BUILTIN_PLUGINS:
        known = ", ".join(sorted((*BUILTIN_PLUGINS, *RULES)))
        raise ConfigurationError(f"no plugin {plugin.name!r} comes with sark_mw: one of {known}")
    return builtin_plugin_path(plugin.name)


def _isolation(manager: PolicyPluginManager, plugin: PluginSettings) -> Any:
    if manager.isolation == "off" or plugin.isolated is False or (plugin.name is not None and not plugin.isolated):
        return None
    return manager.isolation_options(
        workers=plugin.workers, stateless=plugin.stateless, memory_bytes=plugin.memory_bytes, preload=plugin.preload
    )
