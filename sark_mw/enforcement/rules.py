"""Rules without code as plugins: made of what settings and administrators write."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from pydantic import ValidationError

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import PolicyContext, PolicyDecision, PolicyPlugin
from sark_mw.policy.entries import ON_ERROR
from sark_mw.settings_policy import RuleSettings


def rule_plugin(rule: RuleSettings, name: str, models: Set[str]) -> PolicyPlugin:
    """Compile a rule; raises `ConfigurationError` with the place of what is wrong. `models` are those it may oblige to use."""
    from sark_mw.policy.cel import CelPlugin

    wanted = (rule.oblige or {}).get("use_model")
    for model in wanted if isinstance(wanted, (list, tuple)) else [] if wanted is None else [wanted]:
        if model not in models:
            raise UnlistedModelError(f"rule {name!r}: {model!r} is not among policy.obligation_models of the settings")
    said = {"when": rule.when, "name": name, **({"deny": rule.deny} if rule.deny else {"oblige": rule.oblige})}
    return CelPlugin([said], name, priority=rule.priority, on_error=rule.on_error)


class UnlistedModelError(ConfigurationError):
    """A rule obliges to a model that the settings do not list."""


def usable_or_not(rule: Mapping[str, Any], name: str, models: Set[str]) -> PolicyPlugin:
    """Compile a rule that is in force elsewhere; one that cannot be used here fails at every request instead."""
    try:
        return rule_plugin(RuleSettings.model_validate(rule), name, models)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ConfigurationError as error:
        said = str(error)
    return UnusableRule(rule, name, said)


class UnusableRule(PolicyPlugin):
    """Stand for a rule that this process cannot evaluate: it fails, so that its `on_error` decides."""

    def __init__(self, rule: Mapping[str, Any], name: str, why: str) -> None:
        priority, on_error = rule.get("priority"), rule.get("on_error")
        self._name, self.why = name, why
        self._priority = priority if type(priority) is int else 100
        self._on_error = on_error if isinstance(on_error, str) and on_error in ON_ERROR else "deny"

    @property
    def name(self) -> str:
        return self._name

    @property
    def description(self) -> str:
        return f"cannot be used in this process: {self.why}"

    @property
    def priority(self) -> int:
        return self._priority

    @property
    def on_error(self) -> str:
        return self._on_error

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        raise PolicyEvaluationError(f"rule {self._name!r} cannot be used in this process: {self.why}", plugin_name=self._name)
