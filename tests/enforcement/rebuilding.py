"""Two gateways' worth of parts on one store and one ledger, each with a flusher that can be stopped between read and commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sark_mw.enforcement.drift import Drift
from sark_mw.enforcement.rebook import Rebooker
from sark_mw.enforcement.recovery import Recovery
from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.errors import LedgerUnavailableError, StoreDataLostError
from sark_mw.instrumentation.base import NullInstrumentation
from sark_mw.ledger.base import Appended, CostFilter, Ledger, LedgerEntry
from sark_mw.ledger.entries import CallerEntry
from sark_mw.ledger.flusher import Flusher
from sark_mw.limit import Limit
from sark_mw.reservation import Need, Outcome, Reserve, ReserveReply, Resolution, Settle, SettleReply
from sark_mw.store.base import OutboxEntry
from sark_mw.store.redis_store import RedisStore

ROOT = "acme"


def limit(scope: str, amount: int, unit: str = "usd", window: str = "total") -> Limit:
    """Make a limit of so many units, nanos for usd."""
    return Limit(
        scope=scope, unit=unit, amount=Decimal(amount).scaleb(-9) if unit == "usd" else Decimal(amount), window=window, root=ROOT
    )


class Gate:
    """A ledger whose commits can be held up; everything else is the ledger's own."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.shut = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    async def append_fenced(self, entries: Sequence[LedgerEntry]) -> Appended:
        """Append, unless the gate is shut."""
        if self.shut:
            raise LedgerUnavailableError("shut")
        return await self.ledger.append_fenced(entries)


@dataclass
class Reserved:
    """One reservation of a test: what it asked, what its caller says that it has cost."""

    request: Reserve
    made_ms: int
    cost: int = 0
    parts: int = 0
    ended: bool = False


@dataclass
class Process:
    """The parts of one gateway that see to the books."""

    name: str
    store: RedisStore
    ledger: Gate
    clock: ServerClock = field(default_factory=ServerClock)

    def __post_init__(self) -> None:
        self.tables = LimitTables(self.store, self.clock)
        self.recovery = Recovery(self.store, self.ledger, drain=self.drain)  # type: ignore[arg-type]
        keeper = Rebooker(self.store, self.ledger, self.recovery)  # type: ignore[arg-type]
        self.flusher: Flusher[OutboxEntry] = Flusher(
            self.store,
            self.ledger,  # type: ignore[arg-type]
            consumer=self.name,
            reclaim_idle_s=3600,
            keeper=keeper,
        )

    async def drain(self) -> int:
        """Move what can be moved."""
        if self.ledger.shut:
            return 0
        return await self.flusher.flush_once()

    async def take(self) -> None:
        """Read from the outbox and come no further than the commit."""
        self.ledger.shut = True
        try:
            await self.flusher.flush_once()
        except LedgerUnavailableError:
            return
        finally:
            self.ledger.shut = False

    async def set_limits(self, *limits: Limit) -> None:
        """Set limits for good, as the registry does, and wait until they count."""
        table = await self.store.set_limits(ROOT, put=limits)
        await self.ledger.save_limits(table.limits, ())
        self.tables.forget(ROOT)
        while (await self.store.limits(ROOT)).at_ms <= table.at_ms + 1:
            await asyncio.sleep(0)

    async def reserve(self, name: str, *scopes: str, usd: int = 100, **fields: Any) -> ReserveReply:
        """Reserve; rebuild what is lost."""
        return (await self.hold(name, *scopes, usd=usd, **fields))[1]

    async def hold(self, name: str, *scopes: str, usd: int = 100, lease_ms: int = 600_000) -> tuple[Reserved, ReserveReply]:
        """Reserve; rebuild what is lost."""
        while True:
            try:
                layout = await self.tables.layout(ROOT, scopes)
                request = Reserve(
                    reservation_id=name,
                    root=ROOT,
                    lines=layout.lines,
                    needs=(Need(unit="usd", held=usd, expected=usd // 2), Need(unit="requests", held=1, expected=1)),
                    lease_ms=lease_ms,
                    version=layout.version,
                    epoch=layout.epoch,
                    entry=entry_of(scopes),
                )
                reply = await self.store.reserve(request)
            except StoreDataLostError:
                self.tables.forget(ROOT)
                await self.recovery.rebuild()
                continue
            self.clock.heard(reply.at_ms)
            if reply.outcome is Outcome.STALE_LIMITS:
                await self.tables.reload(ROOT)
            elif reply.outcome is not Outcome.WRONG_PERIOD:
                return Reserved(request=request, made_ms=reply.made_ms), reply

    async def state(self, reserved: Reserved, cost: int, kind: Resolution = Resolution.SETTLE) -> SettleReply:
        """Say what a reservation has cost by now; rebuild what is lost."""
        reserved.parts += 1
        reserved.cost = cost
        reserved.ended = kind is not Resolution.PARTIAL
        return await self.send(self.statement(reserved, kind))

    @staticmethod
    def statement(reserved: Reserved, kind: Resolution) -> Settle:
        """Write what a reservation has cost."""
        return Settle(
            reservation_id=reserved.request.reservation_id,
            root=ROOT,
            lines=reserved.request.lines,
            amounts=() if kind is Resolution.RELEASE else (("usd", reserved.cost), ("requests", 1)),
            part=reserved.parts,
            kind=kind,
            made_ms=reserved.made_ms,
            entry=reserved.request.entry,
        )

    async def send(self, settle: Settle) -> SettleReply:
        """Settle; rebuild what is lost."""
        while True:
            try:
                return await self.store.settle(settle)
            except StoreDataLostError:
                await self.recovery.rebuild()

    async def flush(self) -> None:
        """Move everything, also what is booked again meanwhile; rebuild what is lost."""
        for _ in range(100):
            try:
                if not await self.flusher.flush_once():
                    return
            except StoreDataLostError:
                await self.recovery.rebuild()
        raise AssertionError("the outbox does not get empty")

    async def count(self, scope: str) -> tuple[int, int]:
        """Return (spent, held) of the usd limit on a scope."""
        await self.tables.reload(ROOT)
        layout = await self.tables.layout(ROOT, (scope,))
        (balance,) = [b for b in (await self.store.balance(ROOT, layout.lines)).balances if b.line.unit == "usd"]
        return balance.spent, balance.held

    async def books(self, *scopes: str) -> list[tuple[str, int, int]]:
        """List (counter, spent, ledger) where they are not the same; everything must have been flushed."""
        table = await self.tables.reload(ROOT)
        drift = Drift(
            self.store,
            self.ledger,  # type: ignore[arg-type]
            tables=self.tables,
            clock=self.clock,
            instrumentation=NullInstrumentation(),
        )
        compared = await drift.compare(ROOT, table.limits, scopes)
        assert compared
        assert all(one.settled for one in compared)
        return [(one.balance.line.counter, one.balance.spent, one.ledger) for one in compared if one.drift]

    async def booked(self, scope: str) -> int:
        """Sum the ledger over a scope."""
        return (await self.ledger.total(CostFilter(root=ROOT, scope=scope))).cost_nanos


def entry_of(scopes: Sequence[str]) -> str:
    """Write a caller's entry."""
    return CallerEntry(principal_id=scopes[0], scopes=tuple(scopes), provider="openai", model="gpt-4o").to_json()
