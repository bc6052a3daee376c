"""Who may use the admin API, and where it is."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from sark_mw.admin import admin_app
from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.errors import ConfigurationError
from sark_mw.gateway import build_gateway
from sark_mw.sark import Sark
from sark_mw.settings import Settings
from tests.admin.conftest import PATH, TOKEN, Admin, MakeAdmin, app
from tests.enforcement.whole import settings_for

PAGES = ("/limits", "/status", "/holds", "/refusals", "/events", "/openapi.json", "/nowhere")


@pytest.mark.parametrize("page", PAGES)
async def test_without_the_token_nothing_is_told(admin: Admin, page: str) -> None:
    for headers in ({}, {"authorization": "Basic x"}, {"authorization": f"Bearer {TOKEN}x"}, {"x-api-key": TOKEN}):
        answer = await admin.client.get(PATH + page, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json" and TOKEN not in answer.text
    twice = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer other")]
    assert (await admin.client.get(PATH + page, headers=twice)).status_code == 401


async def test_a_principals_key_does_not_open_it(make: MakeAdmin) -> None:
    principal = {"key_secret": "0123456789abcdef0123", "anonymous": "user:a"}
    admin = await make(principal=principal)
    await admin.ask("GET", "/limits", status=401, token="sk-a-key-of-a-principal")


async def test_from_other_networks_it_cannot_be_used_even_with_the_token(make: MakeAdmin) -> None:
    networks = {"allowed_networks": ("10.0.0.0/8", "::1")}
    near = await make(client=("10.1.2.3", 1), admin=networks)
    await near.ask("GET", "/limits")
    await (await make(client=("::ffff:10.1.2.3", 1), admin=networks)).ask("GET", "/limits")
    await (await make(client=("192.0.2.1", 1), admin=networks)).ask("GET", "/limits", status=403)
    await near.ask("GET", "/limits", status=401, token=None)


async def test_it_is_off_by_default_and_its_path_is_the_apps_then(tmp_path: Path) -> None:
    async with Sark.open(settings_for("memory://", tmp_path)) as sark:
        transport = httpx2.ASGITransport(app=SarkMiddleware(app, sark=sark))  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url="http://sark") as client:
            answer = await client.get(f"{PATH}/limits", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 418


@pytest.mark.parametrize("token", ["", "too short"])
def test_enabled_without_a_proper_token_it_is_refused_at_start(token: str) -> None:
    with pytest.raises(ConfigurationError, match="16 characters"):
        Settings.of({"admin": {"enabled": True, "token": token}})
    with pytest.raises(ConfigurationError, match="16 characters"):
        admin_app(Sark(Settings.of({"admin": {"token": token}, "observe": {"metrics": False}})))


def test_networks_that_are_none_are_refused_at_start() -> None:
    with pytest.raises(ConfigurationError, match="neither an address"):
        Settings.of({"admin": {"allowed_networks": ["10.0.0.0/33"]}})


async def test_it_lies_where_the_settings_put_it_also_below_a_mount(make: MakeAdmin) -> None:
    admin = await make(admin={"path": "/ops/budgets"})
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert (await admin.client.get("/ops/budgets/limits", headers=headers)).status_code == 200
    assert (await admin.client.get("/ops/budgetsx/limits")).status_code == 418
    assert (await admin.client.get(f"{PATH}/limits")).status_code == 418
    inside = Starlette(routes=[Mount("/api", app=SarkMiddleware(app, sark=admin.sark))])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=inside), base_url="http://sark") as client:
        assert (await client.get("/api/ops/budgets/limits", headers=headers)).status_code == 200


async def test_it_can_be_mounted_by_hand_and_starts_what_nobody_has_started(tmp_path: Path) -> None:
    sark = Sark(settings_for("memory://", tmp_path, admin={"token": TOKEN}))
    outer = Starlette(routes=[Mount("/by-hand", app=admin_app(sark))])
    try:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=outer), base_url="http://sark") as client:
            answer = await client.get("/by-hand/limits", headers={"authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200 and [each["scope"] for each in answer.json()["limits"]] == ["team:ml"]
    finally:
        await sark.aclose()


async def test_the_gateway_has_it_too(tmp_path: Path) -> None:
    serve = {"upstreams": [{"url": "http://127.0.0.1:9"}]}
    settings = settings_for(
        "memory://", tmp_path, serve=serve, admin={"enabled": True, "token": TOKEN}, http={"metered_only": True}
    )
    async with Sark.open(settings) as sark:
        transport = httpx2.ASGITransport(app=build_gateway(settings, sark=sark))  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url="http://sark") as client:
            assert (await client.get(f"{PATH}/limits", headers={"authorization": f"Bearer {TOKEN}"})).status_code == 200
            assert (await client.get(f"{PATH}/limits")).status_code == 401


async def test_what_is_not_there_or_not_asked_so_is_a_problem_too(admin: Admin) -> None:
    assert (await admin.ask("GET", "/nowhere", status=404))["title"] == "Not Found"
    await admin.ask("PATCH", "/limits", status=405)
    await admin.ask("PUT", "/limits", status=415, content=b"limits", headers={"content-type": "text/plain"})
    json_type = {"content-type": "application/json"}
    for body in (b"{", b"\xff", b'{"limits": [], "reason": NaN}', b'{"reason": "\\ud800"}', b"[" * 100_000):
        await admin.ask("PUT", "/limits", status=400, content=body, headers=json_type)
    await admin.ask("PUT", "/limits", status=413, content=b" " * (4 * 1024 * 1024 + 1), headers=json_type)
    for body in (b"[]", b"1", b"null", b"{}"):
        await admin.ask("PUT", "/limits", status=422, content=body, headers=json_type)
