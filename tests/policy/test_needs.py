from __future__ import annotations

from typing import Any

import pytest

from sark_mw import ConfigurationError, PolicyContext, PolicyDecision, PolicyPluginManager
from sark_mw.policy.document import document_of
from tests.policy.samples import Sample, a_context

ARGUMENTS = {"model": "gpt-4o", "messages": [{"role": "user", "content": "secret"}], "temperature": 1, "metadata": {"a": [1]}}
ENVIRONMENT = {"scopes": ["team:ml"], "model": "gpt-4o", "client": "10.0.0.1"}


class Needing(Sample):
    isolated = False  # type: ignore[assignment]
    needs: Any = None

    def __init__(self, needs: Any, *, isolated: bool = False, name: str = "needing") -> None:
        super().__init__(name)
        self.needs = needs
        self.isolated = isolated  # type: ignore[method-assign,assignment]


async def shown(plugin: Needing, **changes: Any) -> PolicyContext:
    manager = PolicyPluginManager()
    await manager.register_plugin(plugin)
    await manager.evaluate_all(a_context(**({"arguments": ARGUMENTS, "environment": ENVIRONMENT} | changes)))
    return plugin.asked[0]


async def test_a_plugin_in_this_process_that_names_nothing_sees_everything() -> None:
    context = await shown(Needing(None))
    assert context.arguments == ARGUMENTS and context.environment == ENVIRONMENT and context.principal_id == "user:alice"


async def test_an_isolated_plugin_that_names_nothing_sees_everything_but_prompts() -> None:
    context = await shown(Needing(None, isolated=True))
    assert set(context.arguments) == {"model", "temperature", "metadata"}
    assert context.environment == ENVIRONMENT and context.principal_id == "user:alice"


async def test_an_approvals_token_is_shown_to_other_processes_only_by_its_name() -> None:
    environment = ENVIRONMENT | {"approval": "a token"}
    assert (await shown(Needing(None, isolated=True), environment=environment)).environment == ENVIRONMENT
    assert (await shown(Needing({"environment"}), environment=environment)).environment == ENVIRONMENT
    named = Needing({"environment", "environment.approval"}, isolated=True)
    assert (await shown(named, environment=environment)).environment == environment
    assert (await shown(Needing(None), environment=environment)).environment == environment
    context = a_context(arguments={"requests": ["secret"], "generateContentRequest": "secret", "a": 1}, environment=environment)
    document = document_of(context)
    assert document["arguments"] == {"a": 1} and "approval" not in document["environment"]


@pytest.mark.parametrize(
    "field",
    [
        "requests",
        "generateContentRequest",
        "messages",
        "prompt",
        "input",
        "system",
        "contents",
        "instructions",
        "systemInstruction",
    ],
)
async def test_a_prompt_is_shown_only_by_its_name_whatever_the_dialect(field: str) -> None:
    arguments = {"model": "m", field: "secret"}
    assert (await shown(Needing(frozenset({"arguments"})), arguments=arguments)).arguments == {"model": "m"}
    assert (await shown(Needing(frozenset({"arguments", f"arguments.{field}"})), arguments=arguments)).arguments == arguments
    assert (await shown(Needing(frozenset({"prompts"})), arguments=arguments)).arguments == {field: "secret"}


async def test_a_plugin_sees_the_fields_that_it_names_and_no_others() -> None:
    context = await shown(Needing({"principal_id", "model", "environment.scopes", "environment.missing"}))
    assert (context.principal_id, context.resource_id, context.capability_id, context.action) == ("user:alice", "", "", "")
    assert context.arguments == {"model": "gpt-4o"}
    assert context.environment == {"model": "gpt-4o", "scopes": ["team:ml"]}
    assert context.timestamp.tzinfo is not None


async def test_what_one_plugin_does_to_what_it_sees_no_other_plugin_sees() -> None:
    async def spoil(context: PolicyContext) -> PolicyDecision:
        context.arguments["metadata"]["a"].append(2)
        context.environment["scopes"].append("team:other")
        context.arguments["model"] = "cheap"
        return PolicyDecision(True)

    first = Needing({"arguments", "environment"}, name="first")
    first._judge = spoil
    second = Needing({"arguments", "environment.scopes"}, name="second")
    manager = PolicyPluginManager()
    await manager.register_plugin(first)
    await manager.register_plugin(second)
    await manager.evaluate_all(a_context(arguments=ARGUMENTS, environment=ENVIRONMENT))
    assert second.asked[0].arguments == {key: value for key, value in ARGUMENTS.items() if key != "messages"}
    assert second.asked[0].environment == {"scopes": ["team:ml"]}


@pytest.mark.parametrize("needs", ["model", {"modell"}, {"arguments."}, {"arguments.a.b"}, {"principal_id.x"}, {3}, 5])
async def test_needs_that_name_no_field_are_refused_at_registration(needs: Any) -> None:
    with pytest.raises(ConfigurationError, match="'needing': needs"):
        await PolicyPluginManager().register_plugin(Needing(needs))
