"""Serve ASGI apps on free ports of this machine from a process of their own, for as long as its parent wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import uvicorn

HOST = "127.0.0.1"


def listen(port: int = 0) -> socket.socket:
    """Listen on a port, 0 for a free one."""
    # With the protocol named, asyncio switches Nagle's algorithm off on what is accepted: without it, answers wait 40 ms.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, port))
    sock.listen(1024)
    return sock


class _Server(uvicorn.Server):
    """A server without signal handlers: its parent says when it is over."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


async def serve(apps: Mapping[str, tuple[Any, int]]) -> None:
    """Serve apps (name → app and port), tell the parent their ports in one line, end with the parent or when it says so."""
    sockets = {name: listen(port) for name, (_, port) in apps.items()}
    servers = [
        _Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=10, ws="none"))
        for app, _ in apps.values()
    ]
    pairs = zip(servers, sockets.values(), strict=True)
    tasks = [asyncio.ensure_future(_run(server, sock)) for server, sock in pairs]
    while not all(server.started for server in servers) and not any(task.done() for task in tasks):  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)
    if any(task.done() for task in tasks):
        await _end(servers, tasks)
        sys.exit(3)  # uvicorn has said why
    sys.stdout.write(json.dumps({name: sock.getsockname()[1] for name, sock in sockets.items()}) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await _end(servers, tasks)


async def _run(server: uvicorn.Server, sock: socket.socket) -> None:
    with contextlib.suppress(SystemExit):  # how uvicorn ends when the app does not start
        await server.serve(sockets=[sock])


async def _end(servers: Sequence[uvicorn.Server], tasks: Sequence[asyncio.Future[None]]) -> None:
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)


class Child:
    """A process that serves; it ends when this process does, whatever way that happens."""

    def __init__(self, module: str, arguments: Sequence[str] = ()) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._process: asyncio.subprocess.Process | None = None
        self.ports: dict[str, int] = {}

    def url(self, name: str) -> str:
        """Return the address of one of its apps."""
        return f"http://{HOST}:{self.ports[name]}"

    async def __aenter__(self) -> Child:
        # Settings of this machine must not change what the demo shows.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SARK_")}
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches this process only, which ends the others in order
        )
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            await self._process.wait()
            raise RuntimeError(f"{self._command[2]} did not start")
        self.ports = json.loads(line)
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
