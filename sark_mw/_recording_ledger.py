"""A ledger for tests: a real one in memory that also shows what it was given."""

from __future__ import annotations

from collections.abc import Sequence

from sark_mw.ledger.base import Appended, LedgerEntry
from sark_mw.ledger.events import LimitEvent
from sark_mw.ledger.sqlite import SqliteLedger


class RecordingLedger(SqliteLedger):
    """Keep all in SQLite's memory, and entries in `entries`, events in `limit_events`, in the order in which they first came."""

    def __init__(self) -> None:
        super().__init__("sqlite:///:memory:")
        self.entries: list[LedgerEntry] = []
        self.limit_events: list[LimitEvent] = []
        self._seen: set[tuple[str, int]] = set()

    async def append(self, entries: Sequence[LedgerEntry]) -> int:
        """Append, and remember what was new."""
        new = await super().append(entries)
        self._remember(entries)
        return new

    async def append_fenced(self, entries: Sequence[LedgerEntry]) -> Appended:
        """Append, and remember what was new."""
        done = await super().append_fenced(entries)
        refused = {id(entry) for entry in done.refused}
        self._remember([entry for entry in entries if id(entry) not in refused])
        return done

    async def record_new(self, events: Sequence[LimitEvent]) -> list[LimitEvent]:
        """Record, and remember what was new."""
        new = await super().record_new(events)
        self.limit_events.extend(new)
        return new

    def _remember(self, entries: Sequence[LedgerEntry]) -> None:
        for entry in entries:
            if (entry.reservation_id, entry.part) not in self._seen:
                self._seen.add((entry.reservation_id, entry.part))
                self.entries.append(entry)
