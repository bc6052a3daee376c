"""The official MCP client, refused in the middle of a session, understands why and goes on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from sark_mw.wire import WIRES
from sark_mw.wire.base import Operation, Refusal, RefusalKind
from tests.wire.serving import serve

mcp = pytest.importorskip("mcp")
mcpserver = pytest.importorskip("mcp.server.mcpserver")


class Gate:
    """Refuses tool calls and lets every other message pass."""

    def __init__(self, app: Any, refusal: Refusal) -> None:
        self.app = app
        self.refusal = refusal
        self.refused: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        wire = WIRES["mcp"]
        operation = wire.match(scope["method"], scope["path"])
        if operation is None:
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        call = wire.read(operation, scope["path"], scope["headers"], body)
        if call.operation != Operation.TOOL_CALL:
            await self.app(scope, replay(body, receive), send)
            return
        self.refused += [tool.name for tool in call.tools]
        response = wire.refuse(self.refusal, call=call)
        await send({"type": "http.response.start", "status": response.status, "headers": list(response.headers)})
        await send({"type": "http.response.body", "body": response.body})


def replay(body: bytes, receive: Any) -> Any:
    first: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return first.pop() if first else await receive()

    return again


@contextlib.asynccontextmanager
async def running(app: Any) -> Any:
    """Run the lifespan of a Starlette app in one task of its own, as anyio asks."""
    started, stop = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with app.router.lifespan_context(app):
            started.set()
            await stop.wait()

    task = asyncio.create_task(live())
    await started.wait()
    try:
        yield
    finally:
        stop.set()
        await task


@pytest.mark.parametrize("kind", [RefusalKind.BUDGET, RefusalKind.UNAVAILABLE])
async def test_a_refused_tool_call_is_understood_by_the_official_client(kind: RefusalKind) -> None:
    server = mcpserver.MCPServer("books")

    @server.tool()
    def search(query: str) -> str:
        return f"found {query}"

    app = server.streamable_http_app(stateless_http=True, json_response=True)
    gate = Gate(app, Refusal(kind=kind, message="The budget is spent.", request_id="r"))
    async with running(app), serve(gate) as url, mcp.Client(f"{url}/mcp") as client:
        if kind == RefusalKind.BUDGET:
            result = await client.call_tool("search", {"query": "x"})
            assert result.is_error and result.content[0].text == "The budget is spent."
        else:
            with pytest.raises(mcp.MCPError, match=r"The budget is spent\."):
                await client.call_tool("search", {"query": "x"})
        assert [tool.name for tool in (await client.list_tools()).tools] == ["search"]
    assert gate.refused == ["search"]
