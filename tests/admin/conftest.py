"""The admin API in front of an app, asked over HTTP; every answer is held against the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from jsonschema import Draft202012Validator

from sark_mw.admin.openapi import openapi_document
from sark_mw.admin.operations import OPERATIONS
from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.sark import Sark
from tests.enforcement.whole import settings_for

TOKEN = "a token of the tests, long enough"
PATH = "/sark/admin"


class Admin:
    """A client of the admin API of one process."""

    def __init__(self, sark: Sark, client: httpx2.AsyncClient) -> None:
        self.sark = sark
        self.client = client
        self._document = openapi_document(PATH)

    async def ask(self, method: str, path: str, *, status: int = 200, token: str | None = TOKEN, **more: Any) -> Any:
        """Ask, and return the answer's JSON, which must be as documented."""
        headers = {**({"authorization": f"Bearer {token}"} if token else {}), **more.pop("headers", {})}
        answer = await self.client.request(method, PATH + path, headers=headers, **more)
        assert answer.status_code == status, answer.text
        body = answer.json()
        if status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            self._check("Problem", body)
            assert body["status"] == status
        else:
            self._check(self._schema_of(method, path), body)
        return body

    def _schema_of(self, method: str, path: str) -> str:
        for each in OPERATIONS:
            base = each.path.partition("{")[0]
            if each.method == method and (path == each.path or ("{" in each.path and path.startswith(base))):
                return each.answer.__name__
        raise AssertionError(f"no operation is documented for {method} {path}")

    def _check(self, name: str, body: object) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": self._document["components"]}
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(body)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer everything with 418: what passed the middleware."""
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


MakeAdmin = Callable[..., Awaitable[Admin]]


@pytest.fixture(params=["fakeredis"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeAdmin]:
    """Make processes with an admin API."""
    async with AsyncExitStack() as stack:

        async def one(url: str | None = None, client: tuple[str, int] = ("127.0.0.1", 1), **sections: Any) -> Admin:
            admin = {"enabled": True, "token": TOKEN, **sections.pop("admin", {})}
            settings = settings_for(url or f"memory://{uuid4().hex}", tmp_path, admin=admin, **sections)
            sark = await stack.enter_async_context(Sark.open(settings))
            transport = httpx2.ASGITransport(app=SarkMiddleware(app, sark=sark), client=client)  # type: ignore[arg-type]
            http = await stack.enter_async_context(httpx2.AsyncClient(transport=transport, base_url="http://sark"))
            return Admin(sark, http)

        yield one


@pytest.fixture
async def admin(make: MakeAdmin) -> Admin:
    """One process, with ten dollars for the team."""
    return await make(budget="10")
