"""Rules in CEL over HTTP: set for every process, checked before they are, and listed with those of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from sark_mw.admin import inputs
from sark_mw.admin.operation import Asked, Operation
from sark_mw.admin.problem import ProblemError
from sark_mw.enforcement.grants import Why
from sark_mw.enforcement.rules import UnlistedModelError, readable
from sark_mw.enforcement.shared_policies import RuleNameError, SharedRule, TooManyRulesError
from sark_mw.errors import ConfigurationError
from sark_mw.limit_answers import Answer, instant
from sark_mw.plugin_loading import rule_name
from sark_mw.policy.cel import obligations_of
from sark_mw.policy.reloading import NameTakenError
from sark_mw.sark import Sark


class RuleAnswer(Answer):
    """A rule."""

    name: str
    when: str
    deny: str | None = Field(description="The reason that a denied request is told; null where it obliges.")
    oblige: dict[str, Any] | None
    priority: int
    on_error: Literal["deny", "allow", "skip"]
    set_by: Literal["settings", "admin"]
    actor: str = Field(description="Which administrator set it last; empty for the settings.")
    reason: str
    at: datetime | None = Field(description="When; null for the settings.")
    plugin: str = Field(description="The plugin that it is in this process: switch it on and off by this name. Empty: none yet.")
    enabled: bool
    last_error: str = Field(description="Why it failed last, or cannot be used in this process.")


class RulesAnswer(Answer):
    """Those of the settings of this process, then those that administrators set, in the order in which they were set first."""

    rules: tuple[RuleAnswer, ...]


class RuleDoneAnswer(Answer):
    """A rule as it is now, or was until it was dropped."""

    rule: RuleAnswer
    dry_run: bool = False


_Listed = Mapping[str, Mapping[str, Any]]


def _listed(sark: Sark) -> _Listed:
    return {each["name"]: each for each in sark.policies.list_plugins()}


def _answer(sark: Sark, rule: SharedRule, listed: _Listed | None = None) -> RuleAnswer:
    plugin = sark.shared_policies.plugin_of(rule.name)
    enabled, last_error = _told(_listed(sark) if listed is None else listed, plugin)
    return RuleAnswer(
        name=rule.name,
        set_by="admin",
        actor=rule.actor,
        reason=rule.reason,
        at=instant(rule.at_ms),
        plugin=plugin,
        enabled=enabled,
        last_error=last_error,
        **readable(rule.said),
    )


def _told(listed: _Listed, plugin: str) -> tuple[bool, str]:
    each = listed.get(plugin, {})
    return each.get("enabled", False), each.get("last_error", "")


def _of_settings(sark: Sark, listed: _Listed) -> list[RuleAnswer]:
    found = []
    for at, rule in enumerate(sark.settings.policy.rules, 1):
        name = rule_name(rule, at)
        enabled, last_error = _told(listed, name)
        said = rule.model_dump(include={"when", "deny", "oblige", "priority", "on_error"})
        found.append(
            RuleAnswer(
                name=name,
                set_by="settings",
                actor="",
                reason="",
                at=None,
                plugin=name,
                enabled=enabled,
                last_error=last_error,
                **said,
            )
        )
    return found


async def list_rules(sark: Sark, asked: Asked) -> RulesAnswer:
    """List the rules."""
    await sark.shared_policies.refresh()
    listed = _listed(sark)  # once: each listing sorts and describes all plugins
    set_here = (_answer(sark, rule, listed) for rule in sark.shared_policies.rules)
    return RulesAnswer(rules=(*_of_settings(sark, listed), *set_here))


async def put_rule(sark: Sark, asked: Asked) -> RuleDoneAnswer:
    """Set a rule."""
    assert isinstance(asked.query, inputs.PutQuery) and isinstance(asked.body, inputs.RuleBody)
    why, wanted = Why(actor=asked.actor, reason=asked.body.reason), asked.body.to_rule()
    try:
        obligations_of(wanted.oblige or {}, f"rule {asked.name!r}")
    except ConfigurationError as error:
        raise ProblemError(422, str(error), "oblige") from error
    try:
        rule = await sark.shared_policies.set_rule(asked.name, wanted, why, dry_run=asked.query.dry_run)
    except NameTakenError as taken:
        raise ProblemError(409, f"{asked.name!r} is a plugin of this process, or a rule of its settings.", "name") from taken
    except UnlistedModelError as error:
        raise ProblemError(422, f"{error}.", "oblige") from error
    except TooManyRulesError as error:
        raise ProblemError(409, f"{error}.") from error
    except RuleNameError as error:
        raise ProblemError(422, f"{error}.", "name") from error
    except ConfigurationError as error:
        raise ProblemError(422, str(error), "when") from error
    return RuleDoneAnswer(rule=_answer(sark, rule), dry_run=asked.query.dry_run)


async def drop_rule(sark: Sark, asked: Asked) -> RuleDoneAnswer:
    """Drop a rule."""
    assert isinstance(asked.query, inputs.WhyQuery)
    rule = next((each for each in sark.shared_policies.rules if each.name == asked.name), None)
    was = None if rule is None else _answer(sark, rule)
    dropped = await sark.shared_policies.drop_rule(asked.name, Why(actor=asked.actor, reason=asked.query.reason))
    if dropped is None:
        raise ProblemError(404, f"No administrator set a rule {asked.name!r}.", "name")
    return RuleDoneAnswer(rule=was or _answer(sark, dropped))


RULES = (
    Operation(
        method="GET",
        path="/rules",
        summary="List the rules: those of the settings, and those that administrators set.",
        query=inputs.NoQuery,
        answer=RulesAnswer,
        run=list_rules,
    ),
    Operation(
        method="PUT",
        path="/rules/{name}",
        summary="Set a rule in CEL, in every process, for good; one of this name is replaced in one step.",
        query=inputs.PutQuery,
        body=inputs.RuleBody,
        answer=RuleDoneAnswer,
        run=put_rule,
    ),
    Operation(
        method="DELETE",
        path="/rules/{name}",
        summary="Drop a rule that an administrator set.",
        query=inputs.WhyQuery,
        answer=RuleDoneAnswer,
        run=drop_rule,
    ),
)
