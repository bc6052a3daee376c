"""Rules and policies as the settings name them, through to the answer that a caller gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sark_mw import ConfigurationError
from sark_mw._fake_provider import FakeProvider
from sark_mw.settings import Settings
from tests.asgi.driving import Gateway, gateway_for
from tests.rules.opa_server import opa_server

ROOT = Path(__file__).parents[2]
THE_ISSUE = 'request.model.startsWith("gpt-4") && budget("user").used > 0.8'


PRINCIPAL = {"anonymous": "user:a"}


def settings_with(folder: Path, budget: float = 1.0, **policy: Any) -> Settings:
    return Settings.of(
        {
            "principal": PRINCIPAL,
            "ledger": {"flush": False},
            "store": {"journal": str(folder / "journal.jsonl"), "deadline_ms": 20_000},
            "observe": {"metrics": False, "audit_log": False},
            "limits": ({"scope": "user:a", "amount": budget},),
            "policy": policy,
        }
    )


async def asked(gateway: Gateway, model: str = "gpt-4o", **changes: Any) -> tuple[int, str]:
    body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}], **changes}
    answer = await gateway.post(body)
    return answer.status, answer.json.get("error", {}).get("message", "")


async def test_a_rule_of_the_settings_denies_on_the_wire_by_what_the_budget_has_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sark_mw.enforcement.limit_figures.MAX_AGE_S", 0)
    settings = settings_with(tmp_path, budget=0.001, rules=({"when": THE_ISSUE, "deny": "use the small model", "name": "small"},))
    async with gateway_for(FakeProvider(), settings) as gateway:
        assert (await asked(gateway))[0] == 200
        answers = [await asked(gateway, max_tokens=1) for _ in range(20)]
    assert answers[-1] == (403, "Denied by policy small: use the small model")


RUN = {"x-sark-run": "admin", "x-sark-run-budget": "0.3"}


async def test_a_caller_hides_no_spending_behind_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sark_mw.enforcement.limit_figures.MAX_AGE_S", 0)
    rules = (
        {"when": "spend > 0.5", "deny": "half of it is spent"},
        {"when": "remaining < 0.01", "deny": "hardly anything is left"},
    )
    async with gateway_for(FakeProvider(), settings_with(tmp_path, rules=rules)) as gateway:
        async with gateway.sark.reserve(principal="user:a", run="admin", run_budget="0.3", estimate="0.294") as reservation:
            reservation.settle("0.294")  # 98 % of the run's budget
        assert (await gateway.post(headers=RUN)).status == 200, "of user:a two thirds are left"
        async with gateway.sark.reserve(principal="user:a", estimate="0.6") as reservation:
            reservation.settle("0.6")
        await gateway.quiet()
        for headers in ({}, RUN):
            assert (await gateway.post(headers=headers)).status == 403


async def test_a_caller_names_nothing_into_the_scopes_by_its_run(tmp_path: Path):
    rules = ({"when": '!scopes.exists(s, s.contains("admin"))', "deny": "admins only"},)
    async with gateway_for(FakeProvider(), settings_with(tmp_path, rules=rules)) as gateway:
        for headers in ({}, RUN, {"x-sark-end-user": "admin"}, {"x-sark-tags": "admin"}):
            assert (await gateway.post(headers=headers)).status == 403


async def test_a_rule_reads_a_runs_budget_by_its_name_and_no_parent_that_only_an_end_user_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sark_mw.enforcement.limit_figures.MAX_AGE_S", 0)
    rules = (
        {"when": 'budget("run").amount == 0.3', "deny": "a run", "on_error": "skip"},
        {"when": 'budget("end_user").amount == 1.5 && remaining == 19.0 && budget("org").amount == 20.0', "deny": "bob"},
    )
    settings = settings_with(tmp_path, rules=rules)
    limits = [
        *settings.model_dump()["limits"],
        {"scope": "end_user:bob", "amount": 1.5, "parent": "org:of-bob"},
        {"scope": "org:of-bob", "amount": 2},
        {"scope": "org:ours", "amount": 20},
    ]
    settings = Settings.of(
        {**settings.model_dump(), "limits": limits, "principal": {**PRINCIPAL, "default_scopes": ("org:ours",)}}
    )
    async with gateway_for(FakeProvider(), settings) as gateway:
        async with gateway.sark.reserve(principal="user:b", scopes=["org:of-bob"], estimate="1") as reservation:
            reservation.settle("1")
        assert "a run" in (await gateway.post(headers=RUN)).json["error"]["message"]
        assert "bob" in (await gateway.post(headers={"x-sark-end-user": "bob"})).json["error"]["message"]


async def test_a_rule_obliges_and_the_provider_gets_no_more_than_it_grants(tmp_path: Path):
    rules = ({"when": "request.output_limit > 20", "oblige": {"cap_output_tokens": 20}},)
    provider = FakeProvider(mean_words=500)
    async with gateway_for(provider, settings_with(tmp_path, budget=100, rules=rules)) as gateway:
        assert (await asked(gateway, max_tokens=400))[0] == 200
    assert provider.calls[0].usage.output_tokens <= 20


async def test_rules_are_named_by_their_place_and_one_that_is_switched_off_is_not_asked(tmp_path: Path):
    rules = (
        {"when": "true", "deny": "never", "enabled": False},
        {"when": "false", "deny": "no", "priority": 5, "on_error": "skip"},
    )
    async with gateway_for(FakeProvider(), settings_with(tmp_path, rules=rules)) as gateway:
        listed = gateway.sark.policies.list_plugins()
        assert [(each["name"], each["enabled"], each["priority"], each["on_error"]) for each in listed] == [
            ("rule-2", True, 5, "skip"),
            ("rule-1", False, 100, "deny"),
        ]
        assert (await asked(gateway))[0] == 200


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"when": "request.modell == 1", "deny": "no", "name": "typo"}, "rule 'typo' at line 1, column 8"),
        ({"when": "true", "oblige": {"cap_output_tokens": "many"}}, "rule 'rule-1': cap_output_tokens takes a whole number"),
        ({"when": "true"}, "either deny or oblige"),
        ({"when": "true", "deny": "no", "oblige": {"add_tag": "tag:a"}}, "either deny or oblige"),
        ({"when": "true", "oblige": {"explode": 1}}, "explode"),
    ],
)
async def test_a_rule_that_cannot_be_refuses_the_start(tmp_path: Path, rule: dict[str, Any], told: str):
    with pytest.raises(ConfigurationError, match=told):
        async with gateway_for(FakeProvider(), settings_with(tmp_path, rules=(rule,))):
            raise AssertionError("it started")


USES_MINI = {"when": "true", "oblige": {"use_model": "gpt-4o-mini"}}


@pytest.mark.parametrize("policy", [{"rules": (USES_MINI,)}, {"plugins": ({"name": "cel", "options": {"rules": [USES_MINI]}},)}])
async def test_rules_that_oblige_to_a_model_that_is_not_listed_refuse_the_start_however_they_are_written(
    tmp_path: Path, policy: dict[str, Any]
):
    with pytest.raises(ConfigurationError, match=r"'gpt-4o-mini' is not among policy\.obligation_models"):
        async with gateway_for(FakeProvider(), settings_with(tmp_path, **policy)):
            raise AssertionError("it started")
    listed = settings_with(tmp_path, budget=100, obligation_models=("gpt-4o-mini",), **policy)
    async with gateway_for(FakeProvider(), listed) as gateway:
        assert (await asked(gateway))[0] == 200


async def test_two_rules_of_one_name_refuse_the_start(tmp_path: Path):
    rule = {"when": "true", "deny": "no", "name": "same"}
    with pytest.raises(ConfigurationError, match="same"):
        async with gateway_for(FakeProvider(), settings_with(tmp_path, rules=(rule, rule))):
            raise AssertionError("it started")


async def test_opa_rego_and_wasm_are_plugins_of_the_settings(tmp_path: Path):
    policy = (
        'package sark\nimport rego.v1\ndecision := {"allow": false, "reason": "says OPA"} if input.model == "o1"\nelse := true'
    )
    (tmp_path / "all.rego").write_text(policy.replace("OPA", "Rego").replace('"o1"', '"gpt-4.1"'))
    async with opa_server(policy=policy) as opa:
        plugins = (
            {"name": "opa", "options": {"url": opa.url, "timeout": 5}},
            {"name": "rego", "options": {"path": str(tmp_path / "all.rego"), "deadline_s": 5}},
            {"name": "wasm", "options": {"path": str(ROOT / "plugins/wasm/small_model.wat"), "deadline_s": 5}},
        )
        async with gateway_for(FakeProvider(), settings_with(tmp_path, budget=100, plugins=plugins)) as gateway:
            assert await asked(gateway, "o1") == (403, "Denied by policy opa: says OPA")
            assert await asked(gateway, "gpt-4.1") == (403, "Denied by policy rego: says Rego")
            assert await asked(gateway, "gpt-4o") == (403, "Denied by policy wasm: use the small model")
            assert (await asked(gateway, "o3"))[0] == 200


async def test_a_policy_that_dies_is_unavailable_and_not_a_denial(tmp_path: Path):
    (tmp_path / "loop.wat").write_text(
        '(module (memory (export "memory") 1) (func (export "alloc") (param i32) (result i32) (i32.const 0))'
        ' (func (export "evaluate") (param i32 i32) (result i64) (loop $l (br $l)) (i64.const 0)))'
    )
    plugins = ({"name": "wasm", "options": {"path": str(tmp_path / "loop.wat"), "deadline_s": 5, "fuel": 100_000}},)
    async with gateway_for(FakeProvider(), settings_with(tmp_path, plugins=plugins)) as gateway:
        assert (await asked(gateway))[0] == 503
