"""What a conformance test works with: one store of some kind, the limits on it, and what was asked of it before."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Protocol

from sark_mw.limit import Limit
from sark_mw.reservation import (
    ExtendReply,
    Line,
    Need,
    Outcome,
    Reserve,
    ReserveReply,
    Resolution,
    Settle,
    SettleReply,
    lines_for,
)
from sark_mw.store.base import LimitTable, Outbox, OutboxEntry, ReservationStore, RestorableStore, Snapshot
from tests.conformance.clocks import ServerClock

ROOT = "acme"
MINUTE_MS = 60_000


class Store(ReservationStore, Outbox, RestorableStore, Protocol):
    """All three faces of a store."""


def budget(scope: str, nanos: int, window: str = "total", **fields: Any) -> Limit:
    """Make a limit in usd of so many nanos."""
    return Limit(scope=scope, unit="usd", amount=Decimal(nanos).scaleb(-9), window=window, root=ROOT, **fields)


def cap(scope: str, unit: str, amount: int, window: str = "total", **fields: Any) -> Limit:
    """Make a limit in another unit."""
    return Limit(scope=scope, unit=unit, amount=Decimal(amount), window=window, root=ROOT, **fields)


@dataclass
class Books:
    """One store under test. `open` opens another store object on the same data, `lose_data` empties it."""

    kind: str
    store: Store
    clock: ServerClock
    open: Callable[[], Awaitable[Store]]
    lose_data: Callable[[], Awaitable[None]]
    table: LimitTable | None = None
    asked: dict[str, Reserve] = field(default_factory=dict)
    made_ms: dict[str, int] = field(default_factory=dict)
    entries: list[OutboxEntry] = field(default_factory=list)

    async def limit(self, *limits: Limit) -> None:
        """Set limits, and wait until they count."""
        self.table = await self.store.set_limits(ROOT, put=limits)
        await self.clock.advance(2)

    async def now(self) -> int:
        """Ask the store for its time."""
        return (await self.store.limits(ROOT)).at_ms

    async def lines(self, *scopes: str) -> tuple[Line, ...]:
        """Lay out the limits on these scopes at this instant."""
        self.table = await self.store.limits(ROOT)
        return lines_for(self.table.limits, scopes, self.table.at_ms)

    async def request(
        self,
        name: str,
        *scopes: str,
        lease_ms: int = 600_000,
        entry: str = '{"a":1}',
        key: tuple[str, str] = ("", ""),
        **needs: int | tuple[int, int],
    ) -> Reserve:
        """Make a reserve; a need is its ceiling, or (ceiling, expected); `key` an idempotency key and its fingerprint."""
        lines = await self.lines(*scopes)
        assert self.table
        pairs = {unit: need if isinstance(need, tuple) else (need, need) for unit, need in needs.items()}
        return Reserve(
            reservation_id=name,
            root=ROOT,
            lines=lines,
            needs=tuple(Need(unit=unit, held=held, expected=expected) for unit, (held, expected) in pairs.items()),
            lease_ms=lease_ms,
            version=self.table.version,
            epoch=self.table.epoch,
            entry=entry,
            key=key[0],
            fingerprint=key[1],
        )

    async def send(self, request: Reserve) -> ReserveReply:
        """Send a reserve as it is and remember it for its settle."""
        reply = await self.store.reserve(request)
        if reply.admitted and not reply.repeated:
            self.asked[request.reservation_id] = request
            self.made_ms[request.reservation_id] = reply.at_ms
        return reply

    async def reserve(
        self,
        name: str,
        *scopes: str,
        lease_ms: int = 600_000,
        entry: str = '{"a":1}',
        key: tuple[str, str] = ("", ""),
        **needs: int | tuple[int, int],
    ) -> ReserveReply:
        """Reserve; should the period have just changed, ask again as an enforcer does."""
        while True:
            reply = await self.send(await self.request(name, *scopes, lease_ms=lease_ms, entry=entry, key=key, **needs))
            if reply.outcome is not Outcome.WRONG_PERIOD:
                return reply

    def settlement(
        self, name: str, kind: Resolution = Resolution.SETTLE, *, part: int = 1, made_ms: int | None = None, **amounts: int
    ) -> Settle:
        """Make a settle of a reservation that was held here."""
        asked = self.asked[name]
        return Settle(
            reservation_id=name,
            root=ROOT,
            lines=asked.lines,
            amounts=tuple(amounts.items()),
            part=part,
            kind=kind,
            made_ms=self.made_ms[name] if made_ms is None else made_ms,
            entry=f'{{"settled":"{name}"}}',
        )

    async def settle(self, name: str, *, part: int = 1, made_ms: int | None = None, **amounts: int) -> SettleReply:
        """Book and end a reservation."""
        return await self.store.settle(self.settlement(name, part=part, made_ms=made_ms, **amounts))

    async def partial(self, name: str, part: int, **amounts: int) -> SettleReply:
        """Book a part of a reservation."""
        return await self.store.settle(self.settlement(name, Resolution.PARTIAL, part=part, **amounts))

    async def release(self, name: str, *, part: int = 1, made_ms: int | None = None) -> SettleReply:
        """Release a reservation."""
        return await self.store.settle(self.settlement(name, Resolution.RELEASE, part=part, made_ms=made_ms))

    async def extend(self, name: str, lease_ms: int) -> ExtendReply:
        """Renew a lease."""
        return await self.store.extend(ROOT, name, lease_ms)

    async def snapshot(self, *scopes: str) -> Snapshot:
        """Read the counters on these scopes."""
        return await self.store.balance(ROOT, await self.lines(*scopes))

    async def count(self, scope: str, unit: str = "usd") -> tuple[int, int]:
        """Return (spent, held) of the one limit of a unit on a scope."""
        (balance,) = [each for each in (await self.snapshot(scope)).balances if each.line.unit == unit]
        return balance.spent, balance.held

    async def ledger(self) -> list[OutboxEntry]:
        """Return every entry so far, in order; what was read is kept here, as a ledger does."""
        while fresh := await self.store.read("books", 100):
            self.entries += fresh
            await self.store.acknowledge(fresh)
        return self.entries

    async def booked(self, unit: str = "usd") -> int:
        """Sum the ledger."""
        return sum(dict(entry.booked).get(unit, 0) for entry in await self.ledger())

    async def events(self, kind: str) -> list[dict[str, Any]]:
        """Return what happened to limits: the details of each event of a kind, with its id."""
        found = [entry for entry in await self.ledger() if entry.kind == kind]
        return [{"id": entry.reservation_id, **json.loads(entry.entry_json)} for entry in found]

    async def allowed(self, scope: str, unit: str = "usd") -> int:
        """Return the amount in effect of the one limit of a unit on a scope."""
        (balance,) = [each for each in (await self.snapshot(scope)).balances if each.line.unit == unit]
        return balance.line.amount


def anew(request: Reserve, name: str) -> Reserve:
    """The same question under another id."""
    return replace(request, reservation_id=name)
