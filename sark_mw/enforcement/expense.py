"""Booking what was spent already, without a reservation before: in full, whatever the limits say, once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from sark_mw.enforcement.settler import SettleContext, Settler
from sark_mw.enforcement.tables import Layout, LimitTables, ServerClock
from sark_mw.errors import StoreDataLostError, StoreUnavailableError
from sark_mw.ledger.entries import CallerEntry
from sark_mw.reservation import Line, Need, Outcome, Reserve, ReserveReply, Resolution, Settle
from sark_mw.store.base import ReservationStore

_ATTEMPTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Expense:
    """A cost that somebody has had: `reservation_id` makes it count once, `amounts` are what it takes of each unit."""

    reservation_id: str
    root: str
    entry: CallerEntry
    amounts: tuple[tuple[str, int], ...]
    estimated: bool = False

    def needs(self) -> tuple[Need, ...]:
        """Lay it out as a hold: if its process dies before the settle, it expires and is booked all the same."""
        return tuple(Need(unit=unit, held=amount, expected=amount) for unit, amount in self.amounts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """When an expense counts, by the store's clock; `repeated`: it had been booked before. `journalled`: it will be, later."""

    made_ms: int
    repeated: bool = False
    journalled: bool = False


class ExpenseBooks:
    """Book expenses with the store's own two calls: a hold on whatever limits they touch, then its settle.

    The hold goes beyond a limit where it must: the money is gone, so it is held again as after a loss. While the store is out of
    reach the settle waits in the journal.
    """

    def __init__(
        self,
        store: ReservationStore,
        *,
        tables: LimitTables,
        clock: ServerClock,
        settler: Settler,
        rebuild: Callable[[], Awaitable[object]],
        lease_ms: int,
    ) -> None:
        self._store = store
        self._tables = tables
        self._clock = clock
        self._settler = settler
        self._rebuild = rebuild
        self._lease_ms = lease_ms

    async def book(self, expense: Expense) -> Booked:
        """Book an expense; it goes on even if the caller is cancelled."""
        return await asyncio.shield(asyncio.ensure_future(self._book(expense)))

    async def _book(self, expense: Expense) -> Booked:
        lines: tuple[Line, ...] = ()
        made_ms = 0
        try:
            expense, lines, reply = await self._hold(expense)
        except (StoreUnavailableError, StoreDataLostError):
            # Its answer may only be lost: the settle goes by the id. Without lines it is booked from the journal.
            layout = self._tables.last_layout(expense.root, expense.entry.scopes)
            if layout is not None:
                expense, lines, made_ms = _touching(expense, layout), layout.lines, self._clock.now_ms()
        else:
            made_ms = reply.made_ms or reply.at_ms
            if reply.outcome is Outcome.SETTLED:
                return Booked(made_ms=made_ms, repeated=True)
        answer = await self._settler.submit(_settle(expense, lines, made_ms), _context(expense))
        return Booked(
            made_ms=made_ms or self._clock.now_ms(),
            repeated=answer is not None and answer.repeated,
            journalled=answer is None,
        )

    async def _hold(self, expense: Expense) -> tuple[Expense, tuple[Line, ...], ReserveReply]:
        asked, made_ms, layout = expense, 0, Layout((), 0, "")
        for _ in range(_ATTEMPTS):
            try:
                if not made_ms:
                    layout = await self._tables.layout(expense.root, asked.entry.scopes)
                expense = _touching(asked, layout)
                reply = await self._store.reserve(
                    Reserve(
                        reservation_id=expense.reservation_id,
                        root=expense.root,
                        lines=layout.lines,
                        needs=expense.needs(),
                        lease_ms=self._lease_ms,
                        version=layout.version,
                        epoch=layout.epoch,
                        entry=expense.entry.to_json(),
                        made_ms=made_ms,
                    )
                )
            except StoreDataLostError:
                self._tables.forget(expense.root)
                await self._rebuild()
                continue
            self._clock.heard(reply.at_ms)
            made_ms = 0
            if reply.outcome is Outcome.EXCEEDS_LIMIT:
                # These lines hold at this instant of the server's clock: now it is held on them whatever they say.
                made_ms = reply.at_ms
            elif reply.outcome is Outcome.STALE_LIMITS:
                await self._tables.reload(expense.root)
            elif reply.outcome is Outcome.WRONG_PERIOD:
                # A limit set in this very millisecond counts from the next one on.
                ahead = max((line.starts_ms for line in layout.lines), default=0) - reply.at_ms
                await asyncio.sleep(min(max(ahead, 0), 50) / 1000)
            else:
                return expense, layout.lines, reply
        raise StoreUnavailableError("the limits kept changing while an expense was booked")


def _touching(expense: Expense, layout: Layout) -> Expense:
    """Name in the entry all that it touches: the parents of limits too."""
    return replace(expense, entry=replace(expense.entry, scopes=layout.scopes))


def _settle(expense: Expense, lines: tuple[Line, ...], made_ms: int) -> Settle:
    return Settle(
        reservation_id=expense.reservation_id,
        root=expense.root,
        lines=lines,
        amounts=expense.amounts,
        kind=Resolution.SETTLE,
        made_ms=made_ms,
        estimated=expense.estimated,
        entry=expense.entry.to_json(),
    )


def _context(expense: Expense) -> SettleContext:
    entry = expense.entry
    return SettleContext(
        request_id=entry.request_id,
        principal_id=entry.principal_id,
        provider=entry.provider or "",
        model=entry.model,
        expected_nanos=entry.expected_nanos,
        actual_nanos=entry.actual_nanos,
    )
