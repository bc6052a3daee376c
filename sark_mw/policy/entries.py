"""A plugin as its manager keeps it, and the plugins that are asked, in their order."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sark_mw.errors import ConfigurationError
from sark_mw.policy.base import PolicyPlugin
from sark_mw.policy.files import PluginFile, PluginSource
from sark_mw.policy.needs import Lens, lens_for
from sark_mw.policy.packages import Manifest

logger = logging.getLogger(__name__)

ON_ERROR = ("deny", "allow", "skip")


class Asking(Protocol):
    """A round of decisions that is under way."""

    def runs_in(self, task: object) -> bool:
        """Tell whether this task is one of those that ask."""


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """One registered plugin; `file` is where it was loaded from, `digest` the hash of what it was made of then."""

    name: str
    version: str
    plugin: PolicyPlugin
    priority: int
    enabled: bool
    #: As it was registered, whatever an administrator switched since.
    by_default: bool
    concurrent: bool
    isolated: bool
    lens: Lens | None
    file: PluginFile | None = None
    digest: str = ""
    manifest: Manifest | None = None
    loaded: bool = False
    #: Among those of its priority; equal places are in the order of registration.
    place: int = 0
    failures: int = 0
    abandoned: int = 0
    last_error: str = ""
    #: What keeps it from describing itself, told in the log once.
    undescribed: str = ""
    stuck: list[tuple[object, ...]] = field(default_factory=list)
    #: It was loaded from a file, or has something to let go of: whoever began with it is served before it is unloaded.
    tracked: bool
    #: The rounds that may still ask it; kept if it is tracked.
    rounds: set[Asking] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Chain:
    """The enabled plugins in the order in which they are judged."""

    entries: tuple[Entry, ...] = ()
    #: Those whose rounds are kept.
    tracked: tuple[Entry, ...] = ()
    #: None of them is asked at the same time as others, and none is tracked: asking is a loop.
    plain: bool = True
    needs_limits: bool = False


def chain_of(entries: Iterable[Entry]) -> Chain:
    """Put the plugins in order: by priority and place, equal ones as they were registered."""
    # Python's sort is stable and dicts keep their order.
    ordered = tuple(sorted(entries, key=lambda entry: (entry.priority, entry.place)))
    tracked = tuple(entry for entry in ordered if entry.tracked)
    plain = not tracked and not any(entry.concurrent for entry in ordered)
    asks = any(entry.lens is not None and "limits" in entry.lens.environment.named for entry in ordered)
    return Chain(ordered, tracked, plain, asks)


def entry_of(plugin: PolicyPlugin, enabled: bool, source: PluginSource | None = None) -> Entry:
    """Check what a plugin says of itself; raises `ConfigurationError` naming it and what makes no sense."""
    if not isinstance(plugin, PolicyPlugin):
        raise TypeError(f"a plugin must be an instance of a PolicyPlugin subclass, not {plugin!r}")
    name, priority, timeout, on_error = plugin.name, plugin.priority, plugin.timeout, plugin.on_error
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"the name of a plugin must be a string that is not empty, not {name!r}")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ConfigurationError(f"plugin {name!r}: priority must be a whole number, not {priority!r}")
    if on_error not in ON_ERROR:
        raise ConfigurationError(f"plugin {name!r}: on_error must be 'deny', 'allow' or 'skip', not {on_error!r}")
    if timeout is not None and not (isinstance(timeout, (int, float)) and math.isfinite(timeout) and timeout > 0):
        raise ConfigurationError(f"plugin {name!r}: timeout must be a number of seconds above 0, not {timeout!r}")
    isolated = plugin.isolated is True
    try:
        lens = lens_for(plugin.needs, isolated=isolated)
    except ConfigurationError as error:
        raise ConfigurationError(f"plugin {name!r}: {error}") from error
    return Entry(
        name=name,
        version=str(plugin.version),
        plugin=plugin,
        priority=priority,
        enabled=enabled,
        by_default=enabled,
        concurrent=plugin.concurrent is True,
        isolated=isolated,
        lens=lens,
        file=None if source is None else source.file,
        digest="" if source is None else source.digest,
        manifest=None if source is None else source.manifest,
        tracked=source is not None or type(plugin).on_unload is not PolicyPlugin.on_unload,
    )


def described(entry: Entry) -> dict[str, Any]:
    """Describe a plugin for listings: by what is known of it, then by what it says of itself, whatever that is.

    What the manager acts on is told as it is, whatever the plugin calls it.
    """
    plugin = entry.plugin
    # As one that cannot say these is asked: see `judging`.
    acted_on = {"name": entry.name, "priority": entry.priority}
    acted_on |= {"timeout": _read(plugin, "timeout", None), "on_error": _read(plugin, "on_error", "deny")}
    known = {"version": entry.version, "description": ""} | _said(entry, lambda: PolicyPlugin.get_metadata(plugin))
    told = known | _said(entry, plugin.get_metadata) | acted_on | {"enabled": entry.enabled}
    if entry.file is not None:
        told |= {"source": str(entry.file.path), "isolated": entry.isolated, "digest": entry.digest}
    layers = getattr(_read(plugin, "hardening", None), "layers", None)
    if isinstance(layers, Mapping):
        told["hardening"] = dict(layers)
    if error := entry.last_error or entry.undescribed:
        told["last_error"] = error
    return told


def _read(plugin: PolicyPlugin, name: str, otherwise: Any) -> Any:
    try:
        return getattr(plugin, name)
    except (Exception, SystemExit):  # noqa: BLE001  # the plugin's own property
        return otherwise


def _said(entry: Entry, get_metadata: Callable[[], Any]) -> dict[str, Any]:
    try:
        said = get_metadata()
        if not isinstance(said, Mapping):
            raise TypeError(f"it returned {type(said).__name__}, not a mapping")
        return dict(said)
    except (Exception, SystemExit) as error:  # the plugin boundary: the listing is for the others too
        if not entry.undescribed:  # once: health checks list, too
            logger.warning("policy plugin %r cannot describe itself", entry.name, exc_info=error)
        entry.undescribed = f"get_metadata(): {type(error).__name__}"
        return {}
