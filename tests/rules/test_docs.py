"""The examples of docs/policies.md do what they say."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from sark_mw._fake_provider import FakeProvider
from sark_mw.policy.base import Obligation
from sark_mw.policy.cel import CelPlugin
from sark_mw.policy.cel_values import BUDGET_FIELDS, VARIABLES
from sark_mw.policy.document import document_of
from sark_mw.policy.rego import RegoPlugin
from sark_mw.settings import Settings
from tests.asgi.driving import gateway_for
from tests.rules.processes import loaded
from tests.rules.requests import a_limit, a_request, lending

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/policies.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def blocks(word: str) -> list[str]:
    found = [text for kind, text in BLOCKS if kind == word]
    assert found
    return found


@pytest.mark.parametrize("text", blocks("toml"), ids=lambda text: text.splitlines()[1][:30])
async def test_the_settings_start_a_gateway(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    quiet = {"ledger": {"flush": False}, "observe": {"metrics": False, "audit_log": False}}
    store = {"journal": str(tmp_path / "journal.jsonl"), "deadline_ms": 20_000}
    settings = Settings.of({**tomllib.loads(text), **quiet, "store": store})
    async with gateway_for(FakeProvider(), settings) as gateway:
        assert gateway.sark.policies.list_plugins(enabled_only=True)


async def test_the_rules_of_the_settings_deny_and_oblige():
    dear, night = tomllib.loads(blocks("toml")[0])["policy"]["rules"]
    plugin = CelPlugin([{key: dear[key] for key in ("when", "deny", "name")}])
    plugin.bind(lending(a_limit(spent=90)))
    assert (await plugin.evaluate(a_request())).reason == "use the small model"
    plugin = CelPlugin([{key: night[key] for key in ("when", "oblige", "name")}])
    context = a_request()
    assert (await plugin.evaluate(context)).obligations == ()
    context.timestamp = context.timestamp.replace(hour=2)
    assert (await plugin.evaluate(context)).obligations == (
        Obligation("cap_output_tokens", 500),
        Obligation("add_tag", "tag:night"),
    )


@pytest.mark.parametrize("when", blocks("cel")[0].splitlines())
async def test_what_people_write_is_true_of_one_request_and_false_of_another(when: str):
    plugin = CelPlugin([{"when": when, "deny": "no"}])
    tools = [{"function": {"name": "delete_user"}}]
    bad = a_request(scopes=("user:alice",), temperature=1.5, tools=tools)
    bad.environment["estimated_nanos"] = 5_000_000_000
    good = a_request("gpt-4o-mini", ("user:alice", "team:ml", "tag:approved"), temperature=0.5, max_tokens=100, tools=[])
    plugin.bind(lending(a_limit(spent=99)))
    assert not (await plugin.evaluate(bad)).allowed
    assert (await plugin.evaluate(good)).allowed


def test_the_page_names_every_variable():
    for name in (*VARIABLES, *(f".{name}" for name in BUDGET_FIELDS)):
        assert f"`{name}`" in PAGE, name


def test_the_input_is_as_shown():
    shown = json.loads(blocks("json")[0])
    assert json.loads(json.dumps(document_of(a_request(), [a_limit(spent=90)]))) == shown


@pytest.mark.parametrize(("model", "spent", "allowed"), [("gpt-4o", 90, False), ("gpt-4o", 50, True), ("o1", 90, True)])
async def test_the_rego_policy_does_the_same_as_the_first_rule(model: str, spent: int, allowed: bool):
    async with loaded(RegoPlugin(blocks("rego")[0]), a_limit(spent=spent)) as plugin:
        assert (await plugin.evaluate(a_request(model))).allowed is allowed


@pytest.mark.parametrize("to", re.findall(r"\]\(([^)#:]+)\)", PAGE))
def test_the_links_lead_somewhere(to: str):
    assert (ROOT / "docs" / to).exists()


def test_the_sections_that_the_page_points_to_are_there():
    titles = {title.lower().replace(" ", "-").replace(",", "") for title in re.findall(r"^##+ (.+)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= titles
