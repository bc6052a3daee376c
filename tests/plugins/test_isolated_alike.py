"""What the README says runs isolated decides there as it does in the gateway's own process."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sark_mw import ConfigurationError, PolicyContext, PolicyDecision, PolicyPluginManager, builtin_plugin_path
from sark_mw._fake_provider import FakeProvider
from sark_mw.policy.isolated.zygote_process import hold_zygote, release_zygote
from tests.asgi.driving import gateway_for, settings_for
from tests.policy.samples import a_context

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
PNG = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
SEARCH = {"type": "additional_tools", "tools": [{"type": "web_search"}]}
ADDITION = {"type": "tool_addition", "tool": {"definition": {"name": "web_search"}}}


def said(*parts: object) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


#: Bodies with something to object to wherever a dialect can have it.
BODIES: dict[str, dict[str, Any]] = {
    "plain": {"model": "gpt-4o", "max_tokens": 10, "messages": [said("hello")]},
    "image": {"model": "gpt-4o", "max_tokens": 10, "messages": [said(IMAGE)]},
    "many messages": {"model": "gpt-4o", "max_tokens": 10, "messages": [said("hello")] * 5},
    "many inputs": {"model": "gpt-4o", "max_output_tokens": 10, "input": [said("hello")] * 5},
    "many contents": {"contents": [{"parts": [{"text": "hello"}]}] * 5},
    "image in the system prompt": {"system": [{"type": "image", "source": {}}]},
    "image in the instruction": {"systemInstruction": {"parts": [PNG]}},
    "image in the instructions": {"instructions": [IMAGE]},
    "image in a prompt's variable": {"prompt": {"id": "x", "variables": {"a": IMAGE}}},
    "image in the prediction": {"prediction": {"content": [IMAGE]}},
    "image to be counted": {"generateContentRequest": {"contents": [{"parts": [PNG]}]}},
    "image to be counted in the other spelling": {"generate_content_request": {"contents": [{"parts": [PNG]}]}},
    "mask": {"tools": [{"type": "image_generation", "input_image_mask": {"file_id": "x"}}]},
    "much output": {"model": "gpt-4o", "max_tokens": 500, "messages": [said("hello")]},
    "much output of a fallback": {"max_tokens": 10, "fallbacks": [{"model": "gpt-4o", "max_tokens": 500}]},
    "no limit of output": {"model": "gpt-4o", "messages": [said("hello")]},
    "long": {"model": "gpt-4o", "max_tokens": 10, "messages": [said("x" * 1000)]},
    "tool in the input": {"model": "gpt-4o", "input": [SEARCH, said("hello")]},
    "tool in the messages": {"model": "gpt-4o", "max_tokens": 10, "messages": [said(ADDITION)]},
    "tools": {"model": "gpt-4o", "tools": [{"type": "web_search"}]},
    "functions": {"model": "gpt-4o", "functions": [{"name": "web_search"}]},
    "search": {"model": "gpt-4o", "web_search_options": {}},
    "servers": {"model": "gpt-4o", "mcp_servers": [{"name": "web_search"}]},
    "plugins": {"model": "gpt-4o", "plugins": [{"id": "web_search"}]},
    "another model": {"model": "o1", "max_tokens": 10, "messages": [said("hello")]},
    "another model to fall back to": {"model": "gpt-4o", "fallbacks": ["o1"]},
    "another model among several": {"model": "gpt-4o", "models": ["o1"]},
    "another model for long prompts": {"model": "gpt-4o", "context_window_fallbacks": [{"gpt-4o": ["o1"]}]},
    "another model for bad prompts": {"model": "gpt-4o", "content_policy_fallbacks": [{"gpt-4o": ["o1"]}]},
    "another model of a tool": {"model": "gpt-4o", "tools": [{"type": "function", "name": "a", "model": "o1"}]},
}
CONTEXTS: dict[str, dict[str, Any]] = {
    "the middle of the night": {"timestamp": datetime(2026, 11, 20, 3, tzinfo=UTC)},
    "noon": {"timestamp": datetime(2026, 11, 20, 12, tzinfo=UTC)},
    "christmas": {"timestamp": datetime(2026, 12, 25, 12, tzinfo=UTC)},
    "a tool over MCP": {"capability_id": "web_search", "environment": {"wire": "mcp", "scopes": []}},
    "a tool by its scope": {"capability_id": "crm", "environment": {"wire": "mcp", "scopes": ["tool:web_search"]}},
    "a model by its path": {"environment": {"wire": "gemini", "model": "o1", "scopes": []}},
    "no model": {"arguments": {"messages": [said("hello")]}, "environment": {"wire": "openai", "scopes": []}},
    "another team": {"environment": {"scopes": ["team:interns"]}},
    "another principal": {"principal_id": "user:bob"},
    "many bytes": {"environment": {"body_bytes": 10_000}},
    "embeddings": {"arguments": {"input": "x"}, "environment": {"wire": "openai", "operation": "embeddings", "model": "e"}},
}
REQUESTS = {
    **{name: a_context(arguments=body) for name, body in BODIES.items()},
    **{name: a_context(**({"timestamp": datetime(2026, 11, 20, 12, tzinfo=UTC)} | each)) for name, each in CONTEXTS.items()},
}
#: What the README says runs isolated as it is, by its options.
ISOLATED: list[tuple[str, dict[str, Any]]] = [
    ("size_guard", {"max_body_bytes": 500}),
    ("size_guard", {"max_messages": 2}),
    ("size_guard", {"content_types": ["text", "tool"]}),
    ("size_guard", {"max_output_tokens": 100}),
    ("size_guard", {"max_output_tokens": 100, "cap_output": True}),
    ("allow_list", {"models": ["gpt-4o*"]}),
    ("allow_list", {"deny_models": ["o1"]}),
    ("allow_list", {"tools": ["search"]}),
    ("allow_list", {"deny_tools": ["web_search*"]}),
    ("allow_list", {"rules": [{"scopes": ["team:interns", "user:bob"], "models": ["o1"], "deny_tools": ["web_search"]}]}),
    ("business_hours", {}),
    ("business_hours", {"closed_on": ["2026-11-20"]}),
    ("business_hours", {"closed_on": [date(2026, 11, 20)], "allowed_days": [4, 5], "end_hour": 24}),
]


@pytest.fixture(scope="module", autouse=True)
def warm() -> Iterator[None]:
    """Keep what workers are forked from: it takes a second to start."""
    held = hold_zygote((), namespaces=True)
    yield
    release_zygote(held)


@asynccontextmanager
async def both(
    name: str, options: dict[str, Any], *preload: str
) -> AsyncIterator[tuple[PolicyPluginManager, PolicyPluginManager]]:
    """Load a plugin into one manager as it comes, and into another in a process of its own."""
    here, there = PolicyPluginManager(), PolicyPluginManager()
    path = builtin_plugin_path(name)
    await here.load_from_file(path, **options)
    await there.load_from_file(path, isolated=True, isolation=there.isolation_options(preload=preload), **options)
    try:
        yield here, there
    finally:
        for manager in (here, there):
            await manager.unregister_plugin(name)


async def decided(manager: PolicyPluginManager, context: PolicyContext) -> tuple[object, ...]:
    decision: PolicyDecision = (await manager.evaluate_all(context))[0]
    return decision.allowed, decision.reason, [(each.kind, each.value) for each in decision.obligations]


@pytest.mark.parametrize(("name", "options"), ISOLATED)
async def test_it_decides_the_same_in_both_tiers(name: str, options: dict[str, Any]) -> None:
    async with both(name, options) as (here, there):
        expected = {request: await decided(here, context) for request, context in REQUESTS.items()}
        assert {request: await decided(there, context) for request, context in REQUESTS.items()} == expected
    assert len({(allowed, str(owed)) for allowed, _, owed in expected.values()}) > 1, "it objects to some of them"


async def test_it_knows_public_holidays_with_what_the_readme_preloads() -> None:
    readme = builtin_plugin_path("business_hours").with_name("README.md").read_text("utf-8")
    (preload,) = re.findall(r"with a `country` it takes `preload = (\[.*?\])`", readme)
    days = [date(2026, 1, 1) + timedelta(days=each) for each in range(2000)]
    asked = [a_context(timestamp=datetime(day.year, day.month, day.day, 12, tzinfo=UTC)) for day in days]
    async with both("business_hours", {"country": "DE", "subdivision": "BY"}, *json.loads(preload)) as (here, there):
        expected = [await decided(here, each) for each in asked]
        assert [await decided(there, each) for each in asked] == expected
    assert sum("is a holiday or closed" in str(reason) for _, reason, _ in expected) > 40


async def test_without_its_calendars_a_country_is_refused_and_says_what_to_preload() -> None:
    manager = PolicyPluginManager()
    for preload in ((), ("holidays",)):
        isolation = manager.isolation_options(preload=preload)
        with pytest.raises(ConfigurationError, match=r'preload = \["holidays.countries"\]'):
            await manager.load_from_file(builtin_plugin_path("business_hours"), isolated=True, isolation=isolation, country="DE")


async def test_dates_as_toml_writes_them_close_it_isolated_and_in_a_folder_too(tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir()
    shutil.copy(builtin_plugin_path("business_hours"), folder / "closed.py")
    closed = f"closed_on = [{(today := datetime.now(UTC).date())}, {today + timedelta(days=1)}]"
    all_day = "start_hour = 0\nend_hour = 24\nallowed_days = [0, 1, 2, 3, 4, 5, 6]"
    (folder / "closed.toml").write_text(f"{all_day}\n{closed}\n", "utf-8")
    isolated = {"name": "business_hours", "isolated": True, "options": tomllib.loads(f"{all_day}\n{closed}")}
    for policy in ({"folder": folder}, {"plugins": [isolated]}):
        async with gateway_for(FakeProvider(), settings_for(tmp_path, policy=policy)) as gateway:
            answer = await gateway.post()
            assert answer.status == 403 and b"is a holiday or closed" in answer.body


async def test_only_where_tools_are_judged_does_a_conversation_leave_the_gateway() -> None:
    manager = PolicyPluginManager()
    await manager.load_from_file(builtin_plugin_path("allow_list"), name="models", models=["gpt-4o"])
    await manager.load_from_file(builtin_plugin_path("allow_list"), name="tools", rules=[{"scopes": ["*"], "tools": ["search"]}])
    prompts = {"arguments.messages", "arguments.input"}
    models, tools = (manager.get_plugin(name) for name in ("models", "tools"))
    assert models is not None and models.needs is not None and not models.needs & prompts
    assert tools is not None and tools.needs is not None and tools.needs >= prompts
    for name in ("models", "tools"):
        await manager.unregister_plugin(name)


async def test_over_http_an_isolated_guard_denies_the_picture(tmp_path: Path) -> None:
    plugin = {"name": "size_guard", "isolated": True, "options": {"content_types": ["text"]}}
    async with gateway_for(FakeProvider(), settings_for(tmp_path, policy={"plugins": [plugin]})) as gateway:
        assert (await gateway.post(BODIES["plain"])).status == 200
        assert (await gateway.post(BODIES["image"])).status == 403
