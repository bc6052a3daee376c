"""Leased mode: while the store is out of reach, spend only what was leased before.

The ceiling is what is leased: per process and set of limits at most `LeaseOptions`, and of what a limit has left at most one
`share`-th for all leases of the process together, so that leases do not refuse anybody who could still pay. Leases are holds: as
long as they live at the store, no process spends past a limit. One that expires there while requests granted from it still run
(an outage longer than its time) is booked late: the most that can be overspent is what was leased.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sark_mw.enforcement.admission import HELD_UNITS, Admission, tell_held
from sark_mw.enforcement.lease import GrantBooks, Lease, Parts
from sark_mw.enforcement.lease_shares import LeaseOptions, Shares
from sark_mw.enforcement.settler import Settler
from sark_mw.enforcement.tables import Layout, LimitTables, ServerClock
from sark_mw.errors import SarkError, StoreDataLostError, StoreError
from sark_mw.instrumentation.base import Instrumentation
from sark_mw.ledger.entries import CallerEntry
from sark_mw.limit import Unit
from sark_mw.pricing.base import Estimate
from sark_mw.reservation import Line, Need, Outcome, Reserve, ReserveReply, Resolution, Settle, new_reservation_id
from sark_mw.store.base import ReservationStore

_log = logging.getLogger(__name__)

_MOST_LEASES = 1_000
_AT_ONCE = 16
_ATTEMPTS = 4
#: Part of a lease's time that is not used: for clocks that run at different rates.
_MARGIN = 20
#: A lease not touched for so many times its time is given back.
_IDLE = 2
#: Older ones are replaced: a store that lost its data would not book the parts of a reservation older than its memory (an hour).
_OLDEST_MS = 1_800_000


def _since_boot() -> float:
    """Return seconds that go on while the machine sleeps, where it can tell: the store's clock goes on too."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(slots=True, kw_only=True)
class _Slot:
    """One set of scopes that requests come for. `busy`: its lease is being seen to; `tried`: in vain since the last round.

    `lines` are those on which it has joined the shares.
    """

    root: str
    scopes: tuple[str, ...]
    touched: float
    lines: tuple[Line, ...] = ()
    lease: Lease | None = None
    busy: bool = False
    tried: bool = False


class LeasePool:
    """Keep leases for the scopes in use and grant from them. Without options every method does nothing."""

    def __init__(
        self,
        store: ReservationStore,
        *,
        tables: LimitTables,
        clock: ServerClock,
        settler: Settler,
        instrumentation: Instrumentation,
        lease_ms: int,
        options: LeaseOptions | None,
        monotonic: Callable[[], float] = _since_boot,
    ) -> None:
        self._store = store
        self._tables = tables
        self._clock = clock
        self._settler = settler
        self._instrumentation = instrumentation
        self._lease_ms = lease_ms
        self._monotonic = monotonic
        self._slots: OrderedDict[tuple[str, tuple[str, ...]], _Slot] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retired: set[Lease] = set()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._closed = False
        self._shares = Shares(options) if options else None

    def touch(self, root: str, scopes: tuple[str, ...]) -> None:
        """Keep a lease for these scopes: made in the background, given back when nobody comes for them any more."""
        if self._shares is None or self._closed:
            return
        key = (root, scopes)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot(root=root, scopes=scopes, touched=0.0)
            if len(self._slots) > _MOST_LEASES:
                self._drop(self._slots.popitem(last=False)[1], self._shares)
        else:
            self._slots.move_to_end(key)
        slot.touched = self._monotonic()
        if not slot.busy and not slot.tried and (slot.lease is None or self._is_outdated(slot.lease)):
            slot.busy = True
            task = asyncio.ensure_future(self._see_to(slot, self._shares))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def take(self, root: str, scopes: tuple[str, ...], needs: Sequence[Need]) -> Lease | None:
        """Take the ceilings of one request out of the lease, without the store; None if there is none, or too little left.

        Follow it with `admission` in the same turn of the event loop.
        """
        slot = self._slots.get((root, scopes))
        lease = slot.lease if slot else None
        if slot is None or lease is None or self._closed:
            return None
        if self._monotonic() >= lease.good_until or self._is_outdated(lease) or not lease.fits(needs):
            return None
        slot.touched = self._monotonic()
        lease.promise(needs)
        return lease

    def admission(
        self, lease: Lease, needs: Sequence[Need], estimate: Estimate, entry: CallerEntry, request_id: str
    ) -> Admission:
        """Make the admission of a request whose ceilings were taken: its settle or release goes to the lease."""
        return Admission(
            reservation_id=lease.reservation_id,
            root=lease.root,
            lines=lease.lines,
            needs=tuple(needs),
            made_ms=lease.made_ms,
            estimate=estimate,
            entry=entry,
            request_id=request_id,
            # An admission only ever calls `submit`.
            settler=GrantBooks(lease, needs, self._grant_ended),
            instrumentation=self._instrumentation,
            on_end=lambda _: None,
        )

    def _grant_ended(self, needs: Sequence[Need]) -> None:
        # The admission is about to report its hold gone, but it was part of the lease's, which is reported already.
        tell_held(self._instrumentation, needs, 1)

    async def renew(self) -> None:
        """Do one round: extend all leases, replace those that no longer fit, give back the idle ones.

        Replaced are leases of an ended period or changed limits, those that the store no longer knows, and those that have
        less than half or more than twice of what they would get now: used up, or too much for what the limits have left.
        """
        shares = self._shares
        if shares is None or self._closed:
            return
        idle_before = self._monotonic() - _IDLE * self._lease_ms / 1000
        for key, slot in [*self._slots.items()]:
            slot.tried = False
            if slot.touched < idle_before and not slot.busy:
                del self._slots[key]
                self._drop(slot, shares)
        slots = [slot for slot in self._slots.values() if not slot.busy]
        for slot in slots:
            slot.busy = True
        running = [lease for lease in self._retired if lease.grants]
        await asyncio.gather(*(self._see_to(slot, shares) for slot in slots), *map(self._keep_alive, running))

    async def aclose(self) -> None:
        """Give every lease back, without waiting for the store: the settler has all of it when this returns.

        Call it before `Settler.drain`. A lease with requests still running is given back when the last one ends.
        """
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks)
        for slot in self._slots.values():
            self._retire(slot)
        self._slots.clear()
        for lease in self._retired:
            lease.parts.hurry()

    async def _see_to(self, slot: _Slot, shares: Shares) -> None:
        """Extend, replace or make the lease of a slot; without an answer, what was leased stays good until its time."""
        try:
            async with self._gate:
                if slot.lease is not None and not await self._still_fits(slot.lease, shares):
                    self._retire(slot)
                if slot.lease is None and not self._closed:
                    slot.lease = await self._lease(slot, shares)
                    slot.tried = slot.lease is None
        except SarkError as error:
            slot.tried = True
            _log.info("no lease for %s: %s", slot.root, error)
        finally:
            slot.busy = False
        if self._closed or self._slots.get((slot.root, slot.scopes)) is not slot:
            self._drop(slot, shares)

    async def _keep_alive(self, lease: Lease) -> None:
        try:
            await self._extend(lease)
        except StoreError as error:
            _log.info("a lease of %s could not be extended: %s", lease.root, error)

    async def _still_fits(self, lease: Lease, shares: Shares) -> bool:
        if self._is_outdated(lease) or self._clock.now_ms() - lease.made_ms > _OLDEST_MS:
            return False
        if not await self._extend(lease):
            return False
        snapshot = await self._store.balance(lease.root, lease.lines)
        wanted = shares.affordable(snapshot.balances, lease.left)
        return bool(wanted) and all(wanted[unit] <= 2 * left and left <= 2 * wanted[unit] for unit, left in lease.left.items())

    async def _extend(self, lease: Lease) -> bool:
        sent = self._monotonic()
        try:
            reply = await self._store.extend(lease.root, lease.reservation_id, self._lease_ms)
        except StoreDataLostError:
            return False
        self._clock.heard(reply.at_ms)
        if reply.outcome is not Outcome.EXTENDED:
            return False
        lease.good_until = self._good_until(sent)
        return True

    def _good_until(self, sent: float) -> float:
        """Tell until when a hold lives for certain that was made or extended by a call sent at `sent`."""
        return sent + (self._lease_ms - self._lease_ms / _MARGIN) / 1000

    def _is_outdated(self, lease: Lease) -> bool:
        """Tell whether a period of the lease has ended, or other limits than it holds on are in force."""
        if lease.ends_ms and self._clock.now_ms() >= lease.ends_ms:
            return True
        layout = self._tables.last_layout(lease.root, lease.scopes)
        if layout is None or layout.epoch != lease.epoch or layout.lines != lease.lines:
            return True
        lease.lines = layout.lines  # the same, but found the same at once the next time
        return False

    async def _lease(self, slot: _Slot, shares: Shares) -> Lease | None:
        """Reserve a lease of what can be spared; None if that is nothing."""
        for _ in range(_ATTEMPTS):
            layout = await self._tables.layout(slot.root, slot.scopes)
            snapshot = await self._store.balance(slot.root, layout.lines)
            self._clock.heard(snapshot.at_ms)
            shares.leave(slot.lines)
            slot.lines = layout.lines
            shares.join(slot.lines)
            amounts = shares.affordable(snapshot.balances)
            if not amounts:
                return None
            sent = self._monotonic()
            asked = self._question(slot, layout, amounts)
            reply = await self._reserve(shares, asked, amounts)
            self._clock.heard(reply.at_ms)
            if reply.admitted:
                return self._held(slot, asked, reply, amounts, self._good_until(sent))
            if reply.outcome is Outcome.STALE_LIMITS:
                await self._tables.reload(slot.root)
            elif reply.outcome is not Outcome.WRONG_PERIOD:
                return None
        return None

    def _question(self, slot: _Slot, layout: Layout, amounts: Mapping[str, int]) -> Reserve:
        entry = CallerEntry(scopes=slot.scopes, held_nanos=amounts[Unit.USD], metadata={"kind": "lease"})
        return Reserve(
            reservation_id=new_reservation_id(),
            root=slot.root,
            lines=layout.lines,
            needs=tuple(Need(unit=unit, held=amount) for unit, amount in amounts.items()),
            lease_ms=self._lease_ms,
            version=layout.version,
            epoch=layout.epoch,
            entry=entry.to_json(),
        )

    async def _reserve(self, shares: Shares, asked: Reserve, amounts: Mapping[str, int]) -> ReserveReply:
        """Ask, with the amounts counted as this process's own from now on: others of its leases are being sized meanwhile."""
        shares.count(asked.lines, amounts)
        reply = None
        try:
            reply = await self._store.reserve(asked)
        except StoreError:
            # The answer may only be lost: whatever the store holds under this id is given back.
            name, root = asked.reservation_id, asked.root
            ending = Settle(reservation_id=name, root=root, lines=(), amounts=(), kind=Resolution.RELEASE, entry=asked.entry)
            self._settler.submit(ending)
            raise
        finally:
            if reply is None or not reply.admitted:
                shares.count(asked.lines, {unit: -amount for unit, amount in amounts.items()})
        return reply

    def _held(self, slot: _Slot, asked: Reserve, reply: ReserveReply, amounts: Mapping[str, int], good_until: float) -> Lease:
        # What is booked counts from when the lease was made, so in a rolling window it leaves early: by half the window at most.
        ends = [line.ends_ms for line in asked.lines if line.ends_ms]
        ends += [reply.made_ms + line.rolling_ms // 2 for line in asked.lines if line.rolling_ms]
        for unit in HELD_UNITS:
            self._instrumentation.held(unit, amounts.get(unit, 0))
        return Lease(
            reservation_id=asked.reservation_id,
            root=slot.root,
            scopes=slot.scopes,
            lines=asked.lines,
            epoch=asked.epoch,
            made_ms=reply.made_ms,
            ends_ms=min(ends, default=0),
            good_until=good_until,
            ceiling=amounts,
            left=dict(amounts),
            entry=asked.entry,
            parts=Parts(self._settler),
            on_left=self._left_changed,
            on_drained=self._give_back,
        )

    def _retire(self, slot: _Slot) -> None:
        lease, slot.lease = slot.lease, None
        if lease is not None:
            self._retired.add(lease)
            lease.retire()

    def _drop(self, slot: _Slot, shares: Shares) -> None:
        self._retire(slot)
        shares.leave(slot.lines)
        slot.lines = ()

    def _left_changed(self, lease: Lease, unit: str, change: int) -> None:
        if unit in HELD_UNITS:
            self._instrumentation.held(unit, change)
        if self._shares:
            self._shares.count(lease.lines, {unit: change})

    def _give_back(self, lease: Lease) -> None:
        """Release a lease that has nothing in flight any more."""
        task = lease.release()
        if self._closed:
            lease.parts.hurry()
        task.add_done_callback(lambda _: self._retired.discard(lease))
