"""Keep AI and API gateways within budget."""

from __future__ import annotations

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import (
    BudgetReader,
    PolicyContext,
    PolicyDecision,
    PolicyObserver,
    PolicyOutcome,
    PolicyPlugin,
    PolicyServices,
    SharedStore,
)
from sark_mw.policy.builtin import builtin_plugin_path
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.policy.window import RollingWindow

__all__ = [
    "BudgetReader",
    "ConfigurationError",
    "PolicyContext",
    "PolicyDecision",
    "PolicyEvaluationError",
    "PolicyObserver",
    "PolicyOutcome",
    "PolicyPlugin",
    "PolicyPluginManager",
    "PolicyServices",
    "RollingWindow",
    "SharedStore",
    "builtin_plugin_path",
]
