"""Tell observers what plugins decided and what became of them."""

from __future__ import annotations

import logging
from typing import Literal

from sark_mw.policy.base import PluginLifeObserver, PolicyDecision, PolicyObserver

logger = logging.getLogger(__name__)


class Told:
    """Whoever is told; what an observer raises is logged and forgotten."""

    def __init__(self, observer: PolicyObserver | None) -> None:
        self.observers: tuple[PolicyObserver, ...] = () if observer is None else (observer,)

    def decided(self, decision: PolicyDecision) -> None:
        """Tell of a decision."""
        assert decision.plugin_name is not None and decision.outcome is not None
        for observer in self.observers:
            try:
                observer.plugin_evaluated(decision.plugin_name, decision.outcome, decision.duration_ms / 1000)
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
