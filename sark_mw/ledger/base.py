"""What a ledger is: an append-only record of money that outlives the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, TypeAlias, runtime_checkable

from sark_mw.ledger.events import Adjustment, EventFilter, LimitEvent, RecordedEvent
from sark_mw.limit import Limit

#: The column that counts each unit that a limit may have, but for concurrency, which is given back.
UNIT_COLUMNS: Mapping[str, str] = {
    "usd": "cost_nanos",
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "booked_input_tokens",
    "output_tokens": "booked_output_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One row of `cost_tracking`; `(reservation_id, part, reserved_ms)` is unique. Money in nano-dollars (may be negative)."""

    reservation_id: str
    part: int
    kind: str
    root: str
    shard: int
    shard_seq: int
    epoch: str
    reserved_ms: int
    booked_ms: int
    cost_nanos: int
    requests: int
    tokens: int
    #: What was booked on limits in `input_tokens` and `output_tokens`; the usage itself is below.
    booked_input_tokens: int = 0
    booked_output_tokens: int = 0
    estimated: bool
    late: bool
    #: From the caller's entry.
    principal_id: str = ""
    resource_id: str = ""
    capability_id: str = ""
    scopes: tuple[str, ...] = ()
    provider: str | None = None
    model: str | None = None
    held_nanos: int = 0
    expected_nanos: int = 0
    actual_nanos: int | None = None
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    status: int | None = None
    stream: bool = False
    request_id: str = ""
    metadata_json: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostFilter:
    """Which rows to sum; None means any. Times in Unix milliseconds of the reservation, `from_ms <= t < until_ms`."""

    principal_id: str | None = None
    resource_id: str | None = None
    capability_id: str | None = None
    scope: str | None = None
    root: str | None = None
    provider: str | None = None
    model: str | None = None
    from_ms: int | None = None
    until_ms: int | None = None
    #: With `shard`, only rows up to this sequence number: what a counter read at that sequence must equal.
    shard: int | None = None
    max_shard_seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTotal:
    """A sum over the ledger. `cost_nanos` exact; `groups` by the asked column, e.g. model → nanos."""

    cost_nanos: int
    requests: int
    tokens: int
    rows: int
    booked_input_tokens: int = 0
    booked_output_tokens: int = 0
    groups: tuple[tuple[str, int], ...] = ()

    @property
    def cost(self) -> Decimal:
        """The sum in dollars."""
        return Decimal(self.cost_nanos).scaleb(-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeTotal:
    """What was booked on one scope of one root: the counter of a limit on it, in each unit that a limit may have."""

    root: str
    scope: str
    cost_nanos: int
    requests: int
    tokens: int
    booked_input_tokens: int
    booked_output_tokens: int

    def amount(self, unit: str) -> int:
        """Return the sum in a limit's unit; 0 for a unit that is not booked."""
        return int(getattr(self, UNIT_COLUMNS[unit])) if unit in UNIT_COLUMNS else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedReservation:
    """How a reservation stands by its entries, as a store that lost its data must remember it.

    `resolution` is `settled`, `released` (also: only parts of it were booked, then it is `unended`) or `expired`. `known` and
    `estimated` are what was booked by unit; their sum is all that was booked, and `estimated` is what an expiry guessed and
    nothing has corrected since.
    """

    reservation_id: str
    resolution: str
    entries: int
    last_part: int
    reserved_ms: int
    known: tuple[tuple[str, int], ...]
    estimated: tuple[tuple[str, int], ...] = ()
    unended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Which epoch of a shard the ledger takes entries of; it numbers them from `base_seq` + 1."""

    shard: int
    epoch: str
    base_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What became of entries: `new` rows, and those that the fence `refused`, as they came.

    `forked` names (shard, epoch) where an entry's sequence number is another entry's: the store went back to older data.
    """

    new: int
    refused: tuple[LedgerEntry, ...] = ()
    forked: frozenset[tuple[int, str]] = frozenset()


#: `from_ms <= t < until_ms` of the reservation, Unix milliseconds; None never ends.
Interval: TypeAlias = tuple[int, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochQuery:
    """What a store must know to be rebuilt: sums over `intervals`, and reservations with an entry booked since then.

    Of those the `most_resolved` that were booked last.
    """

    intervals: tuple[Interval, ...]
    resolved_since_ms: int
    most_resolved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBooks:
    """What the ledger knew of a shard at the moment in which its fence was put up."""

    fence: Fence
    totals: Mapping[Interval, Sequence[ScopeTotal]]
    resolved: Sequence[ResolvedReservation]


@runtime_checkable
class Ledger(Protocol):
    """Append entries once, sum them; every method may raise `LedgerUnavailableError`."""

    async def append(self, entries: Sequence[LedgerEntry]) -> int:
        """Insert what is not there yet, in one transaction; return how many rows were new.

        An entry that the database will never take goes to `ledger_rejected` whole, with the reason, and the others go on.
        """

    async def total(self, query: CostFilter, group_by: str | None = None) -> CostTotal:
        """Sum rows; `group_by` is one of principal_id, resource_id, capability_id, provider, model."""

    async def append_fenced(self, entries: Sequence[LedgerEntry]) -> Appended:
        """Append as `append` does, but keep out entries of an epoch that is not the fence's, where there is a fence.

        Entries that are there already are neither new nor refused.
        """

    async def begin_epoch(self, shard: int, epoch: str, query: EpochQuery) -> EpochBooks:
        """Put up the fence for a new epoch of a shard, and read what there is, in one step.

        Whatever `append_fenced` took before is in the answer, and from now on it takes nothing of other epochs.
        """

    async def fence(self, shard: int) -> Fence | None:
        """Tell which epoch of a shard is taken; None: there is no fence, any is."""

    async def is_overtaken(self, fence: Fence) -> bool:
        """Tell whether another epoch has lived since a fence was put up: entries that are not in the sums of then."""

    async def adopt_epoch(self, shard: int, found: str, epoch: str) -> bool:
        """Let the fence that names `found` name `epoch`; return False, and change nothing, if it names another by now."""

    async def last_sequence(self, shard: int, epoch: str | None = None) -> int:
        """Return the highest `shard_seq` stored for a shard (of one epoch), 0 if none."""

    async def recent(self, shard: int, since_booked_ms: int) -> list[tuple[str, int]]:
        """List (reservation id, last part) of reservations with an entry booked since then."""

    async def has(self, reservation_id: str) -> bool:
        """Tell whether any entry of a reservation is there."""

    async def complete_up_to(self, shard: int, epoch: str, seq: int) -> bool:
        """Tell whether the shard's entries up to `seq` have all arrived, looking at the last 10,000 of that epoch."""

    async def resolved(self, shard: int, since_booked_ms: int) -> list[ResolvedReservation]:
        """Sum up the reservations of a shard with an entry booked since then."""

    async def scope_totals(self, shard: int, from_ms: int, until_ms: int | None = None) -> list[ScopeTotal]:
        """Sum every scope of a shard in one pass, over reservations of `from_ms <= t < until_ms`."""

    async def save_limits(self, put: Sequence[Limit], drop: Sequence[tuple[str, str]]) -> None:
        """Keep limits in `principal_budgets`; `drop` names (root, limit_id)."""

    async def load_limits(self) -> list[Limit]:
        """Read every limit that was saved and not dropped."""

    async def record_events(self, events: Sequence[LimitEvent]) -> int:
        """Record what happened to limits, each event once by its id, in one transaction; return how many were new."""

    async def record_new(self, events: Sequence[LimitEvent]) -> list[LimitEvent]:
        """Record as `record_events` does; return those that were new."""

    async def events(self, query: EventFilter, most: int = 100) -> list[RecordedEvent]:
        """List what happened to limits, the newest first."""

    async def policy_events(self, from_seq: int, most: int = 1000) -> list[RecordedEvent]:
        """List what administrators decided of policies from `from_seq` on, that one included, the oldest first."""

    async def adjustments(self, root: str | None = None, counters: Sequence[str] = ()) -> list[Adjustment]:
        """Sum up top-ups and find the newest overrides: of a root (None: all), of these counters and bases if any are given."""

    async def claim_events(self, kinds: Sequence[str], now_ms: int, retry_ms: int, most: int) -> list[RecordedEvent]:
        """Take undelivered events whose next attempt is due, the oldest first, and put that attempt off to `now_ms + retry_ms`.

        No two that claim at once get the same event. Events that are older than `CLAIMED_FOR_MS` are given up.
        """

    async def delivered(self, seqs: Sequence[int]) -> None:
        """Note that events were delivered: nobody claims them again."""

    async def postpone(self, seq: int, until_ms: int, done: Sequence[str] = (), *, tried: bool = True) -> None:
        """Let an event be claimed again from `until_ms` on, and note which receivers have it already.

        Not `tried`: the claim was no attempt.
        """

    async def migrate(self) -> list[str]:
        """Bring the schema up to date; return the names of the migrations that ran."""

    async def schema_version(self) -> tuple[int, int]:
        """Return (installed, newest) schema versions."""

    async def aclose(self) -> None:
        """Let go of connections."""


@runtime_checkable
class CountsRejected(Protocol):
    """A ledger that counts the entries its database would not take."""

    @property
    def rejected_rows(self) -> int:
        """Entries that this process put into `ledger_rejected`."""
