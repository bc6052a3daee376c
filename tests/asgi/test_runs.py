"""Runs with a budget, and what else a request says of itself: end user, tags, resource, and whom its principal belongs to."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sark_mw._fake_provider import FakeProvider
from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.asgi.types import Receive, Scope, Send
from sark_mw.enforcement.members import MAX_SCOPES
from sark_mw.errors import ConfigurationError
from sark_mw.limit import Limit
from sark_mw.sark import Sark
from sark_mw.settings import Settings
from tests.asgi.apps import completion
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, MESSAGES, Gateway, Seen, settings_for
from tests.servers.redis_server import RedisHandle

#: With the tier known, CHAT holds $0.002 for its output and a little for its input.
STANDARD = {"pricing": {"default_service_tier": "default"}}
FIVE_CALLS = "0.0105"
RPC = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search", "arguments": {}}}


def run(run_id: str = "nightly", budget: str | None = FIVE_CALLS) -> dict[str, str]:
    return {"x-sark-run": run_id} | ({} if budget is None else {"x-sark-run-budget": budget})


class Slow:
    """Answers when it is told to, so that what is admitted is held at the same time; it uses as much as was held."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        await receive()
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": str(completion(9, 200)).replace("'", '"').encode()})


async def statuses_of_twenty(gateway: Gateway, app: Slow) -> list[int | None]:
    """Ask twenty times at once, and let them be answered once all are decided."""
    calls = [asyncio.ensure_future(gateway.post(headers=run())) for _ in range(20)]
    while app.asked + sum(call.done() for call in calls) < len(calls):
        await asyncio.sleep(0.001)
    app.go_on.set()
    return sorted([answer.status for answer in await asyncio.gather(*calls)], key=str)


async def test_all_calls_of_a_run_share_its_budget_however_many_come_at_once(books: MakeGateway) -> None:
    app = Slow()
    gateway = await books(app, **STANDARD)
    assert await statuses_of_twenty(gateway, app) == [200] * 5 + [402] * 15
    assert (await gateway.post(headers=run())).status == 402
    assert (await gateway.post(headers=run("another"))).status == 200
    assert {scope for entry in await gateway.entries() for scope in entry.scopes if scope.startswith("run:")} == {
        "run:user:a/nightly",
        "run:user:a/another",
    }


async def test_two_processes_share_a_runs_budget_on_a_real_store(valkey_server: RedisHandle, tmp_path: Path) -> None:
    store = {"url": valkey_server.url, "journal": tmp_path / "j", "deadline_ms": 20_000}
    sections = {"store": store, "ledger": {"url": f"sqlite:///{tmp_path / 'l'}"}}
    settings = settings_for(tmp_path, **STANDARD, **sections)
    app = Slow()
    async with Sark.open(settings, instrumentation=Seen()) as one, Sark.open(settings, instrumentation=Seen()) as other:
        gateways = [Gateway(SarkMiddleware(app, sark=sark), Seen()) for sark in (one, other)]
        calls = [asyncio.ensure_future(gateways[n % 2].post(headers=run())) for n in range(20)]
        while app.asked + sum(call.done() for call in calls) < len(calls):
            await asyncio.sleep(0.005)
        app.go_on.set()
        statuses = sorted([answer.status for answer in await asyncio.gather(*calls)], key=str)
        for gateway in gateways:
            await gateway.quiet()
        assert statuses == [200] * 5 + [402] * 15 and app.asked == 5


async def test_a_refused_call_of_a_run_names_the_run_and_what_is_left_of_it(make: MakeGateway) -> None:
    gateway = await make(FakeProvider(), **STANDARD)
    answer = await gateway.post(headers=run(budget="0.001"))
    details = answer.json["error"]["details"]
    assert answer.status == 402 and answer.json["error"]["code"] == "budget_exceeded"
    assert (details["scope"], details["amount"], details["remaining"]) == ("run:user:a/nightly", "0.001", "0.001")
    assert details["affordable_max_tokens"] > 0 and details["window"] == "idle:86400"


async def test_nobody_spends_the_run_of_another(books: MakeGateway) -> None:
    gateway = await books(FakeProvider(), {"principal": lambda scope: dict(scope["headers"])[b"x-who"].decode()}, **STANDARD)
    budget = "0.0022"
    for who in ("a", "b", "a/nightly"):
        answers = [(await gateway.post(headers={**run(budget=budget), "x-who": who})).status]
        await gateway.quiet()
        answers.append((await gateway.post(headers={**run(budget=budget), "x-who": who})).status)
        assert answers == [200, 402]


async def test_a_run_without_a_budget_is_held_to_the_limits_that_an_administrator_sets_on_runs(books: MakeGateway) -> None:
    limits = ({"scope": "run:*", "amount": 2, "unit": "requests", "window": "day"}, *settings_for(Path()).limits)
    gateway = await books(FakeProvider(), limits=limits)
    assert [(await gateway.post(headers=run(budget=None))).status for _ in range(3)] == [200, 200, 429]
    assert (await gateway.post(headers=run("other", None))).status == 200
    assert (await gateway.post()).status == 200


async def test_the_budget_of_a_run_widens_no_other(make: MakeGateway) -> None:
    limits = ({"scope": "user:a", "amount": "0.0001"},)
    gateway = await make(FakeProvider(), limits=limits)
    answer = await gateway.post(headers=run(budget="1000"))
    assert answer.status == 402 and answer.json["error"]["details"]["scope"] == "user:a"


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"x-sark-run": ""}, "x-sark-run"),
        ({"x-sark-run": "x" * 129}, "x-sark-run"),
        ({"x-sark-run": "a/b"}, "x-sark-run"),
        ({"x-sark-run": "a*"}, "x-sark-run"),
        ({"x-sark-run": "a\tb"}, "x-sark-run"),
        ({"x-sark-run": "\xff"}, None),
        ({"x-sark-run-budget": "1"}, "x-sark-run"),
        *(
            (run(budget=wrong), "x-sark-run-budget")
            for wrong in ("", "0", "-1", "1e3", "NaN", "Infinity", "1,5", "$1", "0x1", "١")
        ),
        (run(budget="0.0000000001"), "x-sark-run-budget"),
        (run(budget="9999999999"), "x-sark-run-budget"),
        (run(budget="99999999999"), "x-sark-run-budget"),
        ({"x-sark-end-user": ""}, "x-sark-end-user"),
        ({"x-sark-tags": "ok,a\tb"}, "x-sark-tags"),
        ({"x-sark-tags": ",".join(map(str, range(9)))}, "x-sark-tags"),
        ({"x-sark-tags": "x" * 65}, "x-sark-tags"),
        ({"x-sark-end-user": "x" * 129}, "x-sark-end-user"),
    ],
)
async def test_headers_that_say_nothing_sensible_are_refused_in_the_callers_dialect(
    make: MakeGateway, headers: dict[str, str], param: str | None
) -> None:
    provider = FakeProvider()
    gateway = await make(provider)
    encoded = {name: value.encode().decode("latin-1") if value != "\xff" else value for name, value in headers.items()}
    answer = await gateway.post(headers=encoded)
    assert (answer.status, answer.json["error"]["type"], answer.json["error"]["param"]) == (400, "invalid_request_error", param)
    answer = await gateway.post(MESSAGES, "/v1/messages", headers=encoded)
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert provider.requests == 0


async def test_a_header_of_a_run_that_is_repeated_is_refused(make: MakeGateway) -> None:
    gateway = await make(FakeProvider(), {"principal": lambda scope: "user:a"})
    for name in ("x-sark-run", "x-sark-run-budget", "x-sark-tags", "x-sark-end-user", "idempotency-key"):
        pairs = [("content-type", "application/json"), ("x-sark-run", "r"), (name, "1"), (name, "1")]
        client = gateway.client(CHAT)
        client.scope["headers"] = [(key.encode(), value.encode()) for key, value in pairs]
        assert (await client.run()).status == 400, name


@pytest.mark.parametrize(
    ("body", "path", "headers", "scope"),
    [
        ({**CHAT, "user": "u1"}, "/v1/chat/completions", {}, "end_user:u1"),
        ({**CHAT, "user": "u1", "safety_identifier": "s1"}, "/v1/chat/completions", {}, "end_user:s1"),
        ({**MESSAGES, "metadata": {"user_id": "u1"}}, "/v1/messages", {}, "end_user:u1"),
        ({**MESSAGES, "metadata": {"user_id": "u1"}}, "/v1/messages", {"x-sark-end-user": "h1"}, "end_user:h1"),
        (CHAT, "/v1/chat/completions", {"x-sark-tags": "batch, eval ,,"}, "tag:eval"),
        (CHAT, "/v1/chat/completions", {}, "resource:chat"),
        (RPC, "/tools/mcp", {}, "resource:/tools/mcp"),
        ({}, "/images", {}, "resource:pictures"),
    ],
)
async def test_a_scope_that_a_request_asserts_is_held_to_the_limits_on_it_and_is_nothing_otherwise(
    books: MakeGateway, body: dict[str, Any], path: str, headers: dict[str, str], scope: str
) -> None:
    routes = ({"path": "/images", "price_usd": "0.01", "capability": "pictures"},)
    free = await books(FakeProvider(), routes=routes)
    await free.post(body, path, headers=headers)
    assert scope not in (await free.entry()).scopes
    limits = ({"scope": scope, "amount": 1, "unit": "requests"}, *settings_for(Path()).limits)
    gateway = await books(FakeProvider(), routes=routes, limits=limits)
    first = await gateway.post(body, path, headers=headers)
    if first.status == 200:
        second = await gateway.post(body, path, headers=headers)
        assert second.status == 429 or second.json["result"]["isError"]
        assert scope in (await gateway.entry()).scopes
    else:
        assert scope in (await gateway.entry()).scopes  # what the fake provider has no endpoint for is given back


async def test_an_end_user_with_an_odd_name_is_served_and_limited_all_the_same(books: MakeGateway) -> None:
    limits = ({"scope": "end_user:*", "amount": 1, "unit": "requests"}, *settings_for(Path()).limits)
    gateway = await books(FakeProvider(), limits=limits)
    for name in ("x" * 5_000, "y" * 129, "a\nb", "\ud800"):
        body = {**CHAT, "user": name}
        assert [(await gateway.post(body)).status for _ in range(2)] == [200, 429]
    for nobody in ("", None, 7, ["u"]):
        assert [(await gateway.post({**CHAT, "user": nobody})).status for _ in range(2)] == [200, 200]


async def test_names_that_no_limit_is_about_leave_nothing_behind(make: MakeGateway) -> None:
    limits = ({"scope": "tag:known*", "amount": 10_000, "unit": "requests"}, *settings_for(Path()).limits)
    gateway = await make(FakeProvider(), limits=limits)
    tables = gateway.sark.tables
    for n in range(200):
        tags = {"x-sark-tags": ",".join(f"made-up-{n}-{each}" for each in range(8)), "x-sark-end-user": f"nobody-{n}"}
        assert (await gateway.post(headers=tags)).status == 200
        assert (await gateway.post(headers={"x-sark-tags": f"known, made-up-{n}"})).status == 200
    assert len(tables._laid) == 2
    assert {scope for entry in await gateway.entries() for scope in entry.scopes if scope.startswith("tag:")} == {"tag:known"}
    await gateway.sark.limits.set(Limit(scope="tag:made-up-1", amount=Decimal(0), unit="requests"))
    assert (await gateway.post(headers={"x-sark-tags": "made-up-1"})).status == 429, "a new limit counts at once"


async def test_a_principal_touches_what_it_belongs_to_over_any_number_of_steps(books: MakeGateway) -> None:
    members = {"user:a": ["team:ml", "team:eu"], "team:ml": ["org:acme"], "org:acme": ["group:all"], "team:eu": ["org:acme"]}
    limits = ({"scope": "group:all", "amount": 1, "unit": "requests"}, *settings_for(Path()).limits)
    gateway = await books(FakeProvider(), principal={"anonymous": "user:a", "members": members}, limits=limits)
    assert [(await gateway.post()).status for _ in range(2)] == [200, 429]
    scopes = [scope for scope in (await gateway.entry()).scopes if not scope.startswith(("model:", "provider:"))]
    assert scopes == ["user:a", "team:ml", "team:eu", "org:acme", "group:all"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"user:a": ["user:a"]}, "belongs to itself"),
        ({"user:a": ["team:b"], "team:b": ["org:c"], "org:c": ["team:b"]}, "belongs to itself"),
        ({"user": ["team:b"]}, "kind:name"),
        ({"user:a": ["team"]}, "kind:name"),
        ({"user:a": [f"team:{n}" for n in range(MAX_SCOPES)]}, "32 scopes or more"),
    ],
)
def test_a_membership_that_can_not_be_is_refused_at_start(members: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        SarkMiddleware(FakeProvider(), Settings(principal={"members": members}))
