"""What the in-memory store keeps of a reservation: while it is held, and after it was resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sark_mw.reservation import Line, Outcome
from sark_mw.store.base import LiveHold, RestoredReservation


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """What is remembered of a resolved reservation.

    By unit, `known` is the cost that settles stated and `estimated` what its expiry booked beyond it. `lines` are those a
    correction goes to; None where only the next call can name them.
    """

    resolution: Outcome
    last_part: int
    entries: int
    made_ms: int
    known: Mapping[str, int] = field(default_factory=dict)
    estimated: Mapping[str, int] = field(default_factory=dict)
    lines: tuple[Line, ...] | None = None


@dataclass(slots=True)
class Hold:
    """A live reservation, in amounts by unit.

    `ceiling` was held at first, `remaining` is held now, `known` is booked by partial settles so far.
    """

    root: str
    made_ms: int
    lease_ends_ms: int
    lines: tuple[Line, ...]
    entry: str
    ceiling: dict[str, int]
    remaining: dict[str, int]
    expected: dict[str, int]
    known: dict[str, int]
    last_part: int = 0
    entries: int = 0

    def listed(self, name: str, now: int) -> LiveHold:
        """Describe it as it stands."""
        return LiveHold(
            reservation_id=name,
            root=self.root,
            made_ms=self.made_ms,
            ends_ms=self.lease_ends_ms,
            at_ms=now,
            last_part=self.last_part,
            entries=self.entries,
            held=dict(self.remaining),
            expected=dict(self.expected),
            known=dict(self.known),
            counters=tuple(line.counter for line in self.lines),
            entry_json=self.entry,
        )

    def ended(self, resolution: Outcome, estimated: Mapping[str, int] | None = None) -> Tombstone:
        """Say what is to be remembered when it ends."""
        return Tombstone(
            resolution=resolution,
            last_part=self.last_part,
            entries=self.entries,
            made_ms=self.made_ms,
            known=self.known,
            estimated=estimated or {},
            lines=self.lines,
        )


def remembered(each: RestoredReservation) -> Tombstone:
    """Read what the ledger knows of a resolved reservation."""
    resolution = Outcome(each.resolution)
    return Tombstone(
        resolution=resolution,
        # An expiry made an entry, yet was no part of the caller's.
        last_part=each.entries - 1 if resolution == Outcome.EXPIRED else each.entries,
        entries=each.entries,
        made_ms=each.made_ms,
        known=dict(each.known),
        estimated=dict(each.estimated),
    )
