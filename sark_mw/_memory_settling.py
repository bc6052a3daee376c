"""What a settle does to one shard of the in-memory store: to a hold, to one that ended, and to one that nothing is known of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sark_mw._memory_counters import Counters
from sark_mw._memory_ended import Ended
from sark_mw._memory_entries import Entries
from sark_mw._memory_records import Hold, Tombstone
from sark_mw.reservation import Outcome, Resolution, Settle, SettleReply

ENDED = {Resolution.SETTLE: Outcome.SETTLED, Resolution.RELEASE: Outcome.RELEASED}


class Settling:
    """Settles on the holds, tombstones, counters and entries of a shard, which are the shard's own."""

    def __init__(self, holds: dict[str, Hold], ended: Ended, counters: Counters, entries: Entries, retention_ms: int) -> None:
        self._holds = holds
        self._ended = ended
        self._counters = counters
        self._entries = entries
        self._retention_ms = retention_ms

    def resolve(self, request: Settle, now: int) -> SettleReply:
        """Book a reservation or a part of it, or release it."""
        reply = SettleReply(reservation_id=request.reservation_id, outcome=Outcome.FORGOTTEN, at_ms=now)
        if hold := self._holds.get(request.reservation_id):
            by_hand = request.kind == Resolution.RELEASE and request.part == 0
            if request.part <= hold.last_part and not by_hand:
                return replace(reply, outcome=Outcome.HELD, repeated=True)
            return self._resolve_hold(request, hold, reply, now)
        if stone := self._ended.get(request.reservation_id):
            same = stone.resolution == Outcome.RELEASED and request.kind == Resolution.RELEASE
            if stone.resolution == Outcome.SETTLED or request.part <= stone.last_part or same:
                outcome = Outcome.HELD if request.kind == Resolution.PARTIAL else stone.resolution
                return replace(reply, outcome=outcome, repeated=True)
            return self._correct(request, stone, reply, now)
        return self._book_unknown(request, reply, now)

    def _resolve_hold(self, request: Settle, hold: Hold, reply: SettleReply, now: int) -> SettleReply:
        stated = _stated(request, hold.known, hold.known)
        booked = {unit: amount - hold.known.get(unit, 0) for unit, amount in stated.items()}
        if not self._counters.can_book(hold.lines, booked):
            return replace(reply, outcome=Outcome.OUT_OF_RANGE)
        left = {unit: hold.remaining.get(unit, 0) for unit in stated}
        overrun = tuple((unit, amount - left[unit]) for unit, amount in sorted(booked.items()) if amount > left[unit])
        final = request.kind != Resolution.PARTIAL
        # A cost that falls again is held again, as spent falls by as much.
        still = {unit: 0 if final else max(hold.ceiling.get(unit, 0) - stated[unit], 0) for unit in left}
        freed = {unit: left[unit] - still[unit] for unit in left}
        for line in hold.lines:
            amount, free = booked.get(line.unit, 0), freed.get(line.unit, 0)
            self._counters.book(line, amount, freed=free, made_ms=hold.made_ms, now=now)
        hold.remaining = still
        hold.known, hold.last_part, hold.entries = stated, max(request.part, hold.last_part), hold.entries + 1
        entry = replace(request, root=hold.root, lines=hold.lines, made_ms=hold.made_ms)
        self._entries.append(entry, hold.entries, booked, now)
        if final:
            del self._holds[request.reservation_id]
            self._ended.put(request.reservation_id, hold.ended(ENDED[request.kind]))
        return replace(reply, outcome=ENDED.get(request.kind, Outcome.HELD), overrun=overrun)

    def _correct(self, request: Settle, stone: Tombstone, reply: SettleReply, now: int) -> SettleReply:
        """Book the difference between the truth and what is booked already, in the reservation's own period."""
        so_far = {unit: stone.known.get(unit, 0) + stone.estimated.get(unit, 0) for unit in (*stone.known, *stone.estimated)}
        stated = _stated(request, stone.known, so_far)
        booked = {unit: amount - so_far.get(unit, 0) for unit, amount in stated.items()}
        lines = stone.lines or request.lines
        if not self._counters.can_book(lines, booked):
            return replace(reply, outcome=Outcome.OUT_OF_RANGE)
        for line in lines:
            self._counters.book_late(line, booked.get(line.unit, 0), made_ms=stone.made_ms, now=now)
        entry = replace(request, lines=lines, made_ms=stone.made_ms)
        self._entries.append(entry, stone.entries + 1, booked, now, late=True)
        corrected = replace(
            stone,
            resolution=ENDED.get(request.kind, stone.resolution),
            last_part=request.part,
            entries=stone.entries + 1,
            known=stated,
            estimated={},
        )
        self._ended.put(request.reservation_id, corrected)
        return replace(reply, outcome=ENDED.get(request.kind, Outcome.HELD), late=True)

    def _book_unknown(self, request: Settle, reply: SettleReply, now: int) -> SettleReply:
        """Book in full what nothing is known of, unless it is so old that it may just be forgotten."""
        # Parts before this one went into the ledger from a hold whose data is gone.
        entries = max(request.part - 1, 0)
        unknown = Tombstone(resolution=Outcome.RELEASED, last_part=0, entries=entries, made_ms=request.made_ms)
        if request.kind == Resolution.RELEASE and not request.amounts:
            # Its reserve may still be on the way: it must find the reservation ended.
            self._ended.put(request.reservation_id, replace(unknown, last_part=request.part, made_ms=now))
            return replace(reply, outcome=Outcome.RELEASED, late=True)
        if request.made_ms <= 0 or now - request.made_ms > self._retention_ms:
            return reply
        # If only a part comes, what it leaves may be held again.
        return self._correct(request, replace(unknown, resolution=Outcome.HELD), reply, now)


def _stated(request: Settle, known: Mapping[str, int], so_far: Mapping[str, int]) -> dict[str, int]:
    """Say what the reservation has cost by this request: what it states, or what it adds to all that is booked so far."""
    if request.relative:
        return {**so_far, **{unit: max(so_far.get(unit, 0) + amount, 0) for unit, amount in request.amounts}}
    return {**known, **dict(request.amounts)}
