"""What the README says of plugins where there is no HTTP request: through `SARKGateway`, and `Sark.reserve`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sark_mw import InvocationRequest, InvocationResult, ProtocolAdapter, RefusedError, Sark, SARKGateway
from sark_mw._fake_provider import FakeProvider
from tests.asgi.driving import gateway_for, settings_for

ASKED = {"messages": [{"role": "user", "content": "hello"}]}
CAPPED = {**ASKED, "max_tokens": 50}


class Reached(ProtocolAdapter):
    async def invoke(self, request: InvocationRequest) -> InvocationResult:
        return InvocationResult(True, {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})


@asynccontextmanager
async def face(tmp_path: Path, name: str, **options: Any) -> AsyncIterator[SARKGateway]:
    """Open a gateway with one plugin: `tools` are free, `openai` has a price, and `described` its model in its metadata alone."""
    settings = settings_for(tmp_path, policy={"plugins": [{"name": name, "options": options}]})
    async with gateway_for(FakeProvider(), settings) as gateway:
        made = SARKGateway(sark=gateway.sark)
        made.register_adapter("tools", Reached())
        made.register_adapter("openai", Reached(), {"provider": "openai", "model": "gpt-4o"})
        made.register_adapter("described", Reached(), {"model": "o1"})
        yield made


async def invoked(gateway: SARKGateway, resource: str, capability: str = "chat", **more: Any) -> str:
    """Return why an invocation was refused; empty where it was made."""
    result = await gateway.invoke(principal_id="user:a", resource_id=resource, capability_id=capability, **more)
    return result.error or ""


async def reserved(sark: Sark, **more: Any) -> str:
    """Return why a reservation was refused, or else what it obliges to."""
    try:
        async with sark.reserve(principal="user:a", **more) as reservation:
            return ", ".join(f"{each.kind}={each.value}" for each in reservation.obligations)
    except RefusedError as error:
        return str(error)


async def test_allow_list_judges_the_capability_as_a_tool(tmp_path: Path) -> None:
    async with face(tmp_path, "allow_list", tools=["search"]) as gateway:
        for arguments in ({}, {"model": "gpt-4o"}, {"tools": [{"name": "search"}]}):
            assert await invoked(gateway, "tools", "search", arguments=arguments) == ""
            assert "the tool drop_table is not allowed" in await invoked(gateway, "tools", "drop_table", arguments=arguments)
        assert "the tool chat is not allowed" in await invoked(gateway, "openai", arguments=ASKED)
        assert await reserved(gateway.sark, estimate="0.01", capability="drop_table") == "", "where it is a word of one's own"
        assert "the tool drop_table" in await reserved(gateway.sark, estimate="0.01", scopes=["tool:drop_table"])


@pytest.mark.parametrize("lists", [{"models": ["gpt-4o*"]}, {"deny_models": ["o1*"]}])
async def test_allow_list_knows_the_model_of_a_resources_own_description(tmp_path: Path, lists: dict[str, Any]) -> None:
    async with face(tmp_path, "allow_list", **lists) as gateway:
        assert await invoked(gateway, "openai", arguments=ASKED) == await invoked(gateway, "tools") == ""
        for arguments in ({}, {"model": "gpt-4o"}):
            assert "the model o1 is not allowed" in await invoked(gateway, "described", arguments=arguments)
        assert "the model o1 is not allowed" in await reserved(gateway.sark, estimate="0.01", scopes=["model:o1"])


@pytest.mark.parametrize("cap", [False, True])
async def test_size_guard_lets_pass_what_names_a_limit_itself(tmp_path: Path, cap: bool) -> None:
    async with face(tmp_path, "size_guard", max_output_tokens=100, cap_output=cap) as gateway:
        assert await invoked(gateway, "openai", arguments=CAPPED) == ""
        assert "size_guard" in await invoked(gateway, "openai", arguments=ASKED)
        request = {"model": "gpt-4o", **CAPPED}
        assert await reserved(gateway.sark, provider="openai", request=request) == ""
        assert "size_guard" in await reserved(gateway.sark, provider="openai", request={"model": "gpt-4o", **ASKED})


async def test_size_guards_cap_is_the_callers_to_see_to_where_it_says_so(tmp_path: Path) -> None:
    async with face(tmp_path, "size_guard", max_output_tokens=100, cap_output=True) as gateway:
        request = {"model": "gpt-4o", **ASKED}
        told = await reserved(gateway.sark, provider="openai", request=request, obeys=["cap_output_tokens"])
        assert told == "cap_output_tokens=100"


async def test_network_knows_the_address_that_the_invocation_tells_and_no_other(tmp_path: Path) -> None:
    async with face(tmp_path, "network", allow=["10.0.0.0/8"]) as gateway:
        assert "the client's address is not known" in await invoked(gateway, "tools")
        assert await invoked(gateway, "tools", context={"client": "10.1.2.3"}) == ""
        assert "not among those allowed" in await invoked(gateway, "tools", context={"client": "192.0.2.1"})
        assert "the client's address is not known" in await reserved(gateway.sark, estimate="0.01")
