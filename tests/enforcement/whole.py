"""What the tests of the whole enforcer work with: a `Sark` on real servers, invocations with given costs, and its books."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from sark_mw.direct import GivenEstimate
from sark_mw.enforcement.admission import Admission
from sark_mw.enforcer import Invocation
from sark_mw.errors import SarkError
from sark_mw.ledger.base import CostFilter
from sark_mw.limit import DEFAULT_ROOT
from sark_mw.pricing.base import CostEstimate, CostEstimator, InvocationRequest
from sark_mw.reservation import new_reservation_id
from sark_mw.sark import Sark
from sark_mw.settings import Settings
from sark_mw.wire.base import Refusal

ALICE, TEAM = "user:alice", "team:ml"
#: Long enough for any machine: no test waits for it to pass.
PATIENCE_S = 30.0


def settings_for(url: str, folder: Path, *, budget: str | None = "1", **changes: Any) -> Settings:
    """Make settings: a total budget on the team, quick retries, a ledger in a file."""
    sections: dict[str, Any] = {
        "store": {"url": url, "shards": 2, "deadline_ms": 20_000, "journal": folder / "journal.jsonl"},
        "ledger": {"url": f"sqlite:///{folder / 'ledger.db'}", "flush_interval_ms": 10},
        "observe": {"metrics": False, "audit_log": False},
        "limits": [] if budget is None else [{"scope": TEAM, "amount": budget, "window": "total"}],
    }
    for name, change in changes.items():
        sections[name] = {**sections[name], **change} if name in sections and isinstance(change, dict) else change
    return Settings(**sections)


def invocation(
    cost: str, *, expected: str | None = None, estimator: CostEstimator | None = None, root: str = DEFAULT_ROOT
) -> Invocation:
    """Make a request of alice's that may cost so many dollars."""
    given = CostEstimate(Decimal(cost), expected_cost=None if expected is None else Decimal(expected))
    return Invocation(
        request=InvocationRequest("chat", ALICE, {}),
        estimator=estimator or GivenEstimate(given),
        root=root,
        scopes=(ALICE, TEAM),
        request_id=new_reservation_id(),
    )


async def admitted(sark: Sark, cost: str, **words: Any) -> Admission:
    """Admit a request that must be."""
    answer = await sark.enforcer.admit(invocation(cost, **words))
    assert isinstance(answer, Admission), answer
    return answer


async def refused(sark: Sark, cost: str, **words: Any) -> Refusal:
    """Refuse a request that must be."""
    answer = await sark.enforcer.admit(invocation(cost, **words))
    assert isinstance(answer, Refusal)
    return answer


async def counted(sark: Sark, unit: str = "usd") -> tuple[int, int]:
    """Read what is spent and held of the team's first limit in a unit."""
    await sark.tables.reload(DEFAULT_ROOT)
    layout = await sark.tables.layout(DEFAULT_ROOT, (TEAM,))
    balances = (await sark.store.balance(DEFAULT_ROOT, [line for line in layout.lines if line.unit == unit])).balances
    return balances[0].spent, balances[0].held


async def in_ledger(sark: Sark, scope: str = TEAM) -> int:
    """Sum what the ledger has of a scope, once it has all that the outbox had."""
    await until(lambda: _flushed(sark))
    return (await sark.ledger.total(CostFilter(scope=scope))).cost_nanos


async def assert_balanced(sark: Sark, nanos: int) -> None:
    """Check that so much is spent, nothing is held, and the ledger says the same."""
    assert await counted(sark) == (nanos, 0)
    assert await in_ledger(sark) == nanos
    table = await sark.tables.reload(DEFAULT_ROOT)
    comparisons = await sark.drift.compare(DEFAULT_ROOT, table.limits)
    assert [(comparison.settled, comparison.drift) for comparison in comparisons] == [(True, 0)] * len(comparisons)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return when it is so; what cannot be asked yet is not so."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                if await condition():
                    return
            except SarkError:
                pass
            await asyncio.sleep(0.005)


async def _flushed(sark: Sark) -> bool:
    if not sark.settings.ledger.flush:
        await sark.flusher.flush_once()
    return await sark.store.backlog() == 0
