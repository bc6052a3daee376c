"""The in-memory reservation store: the executable specification of docs/architecture.md.

It decides exactly what the scripts decide, from the same page, with plain integers and a clock that the caller moves. Nothing
outlives the object, and one event loop at a time may use it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

from sark_mw._memory_shard import Shard
from sark_mw.errors import StoreDataLostError
from sark_mw.limit import Limit
from sark_mw.reservation import ExtendReply, Line, Outcome, Reserve, ReserveReply, Settle, SettleReply
from sark_mw.store.base import (
    Grant,
    LimitTable,
    LiveHold,
    OutboxEntry,
    RestoredCounter,
    RestoredReservation,
    ShardPosition,
    Snapshot,
)


class ManualClock:
    """A clock in Unix milliseconds that stands still until it is moved."""

    def __init__(self, now_ms: int = 1_767_225_600_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        """Return the time."""
        return self.now_ms

    def advance(self, ms: int) -> None:
        """Let time pass."""
        if ms < 0:
            raise ValueError("time passes forwards only: use step")
        self.now_ms += ms

    def step(self, ms: int) -> None:
        """Put the clock forwards or back, as an operator or a bad time server would."""
        self.now_ms += ms


def system_clock() -> int:
    """Return this machine's time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class _Taken:
    consumer: str
    at_ms: int


class MemoryStore:
    """Implements `ReservationStore`, `Outbox` and `RestorableStore` in this process's memory.

    `clock` plays the server's clock; `retention_ms` is how long resolved reservations are remembered at least. Call `begin`
    before the first reserve, or `restore`. `ledger` lists every entry ever made, acknowledged or not, in order.
    """

    def __init__(self, clock: Callable[[], int] = system_clock, retention_ms: int = 3_600_000, *, shards: int = 4) -> None:
        self.clock = clock
        self.retention_ms = retention_ms
        self.shards = shards
        self.ledger: list[OutboxEntry] = []
        self._shards = [Shard(number, retention_ms, self._publish) for number in range(shards)]
        self._outbox: dict[tuple[int, str], OutboxEntry] = {}
        self._taken: dict[tuple[int, str], _Taken] = {}

    def shard_of(self, root: str) -> int:
        """Name the shard in which a root lives."""
        return crc32(root.encode()) % self.shards

    async def reserve(self, request: Reserve) -> ReserveReply:
        """Hold every need on every line, or nothing."""
        return self._living(request.root).reserve(request, self.clock())

    async def settle(self, request: Settle) -> SettleReply:
        """Book a (part of a) reservation, or release it, and append its ledger entry."""
        return self._living(request.root).settle(request, self.clock())

    async def extend(self, root: str, reservation_id: str, lease_ms: int) -> ExtendReply:
        """Renew the lease of a reservation: it now lives `lease_ms` from now."""
        return self._living(root).extend(reservation_id, lease_ms, self.clock())

    async def balance(self, root: str, lines: Sequence[Line]) -> Snapshot:
        """Read counters and the ledger sequence of the same instant."""
        shard, now = self._living(root), self.clock()
        balances = shard.balance(lines, now)
        return Snapshot(at_ms=now, shard=shard.number, seq=shard.seq, epoch=shard.epoch, balances=balances)

    async def sweep(self, shard: int | None = None) -> int:
        """Expire every hold past its lease, drop counters long gone; return how many holds."""
        now = self.clock()
        shards = self._shards if shard is None else [self._shards[shard]]
        return sum(each.clean_up(now) for each in shards if each.epoch)

    async def limits(self, root: str) -> LimitTable:
        """Read the limits of a root."""
        shard = self._living(root)
        return LimitTable(root=root, version=shard.version, epoch=shard.epoch, limits=shard.limits(root), at_ms=self.clock())

    async def set_limits(self, root: str, put: Sequence[Limit] = (), drop: Sequence[str] = ()) -> LimitTable:
        """Add or replace limits, drop others by `limit_id`, in one step."""
        self._living(root).set_limits(root, put, drop, self.clock())
        return await self.limits(root)

    async def change_limits(self, table: LimitTable, put: Sequence[Limit], drop: Sequence[str]) -> LimitTable | None:
        """Set limits as `set_limits` does, unless another table than this one is in force."""
        looked_at = (table.epoch, table.version)
        changed = self._living(table.root).set_limits(table.root, put, drop, self.clock(), looked_at)
        return await self.limits(table.root) if changed else None

    async def adjust(self, grants: Sequence[Grant]) -> None:
        """Set top-ups and overrides, each only over one that is made of fewer events."""
        for grant in grants:
            self._living(grant.root).adjust(grant)

    async def repair(self, root: str, epoch: str, seq: int, line: Line, change: int) -> Outcome:
        """Add `change` to what a counter has spent, if nobody has since it was measured."""
        return self._living(root).repair(epoch, seq, line.counter, change)

    async def give_back(self, booked: Reserve) -> bool:
        """Take back what a reserve without a lease and an entry counted; False if that is not (or no more) there."""
        return self._living(booked.root).give_back(booked, self.clock())

    async def holds(self, root: str, most: int = 100) -> list[LiveHold]:
        """List the live reservations of a root, those whose lease ends first at the head."""
        return self._living(root).holds(root, most, self.clock())

    async def counters(self, root: str) -> AsyncIterator[tuple[str, int]]:
        """Walk over all counters of a root that have spent anything."""
        for each in self._living(root).counters(root):
            yield each

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""

    async def read(self, consumer: str, count: int) -> list[OutboxEntry]:
        """Take up to `count` new entries per shard for `consumer`."""
        return self._take(consumer, count, lambda key: key not in self._taken)

    async def reclaim(self, consumer: str, idle_ms: int, count: int) -> list[OutboxEntry]:
        """Take over what was taken but not acknowledged for `idle_ms`, and what this consumer itself had taken."""
        now = self.clock()

        def free(key: tuple[int, str]) -> bool:
            taken = self._taken.get(key)
            return taken is not None and (taken.consumer == consumer or now - taken.at_ms >= idle_ms)

        return self._take(consumer, count, free)

    async def acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        """Drop entries that are safely in the ledger."""
        for entry in entries:
            self._outbox.pop((entry.shard, entry.stream_id), None)
            self._taken.pop((entry.shard, entry.stream_id), None)

    async def discard(self, entries: Sequence[OutboxEntry]) -> None:
        """Drop entries of data that were lost, where they survived."""
        await self.acknowledge([entry for entry in entries if self._outbox.get((entry.shard, entry.stream_id)) == entry])

    async def backlog(self) -> int:
        """Count the entries that are not in the ledger yet."""
        return len(self._outbox)

    async def lost_shards(self) -> list[int]:
        """Name the shards without an epoch: never begun, or lost."""
        return [shard.number for shard in self._shards if not shard.epoch]

    async def position(self, shard: int) -> ShardPosition:
        """Tell the shard's epoch, ledger sequence and time."""
        own = self._shards[shard]
        return ShardPosition(shard=shard, epoch=own.epoch, seq=own.seq if own.epoch else 0, at_ms=self.clock())

    async def abandon(self, shard: int, epoch: str) -> str:
        """Give up a shard's data of one epoch; return the epoch in force."""
        return self._shards[shard].abandon(epoch)

    async def restore(
        self,
        shard: int,
        limits: Sequence[Limit] = (),
        counters: Sequence[RestoredCounter] = (),
        last_seq: int = 0,
        resolved: Sequence[RestoredReservation] = (),
        *,
        epoch: str = "",
        grants: Sequence[tuple[str, str]] = (),
    ) -> str:
        """Begin a shard with what the ledger knows; the first caller wins."""
        self._shards[shard].restore(limits, counters, last_seq, resolved, self.clock(), epoch, grants)
        return self._shards[shard].epoch

    async def begin(self) -> None:
        """Begin every shard that has no data as a new one."""
        for shard in await self.lost_shards():
            await self.restore(shard)

    def lose_data(self) -> None:
        """Forget everything, as a Redis does that is restarted empty; `ledger` stays."""
        self._shards = [Shard(number, self.retention_ms, self._publish) for number in range(self.shards)]
        self._outbox.clear()
        self._taken.clear()

    def assert_invariants(self) -> None:
        """Raise AssertionError unless, in the whole state, the books balance.

        Every counter is within its limit but for counted overrun, holds what its live reservations hold, has spent what its
        ledger entries sum up to; ledger entries are numbered without gaps and no part is entered twice.
        """
        for shard in self._shards:
            shard.check()

    def _living(self, root: str) -> Shard:
        shard = self._shards[self.shard_of(root)]
        if not shard.epoch:
            raise StoreDataLostError("the store has no data for this shard: it was never begun, or lost it")
        return shard

    def _publish(self, entry: OutboxEntry) -> None:
        self.ledger.append(entry)
        self._outbox[entry.shard, entry.stream_id] = entry

    def _take(self, consumer: str, count: int, free: Callable[[tuple[int, str]], bool]) -> list[OutboxEntry]:
        """Take up to `count` entries of each shard, in order, of those that are free to take."""
        taken: list[OutboxEntry] = []
        for shard in range(self.shards):
            keys = [key for key in self._outbox if key[0] == shard and free(key)][:count]
            for key in keys:
                self._taken[key] = _Taken(consumer, self.clock())
            taken += [self._outbox[key] for key in keys]
        return taken
