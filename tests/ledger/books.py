"""What the ledger's tests share: entries, and an outbox that keeps the promises of `sark_mw.store.base.Outbox`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from sark_mw.errors import StoreUnavailableError
from sark_mw.ledger.base import LedgerEntry
from sark_mw.ledger.entries import CallerEntry
from sark_mw.ledger.events import LimitEvent
from sark_mw.store.base import OutboxEntry

NOON_MS = 1_795_348_800_000  # 2026-11-22 12:00 UTC
DAY_MS = 86_400_000


def entry(number: int, **changes: object) -> LedgerEntry:
    """Make the `number`th entry of shard 0: 1,000 nanos of alice's, one request."""
    values: dict[str, object] = {
        "reservation_id": f"res-{number:06d}",
        "part": 1,
        "kind": "settle",
        "root": "acme",
        "shard": 0,
        "shard_seq": number,
        "epoch": "e1",
        "reserved_ms": NOON_MS + number,
        "booked_ms": NOON_MS + number + 500,
        "cost_nanos": 1000,
        "requests": 1,
        "tokens": 30,
        "estimated": False,
        "late": False,
        "principal_id": "user:alice",
        "resource_id": "llm",
        "capability_id": "chat",
        "scopes": ("org:acme", "user:alice"),
        "provider": "openai",
        "model": "gpt-4o",
    }
    return LedgerEntry(**{**values, **changes})  # type: ignore[arg-type]


def outbox_entry(number: int, **changes: object) -> OutboxEntry:
    """Make the `number`th entry of shard 0 as the scripts append it."""
    caller = CallerEntry(principal_id="user:alice", scopes=("org:acme", "user:alice"), provider="openai", model="gpt-4o")
    values: dict[str, object] = {
        "stream_id": f"{number}-0",
        "shard": 0,
        "shard_seq": number,
        "epoch": "e1",
        "reservation_id": f"res-{number:06d}",
        "part": 1,
        "kind": "settle",
        "root": "acme",
        "reserved_ms": NOON_MS + number,
        "booked_ms": NOON_MS + number + 500,
        "booked": (("usd", 1000), ("requests", 1)),
        "estimated": False,
        "late": False,
        "entry_json": caller.to_json(),
    }
    return OutboxEntry(**{**values, **changes})  # type: ignore[arg-type]


def limit_event(number: int, **changes: object) -> LimitEvent:
    """Make the `number`th event: alice's daily dollars reached 80 percent."""
    values: dict[str, object] = {
        "event_id": f"event-{number:06d}",
        "kind": "threshold",
        "root": "acme",
        "limit_id": "user:alice/usd/day@UTC",
        "scope": "user:alice",
        "counter": "acme|user:alice/usd/day@UTC|2026-11-22|17",
        "unit": "usd",
        "amount": 1000,
        "at_ms": NOON_MS + number,
        "detail_json": '{"percent":80}',
    }
    return LimitEvent(**{**values, **changes})  # type: ignore[arg-type]


@dataclass
class ListOutbox:
    """A stream with one consumer group, as Redis keeps it; time is `now_ms`, and `down` makes it unreachable."""

    waiting: list[OutboxEntry] = field(default_factory=list)
    pending: dict[str, tuple[str, int, OutboxEntry]] = field(default_factory=dict)
    now_ms: int = 0
    down: bool = False
    reads: list[list[int]] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def add(self, count: int, **changes: object) -> None:
        """Append `count` entries."""
        self.waiting.extend(outbox_entry(next(self.numbers), **changes) for _ in range(count))

    async def read(self, consumer: str, count: int) -> list[OutboxEntry]:
        """Take new entries."""
        self._reach()
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        self.pending.update({one.stream_id: (consumer, self.now_ms, one) for one in taken})
        self.reads.append([one.shard_seq for one in taken])
        return taken

    async def reclaim(self, consumer: str, idle_ms: int, count: int) -> list[OutboxEntry]:
        """Take over what is this consumer's own, or idle."""
        self._reach()
        free = [one for owner, since, one in self.pending.values() if owner == consumer or self.now_ms - since >= idle_ms][:count]
        self.pending.update({one.stream_id: (consumer, self.now_ms, one) for one in free})
        return free

    async def acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        """Forget entries."""
        self._reach()
        for one in entries:
            self.pending.pop(one.stream_id, None)

    async def backlog(self) -> int:
        """Count what is new or pending."""
        self._reach()
        return len(self.waiting) + len(self.pending)

    def _reach(self) -> None:
        if self.down:
            raise StoreUnavailableError("the outbox is down")
