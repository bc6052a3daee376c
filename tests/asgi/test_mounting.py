"""Mounting: lifespan with and without the app's, lazy start, WebSockets, and one middleware per chain only."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from sark_mw._fake_provider import FakeProvider
from sark_mw._memory_store import MemoryStore
from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.asgi.types import Message, Receive, Scope, Send
from sark_mw.errors import ConfigurationError, StoreUnavailableError
from sark_mw.sark import Sark
from sark_mw.settings import Settings
from tests.asgi.driving import CHAT, settings_for


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path)


class Server:
    """The server's side of the lifespan protocol."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.heard: list[Message] = []
        self._asks: asyncio.Queue[Message] = asyncio.Queue()
        self._hears: asyncio.Queue[Message] = asyncio.Queue()

    @asynccontextmanager
    async def running(self) -> Any:
        self.task = asyncio.ensure_future(
            self._app({"type": "lifespan", "asgi": {}, "state": {}}, self._asks.get, self._hears.put)
        )
        await self.say("startup")
        yield self
        await self.say("shutdown")
        await self.task

    async def say(self, what: str) -> None:
        await self._asks.put({"type": f"lifespan.{what}"})
        hearing = asyncio.ensure_future(self._hears.get())
        await asyncio.wait([hearing, self.task], return_when=asyncio.FIRST_COMPLETED)
        if hearing.done():
            self.heard.append(hearing.result())
        else:
            hearing.cancel()


async def test_the_system_runs_from_before_the_apps_startup_until_after_its_shutdown(settings: Settings) -> None:
    sark = Sark(settings)
    states: list[tuple[str, bool]] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        states.append(("startup", sark.started))
        yield {"own": 1}
        states.append(("shutdown", sark.started))

    server = Server(SarkMiddleware(Starlette(lifespan=lifespan), sark=sark))
    async with server.running():
        assert sark.started
    assert states == [("startup", True), ("shutdown", True)] and not sark.started
    assert [message["type"] for message in server.heard] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def _http_only(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"


async def _answers_and_returns(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


async def _returns(scope: Scope, receive: Receive, send: Send) -> None:
    return


@pytest.mark.parametrize("app", [_http_only, _answers_and_returns, _returns])
async def test_an_app_without_a_lifespan_gets_ours_all_the_same(settings: Settings, app: Any) -> None:
    middleware = SarkMiddleware(app, settings)
    server = Server(middleware)
    async with server.running():
        assert middleware.sark.started
    assert not middleware.sark.started
    assert [message["type"] for message in server.heard] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_an_app_whose_startup_fails_stops_the_system_and_the_server_hears_it(settings: Settings) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        raise RuntimeError("no database")
        yield

    middleware = SarkMiddleware(Starlette(lifespan=lifespan), settings)
    server = Server(middleware)
    with pytest.raises(RuntimeError, match="no database"):
        async with server.running():
            assert server.heard[0]["type"] == "lifespan.startup.failed"
            await server.task
    assert not middleware.sark.started


async def test_a_system_that_cannot_start_fails_the_servers_start(settings: Settings) -> None:
    sark = Sark(settings, store=_Unreachable())  # type: ignore[arg-type]
    server = Server(SarkMiddleware(FakeProvider(), sark=sark))
    with pytest.raises(StoreUnavailableError):
        async with server.running():
            await server.task
    assert server.heard[0]["type"] == "lifespan.startup.failed" and "no answer" in server.heard[0]["message"]
    await sark.aclose()


class _Unreachable(MemoryStore):
    failures = 10**9

    async def lost_shards(self) -> list[int]:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailableError("no answer")
        return await super().lost_shards()


async def test_a_sark_that_was_started_by_its_owner_stays_its_owners(settings: Settings) -> None:
    async with Sark.open(settings) as sark:
        async with Server(SarkMiddleware(FakeProvider(), sark=sark)).running():
            pass
        assert sark.started


async def test_without_a_lifespan_concurrent_first_requests_start_it_once(settings: Settings) -> None:
    sark = Sark(settings)
    starts = 0
    start = sark._start

    async def counted() -> None:
        nonlocal starts
        starts += 1
        await start()

    sark._start = counted  # type: ignore[method-assign]
    app = SarkMiddleware(FakeProvider(), sark=sark)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=CHAT) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200} and starts == 1
    await sark.aclose()


async def test_a_first_request_that_finds_the_store_away_is_refused_and_the_next_tries_again(settings: Settings) -> None:
    store = _Unreachable()
    store.failures = 1
    sark = Sark(settings, store=store)  # type: ignore[arg-type]
    app = SarkMiddleware(FakeProvider(), sark=sark)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        first = await client.post("/v1/chat/completions", json=CHAT)
        second = await client.post("/v1/chat/completions", json=CHAT)
    assert (first.status_code, first.json()["error"]["code"]) == (503, "enforcement_unavailable")
    assert second.status_code == 200
    await sark.aclose()


def test_it_mounts_on_fastapi_with_websockets_lifespan_and_other_middlewares(settings: Settings) -> None:
    app = FastAPI()
    app.add_middleware(SarkMiddleware, settings=settings)
    app.add_middleware(BaseHTTPMiddleware, dispatch=_pass_on)

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> dict[str, Any]:
        return {"got": body["model"], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}

    @app.websocket("/socket")
    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())

    with TestClient(app) as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.json()["got"] == "gpt-4o" and "x-sark-cost" in answer.headers
        with client.websocket_connect("/socket") as connection:
            connection.send_text("hello")
            assert connection.receive_text() == "hello"
        assert client.get("/nothing").status_code == 404


async def _pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


def test_websockets_are_closed_where_only_metered_requests_pass(tmp_path: Path) -> None:
    from starlette.websockets import WebSocketDisconnect

    app = SarkMiddleware(Starlette(), settings_for(tmp_path, http={"metered_only": True}))
    with TestClient(app) as client, pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/realtime"):
        pass


class _Between:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def test_a_second_mount_is_refused_at_construction_where_it_can_be_seen(settings: Settings) -> None:
    once = SarkMiddleware(FakeProvider(), settings)
    planned = Starlette(middleware=[Middleware(SarkMiddleware, settings=settings)])
    for app in (once, _Between(once), _Between(_Between(once)), planned, _Between(planned)):
        with pytest.raises(ConfigurationError, match="twice"):
            SarkMiddleware(app, settings)


def test_a_second_mount_that_only_a_request_can_show_is_refused_then(settings: Settings) -> None:
    async def answer(request: Any) -> JSONResponse:
        return JSONResponse({})

    inner = SarkMiddleware(Starlette(routes=[Route("/v1/x", answer)]), settings)
    app = SarkMiddleware(Starlette(routes=[Mount("/inner", app=inner)]), settings)
    with TestClient(app) as client, pytest.raises(ConfigurationError, match="twice"):
        client.get("/inner/v1/x")


def test_two_chains_in_one_process_are_no_second_mount(settings: Settings) -> None:
    app = Starlette(
        routes=[
            Mount("/a", app=SarkMiddleware(FakeProvider(), settings)),
            Mount("/b", app=SarkMiddleware(FakeProvider(), settings)),
        ]
    )
    with TestClient(app) as client:
        assert client.post("/a/v1/chat/completions", json=CHAT).status_code == 200
        assert client.post("/b/v1/chat/completions", json=CHAT).status_code == 200


@pytest.mark.parametrize("parts", [{"settings": "/no/such/file.toml"}, {"settings": Settings(), "sark": "given"}])
def test_settings_that_cannot_work_raise_at_construction(settings: Settings, parts: dict[str, Any]) -> None:
    if "sark" in parts:
        parts = {**parts, "sark": Sark(settings)}
    with pytest.raises(ConfigurationError):
        SarkMiddleware(FakeProvider(), **parts)
