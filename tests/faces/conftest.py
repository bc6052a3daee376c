"""The faces over the embedded store, and over a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sark_mw import CostAttributionService, Settings
from tests.enforcement.whole import settings_for


@pytest.fixture(params=[pytest.param("memory", marks=pytest.mark.fakeredis), pytest.param("valkey", marks=pytest.mark.redis)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings without any limit, for either store."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("valkey_server").url
    return settings_for(url, tmp_path, budget=None)


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[CostAttributionService]:
    """A service that has not been used yet."""
    async with CostAttributionService(settings=settings) as opened:
        yield opened
