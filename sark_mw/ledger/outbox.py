"""What the flusher needs of an outbox: `sark_mw.store.base` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class OutboxRecord(Protocol):
    """One entry of the outbox as the flusher reads it; `sark_mw.store.base.OutboxEntry` is one."""

    @property
    def shard(self) -> int:
        """Number of the shard."""

    @property
    def shard_seq(self) -> int:
        """Number within the shard."""

    @property
    def epoch(self) -> str:
        """Name of the life of the shard's data."""

    @property
    def reservation_id(self) -> str:
        """Id of the reservation, unique together with `part`."""

    @property
    def part(self) -> int:
        """Number within the reservation."""

    @property
    def kind(self) -> str:
        """How it was resolved."""

    @property
    def root(self) -> str:
        """The scope whose limits live together."""

    @property
    def reserved_ms(self) -> int:
        """When it was reserved."""

    @property
    def booked_ms(self) -> int:
        """When it was resolved."""

    @property
    def booked(self) -> tuple[tuple[str, int], ...]:
        """Unit and signed amount of each unit booked."""

    @property
    def estimated(self) -> bool:
        """True where the usage was never known."""

    @property
    def late(self) -> bool:
        """True for a correction after the end."""

    @property
    def entry_json(self) -> str:
        """The caller's part: see `sark_mw.ledger.entries`."""


RecordT = TypeVar("RecordT", bound=OutboxRecord)


class LedgerOutbox(Protocol[RecordT]):
    """What the flusher needs of an outbox; `sark_mw.store.base.Outbox` is one, with `OutboxEntry` for its records."""

    async def read(self, consumer: str, count: int) -> list[RecordT]:
        """Take up to `count` new entries."""

    async def reclaim(self, consumer: str, idle_ms: int, count: int) -> list[RecordT]:
        """Take over entries of the dead, and this consumer's own."""

    async def acknowledge(self, entries: Sequence[RecordT]) -> None:
        """Drop entries that are safely in the ledger."""

    async def backlog(self) -> int:
        """Count the entries that are not in the ledger yet."""
