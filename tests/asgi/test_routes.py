"""Which requests are metered, how, and that no spelling of a metered path passes unseen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sark_mw._fake_provider import FakeProvider
from sark_mw.asgi.types import Receive, Scope, Send
from sark_mw.errors import ConfigurationError
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, MESSAGES, Client, scope_of

OWN = "tests.asgi.own_estimators:"


def replying(body: bytes, status: int = 200) -> Any:
    """Make an app that reads the request and answers JSON."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})

    return app


async def test_what_no_route_meters_passes_with_the_servers_own_receive_and_send(make: MakeGateway) -> None:
    got: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.extend([receive, send])

    gateway = await make(app)
    for path, method in [("/health", "GET"), ("/v1/models", "GET"), ("/upload", "POST"), ("/v1/messages/count_tokens", "POST")]:
        client = Client(gateway.app, scope_of(path, method), [])
        await client.run()
        assert got[-2:] == [client._receive, client._send]
    assert await gateway.entries() == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/V1/Chat/Completions",
        "//v1///chat/completions/",
        "/v1/./chat/x/../completions",
        "/health/../v1/chat/completions",
        "/openai/deployments/gpt-4o/chat/completions",
        "/proxy/team/v1/chat/completions",
    ],
)
async def test_every_spelling_of_a_metered_path_is_metered(make: MakeGateway, path: str) -> None:
    gateway = await make(replying(b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}'))
    assert (await gateway.post(CHAT, path)).status == 200
    assert (await gateway.entry()).output_tokens == 2


async def test_a_fixed_price_is_charged_on_success_and_given_back_on_failure(books: MakeGateway) -> None:
    routes = ({"path": "/search/*", "methods": ("GET", "POST"), "price_usd": "0.25", "capability": "search"},)
    gateway = await books(replying(b"[]"), routes=routes)
    answer = await gateway.client(b"", path="/search/web", method="GET").run()
    assert answer.status == 200 and answer.headers["x-sark-budget-remaining"] == "0.75"
    entry = await gateway.entry()
    assert (entry.cost_nanos, entry.estimated, entry.capability_id, entry.provider) == (250_000_000, False, "search", "fixed")
    for status in (404, 500):
        failing = await books(replying(b"[]", status), routes=routes)
        await failing.post(b"not json at all", "/search/web")
        assert (await failing.entry()).kind == "release"
    assert (await gateway.client(b"", path="/search/a/b", method="GET").run()).headers.keys() == {"content-type"}


@pytest.mark.parametrize("path", ["/search/web", "/Search/WEB", "//search//web/", "/x/../search/./web"])
async def test_every_spelling_of_an_own_rules_path_is_charged(make: MakeGateway, path: str) -> None:
    gateway = await make(replying(b"[]"), routes=({"path": "/search/*", "price_usd": "0.25"},))
    await gateway.post({}, path)
    assert (await gateway.entry()).cost_nanos == 250_000_000


async def test_a_free_route_counts_requests_and_costs_nothing(books: MakeGateway) -> None:
    gateway = await books(replying(b"{}"), routes=({"path": "/free/**", "free": True},))
    await gateway.post({"any": "thing"}, "/free/a/b/c")
    entry = await gateway.entry()
    assert (entry.kind, entry.cost_nanos, entry.requests, entry.capability_id) == ("settle", 0, 1, "/free/a/b/c")


async def test_own_rules_come_before_the_built_in_ones_and_the_first_that_matches_counts(make: MakeGateway) -> None:
    routes = (
        {"path": "/internal/**", "ignore": True},
        {"path": "/v1/chat/**", "price_usd": "0.01"},
        {"path": "/v1/**", "price_usd": "0.02"},
    )
    provider = FakeProvider()
    gateway = await make(provider, routes=routes)
    await gateway.post(path="/internal/v1/chat/completions")
    await gateway.post(path="/v1/chat/completions")
    await gateway.post({"model": "text-embedding-3-small", "input": "x"}, "/v1/embeddings")
    assert [entry.cost_nanos for entry in await gateway.entries()] == [10_000_000, 20_000_000]
    assert provider.requests == 3


async def test_a_rule_may_only_rename_or_give_a_wire_to_an_own_path(make: MakeGateway) -> None:
    routes = (
        {"path": "/v1/messages", "capability": "ask-claude"},
        {"path": "/talk", "wire": "openai", "capability": "talk"},
    )
    gateway = await make(replying(b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}'), routes=routes)
    await gateway.post(path="/talk")
    await gateway.post({**MESSAGES}, "/v1/messages")
    assert [(entry.capability_id, entry.provider) for entry in await gateway.entries()] == [
        ("talk", "openai"),
        ("ask-claude", "anthropic"),
    ]
    assert (await gateway.post(b"{", "/talk")).json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("reply", [b'{"read": 3}', b"what?"])
async def test_an_own_estimator_reads_the_actual_cost_or_its_estimate_is_booked(books: MakeGateway, reply: bytes) -> None:
    gateway = await books(replying(reply), routes=({"path": "/pages", "estimator": f"{OWN}PerPage"},))
    assert (await gateway.post({"pages": 8}, "/pages")).body == reply
    entry = await gateway.entry()
    told = reply.startswith(b"{")
    assert (entry.held_nanos, entry.expected_nanos, entry.provider) == (80_000_000, 40_000_000, "pages")
    assert (entry.cost_nanos, entry.estimated) == ((30_000_000, False) if told else (40_000_000, True))


async def test_an_own_estimator_that_never_learns_books_what_it_expected(books: MakeGateway) -> None:
    gateway = await books(replying(b"{}"), routes=({"path": "/guess", "estimator": f"{OWN}GUESSING"},))
    await gateway.post({}, "/guess")
    entry = await gateway.entry()
    assert (entry.cost_nanos, entry.estimated) == (50_000_000, True)


@pytest.mark.parametrize(
    "rule",
    [
        {"path": "/x"},
        {"path": "x", "free": True},
        {"path": "/x", "wire": "plain"},
        {"path": "/x", "provider": "nobody"},
        {"path": "/x", "estimator": "tests.asgi.own_estimators"},
        {"path": "/x", "estimator": "no.such.module:Name"},
        {"path": "/x", "estimator": f"{OWN}Missing"},
        {"path": "/x", "estimator": f"{OWN}NOT_ONE"},
    ],
)
async def test_a_rule_that_can_never_work_is_refused_at_construction(make: MakeGateway, rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        await make(FakeProvider(), routes=(rule,))


async def test_a_dialect_that_nobody_prices_is_refused_and_not_let_through_for_free(make: MakeGateway) -> None:
    gateway = await make(replying(b"{}"))
    from sark_mw.asgi.routes import Router

    priced = {name: each for name, each in gateway.sark.estimators.items() if name != "gemini"}
    gateway.app._router = Router((), priced)
    answer = await gateway.post({"contents": []}, "/v1beta/models/gemini-2.5-pro:generateContent")
    assert answer.status == 400 and answer.json["error"]["status"]
    assert gateway.seen.requests[-1].reason == "no_estimator"


def call(name: str, rpc_id: int = 1) -> dict[str, Any]:
    """Make a JSON-RPC message that calls a tool."""
    return {"jsonrpc": "2.0", "id": rpc_id, "method": "tools/call", "params": {"name": name, "arguments": {"q": "x"}}}


async def test_tools_are_capabilities_and_scopes_with_a_price_for_each_call(books: MakeGateway) -> None:
    gateway = await books(replying(b"{}"), routes=({"path": "/mcp", "wire": "mcp", "price_usd": "0.01"},))
    await gateway.post(call("search"), "/mcp")
    await gateway.post([call("search"), call("fetch", 2)], "/mcp")
    await gateway.post({"jsonrpc": "2.0", "id": 3, "method": "tools/list"}, "/mcp")
    one, two = await gateway.entries()
    assert (one.cost_nanos, one.capability_id) == (10_000_000, "search") and "tool:search" in one.scopes
    assert two.cost_nanos == 20_000_000 and {"tool:search", "tool:fetch"} <= set(two.scopes)
    assert gateway.seen.requests[-1].outcome == "passed"


async def test_a_tools_refusal_is_a_result_that_the_model_can_read(make: MakeGateway) -> None:
    limits = ({"scope": "tool:search", "amount": 1, "unit": "requests"},)
    gateway = await make(replying(b'{"jsonrpc": "2.0", "id": 1, "result": {}}'), limits=limits)
    assert (await gateway.post(call("search"), "/mcp")).json["result"] == {}
    answer = await gateway.post(call("search", 2), "/mcp")
    assert answer.status == 200 and answer.json["id"] == 2 and answer.json["result"]["isError"] is True
    assert (await gateway.post(call("fetch"), "/mcp")).json["result"] == {}
    told = gateway.seen.requests[1]
    assert (told.outcome, told.reason) == ("refused_rate", "requests")


async def test_a_message_that_calls_no_tool_reaches_the_app_with_its_body(make: MakeGateway) -> None:
    raw = b'{"jsonrpc":"2.0", "method": "notifications/initialized"}'
    got: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append((await receive())["body"])
        client.left.set()
        got.append((await receive())["type"])

    gateway = await make(app)
    client = gateway.client(raw, path="/mcp", size=3)
    await client.run()
    assert got == [raw, "http.disconnect"]


async def test_only_metered_requests_pass_where_the_settings_say_so(make: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await make(provider, http={"metered_only": True})
    answer = await gateway.client(method="GET", path="/v1/files").run()
    assert answer.status == 404 and answer.headers["content-type"] == "application/problem+json"
    assert provider.requests == 0
    assert (await gateway.post()).status == 200


async def test_a_refused_head_has_no_body(make: MakeGateway) -> None:
    routes = ({"path": "/x", "methods": ("*",), "price_usd": "5"},)
    gateway = await make(replying(b"{}"), routes=routes)
    answer = await gateway.client(b"", path="/x", method="HEAD").run()
    assert answer.status == 402 and answer.body == b"" and int(answer.headers["content-length"]) > 0
    spoken = await gateway.post({}, "/x")
    assert json.loads(spoken.body)["error_code"] == "budget_exceeded"
