"""Reservations as a gateway makes them: 4 scopes × 2 windows, for one principal or for as many as there are requests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from decimal import Decimal

from sark_mw.limit import Limit
from sark_mw.reservation import Line, Need, Reserve, Resolution, Settle, lines_for, new_reservation_id
from sark_mw.store.base import LimitTable
from sark_mw.store.redis_store import RedisStore

ROOT = "acme"
ENTRY = '{"principal":"user:alice","provider":"openai","model":"gpt-4o","capability":"chat","held":"1500000"}'
_WINDOWS = ("day", "month", "hour", "week", "total")


def scopes_of(user: int) -> tuple[str, ...]:
    """Name the four scopes of a request: the organisation and the team are shared, the user and the key are not."""
    return ("org:acme", "team:ml", f"user:{user}", f"key:{user}")


async def set_limits(store: RedisStore, *, scopes: int = 4, windows: int = 2, amount: int = 9_000_000) -> LimitTable:
    """Set so many limits as each request shall touch, far above what will be reserved; wait until they count."""
    patterns = ("org:acme", "team:ml", "user:*", "key:*")[:scopes]
    limits = [
        Limit(root=ROOT, scope=scope, amount=Decimal(amount), window=window)
        for scope in patterns
        for window in _WINDOWS[:windows]
    ]
    table = await store.set_limits(ROOT, limits)
    while table.at_ms <= max(limit.since_ms for limit in table.limits):
        table = await store.limits(ROOT)
    return table


def lines_of(table: LimitTable, user: int) -> tuple[Line, ...]:
    """Lay out the lines of a user's request, once: the enforcer caches them, too."""
    return lines_for(table.limits, scopes_of(user), round(time.time() * 1000))


def reserve(table: LimitTable, lines: tuple[Line, ...], held: int = 1_500_000) -> Reserve:
    """Ask for a hold of money."""
    return Reserve(
        reservation_id=new_reservation_id(),
        root=ROOT,
        lines=lines,
        needs=(Need(unit="usd", held=held, expected=held // 3), Need(unit="requests", held=1, expected=1)),
        lease_ms=120_000,
        version=table.version,
        epoch=table.epoch,
        entry=ENTRY,
    )


def settle(request: Reserve, nanos: int = 500_000) -> Settle:
    """Book part of what was held and end it."""
    return Settle(
        reservation_id=request.reservation_id,
        root=request.root,
        lines=request.lines,
        amounts=(("usd", nanos), ("requests", 1)),
        kind=Resolution.SETTLE,
        made_ms=round(time.time() * 1000),
        entry=ENTRY,
    )


def group(table: LimitTable, lines: Sequence[tuple[Line, ...]], size: int = 64) -> list[Reserve]:
    """Make a group of reserves, users in turn."""
    return [reserve(table, lines[n % len(lines)]) for n in range(size)]
