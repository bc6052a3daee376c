"""OPA's data API as its documentation has it, on a socket, with real Rego behind it (rego-cpp).

`SARK_TEST_OPA_URL` names a real server instead: its policies are put there through OPA's own policy API.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.rules.rego_cpp import rego


@dataclass
class OpaServer:
    """Where it listens, and what it has seen; `misbehave` answers in its place."""

    modules: dict[str, str] = field(default_factory=dict)
    url: str = ""
    connections: int = 0
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    misbehave: Callable[[asyncio.StreamWriter], Any] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *rest = head.split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest if each)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = line.split(" ")[1]
                self.requests.append((path, headers, json.loads(body)))
                if self.misbehave is not None:
                    await self.misbehave(writer)
                else:
                    await self.answer(writer, await asyncio.to_thread(self.judge, path, json.loads(body)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def judge(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        query = "data." + path.removeprefix("/v1/data/").replace("/", ".")
        (found,) = rego(self.modules, query, [body["input"]])
        answer: dict[str, Any] = {"decision_id": "b84cf736-213d-4932-a8e4-bb5c648f1a4d"}
        # An undefined document has no `result` at all.
        return answer | {"result": found[0]} if found else answer

    @staticmethod
    async def answer(writer: asyncio.StreamWriter, body: Any, status: str = "200 OK") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
        )
        await writer.drain()


@asynccontextmanager
async def opa_server(**modules: str) -> AsyncIterator[OpaServer]:
    """Run a server with these policies."""
    real = os.environ.get("SARK_TEST_OPA_URL")
    opa = OpaServer(modules)
    if real:
        async with httpx2.AsyncClient() as client:
            for name, source in modules.items():
                (await client.put(f"{real}/v1/policies/{name}", content=source)).raise_for_status()
        opa.url = real
        yield opa
        return
    server = await asyncio.start_server(opa.serve, "127.0.0.1", 0)
    opa.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield opa
    finally:
        server.close()
        await server.wait_closed()
