"""OPA's data API as its documentation has it, on a socket, with Rego behind it (rego-cpp); and a real OPA, where one is found."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.rules.rego_cpp import rego
from tests.servers.process import ports


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
    """Run the stand-in with these policies."""
    opa = OpaServer(modules)
    server = await asyncio.start_server(opa.serve, "127.0.0.1", 0)
    opa.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield opa
    finally:
        server.close()
        await server.wait_closed()


def opa_binary() -> str | None:
    """Find a real OPA: `SARK_TEST_OPA` names it, or it is on PATH."""
    return os.environ.get("SARK_TEST_OPA") or shutil.which("opa")


@dataclass
class RealOpa:
    """A running OPA, and its process."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@asynccontextmanager
async def real_opa(folder: Path, *options: str, **modules: str) -> AsyncIterator[RealOpa]:
    """Run a real OPA with these policies; it logs its decisions."""
    binary = opa_binary()
    assert binary is not None
    for name, source in modules.items():
        (folder / f"{name}.rego").write_text(source)
    port = ports.claim()
    log = folder / "opa.log"
    words = ["run", "--server", "--disable-telemetry", "--addr", f"127.0.0.1:{port}", "--set", "decision_logs.console=true"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, *words, *options, *(f"{name}.rego" for name in modules)], cwd=folder, stdout=output, stderr=output
        )
    try:
        async with httpx2.AsyncClient() as client, asyncio.timeout(30):
            while True:
                try:
                    await client.get(f"http://127.0.0.1:{port}/health")
                    break
                except httpx2.TransportError:
                    assert process.poll() is None, log.read_text()
                    await asyncio.sleep(0.02)
        yield RealOpa(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        ports.release(port)


Serving = Callable[..., AbstractAsyncContextManager[OpaServer | RealOpa]]


def serving(kind: str, folder: Path) -> Serving:
    """Give what runs a server of this kind: the `stand-in`, or a `real` one, where one is found."""
    if kind == "stand-in":
        return opa_server
    if opa_binary() is None:
        pytest.skip("no OPA is here: SARK_TEST_OPA names one, or it is on PATH")
    return partial(real_opa, folder)
