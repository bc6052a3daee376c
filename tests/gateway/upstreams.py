"""Upstreams that do what a test says, a gateway in front of them, and a client that says exactly what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sark_mw.gateway import ReverseProxy
from sark_mw.settings import PrincipalSettings, ServeSettings, UpstreamSettings
from tests.wire.serving import serve

Answer = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class Upstream:
    """An ASGI app that notes each request's scope and body, then answers as told."""

    def __init__(
        self, *, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None, chunks: tuple[bytes, ...] = (b"ok",)
    ) -> None:
        self.status = status
        self.headers = headers or []
        self.chunks = chunks
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @property
    def seen(self) -> dict[bytes, bytes]:
        """The headers of the last request."""
        return dict(self.scopes[-1]["headers"])


def settings_for(*upstreams: UpstreamSettings, **changes: Any) -> ServeSettings:
    return ServeSettings(upstreams=upstreams, **changes)


@contextlib.asynccontextmanager
async def proxied(app: object, *, path: str = "", prefix: str = "/", strip: bool = False, **changes: Any) -> AsyncIterator[str]:
    """Serve `app` and a proxy before it; yield the proxy's address."""
    async with serve(app) as url:
        proxy = ReverseProxy(
            settings_for(UpstreamSettings(url=url + path, prefix=prefix, strip_prefix=strip), **changes), PrincipalSettings()
        )
        async with serve(proxy) as address, contextlib.aclosing(proxy):
            yield address


async def said(address: str, request: bytes) -> bytes:
    """Send bytes to an address and read until the other side closes."""
    host, _, port = address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer
