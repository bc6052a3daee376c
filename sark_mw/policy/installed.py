"""Plugins that installed packages bring: trusted like every other package of the gateway, they run in its process."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from sark_mw.errors import ConfigurationError
from sark_mw.policy.base import PolicyPlugin
from sark_mw.policy.loading import built

#: The entry point group under which a package names its plugin classes.
GROUP = "sark_mw.plugins"


def installed_plugins() -> dict[str, str]:
    """Name the plugins that installed packages bring, each with where it comes from; nothing of them is imported."""
    return {found.name: _origin(found) for found in entry_points(group=GROUP)}


def installed_plugin(name: str, options: Mapping[str, Any]) -> tuple[PolicyPlugin, str]:
    """Import an installed plugin and build it; returns it with where it comes from. Raises `ConfigurationError`."""
    found = [each for each in entry_points(group=GROUP) if each.name == name]
    if not found:
        known = ", ".join(sorted(installed_plugins())) or "none"
        raise ConfigurationError(f"no installed package brings a plugin {name!r} (entry point group {GROUP}); there are: {known}")
    origins = {_origin(each) for each in found}
    if len(origins) > 1:
        raise ConfigurationError(f"several installed packages bring a plugin {name!r}: {', '.join(sorted(origins))}")
    origin = origins.pop()
    try:
        plugin_class = found[0].load()
    except Exception as error:  # the plugin boundary: whatever the package raises
        reason = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"the plugin {name!r} of {origin} cannot be imported: {reason}") from error
    if not (inspect.isclass(plugin_class) and issubclass(plugin_class, PolicyPlugin)) or inspect.isabstract(plugin_class):
        raise ConfigurationError(f"{origin} is no usable PolicyPlugin class: {plugin_class!r}")
    return built(plugin_class, origin, options), origin


def _origin(found: Any) -> str:
    package = f"{found.dist.name} {found.dist.version}" if found.dist is not None else "an unknown package"
    return f"{found.value} of {package}"
