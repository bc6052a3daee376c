"""What the store's tests work with: a store with one budget on it, and the few calls that they make."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from sark_mw.limit import Limit
from sark_mw.reservation import Line, Need, Reserve, ReserveReply, Resolution, Settle, SettleReply, lines_for
from sark_mw.store.base import LimitTable, OutboxEntry
from sark_mw.store.connect import open_store
from sark_mw.store.redis_store import RedisStore

ROOT, SCOPE = "acme", "team:ml"
LEASE_MS = 600_000


@dataclass
class Watch:
    """Hear what a store's calls come to."""

    calls: list[tuple[str, str, int]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def on_store_call(self, script: str, seconds: float, outcome: str, items: int) -> None:
        self.calls.append((script, outcome, items))

    def on_breaker(self, state: str) -> None:
        self.states.append(state)

    def outcomes(self, script: str) -> list[str]:
        """List what the calls of one script came to."""
        return [outcome for name, outcome, _ in self.calls if name == script]


@dataclass
class Caller:
    """One process's view of a budget: its store, the limits it has read and their lines."""

    store: RedisStore
    table: LimitTable
    lines: tuple[Line, ...]

    async def reserve(self, name: str, held: int = 10, *, expected: int = 4, lease_ms: int = LEASE_MS) -> ReserveReply:
        """Hold so many nanos of the budget."""
        return await self.store.reserve(reserve_of(name, self.lines, self.table, held, expected=expected, lease_ms=lease_ms))

    async def settle(self, name: str, nanos: int, made_ms: int = 0) -> SettleReply:
        """Book so many nanos."""
        amounts = (("usd", nanos),)
        return await self.store.settle(
            Settle(
                reservation_id=name,
                root=self.table.root,
                lines=self.lines,
                amounts=amounts,
                made_ms=made_ms,
                entry='{"s":["team:ml"]}',
            )
        )

    async def release(self, name: str) -> SettleReply:
        """Give a hold back."""
        return await self.store.settle(
            Settle(reservation_id=name, root=self.table.root, lines=(), amounts=(), kind=Resolution.RELEASE)
        )

    async def counted(self) -> tuple[int, int]:
        """Read what is spent and what is held of the budget."""
        (balance,) = (await self.store.balance(self.table.root, self.lines)).balances
        return balance.spent, balance.held

    async def outbox(self) -> list[OutboxEntry]:
        """Read all ledger entries that nobody has read."""
        return await self.store.read("test", 10_000)

    async def booked(self) -> int:
        """Sum up what the outbox says was booked."""
        return sum(amount for entry in await self.outbox() for unit, amount in entry.booked if unit == "usd")


def reserve_of(
    name: str, lines: tuple[Line, ...], table: LimitTable, held: int = 10, *, expected: int = 4, lease_ms: int = LEASE_MS
) -> Reserve:
    """Make a reserve in usd."""
    return Reserve(
        reservation_id=name,
        root=table.root,
        lines=lines,
        needs=(Need(unit="usd", held=held, expected=expected),),
        lease_ms=lease_ms,
        version=table.version,
        epoch=table.epoch,
        entry='{"s":["team:ml"]}',
    )


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisStore]:
    """Open a store whose deadline a machine under load keeps, unless told otherwise, and close it."""
    store = await open_store(url, **{"shards": 2, "deadline_s": 20.0, **options})
    try:
        yield store
    finally:
        await store.aclose()


async def budget(store: RedisStore, nanos: int, root: str = ROOT) -> Caller:
    """Begin the store, set a budget, and wait until it counts."""
    await store.begin()
    put = [Limit(scope=SCOPE, unit="usd", amount=Decimal(nanos).scaleb(-9), window="total", root=root)]
    set_at = (await store.set_limits(root, put=put)).at_ms
    while (table := await store.limits(root)).at_ms <= set_at + 1:
        await asyncio.sleep(0)
    return Caller(store, table, lines_for(table.limits, [SCOPE], table.at_ms))


async def another(caller: Caller, store: RedisStore) -> Caller:
    """See the same budget through another store."""
    table = await store.limits(caller.table.root)
    return Caller(store, table, lines_for(table.limits, [SCOPE], table.at_ms))


def through(caller: Caller, store: RedisStore) -> Caller:
    """See the same budget through another store, without asking it."""
    return replace(caller, store=store)


def synthetic(count: int, prefix: str = "x") -> tuple[Line, ...]:
    """Make distinct lines without limits behind them."""
    return tuple(Line(counter=f"{ROOT}|{prefix}-{n}", unit="usd", amount=1_000_000) for n in range(count))
