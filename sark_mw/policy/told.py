"""Tell observers what plugins decided and what became of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol, runtime_checkable

from sark_mw.policy.base import PluginBreakerObserver, PluginLifeObserver, PolicyDecision, PolicyObserver
from sark_mw.policy.entries import Entry

logger = logging.getLogger(__name__)


@runtime_checkable
class HasBreaker(Protocol):
    """A plugin that is not asked while its workers keep dying; states are those of `PluginBreakerObserver`."""

    breaker_state: int
    on_breaker: Callable[[int], None] | None


class Told:
    """Whoever is told; what an observer raises is logged and forgotten."""

    def __init__(self, observer: PolicyObserver | None) -> None:
        self.observers: tuple[PolicyObserver, ...] = () if observer is None else (observer,)

    def observe(self, observer: PolicyObserver, entries: Sequence[Entry]) -> None:
        """Tell one more, once; also how the breakers of these stand."""
        if any(each is observer for each in self.observers):
            return
        self.observers = (*self.observers, observer)
        for entry in entries:
            if entry.loaded:
                self.follow(entry)

    def decided(self, decision: PolicyDecision) -> None:
        """Tell of a decision."""
        assert decision.plugin_name is not None and decision.outcome is not None
        for observer in self.observers:
            try:
                observer.plugin_evaluated(decision.plugin_name, decision.outcome, decision.duration_ms / 1000)
            except Exception:
                logger.exception("a policy observer failed")

    def follow(self, entry: Entry) -> None:
        """Tell whenever the plugin's breaker changes, if it has one; now too, if it is not closed."""
        if isinstance(entry.plugin, HasBreaker):
            entry.plugin.on_breaker = partial(self._breaker_changed, entry.name)
            if entry.plugin.breaker_state:
                self._breaker_changed(entry.name, entry.plugin.breaker_state)

    def leave(self, entry: Entry) -> None:
        """Tell nothing more of a plugin's breaker: the plugin is gone."""
        if isinstance(entry.plugin, HasBreaker) and entry.plugin.on_breaker is not None:
            entry.plugin.on_breaker = None
            if entry.plugin.breaker_state:
                self._breaker_changed(entry.name, 0)

    def _breaker_changed(self, name: str, state: int) -> None:
        for observer in self.observers:
            try:
                if isinstance(observer, PluginBreakerObserver):
                    observer.plugin_breaker_changed(name, state)
            except Exception:
                logger.exception("a policy observer failed")

    def life(self, event: Literal["plugin_loaded", "plugin_blocked"], name: str, what: str | float) -> None:
        """Tell what became of a plugin."""
        for observer in self.observers:
            try:
                if isinstance(observer, PluginLifeObserver):
                    getattr(observer, event)(name, what)
            except Exception:
                logger.exception("a policy observer failed")
