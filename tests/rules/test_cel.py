from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from sark_mw import ConfigurationError, PolicyEvaluationError, PolicyPluginManager
from sark_mw.policy.base import LimitFigures, Obligation, PolicyContext, PolicyDecision
from sark_mw.policy.cel import CelPlugin
from tests.rules.requests import Limits, a_limit, a_request, lending

THE_ISSUE = 'request.model.startsWith("gpt-4") && budget("team").used > 0.8'


async def judged(when: str, context: PolicyContext | None = None, *figures: LimitFigures) -> PolicyDecision:
    plugin = CelPlugin([{"when": when, "deny": "use the small model"}])
    plugin.bind(lending(*figures))
    return await plugin.evaluate(context or a_request())


async def applies(when: str, context: PolicyContext | None = None, *figures: LimitFigures) -> bool:
    return not (await judged(when, context, *figures)).allowed


def complaint(when: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        CelPlugin([{"when": when, "deny": "no", "name": "mine"}])
    return str(refused.value)


async def test_the_rule_of_the_issue_denies_the_dear_model_when_the_team_has_spent_its_budget():
    decision = await judged(THE_ISSUE, a_request("gpt-4o"), a_limit(spent=81))
    assert (decision.allowed, decision.reason) == (False, "use the small model")
    assert await applies(THE_ISSUE, a_request("gpt-4o"), a_limit(spent=70, held=11)), "what is held counts as used"
    assert not await applies(THE_ISSUE, a_request("gpt-4o"), a_limit(spent=80))
    assert not await applies(THE_ISSUE, a_request("claude-haiku"), a_limit(spent=99))


@pytest.mark.parametrize(
    "when",
    [
        'request.provider == "openai" && request.action == "chat" && request.capability == "chat"',
        'request.resource.endsWith("ai") && principal == "user:alice"',
        "request.estimated_usd > 0.19 && request.estimated_usd < 0.21",
        "request.stream && request.output_limit == 100",
        'request.arguments.tools.exists(t, t.function.name.matches("^delete_"))',
        "has(request.arguments.seed) && request.arguments.seed == 7 && !has(request.arguments.nothing)",
        'request.arguments["seed"] > 6.5',
        '"team:ml" in scopes && scopes.exists(s, s.startsWith("user:")) && scopes.size() == 3',
        '"experiment" in tags && tags.size() == 1',
        'time.getHours("Europe/Berlin") == 13 && time.getDayOfWeek("Europe/Berlin") == 3 && time.getHours() == 12',
        'time < timestamp("2026-11-25T12:00:01Z") && time + duration("1s") >= timestamp("2026-11-25T12:00:01Z")',
        "spend == 90.0 && remaining == 8.0",
        'budget("team").amount == 100.0 && budget("team:ml").spent == 90.0 && budget("team").held == 2.0',
        'budget("user").used < 0.2 && budget("user").remaining == 9.0',
    ],
)
async def test_rules_read_the_request_the_principal_scopes_tags_time_and_budgets(when: str):
    request = a_request(
        scopes=("user:alice", "team:ml", "tag:experiment"),
        stream=True,
        max_tokens=100,
        seed=7,
        tools=[{"function": {"name": "read_file"}}, {"function": {"name": "delete_file"}}],
    )
    figures = (
        a_limit(spent=90, held=2),
        a_limit("user:alice", amount=10, spent=1),
        a_limit("team:ml", unit="requests", spent=999),
    )
    assert await applies(when, request, *figures)


async def test_of_several_budgets_the_one_with_the_highest_share_counts():
    figures = (a_limit("team:ml", spent=10), a_limit("team:web", spent=90))
    assert await applies('budget("team").used == 0.9', a_request(), *figures)


async def test_a_limit_that_refuses_nothing_is_no_budget_unless_it_is_the_only_one_of_a_name():
    tried = a_limit("team:ml", amount=10, spent=99, enforced=False)
    figures = (tried, a_limit("team:ml", spent=10))
    assert await applies('spend == 10.0 && remaining == 90.0 && budget("team").used == 0.1', a_request(), *figures)
    assert await applies('budget("team").spent == 99.0', a_request(), tried)
    with pytest.raises(PolicyEvaluationError):
        await applies("spend > 1.0", a_request(), tried)


async def test_a_time_without_a_zone_is_read_as_utc_and_one_with_a_zone_as_it_is():
    naive, berlin = a_request(), a_request()
    naive.timestamp = datetime(2026, 11, 25, 12)
    berlin.timestamp = datetime(2026, 11, 25, 13, tzinfo=ZoneInfo("Europe/Berlin"))
    assert await applies("time.getHours() == 12", naive)
    assert await applies("time.getHours() == 12", berlin)


async def test_the_first_rule_that_denies_decides_and_obligations_add_up_before_it():
    rules: list[dict[str, Any]] = [
        {"when": "true", "oblige": {"cap_output_tokens": 500, "add_tag": ["tag:a", "tag:b"]}, "name": "short"},
        {"when": 'request.model == "o1"', "deny": "not this one", "name": "no-o1"},
        {"when": "true", "oblige": {"use_model": "gpt-4o-mini"}, "name": "small"},
    ]
    plugin = CelPlugin(rules)
    allowed = await plugin.evaluate(a_request())
    assert allowed.allowed
    assert allowed.metadata == {"rules": ["short", "small"]}
    assert allowed.obligations == (
        Obligation("cap_output_tokens", 500),
        Obligation("add_tag", "tag:a"),
        Obligation("add_tag", "tag:b"),
        Obligation("use_model", "gpt-4o-mini"),
    )
    denied = await plugin.evaluate(a_request("o1"))
    assert (denied.allowed, denied.reason, denied.metadata, denied.obligations) == (False, "not this one", {"rule": "no-o1"}, ())


@pytest.mark.parametrize(
    "when",
    [
        'budget("customer").used > 0.8',
        "request.arguments.seed > 1",
        "request.arguments.model",
        "1 / request.output_limit > 0",
        "request.arguments.model > 7",
        "9223372036854775807 + request.arguments.n > 0",
        "spend > 1.0",
        "timestamp(request.model) > time || request.arguments.nothing == 1",
        "dyn(request.model)",
    ],
)
async def test_an_error_is_an_error_and_never_an_answer(when: str):
    if when in ("request.arguments.model", "dyn(request.model)"):
        assert "must be true or false" in complaint(when), "what is not surely true or false is refused at the start"
        return
    with pytest.raises(PolicyEvaluationError, match="rules#1"):
        await judged(when, a_request(n=1))


@pytest.mark.parametrize(("on_error", "allowed"), [("deny", False), ("allow", True), ("skip", True)])
async def test_on_error_decides_for_a_rule_that_cannot_be_evaluated(on_error: str, allowed: bool):
    manager = PolicyPluginManager(services=lending())
    await manager.register_plugin(CelPlugin([{"when": 'budget("team").used > 0.8', "deny": "no"}], on_error=on_error))
    assert [decision.allowed for decision in await manager.evaluate_all(a_request())] == [allowed]


async def test_where_the_request_decides_already_an_error_beside_it_does_not_matter():
    assert await applies('budget("customer").used > 0.8 || request.model == "gpt-4o"')


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ('request.modell == "x"', "rule 'mine' at line 1, column 8: undeclared reference to 'request.modell'"),
        ("true &&\n  nobody == 1", "rule 'mine' at line 2, column 3: undeclared reference to 'nobody'"),
        ("request == 1", "line 1, column 1: undeclared reference to 'request'"),
        ("request.model.length > 1", "column 14: expression of type 'string' cannot be the operand"),
        ("request.model == 1", "column 15: found no matching overload"),
        ("request.estimated_usd > 1", "write amounts as 1.0"),
        ("request.model ==", "Syntax error"),
        ("request.model", "is of type STRING, and must be true or false"),
        ('budget("team").share > 0.5', "column 15: budget() has no 'share': one of amount, spent, held, remaining, used"),
        ('time.getHours("Mars/Olympus") > 1', "column 14: no time zone 'Mars/Olympus' is known"),
        ('request.model.matches("(")', "invalid regular expression"),
        ('request.model == "a" && has(request.model)', "request.model is always there"),
        ("", "needs `when`"),
    ],
)
def test_a_mistake_is_told_at_the_start_with_the_rule_and_the_place(when: str, told: str):
    assert told in complaint(when)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"when": "true"}, "either `deny`"),
        ({"when": "true", "deny": "no", "oblige": {"add_tag": "a"}}, "either `deny`"),
        ({"when": "true", "deny": 1}, "in words"),
        ({"when": "true", "oblige": {"explode": 1}}, "no obligation 'explode'"),
        ({"when": "true", "oblige": {"cap_output_tokens": "many"}}, "whole number"),
        ({"when": "true", "oblige": {"cap_output_tokens": True}}, "whole number"),
        ({"when": "true", "oblige": {"cap_output_tokens": 2**31 + 1}}, "from 1 to 2147483648, not 2147483649"),
        ({"when": "true", "oblige": {"add_tag": ""}}, "takes a name"),
        ({"when": "true", "oblige": {"add_tag": "tag:" + "x" * 197}}, "1 to 200 printable"),
        ({"when": "true", "oblige": {"add_tag": ["tag:a", "tag:a\nb"]}}, "printable"),
        ({"when": "true", "oblige": {"add_tag": "tag:a\u200bb"}}, "printable"),
        ({"when": "true", "oblige": {"add_tag": [f"tag:{n}" for n in range(17)]}}, "16 things at most, not 17"),
        ({"when": "true", "oblige": {"add_tag": []}}, "obliges to nothing"),
        ({"when": "true", "oblige": {"use_model": []}}, "obliges to nothing"),
        ({"when": "true", "oblige": {}}, "either `deny`"),
        ({"when": "true", "oblige": {"require_scope": "team:" + "x" * 300}}, "1 to 200 printable"),
        ({"when": "true", "oblige": {"require_scope": "team:"}}, "takes a scope"),
        ({"when": "true", "deny": "no", "unless": "false"}, "knows no 'unless'"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, Any], told: str):
    with pytest.raises(ConfigurationError, match=told):
        CelPlugin([rule])


@pytest.mark.parametrize(
    "oblige",
    [
        {"cap_output_tokens": 2**31},
        {"add_tag": "tag:" + "x" * 196},
        {"add_tag": [f"tag:{n}" for n in range(15)], "require_scope": "team:" + "x" * 195},
    ],
)
async def test_what_is_taken_as_a_rule_can_be_obliged_to(oblige: dict[str, Any]):
    manager = PolicyPluginManager()
    await manager.register_plugin(CelPlugin([{"when": "true", "oblige": oblige}]))
    (decision,) = await manager.evaluate_all(a_request())
    assert decision.allowed and decision.obligations and "error" not in (decision.metadata or {})


async def test_limits_are_only_read_by_rules_that_speak_of_them():
    limits = Limits(a_limit(spent=90))
    plain = CelPlugin([{"when": 'request.model == "x"', "deny": "no"}])
    plain.bind(lending())
    asking = CelPlugin([{"when": "spend > 1.0", "deny": "no"}, {"when": 'budget("team").used > 0.1', "deny": "no"}])
    for plugin in (plain, asking):
        services = lending()
        object.__setattr__(services, "limits", limits)
        plugin.bind(services)
    await plain.evaluate(a_request())
    assert limits.asked == []
    await asking.evaluate(a_request())
    assert limits.asked == [("acme", ("user:alice", "team:ml"))], "one look for all its rules"


async def test_a_gateway_that_lends_no_figures_is_an_error_and_not_an_empty_budget():
    plugin = CelPlugin([{"when": "spend > 1.0", "deny": "no"}])
    with pytest.raises(PolicyEvaluationError, match="no figures"):
        await plugin.evaluate(a_request())
