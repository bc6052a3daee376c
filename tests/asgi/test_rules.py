"""Rules read a request as its wire means it."""

from __future__ import annotations

from typing import Any

import pytest

from sark_mw._fake_provider import FakeProvider
from sark_mw.policy.cel_values import streams
from sark_mw.policy.context import PolicyContext
from sark_mw.policy.document import document_of
from tests.asgi.apps import Replies
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, MESSAGES
from tests.asgi.test_gemini import ASK, FakeGemini

NO_STREAMS = {"rules": [{"name": "streams", "when": "request.stream", "deny": "no streams"}]}
GEMINI = "/v1beta/models/gemini-2.5-flash"


@pytest.mark.parametrize(
    ("app", "path", "body", "streamed"),
    [
        (FakeProvider, "/v1/chat/completions", CHAT, {**CHAT, "stream": True}),
        (FakeProvider, "/v1/messages", MESSAGES, {**MESSAGES, "stream": True}),
    ],
)
async def test_a_rule_on_streams_holds_where_the_body_says_so(
    make: MakeGateway, app: Any, path: str, body: dict[str, Any], streamed: dict[str, Any]
) -> None:
    gateway = await make(app(), policy=NO_STREAMS)
    assert (await gateway.post(body, path)).status == 200
    assert (await gateway.post(streamed, path)).status == 403


async def test_a_rule_on_streams_holds_where_the_path_says_so(make: MakeGateway) -> None:
    gateway = await make(FakeGemini(), policy=NO_STREAMS)
    assert (await gateway.post(ASK, f"{GEMINI}:generateContent")).status == 200
    assert (await gateway.post(ASK, f"{GEMINI}:streamGenerateContent")).status == 403


@pytest.mark.parametrize("arguments", [{}, {"model": "gpt-4o"}, {"model": "gpt-4o", "stream": True}])
async def test_a_tools_arguments_name_no_model_and_no_stream(make: MakeGateway, arguments: dict[str, Any]) -> None:
    rules = [
        {"name": "drops", "when": 'request.model == "" && request.capability == "drop_table"', "deny": "nobody drops"},
        {"name": "streams", "when": "request.stream", "deny": "no streams"},
    ]
    gateway = await make(Replies({}), policy={"rules": rules}, routes=({"path": "/mcp", "wire": "mcp", "price_usd": "0.01"},))

    async def reason(tool: str) -> str | None:
        params = {"name": tool, "arguments": arguments}
        answer = await gateway.post({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, "/mcp")
        return "nobody drops" if b"nobody drops" in answer.body else "no streams" if b"no streams" in answer.body else None

    assert await reason("drop_table") == "nobody drops"
    assert await reason("list_tables") is None


@pytest.mark.parametrize("known", [True, False])
def test_documents_and_rules_say_the_same_of_streams(known: bool) -> None:
    context = PolicyContext("user:a", "google", "m", "generate", {"stream": not known}, {"stream": known})
    assert streams(context) is document_of(context)["stream"] is known
    unsaid = PolicyContext("user:a", "openai", "m", "chat", {"stream": known}, {})
    assert streams(unsaid) is document_of(unsaid)["stream"] is known
