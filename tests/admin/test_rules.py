"""Rules over HTTP: set for every process, checked first, listed with those of the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sark_mw.enforcement.grants import Why
from sark_mw.ledger.events import EventKind
from tests.admin.conftest import Admin, MakeAdmin
from tests.enforcement.whole import until

RULE = {"when": 'request.model.startsWith("gpt-4") && request.estimated_usd > 1.0', "deny": "use the small model"}
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1_000_000}
CHAT = {"headers": {"content-type": "application/json", "authorization": "Bearer sk-1"}, "content": json.dumps(BODY)}


def nested(levels: int) -> Any:
    """Make lists in lists."""
    value: Any = "tag:a"
    for _ in range(levels):
        value = [value]
    return value


JSON = {"content-type": "application/json"}


async def refusal(admin: Admin) -> str:
    """Make the dear request; return the reason of its refusal, empty where it passed."""
    answer = await admin.client.post("/v1/chat/completions", **CHAT)
    assert answer.status_code in (403, 418), answer.text
    return "" if answer.status_code == 418 else str(answer.json()["error"]["message"])


async def test_a_rule_is_set_seen_and_dropped_and_it_is_recorded_who_did_it(make: MakeAdmin) -> None:
    admin = await make(budget=None)
    headers = {"x-sark-actor": "jane"}
    assert await refusal(admin) == ""
    done = await admin.ask("PUT", "/rules/small-model", json={**RULE, "reason": "costs"}, headers=headers)
    rule = done["rule"]
    said = {"actor": "jane", "reason": "costs", "set_by": "admin", "plugin": "small-model", "enabled": True, "priority": 100}
    assert rule.items() >= {**RULE, **said, "on_error": "deny", "last_error": ""}.items()
    assert "use the small model" in await refusal(admin)
    assert (await admin.ask("GET", "/rules"))["rules"] == [rule]
    assert [each["name"] for each in (await admin.ask("GET", "/plugins"))["plugins"]] == ["small-model"]
    await admin.ask("POST", "/plugins/small-model/disable")
    assert await refusal(admin) == "" and not (await admin.ask("GET", "/rules"))["rules"][0]["enabled"]
    await admin.ask("POST", "/plugins/small-model/enable")
    assert await refusal(admin)
    dropped = await admin.ask("DELETE", "/rules/small-model", params={"reason": "cheaper now"}, headers=headers)
    assert dropped["rule"]["name"] == "small-model" and await refusal(admin) == ""
    assert (await admin.ask("GET", "/rules"))["rules"] == []
    await admin.ask("DELETE", "/rules/small-model", status=404)
    events = (await admin.ask("GET", "/events", params={"kind": "rule"}))["events"]
    assert [(each["actor"], each["reason"], each["detail"]["rule"]) for each in events] == [
        ("jane", "cheaper now", "small-model"),
        ("jane", "costs", "small-model"),
    ]
    assert events[0]["detail"]["set"] is None and events[1]["detail"]["set"]["when"] == RULE["when"]


async def test_a_rule_holds_in_every_process_within_a_second_and_after_a_restart(make: MakeAdmin) -> None:
    url = f"memory://{uuid4().hex}"
    here, there = await make(url, budget=None), await make(url, budget=None)
    await here.ask("PUT", "/rules/small-model", json=RULE)

    async def refused_there() -> bool:
        return await refusal(there) != ""

    await until(refused_there)
    assert await refusal(await make(url, budget=None)) != ""


async def test_a_rule_may_oblige(make: MakeAdmin) -> None:
    admin = await make(budget=None)
    rule = {"when": "request.output_limit > 100", "oblige": {"cap_output_tokens": 100, "add_tag": ["tag:a", "tag:b"]}}
    done = await admin.ask("PUT", "/rules/short", json=rule)
    assert done["rule"]["oblige"] == rule["oblige"] and done["rule"]["deny"] is None
    assert await refusal(admin) == ""
    (decision,) = await _judged(admin)
    assert {(each.kind, each.value) for each in decision.obligations} == {
        ("cap_output_tokens", 100),
        ("add_tag", "tag:a"),
        ("add_tag", "tag:b"),
    }


async def _judged(admin: Admin) -> Any:
    from sark_mw.policy.base import PolicyContext

    environment = {"model": "gpt-4o", "output_limit": 1000}
    context = PolicyContext("user:a", "openai", "chat", "invoke", {"max_tokens": 1000}, environment)
    return await admin.sark.policies.evaluate_all(context)


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"when": "request.modell == 1", "deny": "no"}, "when", "undeclared reference"),
        ({"when": "request.model", "deny": "no"}, "when", "must be true or false"),
        ({"when": "scopes.all(a, scopes.all(b, scopes.all(c, scopes.all(d, a == d))))", "deny": "no"}, "when", "steps"),
        ({"when": 'time.getHours("Europe/Nowhere") < 6', "deny": "no"}, "when", "no time zone"),
        ({"when": "true"}, None, "either deny or oblige"),
        ({"when": "true", "deny": "a", "oblige": {"add_tag": "tag:a"}}, None, "either deny or oblige"),
        ({"when": "true", "deny": "a\0b"}, None, "NUL"),
        ({"when": "true", "oblige": {"add_tag": ["x" * 5000]}}, None, "a few things"),
        ({"when": "true", "oblige": {"cap_output_tokens": "many"}}, "oblige", "whole number"),
        ({"when": "true", "oblige": {"cap_output_tokens": 0.5}}, "oblige", "whole number"),
        ({"when": "true", "oblige": {"cap_output_tokens": 5_000_000_000}}, "oblige", "whole number"),
        ({"when": "true", "oblige": {"use_model": []}}, "oblige", "nothing"),
        ({"when": "true", "oblige": {"add_tag": [["tag:a"]]}}, None, "a list of them"),
        ({"when": "true", "oblige": {"add_tag": nested(500)}}, None, "a list of them"),
        ({"when": "true", "oblige": {"use_model": "gpt-9"}}, "oblige", "obligation_models"),
        ({"when": "true", "oblige": {"explode": 1}}, "oblige.explode.[key]", ""),
        ({"when": "true", "deny": "no", "priority": 1.5}, "priority", ""),
        ({"when": "true", "deny": "no", "on_error": "shrug"}, "on_error", ""),
        ({"when": "true", "deny": "no", "shadow": True}, "shadow", "no such field"),
        ({"deny": "no"}, "when", ""),
    ],
)
async def test_what_cannot_be_a_rule_is_refused_with_the_field(admin: Admin, body: Any, field: str | None, says: str) -> None:
    problem = await admin.ask("PUT", "/rules/some", json=body, status=422)
    assert problem.get("field") == field and says in problem["detail"], problem
    assert (await admin.ask("GET", "/rules"))["rules"] == []
    assert (await admin.ask("GET", "/events", params={"kind": "rule"}))["events"] == []


@pytest.mark.parametrize("number", ["1E+400000", "-1E+400000", "1E-400000", "1E+9999999999999999999999", "0.5"])
async def test_a_number_that_is_short_to_write_and_long_to_reckon_with_is_refused(admin: Admin, number: str) -> None:
    body = f'{{"when": "true", "oblige": {{"cap_output_tokens": {number}}}}}'
    await admin.ask("PUT", "/rules/some", content=body, headers=JSON, status=400 if len(number) > 20 else 422)


async def test_a_name_that_cannot_be_or_is_taken_is_refused(make: MakeAdmin, tmp_path: Path) -> None:
    rules = [{"name": "night", **RULE}, RULE]
    admin = await make(budget=None, policy={"rules": rules, "plugins": [{"name": "allow_list"}]})
    for name in ("a b", "x" * 101, "ü"):
        assert (await admin.ask("PUT", f"/rules/{name}", json=RULE, status=422))["field"] == "name"
    for name in ("night", "rule-2", "allow_list"):
        assert (await admin.ask("PUT", f"/rules/{name}", json=RULE, status=409))["field"] == "name"
    await admin.ask("DELETE", "/rules/night", status=404)
    found = (await admin.ask("GET", "/rules"))["rules"]
    assert [(each["name"], each["set_by"], each["enabled"]) for each in found] == [
        ("night", "settings", True),
        ("rule-2", "settings", True),
    ]


async def test_all_rules_are_told_of_with_one_listing_of_the_plugins(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        await admin.ask("PUT", f"/rules/r{number}", json=RULE)
    listed, listings = admin.sark.policies.list_plugins, 0

    def counting() -> list[dict[str, Any]]:
        nonlocal listings
        listings += 1
        return listed()

    monkeypatch.setattr(admin.sark.policies, "list_plugins", counting)
    assert len((await admin.ask("GET", "/rules"))["rules"]) == 3
    assert listings == 1


async def test_there_are_only_so_many_rules(admin: Admin) -> None:
    shared, why = admin.sark.shared_policies, Why()
    events = [shared._event(EventKind.RULE, {"rule": f"r{n}", "set": RULE}, why) for n in range(200)]
    await admin.sark.ledger.record_new(events)
    await admin.ask("PUT", "/rules/another", json=RULE, status=409)
    await admin.ask("PUT", "/rules/r7", json=RULE)
    await admin.ask("DELETE", "/rules/r8")
    await admin.ask("PUT", "/rules/another", json=RULE)


async def test_a_dry_run_sets_nothing(admin: Admin) -> None:
    done = await admin.ask("PUT", "/rules/some", params={"dry_run": "true"}, json=RULE)
    assert done["dry_run"] and done["rule"]["plugin"] == "" and not done["rule"]["enabled"]
    assert (await admin.ask("GET", "/rules"))["rules"] == []


async def test_rules_are_for_administrators(admin: Admin) -> None:
    for method, path in (("GET", "/rules"), ("PUT", "/rules/a"), ("DELETE", "/rules/a")):
        await admin.ask(method, path, status=401, token=None)
