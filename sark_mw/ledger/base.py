"""What a ledger is: an append-only record of money that outlives the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, runtime_checkable

from sark_mw.limit import Limit


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
    groups: tuple[tuple[str, int], ...] = ()

    @property
    def cost(self) -> Decimal:
        """The sum in dollars."""
        return Decimal(self.cost_nanos).scaleb(-9)


@runtime_checkable
class Ledger(Protocol):
    """Append entries once, sum them; every method may raise `LedgerUnavailableError`."""

    async def append(self, entries: Sequence[LedgerEntry]) -> int:
        """Insert what is not there yet, in one transaction; return how many rows were new."""

    async def total(self, query: CostFilter, group_by: str | None = None) -> CostTotal:
        """Sum rows; `group_by` is one of principal_id, resource_id, capability_id, provider, model."""

    async def last_sequence(self, shard: int) -> int:
        """Return the highest `shard_seq` stored for a shard, 0 if none."""

    async def recent(self, shard: int, since_booked_ms: int) -> list[tuple[str, int]]:
        """List (reservation id, last part) of reservations with an entry booked since then."""

    async def save_limits(self, put: Sequence[Limit], drop: Sequence[tuple[str, str]]) -> None:
        """Keep limits in `principal_budgets`; `drop` names (root, limit_id)."""

    async def load_limits(self) -> list[Limit]:
        """Read every limit that was saved and not dropped."""

    async def migrate(self) -> list[str]:
        """Bring the schema up to date; return the names of the migrations that ran."""

    async def schema_version(self) -> tuple[int, int]:
        """Return (installed, newest) schema versions."""

    async def aclose(self) -> None:
        """Let go of connections."""
