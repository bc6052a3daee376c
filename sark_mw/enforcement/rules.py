"""Rules without code as plugins: made of what settings and administrators write."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from pydantic import ValidationError

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import ObligationKind, PolicyContext, PolicyDecision, PolicyPlugin
from sark_mw.policy.entries import ON_ERROR
from sark_mw.policy.named import NamedPlugin
from sark_mw.settings_policy import RuleSettings


def rule_plugin(rule: RuleSettings, name: str, models: Set[str]) -> PolicyPlugin:
    """Compile a rule; raises `ConfigurationError` with the place of what is wrong. `models` are those it may oblige to use."""
    from sark_mw.policy.cel import CelPlugin, obligations_of

    for each in obligations_of(rule.oblige or {}, f"rule {name!r}"):
        if each.kind == ObligationKind.USE_MODEL and each.value not in models:
            raise UnlistedModelError(f"rule {name!r}: {each.value!r} is not among policy.obligation_models of the settings")
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
    except Exception as error:  # noqa: BLE001  # another version wrote it: whatever it does here, the process starts and it denies
        said = f"{type(error).__name__}: {error}"
    return UnusableRule(rule, name, said)


def readable(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can be told of a rule, whoever wrote it: the fields of `RuleSettings` that are what they should be."""
    deny, oblige, priority, on_error = (rule.get(field) for field in ("deny", "oblige", "priority", "on_error"))
    told = oblige if isinstance(oblige, Mapping) and all(_is_plain(each) for each in oblige.values()) else None
    return {
        "when": _text(rule.get("when", "")),
        "deny": _text(deny) if isinstance(deny, str) else None,
        "oblige": {_text(kind): _plain(value) for kind, value in told.items()} if told is not None else None,
        "priority": priority if type(priority) is int else 100,
        "on_error": on_error if isinstance(on_error, str) and on_error in ON_ERROR else "deny",
    }


def _is_plain(value: object) -> bool:
    return all(isinstance(each, (str, int)) for each in (value if isinstance(value, (list, tuple)) else (value,)))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return _text(value) if isinstance(value, str) else value


def _text(said: object) -> str:
    """Write a text that any encoding takes."""
    return str(said).encode("utf-8", "replace").decode()


class UnusableRule(NamedPlugin):
    """Stand for a rule that this process cannot evaluate: it fails, so that its `on_error` decides."""

    def __init__(self, rule: Mapping[str, Any], name: str, why: str) -> None:
        told = readable(rule)
        super().__init__(name, told["priority"], told["on_error"])
        self.why = _text(why)

    @property
    def description(self) -> str:
        return f"cannot be used in this process: {self.why}"

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        raise PolicyEvaluationError(f"rule {self._name!r} cannot be used in this process: {self.why}", plugin_name=self._name)
