"""The ledger entries that one shard of the in-memory store writes."""

from __future__ import annotations

from collections import Counter as Sums
from collections.abc import Callable, Mapping, Sequence

from sark_mw._memory_grants import event_json
from sark_mw.reservation import Line, Settle
from sark_mw.store.base import OutboxEntry, RestoredCounter


class Entries:
    """Numbers and publishes entries; `sums` is what the ledger says of each counter, for `Shard.check` alone."""

    def __init__(self, number: int, publish: Callable[[OutboxEntry], None]) -> None:
        self.epoch = ""
        self.seq = 0
        #: The server's time of the call that is under way.
        self.now = 0
        self.sums: Sums[str] = Sums()
        self._number = number
        self._publish = publish
        self._ledger: list[OutboxEntry] = []
        self._events = 0

    def restore(self, epoch: str, last_seq: int, counters: Sequence[RestoredCounter]) -> None:
        """Begin an epoch after the entry `last_seq`."""
        self.epoch, self.seq, self._ledger = epoch, last_seq, []
        self.sums = Sums()
        for counter in counters:
            self.sums[counter.line.counter] += counter.spent

    def append(self, request: Settle, part: int, booked: Mapping[str, int], now: int, *, late: bool = False) -> None:
        """Enter what was booked, under the next number."""
        self.seq += 1
        entry = OutboxEntry(
            stream_id=f"{now}-{self.seq}",
            shard=self._number,
            shard_seq=self.seq,
            epoch=self.epoch,
            reservation_id=request.reservation_id,
            part=part,
            kind=request.kind,
            root=request.root,
            reserved_ms=request.made_ms,
            booked_ms=now,
            booked=tuple((unit, amount) for unit, amount in sorted(booked.items()) if amount),
            estimated=request.estimated,
            late=late,
            entry_json=request.entry,
        )
        self.note(request.lines, booked)
        self._ledger.append(entry)
        self._publish(entry)

    def event(self, kind: str, counter: str, event_id: str, detail: Mapping[str, object]) -> None:
        """Publish what happened to a limit: it moves no counter and has no number."""
        self._events += 1
        entry = OutboxEntry(
            stream_id=f"{self.now}-e{self._events}",
            shard=self._number,
            shard_seq=0,
            epoch=self.epoch,
            reservation_id=event_id,
            part=1,
            kind=kind,
            root=counter.partition("|")[0],
            reserved_ms=self.now,
            booked_ms=self.now,
            booked=(),
            estimated=False,
            late=False,
            entry_json=event_json(detail),
        )
        self._publish(entry)

    def note(self, lines: Sequence[Line], booked: Mapping[str, int]) -> None:
        """Take what was booked into the sums."""
        for line in lines:
            self.sums[line.counter] += booked.get(line.unit, 0)

    def check(self) -> None:
        """Raise AssertionError unless numbers follow each other and no part was entered twice."""
        sequence = [entry.shard_seq for entry in self._ledger]
        assert sequence == list(range(self.seq - len(sequence) + 1, self.seq + 1)), f"the ledger has a gap: {sequence}"
        parts = [(entry.reservation_id, entry.part, entry.reserved_ms) for entry in self._ledger]
        assert len(parts) == len(set(parts)), f"a part was entered twice: {parts}"
