"""Policies that are no Python, as the settings name them: made of their files, and taken up anew when these change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from sark_mw.errors import ConfigurationError
from sark_mw.policy.base import PolicyPlugin
from sark_mw.policy.files import PluginFile, stamp_of
from sark_mw.policy.loading import built
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.policy.reloading import OvertakenError
from sark_mw.settings import PluginSettings

_log = logging.getLogger(__name__)

#: Policies without code of one's own: each is a class of sark_mw, imported when it is used, as some need more than the base.
RULES = {
    "cel": "sark_mw.policy.cel:CelPlugin",
    "opa": "sark_mw.policy.opa:OpaPlugin",
    "rego": "sark_mw.policy.rego:RegoPlugin",
    "wasm": "sark_mw.policy.wasm:WasmPlugin",
}


def make_rules(manager: PolicyPluginManager, plugin: PluginSettings) -> PolicyPlugin:
    """Make the plugin of what the settings say and its files hold; raises `ConfigurationError`."""
    assert plugin.name is not None
    read: dict[str, bytes] = {}
    for path in rule_files(plugin):
        contents = PluginFile(path=path).contents()
        manager.packages.admit(path, contents)
        read[path.name] = contents.source
    module, _, class_name = RULES[plugin.name].partition(":")
    try:
        plugin_class = getattr(import_module(module), class_name)
    except ImportError as error:
        hint = f"pip install 'sark-mw[{plugin.name}]'"
        raise ConfigurationError(f"plugin {plugin.name!r} needs more than is installed: {error}; {hint}") from error
    # Of what the lock let in: the files may be others by now.
    options = {**_held(manager, plugin), **({"contents": read} if read else {})}
    return built(plugin_class, f"plugin {plugin.name!r}", options)


def rule_files(plugin: PluginSettings) -> list[Path]:
    """Name the files that a policy in Rego or WebAssembly is made of: a lock pins them like those of plugins."""
    path = plugin.options.get("path") if plugin.name in RULES else None
    if not isinstance(path, str | Path):
        return []
    return sorted(Path(path).glob("*.rego")) if Path(path).is_dir() else [Path(path)]


def _held(manager: PolicyPluginManager, plugin: PluginSettings) -> Mapping[str, Any]:
    """Rego runs in processes that are held as those of plugins are; the settings say what happens where they cannot be."""
    if plugin.name != "rego" or manager.isolation == "require":
        return plugin.options
    return {"hardening": "best-effort", **plugin.options}


class RuleWatch:
    """Look at the files of these policies now and then; one that cannot be loaded anew stays as it is, and says so."""

    def __init__(self, manager: PolicyPluginManager, plugins: Sequence[PluginSettings]) -> None:
        self._manager = manager
        self._plugins = {str(each.options.get("name") or each.name): each for each in plugins if rule_files(each)}
        self._seen = {name: _stamps(each) for name, each in self._plugins.items()}
        #: One reload at a time, so that the last one has read the files last.
        self._lock = asyncio.Lock()

    def __contains__(self, name: str) -> bool:
        """Tell whether a plugin is made of such files."""
        return name in self._plugins

    async def run(self, every_s: float) -> None:
        """Look until cancelled; whatever goes wrong, it is looked again."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look()
            except Exception:  # noqa: BLE001  # one look must not end all looks to come
                _log.exception("the files of policies could not be looked at")

    async def look(self) -> None:
        """Take up what has changed."""
        for name, plugin in self._plugins.items():
            stamps = await asyncio.to_thread(_stamps, plugin)
            if self._seen[name] == stamps:
                continue
            self._seen[name] = stamps
            with suppress(ConfigurationError):  # told of already; the old version stays, until a file changes again
                await self.reload(name)

    async def reload(self, name: str) -> None:
        """Make a policy anew of its files; raises `ConfigurationError` where the old one stays, or none is there."""
        async with self._lock:
            await self._reload(name)

    async def _reload(self, name: str) -> None:
        if self._manager.get_plugin(name) is None:
            raise ConfigurationError(f"plugin {name!r} is not registered any more")
        try:
            plugin = await asyncio.to_thread(make_rules, self._manager, self._plugins[name])
            if self._manager.get_plugin(name) is None:
                raise OvertakenError(f"plugin {name!r} was removed while its new version was made")
            await self._manager.put_plugin(plugin)
        except OvertakenError:
            self._seen[name] = ()  # perhaps by an older version: the next look takes the files up again
            raise
        except Exception as error:  # the plugin boundary: engines raise what they like
            self._manager.load_failed(name, error)
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(f"plugin {name!r}: {type(error).__name__}: {error}") from error
        _log.info("policy plugin %r was loaded anew", name)


def _stamps(plugin: PluginSettings) -> tuple[tuple[Path, tuple[int, ...]], ...]:
    return tuple((path, stamp_of(path)) for path in rule_files(plugin))
