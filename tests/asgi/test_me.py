"""What a caller reads of itself: its own limits and what is left, for nothing, and nothing of anybody else."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from sark_mw._fake_provider import FakeProvider
from sark_mw.asgi.me import MAX_PER_SECOND, Asked
from sark_mw.asgi.principal import Principal
from sark_mw.errors import StoreUnavailableError
from sark_mw.instrumentation.keys import hash_key
from sark_mw.money import from_nanos
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import Answer, Gateway

SECRET = "0123456789abcdef0123"
LIMITS = (
    {"scope": "user:a", "amount": "1", "window": "day", "timezone": "Europe/Berlin"},
    {"scope": "user:a", "amount": 100, "unit": "concurrency"},
    {"scope": "team:ml", "amount": 7, "unit": "requests", "window": "month", "mode": "shadow"},
    {"scope": "user:b", "amount": "3"},
    {"scope": "model:gpt-4o", "amount": "4"},
)
MEMBERS = {"anonymous": "user:a", "members": {"user:a": ["team:ml"]}}
FIELDS = {
    *("limit", "scope", "unit", "window", "timezone", "mode", "amount", "spent", "held", "remaining"),
    *("topped_up", "carried", "override_until", "resets_at"),
}


async def me(gateway: Gateway, path: str = "/sark/me", method: str = "GET", **more: Any) -> Answer:
    return await gateway.post(b"", path, method=method, **more)


async def test_a_caller_reads_its_limits_and_what_is_left_of_them(books: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await books(provider, limits=LIMITS, principal=MEMBERS)
    await gateway.post()
    entry = await gateway.entry()
    answer = await me(gateway)
    assert answer.status == 200 and answer.headers["cache-control"] == "no-store"
    about = answer.json
    assert (about["principal"], about["root"], about["scopes"]) == ("user:a", "default", ["user:a", "team:ml"])
    assert all(limit.keys() == FIELDS for limit in about["limits"])
    told = {limit["limit"]: limit for limit in about["limits"]}
    assert told.keys() == {"user:a/usd/day@Europe/Berlin", "user:a/concurrency/total", "team:ml/requests/month@UTC"}
    budget, slots, requests = (
        told["user:a/usd/day@Europe/Berlin"],
        told["user:a/concurrency/total"],
        told["team:ml/requests/month@UTC"],
    )
    spent = from_nanos(entry.cost_nanos)
    assert (budget["amount"], Decimal(budget["spent"]), budget["held"]) == ("1.00", spent, "0.00")
    assert Decimal(budget["remaining"]) == 1 - spent and budget["timezone"] == "Europe/Berlin"
    assert budget["resets_at"].endswith("Z") and budget["override_until"] is None
    assert (slots["amount"], slots["held"], slots["resets_at"]) == (100, 0, None)
    assert (requests["spent"], requests["remaining"], requests["mode"]) == (1, 6, "shadow")


async def test_it_is_neither_metered_nor_passed_to_the_app(make: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await make(provider, limits=({"scope": "user:a", "amount": 0, "unit": "requests"},), http={"metered_only": True})
    for _ in range(3):
        assert (await me(gateway)).status == 200
    assert provider.requests == 0 and await gateway.entries() == []
    assert {event.outcome for event in gateway.seen.requests} == {"passed"}


async def test_who_names_nobody_reads_nothing(make: MakeGateway) -> None:
    key = {"key_hash": hash_key(SECRET.encode(), "sk-known"), "principal": "user:b", "scopes": ("team:ml",)}
    principal = {"key_secret": SECRET, "keys": (key,), "require_known_key": True}
    gateway = await make(FakeProvider(), limits=LIMITS, principal=principal)
    for headers in ({}, {"authorization": "Bearer sk-other"}):
        answer = await me(gateway, headers=headers)
        assert (answer.status, answer.headers["content-type"]) == (401, "application/problem+json")
        assert answer.headers["www-authenticate"] == "Bearer" and "limits" not in answer.json
    answer = await me(gateway, headers={"authorization": "Bearer sk-known"})
    assert answer.json["principal"] == "user:b" and answer.json["scopes"][0] == "user:b"
    assert {limit["scope"] for limit in answer.json["limits"]} == {"user:b", "team:ml"}
    assert "sk-known" not in answer.body.decode()
    twice = await me(gateway, headers={"authorization": "Bearer sk-known", "x-api-key": "sk-other"})
    assert twice.status in (400, 401) and twice.headers["content-type"] == "application/problem+json"


async def test_a_caller_of_another_root_reads_the_limits_of_that_root(make: MakeGateway) -> None:
    limits = (*LIMITS, {"scope": "user:a", "amount": "9", "root": "acme"})
    gateway = await make(FakeProvider(), {"principal": lambda scope: Principal("user:a", root="acme")}, limits=limits)
    about = (await me(gateway)).json
    assert (about["root"], [limit["amount"] for limit in about["limits"]]) == ("acme", ["9.00"])


async def test_what_is_held_is_told_while_it_is_held(make: MakeGateway) -> None:
    told: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.update((await me(gateway)).json["limits"][0])
        await receive()
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    gateway = await make(app, limits=({"scope": "user:a", "amount": "1"},))
    await gateway.post()
    assert Decimal(told["held"]) > 0 and Decimal(told["remaining"]) == 1 - Decimal(told["held"])


async def test_the_page_is_where_the_settings_put_it_or_nowhere(make: MakeGateway) -> None:
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(f"{scope['method']} {scope['path']}")
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    moved = await make(app, http={"me_path": "/budget"})
    assert (await me(moved, "/budget")).status == 200
    assert (await me(moved, "/api/budget", root_path="/api")).status == 200
    assert (await me(moved)).status == 204
    assert (await me(await make(app, http={"me_path": ""}))).status == 204
    assert (await me(moved, "/budget", "POST")).status == 204
    assert asked == ["GET /sark/me", "GET /sark/me", "POST /budget"]
    head = await me(moved, "/budget", "HEAD")
    assert (head.status, head.body) == (200, b"") and int(head.headers["content-length"]) > 0


async def test_a_store_that_does_not_answer_is_told_as_such(make: MakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = await make(FakeProvider())

    async def fail(*_: object) -> None:
        raise StoreUnavailableError("gone")

    monkeypatch.setattr(gateway.sark.store, "balance", fail)
    answer = await me(gateway)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert json.loads(answer.body)["error_code"] == "enforcement_unavailable"


async def test_a_principal_that_asks_too_often_is_told_to_wait_and_others_are_answered(
    make: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await make(FakeProvider(), {"principal": lambda scope: dict(scope["headers"])[b"x-who"].decode()}, limits=LIMITS)
    now = 1.0
    gateway.app._me._asked = Asked(MAX_PER_SECOND, clock=lambda: now)
    answers = [await me(gateway, headers={"x-who": "a"}) for _ in range(MAX_PER_SECOND + 2)]
    assert [answer.status for answer in answers] == [200] * MAX_PER_SECOND + [429] * 2
    assert answers[-1].headers["content-type"] == "application/problem+json" and answers[-1].headers["retry-after"] == "1"
    assert (await me(gateway, headers={"x-who": "b"})).status == 200
    now = 2.0
    assert (await me(gateway, headers={"x-who": "a"})).status == 200


async def test_however_many_ask_the_limits_are_read_once_a_second_and_what_is_spent_each_time(
    make: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(range(100))
    payer = {"principal": lambda scope: Principal(f"user:{next(names)}", ("team:ml",))}
    gateway = await make(FakeProvider(), payer, limits=LIMITS)
    await me(gateway)
    read: list[str] = []
    limits = gateway.sark.store.limits

    async def counted(root: str) -> Any:
        read.append(root)
        return await limits(root)

    monkeypatch.setattr(gateway.sark.store, "limits", counted)
    told = []
    for _ in range(20):
        told.append((await me(gateway)).json["limits"][0]["spent"])
        await gateway.post()
        await gateway.quiet()
    assert told == list(range(20)) and len(read) <= 2
    await gateway.sark.limits.drop("default", "team:ml/requests/month@UTC")
    assert (await me(gateway)).json["limits"] == [], "a change that was made here is seen at once"


async def test_limits_that_were_read_again_and_are_the_same_cost_requests_nothing(make: MakeGateway) -> None:
    gateway = await make(FakeProvider())
    await gateway.post()
    tables = gateway.sark.tables
    before = tables.last_layout("default", ("user:a",))
    await tables.reload("default")
    assert tables.last_layout("default", ("user:a",)) is before
