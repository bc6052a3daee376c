"""A ledger for tests: a real one in memory that also shows what it was given."""

from __future__ import annotations

from collections.abc import Sequence

from sark_mw.ledger.base import Appended, LedgerEntry
from sark_mw.ledger.sqlite import SqliteLedger


class RecordingLedger(SqliteLedger):
    """Keep entries in SQLite's memory, and in `entries` in the order in which they were first appended."""

    def __init__(self) -> None:
        super().__init__("sqlite:///:memory:")
        self.entries: list[LedgerEntry] = []
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

    def _remember(self, entries: Sequence[LedgerEntry]) -> None:
        for entry in entries:
            if (entry.reservation_id, entry.part) not in self._seen:
                self._seen.add((entry.reservation_id, entry.part))
                self.entries.append(entry)
