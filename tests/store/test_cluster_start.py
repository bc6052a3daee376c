"""A cold cluster client under a burst: what a gateway does at its start."""

from __future__ import annotations

from pathlib import Path

from sark_mw import Limit, Sark, Settings
from sark_mw.money import to_decimal
from tests.servers.cluster import ValkeyCluster


async def test_a_gateway_starts_on_a_cluster_every_time(valkey_cluster: ValkeyCluster, tmp_path: Path) -> None:
    url = valkey_cluster.url.replace("redis://", "redis+cluster://")
    settings = Settings(
        store={"url": url, "journal": tmp_path / "journal.jsonl", "deadline_ms": 5000, "shards": 16},
        ledger={"url": f"sqlite:///{tmp_path / 'ledger.db'}"},
        observe={"audit_log": False},
    )
    for turn in range(5):
        async with Sark.open(settings) as sark:
            await sark.limits.set(Limit(scope=f"user:{turn}", amount=to_decimal("1")))
            async with sark.reserve(principal=f"user:{turn}", estimate="0.4") as reservation:
                reservation.settle("0.3")
            await sark.settler.drain(5)
            layout = await sark.tables.layout("default", (f"user:{turn}",))
            (budget,) = (await sark.store.balance("default", layout.lines)).balances
            assert (budget.spent, budget.held) == (300_000_000, 0)
