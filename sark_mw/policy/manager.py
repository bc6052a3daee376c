"""Hold the plugins of one gateway and ask them, in order, until one denies."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import ReferenceType

from sark_mw.errors import ConfigurationError
from sark_mw.policy.asking import Round, ask
from sark_mw.policy.base import PolicyContext, PolicyDecision, PolicyObserver, PolicyPlugin, PolicyServices
from sark_mw.policy.builtin import names_builtin, resolved_builtin
from sark_mw.policy.entries import Chain, Entry, chain_of, described, entry_of
from sark_mw.policy.files import PluginFile
from sark_mw.policy.loading import forget_module
from sark_mw.policy.packages import Lock, Packages
from sark_mw.policy.reloading import NameTakenError, OvertakenError
from sark_mw.policy.renewing import DRAIN_S, Retiring, renewed, retire
from sark_mw.policy.told import Told
from sark_mw.policy.watchdog import Watchdog

if TYPE_CHECKING:
    from sark_mw.policy.isolated import IsolationOptions

logger = logging.getLogger(__name__)

IsolationMode = Literal["require", "best-effort", "off"]


class PolicyPluginManager:
    """The plugins of one gateway: registered, ordered by priority, asked until one denies.

    May be built outside an event loop and used in several. Evaluations that are under way see the plugins as they were
    when they began, whatever is registered, replaced or disabled meanwhile.

    `isolation` is for plugins from files: `require` what holds them in processes of their own, take what the system has
    (`best-effort`), or run them in this one (`off`). `obligation_models` are those that a decision may oblige to use.
    """

    def __init__(
        self,
        observer: PolicyObserver | None = None,
        services: PolicyServices | None = None,
        *,
        isolation: IsolationMode = "require",
        obligation_models: frozenset[str] = frozenset(),
        lock: Lock | None = None,
    ) -> None:
        self.isolation: IsolationMode = isolation
        self.obligation_models = obligation_models
        self._entries: dict[str, Entry] = {}
        self.packages = Packages(lock, self._entries)
        self._chain = Chain()
        self._switches: dict[str, bool] = {}
        self._told = Told(observer)
        self._services = services or PolicyServices()
        self._lock = threading.Lock()
        self._retiring = Retiring()
        self._watchdog: Watchdog | None = None
        #: Whoever lends it services and switches its plugins; one at a time.
        self.used_by: ReferenceType[object] | None = None

    @property
    def active(self) -> bool:
        """Tell whether there is anybody to ask."""
        return bool(self._chain.entries)

    @property
    def needs_limits(self) -> bool:
        """Tell whether a plugin asks for `environment.limits`, which cost a look into the store."""
        return self._chain.needs_limits

    def observe(self, observer: PolicyObserver) -> None:
        """Tell `observer` of every decision from now on, once."""
        self._told.observe(observer, tuple(self._entries.values()))

    def bind(self, services: PolicyServices) -> None:
        """Lend `services` to every plugin, those that are registered later included."""
        self._services = services
        for entry in tuple(self._entries.values()):
            entry.plugin.bind(services)

    # --- which plugins there are -------------------------------------------------------------------------------------

    async def register_plugin(self, plugin: PolicyPlugin, enabled: bool = True) -> None:
        """Add a plugin; its `on_load` has ended when this returns.

        Raises `ValueError` for a name that is taken, `ConfigurationError` for attributes that make no sense, and whatever
        `on_load` raises: then nothing of the plugin is left.
        """
        await self._register(entry_of(plugin, enabled))

    async def unregister_plugin(self, name: str, drain_s: float = DRAIN_S) -> None:
        """Remove a plugin, its rounds have `drain_s`; an unknown name is nothing, a failing `on_unload` is logged."""
        entry = self._entries.get(name)
        if entry is None or not entry.loaded:
            return
        self._drop(entry)
        await retire(entry, drain_s)
        if entry.file is not None:
            self._told.life("plugin_loaded", name, "unloaded")

    async def load_from_file(
        self,
        path: Path | str,
        enabled: bool = True,
        *,
        class_name: str | None = None,
        isolated: bool | None = None,
        isolation: IsolationOptions | None = None,
        **options: Any,
    ) -> PolicyPlugin:
        """Load a Python file and register the one plugin class that it defines, built with `options`.

        It runs in a process of its own that can do nothing but judge, by `isolation`. With `isolated=False` (the default for
        what comes with sark_mw, and where the manager's `isolation` is `off`) it runs inside this process and can do whatever
        the gateway can: only for files that you trust. `class_name` says which class where there are several. Raises
        `ConfigurationError` with the file and the reason; a failure leaves nothing behind.
        """
        path, named = Path(path), names_builtin(Path(path))
        own = resolved_builtin(path)
        if isolated is None:
            isolated = self.isolation != "off" and own is None
        if isolated and self.isolation == "off":
            raise ConfigurationError(f"{path} is to be isolated, but isolation is off")
        if isolated and isolation is None:
            isolation = self.isolation_options()
        where = PluginFile(path=own or path, class_name=class_name, isolation=isolation if isolated else None, builtin=named)
        return await self.load_file(replace(where, options=options), enabled)

    def isolation_options(self, **changes: Any) -> IsolationOptions:
        """Make the options of isolated plugins, by this manager's `isolation`."""
        from sark_mw.policy.isolated import IsolationOptions

        mode: Any = self.isolation
        return replace(IsolationOptions(mode=mode), **changes)

    async def load_file(self, file: PluginFile, enabled: bool = True) -> PolicyPlugin:
        """Load what a `PluginFile` describes; see `load_from_file`."""
        source = await asyncio.to_thread(replace(file, packages=self.packages).read)
        plugin = await source.build()
        try:
            entry = entry_of(plugin, enabled, source)
            await self._register(entry)
        except BaseException:
            forget_module(type(plugin))
            raise
        self._told.life("plugin_loaded", entry.name, "loaded")
        return plugin

    async def reload_plugin(self, name: str, file: PluginFile | None = None) -> None:
        """Take up the file of a plugin as it is now, or the one that has come in its place, without losing a request.

        The old version serves the rounds that began with it, and is unloaded after them. Raises `ValueError` for an unknown
        name and `ConfigurationError` for a version that cannot be loaded: then the old one stays, and `list_plugins` says why.
        """
        old = self._entries.get(name)
        if old is None or not old.loaded:
            raise ValueError(f"plugin {name!r} is not registered")
        if old.file is None:
            raise ConfigurationError(f"plugin {name!r} was not loaded from a file")
        try:
            new = await renewed(old, old.file if file is None else replace(file, packages=self.packages), self._services)
        except (Exception, SystemExit) as error:  # the plugin boundary: the new version's own code
            self.load_failed(name, error)
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(f"plugin {name!r}: {type(error).__name__}: {error}") from error
        await self._swap(old, new)
        logger.info("policy plugin %r was loaded anew: version %s", name, new.version)
        self._told.life("plugin_loaded", name, "reloaded")

    async def put_plugin(self, plugin: PolicyPlugin, enabled: bool = True) -> None:
        """Register a plugin, in one step in the place of one of its name that came as an object too.

        Every round of decisions asks the old one or the new one; a new one that does not load leaves the old one in place, and is
        asked or not as that was: `enabled` is for one that is new. Raises what `register_plugin` raises, `ValueError` where the
        name is that of a plugin from a file, `OvertakenError` where the old one was replaced or removed meanwhile.
        """
        old = self._entries.get(plugin.name)
        if old is None:
            await self.register_plugin(plugin, enabled)
            return
        if old.file is not None or not old.loaded:
            raise NameTakenError(plugin.name)
        new = entry_of(plugin, enabled)
        plugin.bind(self._services)
        await plugin.on_load()
        await self._swap(old, new)

    async def retired(self, drain_s: float = DRAIN_S) -> None:
        """Wait until every version that was replaced is unloaded; their rounds have at most `drain_s` from now on."""
        await self._retiring.ended(drain_s)

    def load_failed(self, name: str, error: BaseException) -> None:
        """Note that a file could not be loaded: in the log, with the observers, and in `list_plugins` of what stays."""
        logger.error("policy plugin %r could not be loaded anew: %s: %s", name, type(error).__name__, error)
        entry = self._entries.get(name)
        if entry is not None:
            entry.last_error = f"{type(error).__name__}: {error}"
        self._told.life("plugin_loaded", name, "failed")

    def loaded_files(self) -> Mapping[str, tuple[PluginFile, str]]:
        """Name the plugins that came from files, each with its file and the hash of what it was made of."""
        entries = tuple(self._entries.values())
        return {entry.name: (entry.file, entry.digest) for entry in entries if entry.file is not None and entry.loaded}

    def enable_plugin(self, name: str) -> None:
        """Ask this plugin from now on; raises `ValueError` for an unknown one."""
        if name not in self._entries:
            raise ValueError(f"plugin {name!r} is not registered")
        self._switch(name, on=True)

    def disable_plugin(self, name: str) -> None:
        """Do not ask this plugin any more; an unknown one is not asked anyway."""
        self._switch(name, on=False)

    def switch_plugins(self, switches: Mapping[str, bool]) -> None:
        """Let plugins be asked or not by name, however they were registered; those that come later too.

        What is not named any more is as it was registered; what is named as it was before is left as it is by now.
        """
        changed = {name for name in {*self._switches, *switches} if self._switches.get(name) != switches.get(name)}
        self._switches = dict(switches)
        for name in changed:
            entry = self._entries.get(name)
            if entry is not None:
                entry.enabled = switches.get(name, entry.by_default)
        self._order()

    def order_plugins(self, names: Iterable[str]) -> None:
        """Ask these after all others of their priority, and in this order, however they were registered."""
        for place, name in enumerate(names, 1):
            if (entry := self._entries.get(name)) is not None:
                entry.place = place
        self._order()

    def asked_by_default(self, name: str) -> bool:
        """Tell whether a plugin is there and asked unless somebody switches it off."""
        entry = self._entries.get(name)
        return entry is not None and entry.by_default

    def get_plugin(self, name: str) -> PolicyPlugin | None:
        """Return the plugin of this name, or None."""
        entry = self._entries.get(name)
        return None if entry is None or not entry.loaded else entry.plugin

    def list_plugins(self, enabled_only: bool = False) -> list[dict[str, Any]]:
        """Describe the plugins in the order in which they are asked: their metadata, `enabled`, and what there is of these.

        `source` and `isolated` of those from files, `last_error` of those that failed or whose new version did not load.
        """
        loaded = chain_of(entry for entry in tuple(self._entries.values()) if entry.loaded).entries
        return [described(entry) for entry in loaded if entry.enabled or not enabled_only]

    def abandoned(self, name: str) -> int:
        """Count the evaluations of a plugin that went on after their deadline and had to be dropped."""
        entry = self._entries.get(name)
        return 0 if entry is None else entry.abandoned

    # --- asking them -------------------------------------------------------------------------------------------------

    async def evaluate_all(
        self,
        context: PolicyContext,
        timeout: float = 5.0,  # noqa: ASYNC109  # promised
        chain_timeout: float | None = None,
    ) -> list[PolicyDecision]:
        """Ask the enabled plugins in order of priority until one denies; return their decisions, the denial last.

        `timeout` in seconds is that of each plugin without one of its own, `chain_timeout` that of all together. Whatever a
        plugin does, this returns: a time-out or an exception is decided by the plugin's `on_error`.
        """
        chain = self._chain
        if not chain.plain or chain_timeout is not None:
            return await Round(chain, context, timeout, self.obligation_models, chain_timeout).run(self._told.decided)
        decisions = []
        for entry in chain.entries:
            decision = await ask(entry, context, timeout, self.obligation_models)
            decisions.append(decision)
            if self._told.observers:
                self._told.decided(decision)
            if not decision.allowed:
                break
        return decisions

    def watch_loop(self, after_s: float) -> None:
        """Name, from now on, each plugin that blocks the running event loop for longer than `after_s`."""
        self.stop_watching()
        self._watchdog = Watchdog(after_s, lambda name, seconds: self._told.life("plugin_blocked", name, seconds))
        self._watchdog.start()

    def stop_watching(self) -> None:
        """Watch the loop no more."""
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None

    # --- keeping them ------------------------------------------------------------------------------------------------

    async def _register(self, entry: Entry) -> None:
        with self._lock:
            if entry.name in self._entries:
                raise NameTakenError(entry.name)
            # Taken from here on, so that two registrations at the same time cannot both load.
            self._entries[entry.name] = entry
            entry.enabled = self._switches.get(entry.name, entry.by_default)
        try:
            entry.plugin.bind(self._services)
            await entry.plugin.on_load()
        except BaseException:
            self._drop(entry)
            raise
        entry.loaded = True
        self._told.follow(entry)
        self._order()

    async def _swap(self, old: Entry, new: Entry) -> None:
        """Put a loaded version in the place of another, in one step."""
        with self._lock:
            current = self._entries.get(old.name) is old
            if current:
                new.enabled, new.by_default, new.place, new.loaded = old.enabled, old.by_default, old.place, True
                self._entries[old.name] = new
        if not current:
            await retire(new)
            raise OvertakenError(f"plugin {old.name!r} was replaced or removed while its new version was loaded")
        self._told.leave(old)
        self._told.follow(new)
        self._order()
        self._retiring.begin(old)

    def _switch(self, name: str, *, on: bool) -> None:
        entry = self._entries.get(name)
        if entry is not None:
            entry.enabled = on
            self._order()

    def _drop(self, entry: Entry) -> None:
        with self._lock:
            if self._entries.get(entry.name) is entry:
                del self._entries[entry.name]
        self._told.leave(entry)
        self._order()

    def _order(self) -> None:
        with self._lock:
            self._chain = chain_of(entry for entry in tuple(self._entries.values()) if entry.loaded and entry.enabled)
