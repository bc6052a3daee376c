"""A gateway around any app, on the executable specification or on the embedded store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.asgi.driving import Gateway, gateway_for, settings_for

MakeGateway = Callable[..., Awaitable[Gateway]]


@pytest.fixture(params=["memory", "fakeredis"])
async def books(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeGateway]:
    """Make gateways on both stores; at the end the books of each must balance."""
    async with AsyncExitStack() as stack:
        made: list[Gateway] = []

        async def make(app: Any, parts: dict[str, Any] | None = None, **sections: Any) -> Gateway:
            settings = settings_for(tmp_path, **sections)
            on_fakeredis = request.param == "fakeredis"
            gateway = await stack.enter_async_context(gateway_for(app, settings, on_fakeredis=on_fakeredis, **(parts or {})))
            made.append(gateway)
            return gateway

        yield make
        for gateway in made:
            await gateway.assert_balanced()


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[MakeGateway]:
    """Make gateways on the executable specification."""
    async with AsyncExitStack() as stack:

        async def make_one(app: Any, parts: dict[str, Any] | None = None, **sections: Any) -> Gateway:
            return await stack.enter_async_context(gateway_for(app, settings_for(tmp_path, **sections), **(parts or {})))

        yield make_one
