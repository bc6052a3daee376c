from __future__ import annotations

from typing import Any

import pytest

from plugins.allow_list import AllowListPlugin
from sark_mw import ConfigurationError, PolicyDecision, PolicyPluginManager
from sark_mw._fake_provider import FakeProvider
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT
from tests.policy.samples import a_context


async def ask(plugin: AllowListPlugin, **changes: Any) -> PolicyDecision:
    return await plugin.evaluate(a_context(**changes))


async def model(plugin: AllowListPlugin, name: str, **changes: Any) -> bool:
    return (await ask(plugin, arguments={"model": name}, **changes)).allowed


async def test_without_lists_everything_is_allowed() -> None:
    plugin = AllowListPlugin()
    assert await model(plugin, "gpt-4o") and (await ask(plugin, arguments={})).allowed


async def test_patterns_allow_and_denials_win_whatever_the_case() -> None:
    plugin = AllowListPlugin(models=["GPT-4o*", "claude-*"], deny_models=["*-preview", "gpt-4o-audio*"])
    names = ["gpt-4o", "Gpt-4o-mini ", "claude-haiku-4-5", "o3", "gpt-4o-preview", "gpt-4o-audio-x", "azure/gpt-4o"]
    assert [await model(plugin, name) for name in names] == [True, True, True, False, False, False, False]


async def test_a_prefix_does_not_get_round_a_denial() -> None:
    plugin = AllowListPlugin(deny_models=["o1*"])
    names = ["o1-pro", "openai/O1-pro", "models/o1", "gpt-4o"]
    assert [await model(plugin, name) for name in names] == [False, False, False, True]


async def test_the_model_that_the_gateway_read_counts_and_not_what_the_body_says() -> None:
    plugin = AllowListPlugin(models=["gemini-flash"])
    environment = {"model": "gemini-pro", "wire": "gemini", "scopes": []}
    assert not await model(plugin, "gemini-flash", environment=environment)
    nameless = await ask(plugin, arguments={}, environment={"wire": "openai", "scopes": []})
    assert (nameless.allowed, nameless.reason) == (False, "the request names no model")
    assert (await ask(plugin, arguments={}, environment={"wire": "plain", "scopes": []})).allowed


async def test_rules_are_about_those_who_touch_their_scopes_and_all_of_them_must_pass() -> None:
    rules = [{"scopes": ["team:interns"], "models": ["gpt-4o-mini"]}, {"scopes": ["user:*"], "deny_models": ["o1*"]}]
    plugin = AllowListPlugin(models=["gpt-*", "o1*"], rules=rules)
    intern = {"scopes": ["team:interns"]}
    assert await model(plugin, "gpt-4o") and not await model(plugin, "gpt-4o", environment=intern)
    assert await model(plugin, "gpt-4o-mini", environment=intern)
    assert not await model(plugin, "o1") and await model(plugin, "o1", principal_id="key:abc")
    assert await model(plugin, "gpt-4o", environment={"scopes": ["team:Interns"]}), "upper and lower case apart"


@pytest.mark.parametrize(
    ("offered", "allowed"),
    [
        ([{"type": "function", "function": {"name": "search_docs"}}], True),
        ([{"type": "function", "name": "search_docs"}, {"name": "search_web", "input_schema": {}}], True),
        ([{"type": "function", "function": {"name": "delete_all"}}], False),
        ([{"type": "web_search"}], False),
        ([{"type": "web_search_20250305", "name": "search_it"}], False),
        ([{"functionDeclarations": [{"name": "search_docs"}, {"name": "drop"}]}], False),
        ([{"google_search": {}}], False),
        ([{"googleSearch": {}}], False),
        ([{"type": "namespace", "name": "search_all", "tools": [{"type": "function", "name": "drop"}]}], False),
        ([{"type": "custom", "custom": {"name": "drop"}}], False),
        ([{"type": "custom", "custom": {"name": "search_docs"}}], True),
        ({"functionDeclarations": [{"name": "drop"}]}, False),
        ({"functionDeclarations": {"name": "drop"}}, False),
        ([{"functionDeclarations": [{"name": "search_docs"}], "function_declarations": [{"name": "drop"}]}], False),
        ([{"type": "function", "name": "search_docs", "tools": [{"type": "function", "name": "drop"}]}], False),
        ([{"type": "function", "function": {}}], False),
        ([{"functionDeclarations": [{}]}], False),
        ("nonsense", False),
        ([None, 3], False),
        (None, True),
        ([], True),
    ],
)
async def test_tools_that_a_request_offers_are_read_as_each_provider_writes_them(offered: Any, allowed: bool) -> None:
    plugin = AllowListPlugin(tools=["search_*"])
    assert (await ask(plugin, arguments={"tools": offered})).allowed is allowed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"web_search_options": {}}, "web_search"),
        ({"web_search_options": {"search_context_size": "high"}}, "web_search"),
        ({"mcp_servers": [{"type": "url", "url": "https://evil.example/sse", "name": "evil"}]}, "mcp"),
        ({"mcp_servers": {"url": "https://evil.example/sse", "name": "evil"}}, "evil"),
        ({"plugins": [{"id": "web"}]}, "web"),
        ({"input": [{"type": "additional_tools", "role": "developer", "tools": [{"type": "web_search"}]}]}, "web_search"),
        ({"input": [{"type": "tool_search_output", "tools": [{"type": "function", "name": "drop"}]}]}, "drop"),
        (
            {
                "messages": [
                    {"role": "user", "content": "hello"},
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {"name": "drop"}}},
                        ],
                    },
                ]
            },
            "drop",
        ),
    ],
)
async def test_what_a_request_offers_beside_its_tools_is_a_tool(arguments: dict[str, Any], named: str) -> None:
    assert not (await ask(AllowListPlugin(tools=[]), arguments=arguments)).allowed
    denied = await ask(AllowListPlugin(deny_tools=[f"{named[:3]}*"]), arguments=arguments)
    assert (denied.allowed, denied.reason) == (False, f"the tool {named} is not allowed here")
    assert (await ask(AllowListPlugin(tools=["web", "web_search", "mcp", "evil", "drop"]), arguments=arguments)).allowed
    assert (await ask(AllowListPlugin(models=["*"]), arguments=arguments)).allowed


async def test_a_server_or_a_plugin_without_a_name_is_denied_where_a_rule_is_about_tools() -> None:
    for arguments in ({"mcp_servers": [{"url": "https://evil.example"}]}, {"mcp_servers": ["evil"]}, {"plugins": [{}]}):
        decision = await ask(AllowListPlugin(deny_tools=["drop"]), arguments=arguments)
        assert (decision.allowed, decision.reason) == (False, "the request offers a tool without a name")


async def test_what_a_conversation_only_mentions_is_offered_by_nobody() -> None:
    reference = {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "search_docs"}}
    listing = {"type": "mcp_list_tools", "server_label": "docs", "tools": [{"name": "read", "input_schema": {}}]}
    arguments = {"messages": [{"role": "user", "content": [reference, "text"]}, "odd"], "input": [listing, "text"]}
    assert (await ask(AllowListPlugin(tools=[]), arguments=arguments)).allowed
    assert (await ask(AllowListPlugin(tools=[]), arguments={"web_search_options": None, "tools": []})).allowed


@pytest.mark.parametrize("pattern", ["google_search*", "googleSearch", "GOOGLE_SEARCH"])
async def test_geminis_own_tools_are_meant_in_either_spelling(pattern: str) -> None:
    for name in ("google_search", "googleSearch"):
        assert not (await ask(AllowListPlugin(deny_tools=[pattern]), arguments={"tools": [{name: {}}]})).allowed
        assert (await ask(AllowListPlugin(tools=[pattern]), arguments={"tools": [{name: {}}]})).allowed


@pytest.mark.parametrize(
    "named",
    [
        {"fallbacks": ["gpt-4o"]},
        {"fallbacks": "gpt-4o"},
        {"fallbacks": [{"model": "gpt-4o", "max_tokens": 5}]},
        {"fallbacks": [{"gpt-4o-mini": ["gpt-4.1", "openai/gpt-4o"]}]},
        {"fallbacks": "default"},
        {"fallbacks": [7]},
        {"fallbacks": [{"max_tokens": 7}]},
        {"models": ["gpt-4o-mini", "openai/gpt-4o"]},
        {"context_window_fallbacks": [{"gpt-4o-mini": ["gpt-4o"]}]},
        {"content_policy_fallbacks": [{"gpt-4o-mini": ["gpt-4o"]}]},
        {"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "gpt-4o"}]},
        {"tools": [{"type": "image_generation", "svg": {"model": "gpt-4o"}}]},
    ],
)
async def test_a_model_to_fall_back_to_is_judged_like_the_requests_own(named: dict[str, Any]) -> None:
    arguments = {"model": "gpt-4o-mini", **named}
    assert not (await ask(AllowListPlugin(models=["gpt-4o-mini", "gpt-4.1"]), arguments=arguments)).allowed
    assert not (await ask(AllowListPlugin(deny_models=["gpt-4o"]), arguments=arguments)).allowed
    assert (await ask(AllowListPlugin(deny_tools=["drop"]), arguments=arguments)).allowed


async def test_fallbacks_that_are_allowed_pass_and_none_are_none() -> None:
    plugin = AllowListPlugin(models=["gpt-4o*"])
    for named in ({"fallbacks": ["gpt-4o-mini"]}, {"fallbacks": None, "models": []}, {"models": ["gpt-4o", "gpt-4o-mini"]}):
        assert (await ask(plugin, arguments={"model": "gpt-4o", **named})).allowed


async def test_over_mcp_the_arguments_of_a_tool_name_no_models_and_offer_no_tools() -> None:
    plugin = AllowListPlugin(models=["gpt-4o"], tools=["order"])
    arguments = {"model": "T", "models": ["A"], "fallbacks": [1], "tools": ["hammer"], "mcp_servers": [1], "plugins": [1]}
    environment = {"wire": "mcp", "scopes": ("user:a", "tool:order")}
    assert (await ask(plugin, capability_id="order", arguments=arguments, environment=environment)).allowed


async def test_functions_of_old_are_tools_and_nameless_ones_pass_where_no_rule_is_about_tools() -> None:
    plugin = AllowListPlugin(deny_tools=["drop"])
    assert not (await ask(plugin, arguments={"functions": [{"name": "drop"}]})).allowed
    assert (await ask(plugin, arguments={"functions": [{"name": "search"}]})).allowed
    nameless = await ask(plugin, arguments={"functions": [{}]})
    assert (nameless.allowed, nameless.reason) == (False, "the request offers a tool without a name")
    assert (await ask(AllowListPlugin(models=["*"]), arguments={"functions": [{}]})).allowed


async def test_over_mcp_a_route_that_names_its_capability_does_not_hide_the_tool() -> None:
    plugin = AllowListPlugin(tools=["read_*"])
    for tool, allowed in (("read_file", True), ("drop", False)):
        environment = {"wire": "mcp", "scopes": ("user:a", f"tool:{tool}")}
        assert (await ask(plugin, capability_id="crm", environment=environment)).allowed is allowed


async def test_a_tool_called_over_mcp_is_its_capability() -> None:
    plugin = AllowListPlugin(deny_tools=["delete_*"])
    environment = {"wire": "mcp", "scopes": []}
    assert not (await ask(plugin, capability_id="delete_file", environment=environment)).allowed
    assert (await ask(plugin, capability_id="read_file", environment=environment)).allowed
    assert (await ask(plugin, capability_id="delete_file")).allowed


async def test_a_tool_that_is_touched_is_called_whatever_the_arguments_hold() -> None:
    plugin = AllowListPlugin(tools=["search"])
    for tool, allowed in (("search", True), ("drop_table", False)):
        for arguments in ({}, {"model": "gpt-4o", "tools": [{"name": "search"}]}):
            environment = {"scopes": ("user:a", f"tool:{tool}")}
            assert (await ask(plugin, arguments=arguments, environment=environment)).allowed is allowed


@pytest.mark.parametrize("arguments", [{}, {"model": "gpt-4o"}])
async def test_a_model_that_only_the_scopes_tell_of_is_judged_once_as_it_is_spelt(arguments: dict[str, Any]) -> None:
    environment = {"scopes": ("user:a", "model:azure/O1", "model:azure/o1", "model:o1")}
    for options, allowed in (
        ({"models": ["gpt-4o"]}, False),
        ({"models": ["gpt-4o", "o1"]}, False),
        ({"models": ["gpt-4o", "azure/o1"]}, True),
        ({"deny_models": ["o1"]}, False),
        ({"deny_models": ["o3"]}, True),
    ):
        assert (await ask(AllowListPlugin(**options), arguments=arguments, environment=environment)).allowed is allowed


def test_no_rule_is_about_what_its_caller_names() -> None:
    with pytest.raises(ConfigurationError, match="a run is what its caller says"):
        AllowListPlugin(rules=[{"scopes": ["run:*"], "models": ["gpt-4o-mini"]}])


@pytest.mark.parametrize(
    "options",
    [
        {"models": "gpt-4o"},
        {"rules": [{"models": ["a"]}]},
        {"rules": [{"scopes": ["team:a"], "model": ["a"]}]},
        {"rules": [{"scopes": "user:a", "deny_models": ["a"]}]},
        {"rules": [{"scopes": [], "deny_models": ["a"]}]},
        {"rules": [{"scopes": [""], "deny_models": ["a"]}]},
        {"rules": [{"scopes": [7], "deny_models": ["a"]}]},
        {"rules": {"scopes": ["user:a"], "deny_models": ["a"]}},
    ],
)
def test_lists_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        AllowListPlugin(**options)


async def test_a_cheaper_model_that_is_tried_instead_is_judged_anew(make: MakeGateway) -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(AllowListPlugin(deny_models=["gpt-4o-mini"]))
    instead = {"models": ({"from": "gpt-4o", "to": ("gpt-4o-mini", "gpt-4.1-nano")},)}
    provider = FakeProvider()
    slots = {"scope": "user:a", "amount": 100, "unit": "concurrency"}
    limits = ({"scope": "user:a", "amount": "0.0005"}, slots)
    gateway = await make(provider, {"policies": manager}, instead=instead, limits=limits)
    assert (await gateway.post(CHAT)).status == 200
    assert [call.body["model"] for call in provider.calls] == ["gpt-4.1-nano"]
