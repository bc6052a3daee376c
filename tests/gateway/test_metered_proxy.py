"""The proxy behind the middleware: what an upstream that falls silent costs, and what our own client must not respell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from sark_mw._memory_store import MemoryStore
from sark_mw.gateway import ReverseProxy, build_gateway
from sark_mw.sark import Sark
from tests.asgi.driving import LONG, Client, gateway_for, pieces_of, scope_of, settings_for

UPSTREAM = {"upstreams": [{"url": "http://upstream.invalid"}]}


@pytest.mark.parametrize(
    ("fault", "status", "booked"),
    [
        (httpx2.ReadTimeout("slow"), 504, True),
        (httpx2.ReadError("reset"), 502, True),
        (httpx2.RemoteProtocolError("gone"), 502, True),
        (httpx2.ConnectError("refused"), 502, False),
        (httpx2.ConnectTimeout("unreachable"), 504, False),
        (httpx2.PoolTimeout("busy"), 504, False),
        (httpx2.WriteError("reset"), 502, False),
    ],
)
async def test_a_request_that_was_sent_and_not_answered_is_booked_as_expected(
    tmp_path: Path, fault: httpx2.TransportError, status: int, booked: bool
) -> None:
    async def fails(request: httpx2.Request) -> httpx2.Response:
        raise fault

    settings = settings_for(tmp_path, serve=UPSTREAM)
    proxy = ReverseProxy(settings.serve, settings.principal, client=httpx2.AsyncClient(transport=httpx2.MockTransport(fails)))
    async with gateway_for(proxy, settings) as gateway:
        assert (await gateway.post(LONG)).status == status
        if booked:
            await gateway.expected_entry()
        else:
            assert (await gateway.entry()).kind == "release"
        await gateway.assert_balanced()
    await proxy.aclose()


async def test_a_method_that_is_not_in_upper_case_is_refused_before_our_client_makes_another_of_it(tmp_path: Path) -> None:
    asked: list[str] = []

    async def answers(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.method)
        return httpx2.Response(200)

    settings = settings_for(tmp_path, serve=UPSTREAM)
    sark = Sark(settings, store=MemoryStore())  # type: ignore[arg-type]
    transport = httpx2.MockTransport(answers)
    app = build_gateway(settings, sark=sark, client=httpx2.AsyncClient(transport=transport))

    async def status(method: str) -> Any:
        return (await Client(app, scope_of("/v1/files", method), pieces_of(b"{}")).run()).status

    assert (await status("post"), await status("POST")) == (400, 200)
    assert asked == ["POST"]
    await sark.aclose()


def test_a_gateway_that_passes_what_nobody_meters_says_so_at_its_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_gateway(settings_for(tmp_path, serve=UPSTREAM, http={"metered_only": True}))
    assert "metered_only" not in caplog.text
    build_gateway(settings_for(tmp_path, serve=UPSTREAM))
    assert "http.metered_only is off" in caplog.text
