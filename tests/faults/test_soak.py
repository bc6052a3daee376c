"""A small soak: three processes, killed and started again, and an administrator; then every book agrees with every other."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import Size, soak
from tests.servers.fixtures import FreshValkey


@pytest.mark.slow
async def test_ledger_counters_and_the_providers_own_tally_agree_to_the_nano_after_kills_and_retries(
    fresh_valkey: FreshValkey, tmp_path: Path
) -> None:
    server = fresh_valkey()
    size = Size(processes=3, calls=300, kills=3, seed=7)
    figures = {figure.name: figure for figure in await soak(size, server.url, f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path)}
    wrong = [(name, figure.value, figure.note) for name, figure in figures.items() if figure.met is False]
    assert wrong == []
    assert figures["admitted"].value > 300
    assert figures["counters compared"].value > 50
