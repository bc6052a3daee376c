"""What a reservation store is: one Protocol over the frozen types of `sark_mw.reservation`.

Implementations: `RedisStore` (Redis, Valkey, Cluster, Sentinel and the embedded fakeredis, all through the same Lua) and
`sark_mw.testing.MemoryStore`, the executable specification.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sark_mw.limit import Limit
from sark_mw.reservation import Balance, ExtendReply, Line, Outcome, Reserve, ReserveReply, Settle, SettleReply


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitTable:
    """The limits of one root at one version; every reserve names the version it was made from."""

    root: str
    version: int
    epoch: str
    limits: tuple[Limit, ...]
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEntry:
    """One ledger entry as the scripts append it: see docs/architecture.md, "The outbox".

    `booked` is signed (a correction may be negative) in each unit's integer. `reserved_ms` decides the period;
    `(reservation_id, part)` is unique. `shard_seq` counts the entries of one shard and epoch without gaps. `entry_json` is
    the caller's.
    """

    stream_id: str
    shard: int
    shard_seq: int
    epoch: str
    reservation_id: str
    part: int
    kind: str
    root: str
    reserved_ms: int
    booked_ms: int
    booked: tuple[tuple[str, int], ...]
    estimated: bool
    late: bool
    entry_json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Counters of some lines together with the shard's ledger sequence at that same instant.

    The sum of the ledger's entries of the shard with `shard_seq <= seq` equals `balances[i].spent`.
    """

    at_ms: int
    shard: int
    seq: int
    epoch: str
    balances: tuple[Balance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPosition:
    """Where a shard stands: its epoch (empty: never begun, or lost), its last ledger sequence, and the server's time."""

    shard: int
    epoch: str
    seq: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredCounter:
    """One counter as the ledger knows it, to rebuild a store that lost its data."""

    line: Line
    spent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredReservation:
    """A reservation that was resolved not long ago, as the ledger knows it: calls about it must not count twice.

    `resolution` is settled, released or expired, or held where only parts were booked: what they left may be held again.
    `entries` is the highest part in the ledger; `known` and `estimated` are what was booked per unit.
    """

    reservation_id: str
    resolution: str
    entries: int
    made_ms: int
    known: tuple[tuple[str, int], ...]
    estimated: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A top-up or an override as the store keeps it: see docs/architecture.md, "Grants".

    `count` is how many events it is made of; the store takes it only over a lower one. With `until_ms` it is an override of
    the base `field`, without it the sum of top-ups of the counter `field`. `keep_until_ms`: the end of the counter's period.
    """

    root: str
    counter: str
    amount: int
    count: int
    until_ms: int = 0
    keep_until_ms: int = 0

    @property
    def field(self) -> str:
        """Name the field of the grants hash."""
        return f"{self.counter}|override" if self.until_ms else self.counter

    @property
    def value(self) -> str:
        """Write the field's value."""
        return f"{self.amount} {self.until_ms} {self.count}" if self.until_ms else f"{self.amount} {self.count}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveHold:
    """A reservation that is held now. Amounts by unit: `held` still, `expected` if it expires, `known` booked so far."""

    reservation_id: str
    root: str
    made_ms: int
    ends_ms: int
    at_ms: int
    last_part: int
    entries: int
    held: Mapping[str, int]
    expected: Mapping[str, int]
    known: Mapping[str, int]
    counters: tuple[str, ...]
    entry_json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentRefusal:
    """A request that was refused lately, and why: nothing of what it said. Amounts as people read them.

    `left_out` above 0: so many more of this root were refused in the same second and are not listed; an entry without a `kind`
    says only that.
    """

    at_ms: int
    root: str
    principal_id: str = ""
    scopes: tuple[str, ...] = ()
    kind: str = ""
    limit_id: str = ""
    unit: str = ""
    message: str = ""
    request_id: str = ""
    needed: str = ""
    remaining: str = ""
    left_out: int = 0


@runtime_checkable
class RemembersRefusals(Protocol):
    """A store that keeps the last refusals of all processes, for people to look at."""

    async def note_refusals(self, refusals: Sequence[RecentRefusal]) -> None:
        """Add refusals; the oldest beyond a few thousand are forgotten."""

    async def recent_refusals(self, root: str, most: int = 100) -> list[RecentRefusal]:
        """List the last refusals of a root, the newest first."""


@runtime_checkable
class KeepsApprovals(Protocol):
    """A store that keeps the requests which wait for an administrator: a text in each place, of the store's own tenants each."""

    async def put_approval(self, root: str, place: str, text: str, keep_ms: int) -> None:
        """Put a text in a place; all of them go once none was put for so long."""

    async def approvals(self, root: str, places: Sequence[str] | None = None) -> dict[str, str]:
        """Return every text by its place, or those in `places`; roots that live together are among them."""

    async def drop_approvals(self, root: str, places: Sequence[str]) -> int:
        """Empty places, and return how many were not empty."""


class StoreObserver(Protocol):
    """Hears of every call to the server; must not raise or block."""

    def on_store_call(self, script: str, seconds: float, outcome: str, items: int) -> None:
        """`outcome` is ok, timeout, error or open (the breaker refused)."""

    def on_breaker(self, state: str) -> None:
        """`state` is closed, open or half_open."""


@runtime_checkable
class ReservationStore(Protocol):
    """Reserve, settle, release, extend and balance; every method may raise `StoreUnavailableError` or `StoreDataLostError`.

    Calls made in the same turn of the event loop may go to the server together; each is decided on its own, in order.
    """

    async def reserve(self, request: Reserve) -> ReserveReply:
        """Hold every need on every line, or nothing."""

    async def settle(self, request: Settle) -> SettleReply:
        """Book a (part of a) reservation, or release it, and append its ledger entry."""

    async def extend(self, root: str, reservation_id: str, lease_ms: int) -> ExtendReply:
        """Renew the lease of a reservation: it now lives `lease_ms` from the server's now."""

    async def balance(self, root: str, lines: Sequence[Line]) -> Snapshot:
        """Read counters without changing them."""

    async def sweep(self, shard: int | None = None) -> int:
        """Expire every hold past its lease (one shard's or all); return how many."""

    async def limits(self, root: str) -> LimitTable:
        """Read the limits of a root."""

    async def set_limits(self, root: str, put: Sequence[Limit] = (), drop: Sequence[str] = ()) -> LimitTable:
        """Add or replace limits, drop others by `limit_id`, in one step; a replaced limit keeps its counters and `since_ms`."""

    async def change_limits(self, table: LimitTable, put: Sequence[Limit], drop: Sequence[str]) -> LimitTable | None:
        """Set limits as `set_limits` does, unless another table than this one, against which they were checked, is in force."""

    async def adjust(self, grants: Sequence[Grant]) -> None:
        """Set top-ups and overrides, each only over one that is made of fewer events."""

    async def repair(self, root: str, epoch: str, seq: int, line: Line, change: int) -> Outcome:
        """Add `change` to what a counter has spent: REPAIRED, or STALE if it was repaired, or the shard rebuilt, since `seq`."""

    async def give_back(self, booked: Reserve) -> bool:
        """Take back what a reserve without a lease and an entry counted; False if that is not (or no more) there."""

    async def holds(self, root: str, most: int = 100) -> list[LiveHold]:
        """List the live reservations of a root, those whose lease ends first at the head."""

    def counters(self, root: str) -> AsyncIterator[tuple[str, int]]:
        """Walk over all counters of a root that have spent anything: (name, spent); one may come twice."""

    async def aclose(self) -> None:
        """Let go of connections; calls in flight end first."""


@runtime_checkable
class Outbox(Protocol):
    """The stream between the scripts and the ledger, read by one or more flushers."""

    async def read(self, consumer: str, count: int) -> list[OutboxEntry]:
        """Take up to `count` new entries for `consumer`, over all shards."""

    async def reclaim(self, consumer: str, idle_ms: int, count: int) -> list[OutboxEntry]:
        """Take over entries that another consumer took and did not acknowledge for `idle_ms`, and this consumer's own."""

    async def acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        """Drop entries that are safely in the ledger."""

    async def backlog(self) -> int:
        """Count the entries that are not in the ledger yet."""


@runtime_checkable
class RestorableStore(Protocol):
    """A store that can be begun, and rebuilt from the ledger after it lost its data."""

    #: How many shards there are, and how long a resolved reservation is remembered.
    shards: int
    retention_ms: int

    def shard_of(self, root: str) -> int:
        """Name the shard in which a root lives."""

    async def lost_shards(self) -> list[int]:
        """Name the shards whose epoch key is gone."""

    async def position(self, shard: int) -> ShardPosition:
        """Tell where a shard stands, also one without data."""

    async def discard(self, entries: Sequence[OutboxEntry]) -> None:
        """Drop outbox entries of data that were lost, where they survived: another entry may have their stream id by now."""

    async def abandon(self, shard: int, epoch: str) -> str:
        """Give up the data of this epoch, for they are older than the ledger: the shard is lost then.

        Return the epoch in force: empty, or another's; then nothing changed. What is in the outbox stays.
        """

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
        """Begin a shard: write limits, counters, tombstones of `resolved` and a new epoch in one step; return the epoch in force.

        `grants` are fields of the grants hash and their values.

        The first caller wins: if another restored the shard before, nothing changes. `epoch` names the new one (empty: a random
        name), so that a caller whose answer was lost knows its own.
        """
