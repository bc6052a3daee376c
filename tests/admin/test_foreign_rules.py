"""Rules that another version wrote: whatever they say, a process starts with them, lists them, and lets them be dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sark_mw.ledger.events import EventKind, LimitEvent
from sark_mw.ledger.open import open_ledger
from sark_mw.limit import DEFAULT_ROOT
from tests.admin.conftest import MakeAdmin
from tests.admin.test_rules import RULE, refusal


async def written(tmp_path: Path, detail: Any) -> None:
    """Write an event of a rule into the database of the processes to come."""
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    await ledger.migrate()
    event_id, text = f"rule:{uuid4().hex}", json.dumps(detail)
    event = LimitEvent(event_id=event_id, kind=EventKind.RULE, root=DEFAULT_ROOT, at_ms=1, actor="a", detail_json=text)
    await ledger.record_new([event])
    await ledger.aclose()


@pytest.mark.parametrize(
    "said",
    [
        {**RULE, "on_error": "warn"},
        {**RULE, "on_error": ["deny"]},
        {**RULE, "priority": "high"},
        {"when": {"all": []}, "deny": "no"},
        {"when": "true", "deny": {"text": "no", "code": 7}},
        {"when": "true", "deny": "\ud800", "priority": "high"},
        {"when": "true", "oblige": [{"kind": "add_tag", "value": "tag:x"}]},
        {"when": "true", "oblige": {"add_tag": [[[["x"]]]]}},
        {"when": "true", "oblige": {"use_model": {"a": 1}}},
        {"when": "true", "oblige": {"use_model": [["a"]]}},
        {"when": "true", "oblige": {"\ud800": ["\ud800"]}},
        [["when", "x"]],
        [],
        "a rule",
    ],
)
async def test_a_rule_of_another_version_denies_is_listed_and_can_be_dropped(make: MakeAdmin, tmp_path: Path, said: Any) -> None:
    await written(tmp_path, {"rule": "foreign", "set": said})
    admin = await make(budget=None)
    assert "cannot be asked" in await refusal_or_unavailable(admin)
    (rule,) = (await admin.ask("GET", "/rules"))["rules"]
    assert (rule["name"], rule["on_error"], rule["priority"]) == ("foreign", "deny", 100) and rule["last_error"]
    (plugin,) = (await admin.ask("GET", "/plugins"))["plugins"]
    assert plugin["name"] == "foreign"
    assert (await admin.ask("DELETE", "/rules/foreign"))["rule"]["name"] == "foreign"
    assert await refusal(admin) == ""


@pytest.mark.parametrize("name", ["", None, "\ud800", "a\0b", "a b", 7, ["x"]])
async def test_an_event_with_a_name_that_no_rule_can_have_is_passed_over(make: MakeAdmin, tmp_path: Path, name: Any) -> None:
    await written(tmp_path, {"rule": name, "set": {"when": "true", "deny": "no"}})
    await written(tmp_path, {"rule": "good", "set": {"when": "false", "deny": "no"}})
    admin = await make(budget=None)
    assert [rule["name"] for rule in (await admin.ask("GET", "/rules"))["rules"]] == ["good"]
    assert await refusal(admin) == ""


async def refusal_or_unavailable(admin: Any) -> str:
    """Make a request that a rule fails at; return what is said."""
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
    answer = await admin.client.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer sk-1"})
    assert answer.status_code == 503, answer.text
    return str(answer.json()["error"]["message"])
