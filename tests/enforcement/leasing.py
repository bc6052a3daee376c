"""What the lease tests work with: processes that share one store, each over a connection of its own that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from sark_mw._memory_store import ManualClock, MemoryStore
from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.enforcement.journal import Journal
from sark_mw.enforcement.leases import LeaseOptions, LeasePool
from sark_mw.enforcement.settler import Settler
from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.errors import StoreUnavailableError
from sark_mw.instrumentation.base import NullInstrumentation
from sark_mw.ledger.entries import CallerEntry
from sark_mw.limit import Limit, Unit
from sark_mw.pricing.base import Estimate
from sark_mw.reservation import ExtendReply, Line, Need, Reserve, ReserveReply, Settle, SettleReply, lines_for
from sark_mw.store.base import LimitTable, Snapshot

ROOT, TEAM, ALICE = "acme", "team:ml", "user:alice"
LEASE_MS = 60_000
NOON_MS = 1_792_000_000_000 // 86_400_000 * 86_400_000 + 43_200_000


class Connection:
    """A store over a connection that can be cut, or that loses the answer of the next calls."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.cut = False
        self.answers_to_lose = 0
        self.settles: list[Settle] = []

    def _reach(self) -> None:
        if self.cut:
            raise StoreUnavailableError("cut off")

    def _return(self) -> None:
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise StoreUnavailableError("the answer was lost")

    async def reserve(self, request: Reserve) -> ReserveReply:
        self._reach()
        reply = await self._store.reserve(request)
        self._return()
        return reply

    async def settle(self, request: Settle) -> SettleReply:
        self._reach()
        self.settles.append(request)
        reply = await self._store.settle(request)
        self._return()
        return reply

    async def extend(self, root: str, reservation_id: str, lease_ms: int) -> ExtendReply:
        self._reach()
        reply = await self._store.extend(root, reservation_id, lease_ms)
        self._return()
        return reply

    async def balance(self, root: str, lines: Sequence[Line]) -> Snapshot:
        self._reach()
        return await self._store.balance(root, lines)

    async def sweep(self, shard: int | None = None) -> int:
        self._reach()
        return await self._store.sweep(shard)

    async def limits(self, root: str) -> LimitTable:
        self._reach()
        return await self._store.limits(root)

    async def set_limits(self, root: str, put: Sequence[Limit] = (), drop: Sequence[str] = ()) -> LimitTable:
        self._reach()
        return await self._store.set_limits(root, put, drop)

    async def aclose(self) -> None:
        """Nothing to close."""


class Told(ServerClock):
    """A process's idea of the server's time, exactly right."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._manual = clock

    def now_ms(self) -> int:
        return self._manual()


class Gauge(NullInstrumentation):
    """Sum up what is said to be held."""

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}

    def held(self, unit: str, change: int) -> None:
        self.sums[unit] = self.sums.get(unit, 0) + change


class Process:
    """One gateway process: its connection, its settler and its leases."""

    def __init__(self, shop: Shop, name: str, options: LeaseOptions | None) -> None:
        self.connection = Connection(shop.store)
        self.gauge = Gauge()
        clock = Told(shop.clock)
        self.tables = LimitTables(self.connection, clock)
        self.journal = Journal(shop.folder / f"{name}.jsonl")
        self.settler = Settler(
            self.connection, clock=clock, journal=self.journal, instrumentation=self.gauge, rebuild=shop.store.begin
        )
        self.pool = LeasePool(
            self.connection,
            tables=self.tables,
            clock=clock,
            settler=self.settler,
            instrumentation=self.gauge,
            lease_ms=LEASE_MS,
            options=options,
            monotonic=lambda: shop.clock() / 1000,
        )
        self.grants = 0

    async def lease(self, *scopes: str) -> None:
        """Let a request touch these scopes, and what that starts in the background come to rest."""
        self.pool.touch(ROOT, scopes)
        await rest()

    def grant(self, ceiling: int, *scopes: str, expected: int = 0) -> Admission | None:
        """Ask the lease for a request that may cost `ceiling` nanos."""
        needs = (
            Need(unit=Unit.USD, held=ceiling, expected=expected),
            Need(unit=Unit.REQUESTS, held=1, expected=1),
            Need(unit=Unit.CONCURRENCY, held=1),
        )
        lease = self.pool.take(ROOT, scopes, needs)
        if lease is None:
            return None
        self.grants += 1
        entry = CallerEntry(principal_id=scopes[-1], scopes=scopes, request_id=f"request-{self.grants}")
        estimate = Estimate(ceiling_nanos=ceiling, expected_nanos=expected)
        return self.pool.admission(lease, needs, estimate, entry, entry.request_id)

    def grant_all(self, ceiling: int, *scopes: str) -> list[Admission]:
        """Ask until the lease says no."""
        granted: list[Admission] = []
        while admission := self.grant(ceiling, *scopes):
            granted.append(admission)
        return granted

    async def close(self) -> None:
        """Shut the process down in order."""
        await self.pool.aclose()
        await self.settler.drain(10)


class Shop:
    """One store, its clock, and the processes that share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock(NOON_MS)
        self.store = MemoryStore(self.clock)

    async def limit(self, *limits: Limit) -> None:
        """Set limits, which count from the next millisecond on."""
        await self.store.set_limits(ROOT, put=limits)
        self.clock.advance(2)

    def process(self, name: str = "one", **options: int) -> Process:
        """Start a process that leases up to 1,000 nanos, 100 requests and 1,000 tokens, the whole limit if it is free."""
        return Process(self, name, replace(LeaseOptions(usd_nanos=1_000, requests=100, tokens=1_000, share=1), **options))

    async def count(self, *scopes: str, unit: str = Unit.USD) -> tuple[int, int]:
        """Read (spent, held) of the first limit of a unit on these scopes, by the current period."""
        table = await self.store.limits(ROOT)
        lines = [line for line in lines_for(table.limits, scopes, table.at_ms) if line.unit == unit]
        (balance, *_) = (await self.store.balance(ROOT, lines)).balances
        return balance.spent, balance.held


def budget(nanos: int, scope: str = TEAM, window: str = "day") -> Limit:
    """Make a limit in usd of so many nanos."""
    return Limit(scope=scope, amount=Decimal(nanos).scaleb(-9), window=window, root=ROOT)


def cap(amount: int, unit: str, scope: str = TEAM) -> Limit:
    """Make a limit in another unit over a day."""
    return Limit(scope=scope, unit=unit, amount=Decimal(amount), root=ROOT)


def cost(nanos: int) -> Spent:
    """Say what a request has cost."""
    return Spent(cost_nanos=nanos)


async def rest() -> None:
    """Let everything run that does not wait for anything outside: turns of the loop, no time."""
    for _ in range(100):
        await asyncio.sleep(0)
