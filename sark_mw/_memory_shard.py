"""One shard of the in-memory store: each method is what one script of docs/architecture.md does, for one request."""

from __future__ import annotations

import secrets
from collections import Counter as Sums
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sark_mw._memory_counters import Counters
from sark_mw._memory_ended import Ended
from sark_mw._memory_entries import Entries
from sark_mw._memory_grants import Grants
from sark_mw._memory_records import Hold, Tombstone
from sark_mw._memory_settling import Settling
from sark_mw.limit import Limit
from sark_mw.reservation import (
    MAX_LEASE_MS,
    Balance,
    ExtendReply,
    Line,
    Outcome,
    Reserve,
    ReserveReply,
    Resolution,
    Settle,
    SettleReply,
)
from sark_mw.store.base import Grant, LiveHold, OutboxEntry, RestoredCounter, RestoredReservation


class Shard:
    """The state of one shard; empty and without an epoch until it is restored."""

    def __init__(self, number: int, retention_ms: int, publish: Callable[[OutboxEntry], None]) -> None:
        self.number = number
        self.version = 0
        self._retention_ms = retention_ms
        self._limits: dict[tuple[str, str], Limit] = {}
        self._entries = Entries(number, publish)
        self._begin(Ended(retention_ms))

    @property
    def epoch(self) -> str:
        """Return the epoch of the data; empty before it is restored."""
        return self._entries.epoch

    @property
    def seq(self) -> int:
        """Return the number of the last ledger entry."""
        return self._entries.seq

    def reserve(self, request: Reserve, now: int) -> ReserveReply:
        """Hold every need on every line, or nothing."""
        self._rotate(now)
        self.sweep(now)
        if (request.epoch, request.version) != (self.epoch, self.version):
            return ReserveReply(reservation_id=request.reservation_id, outcome=Outcome.STALE_LIMITS, at_ms=now)
        self._begin_anew(request.lines, now)
        self._look(request.lines, now)
        lines = self._grants.in_effect(request.lines, now, write=True)
        reply = self._known(request, now) or self._same_key(request, now) or self._decide(request, lines, now)
        self._fire(now)
        return replace(reply, balances=self._balances(lines, now))

    def settle(self, request: Settle, now: int) -> SettleReply:
        """Book a reservation or a part of it, or release it; before the sweep, so that it wins over its expiry."""
        self._rotate(now)
        reply = self._settling.resolve(request, now)
        self.sweep(now)
        return reply

    def extend(self, reservation_id: str, lease_ms: int, now: int) -> ExtendReply:
        """Let a live reservation live `lease_ms` from now, even one whose lease just ended."""
        self._rotate(now)
        outcome = Outcome.FORGOTTEN
        if reservation_id in self._holds:
            self._holds[reservation_id].lease_ends_ms = now + lease_ms
            outcome = Outcome.EXTENDED
        elif stone := self._ended.get(reservation_id):
            outcome = stone.resolution
        self.sweep(now)
        return ExtendReply(reservation_id=reservation_id, outcome=outcome, at_ms=now)

    def balance(self, lines: Sequence[Line], now: int) -> tuple[Balance, ...]:
        """Read counters, without holds whose lease ended."""
        self._rotate(now)
        self.sweep(now)
        self._begin_anew(lines, now)
        self._look(lines, now)
        return self._balances(self._grants.in_effect(lines, now, write=False), now)

    def sweep(self, now: int) -> int:
        """Expire every hold whose lease ended: it is booked at max(known, expected), flagged as estimated."""
        dead = sorted((hold.lease_ends_ms, name) for name, hold in self._holds.items() if hold.lease_ends_ms < now)
        if not dead:
            # A lease that ends later than any can was made while the clock was ahead.
            far = now + 2 * MAX_LEASE_MS
            ahead = ((hold.lease_ends_ms, name) for name, hold in self._holds.items() if hold.lease_ends_ms > far)
            dead = sorted(ahead, reverse=True)
        for _, name in dead:
            hold = self._holds.pop(name)
            extra = {unit: max(expected - hold.known.get(unit, 0), 0) for unit, expected in hold.expected.items()}
            for line in hold.lines:
                freed = hold.remaining.get(line.unit, 0)
                self._counters.book(line, extra.get(line.unit, 0), freed=freed, made_ms=hold.made_ms, now=now)
            hold.entries += 1
            self._ended.put(name, hold.ended(Outcome.EXPIRED, extra))
            entry = Settle(
                reservation_id=name,
                root=hold.root,
                lines=hold.lines,
                amounts=(),
                kind=Resolution.EXPIRE,
                made_ms=hold.made_ms,
                estimated=True,
                entry=hold.entry,
            )
            self._entries.append(entry, hold.entries, extra, now)
        self._fire(now)
        return len(dead)

    def clean_up(self, now: int) -> int:
        """Sweep, and forget the counters of periods that ended longer than the retention ago."""
        self._rotate(now)
        swept = self.sweep(now)
        for counter in self._counters.due(now, self._grants.due):
            self._forget(counter)
        return swept

    def adjust(self, grant: Grant) -> None:
        """Set a sum of top-ups or an override."""
        self._grants.adjust(grant)

    def repair(self, epoch: str, seq: int, counter: str, change: int) -> Outcome:
        """Add to a counter what it differs from the ledger by, once for each time that was measured."""
        if epoch != self.epoch or not self._grants.repair(counter, seq, self.seq):
            return Outcome.STALE
        self._counters.add(counter, change)
        self._entries.sums[counter] += change
        return Outcome.REPAIRED

    def give_back(self, booked: Reserve, now: int) -> bool:
        """Take back what a booking without a hold counted, where it was counted."""
        self._rotate(now)
        stone = self._ended.get(booked.reservation_id)
        if stone is None or stone.resolution != Outcome.SETTLED or stone.known:
            return False
        amounts = {need.unit: -need.held for need in booked.needs}
        for line in booked.lines:
            self._counters.book_late(line, amounts.get(line.unit, 0), made_ms=stone.made_ms, now=now)
        self._entries.note(booked.lines, amounts)
        self._ended.put(booked.reservation_id, replace(stone, resolution=Outcome.RELEASED))
        return True

    def holds(self, root: str, most: int, now: int) -> list[LiveHold]:
        """List live reservations by the end of their lease."""
        live = sorted((hold.lease_ends_ms, name) for name, hold in self._holds.items() if root in ("", hold.root))
        return [self._holds[name].listed(name, now) for _, name in live[:most]]

    def counters(self, root: str) -> list[tuple[str, int]]:
        """List the counters of a root and what they have spent."""
        return [(name, spent) for name, spent in self._counters.spent().items() if name.startswith(f"{root}|")]

    def limits(self, root: str) -> tuple[Limit, ...]:
        """List the limits of a root by id."""
        return tuple(limit for (owner, _), limit in sorted(self._limits.items()) if owner == root)

    def set_limits(
        self, root: str, put: Sequence[Limit], drop: Sequence[str], now: int, expected: tuple[str, int] | None = None
    ) -> bool:
        """Add or replace limits, then drop some; a new one counts from the next millisecond on. False: not as `expected`."""
        if expected is not None and expected != (self.epoch, self.version):
            return False
        for limit in put:
            known = self._limits.get((root, limit.limit_id))
            carries = (known.carries_since_ms if known else 0) or now + 1
            self._limits[root, limit.limit_id] = replace(
                limit,
                root=root,
                since_ms=known.since_ms if known else now + 1,
                carries_since_ms=carries if limit.rollover else 0,
            )
        for limit_id in drop:
            self._limits.pop((root, limit_id), None)
        self.version += 1
        return True

    def restore(
        self,
        limits: Sequence[Limit],
        counters: Sequence[RestoredCounter],
        last_seq: int,
        resolved: Sequence[RestoredReservation],
        now: int,
        epoch: str = "",
        grants: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Begin anew from what the ledger knows, unless somebody else did."""
        if self.epoch:
            return
        self._limits = {(limit.root, limit.limit_id): limit for limit in limits}
        self._entries.restore(epoch or secrets.token_hex(8), last_seq, counters)
        self._begin(Ended(self._retention_ms, resolved, now))
        self._grants.restore(grants)
        for counter in counters:
            self._counters.restore(counter.line, counter.spent, now)
        self.version = 1

    def abandon(self, epoch: str) -> str:
        """Give up the data of this epoch; return the one in force."""
        if self.epoch == epoch:
            self._entries.epoch = ""
        return self.epoch

    def check(self) -> None:
        """Raise AssertionError unless the invariants of the books hold on all of the shard's state."""
        held: Sums[str] = Sums()
        for name, hold in self._holds.items():
            assert self._ended.get(name) is None, f"{name} is live and resolved"
            assert all(amount >= 0 for amount in hold.remaining.values()), f"{name} holds less than nothing: {hold}"
            for line in hold.lines:
                held[line.counter] += hold.remaining.get(line.unit, 0)
        self._counters.check(held, self._entries.sums)
        self._entries.check()

    def _begin(self, ended: Ended) -> None:
        """Hold nothing, and count from nothing."""
        self._holds: dict[str, Hold] = {}
        self._ended = ended
        self._counters = Counters(self._retention_ms)
        self._grants = Grants(self._counters.amounts, self._entries.event, self._retention_ms)
        self._settling = Settling(self._holds, ended, self._counters, self._entries, self._retention_ms)

    def _known(self, request: Reserve, now: int) -> ReserveReply | None:
        """Answer a reserve whose id was decided before as it stands now."""
        reply = ReserveReply(reservation_id=request.reservation_id, outcome=Outcome.HELD, at_ms=now, repeated=True)
        if hold := self._holds.get(request.reservation_id):
            return replace(reply, made_ms=hold.made_ms)
        if stone := self._ended.get(request.reservation_id):
            if stone.resolution == Outcome.HELD:
                # Its parts were booked before the data was lost; what they left of it may be held again.
                return None if request.made_ms and request.lease_ms else replace(reply, made_ms=stone.made_ms)
            at_once = request.lease_ms == 0 and stone.resolution == Outcome.SETTLED
            return replace(reply, outcome=Outcome.BOOKED if at_once else stone.resolution)
        return None

    def _same_key(self, request: Reserve, now: int) -> ReserveReply | None:
        """Tell of another reservation with the same idempotency key that is held or settled."""
        seen = self._ended.keyed(request.key)
        if not request.key or seen is None or seen[1] == request.reservation_id:
            return None
        fingerprint, name = seen
        reply = ReserveReply(reservation_id=name, outcome=Outcome.IN_FLIGHT, at_ms=now)
        stone = self._ended.get(name)
        if fingerprint != request.fingerprint:
            return replace(reply, reservation_id=request.reservation_id, outcome=Outcome.KEY_REUSED)
        if name in self._holds or (stone and stone.resolution == Outcome.HELD):
            return reply
        if stone and stone.resolution == Outcome.SETTLED:
            return replace(reply, outcome=Outcome.ALREADY_DONE)
        return None

    def _decide(self, request: Reserve, lines: Sequence[Line], now: int) -> ReserveReply:
        """Hold or book, unless a period is wrong or a limit exceeded; a hold that was lost is held again whatever they say."""
        reply = ReserveReply(reservation_id=request.reservation_id, outcome=Outcome.WRONG_PERIOD, at_ms=now)
        again = request.made_ms > 0
        if not again and any(now < line.starts_ms or (line.ends_ms and now >= line.ends_ms) for line in request.lines):
            return reply
        stone = self._ended.get(request.reservation_id)
        known = dict(stone.known) if stone else {}
        need = {need.unit: max(need.held - known.get(need.unit, 0), 0) for need in request.needs}
        refusing, shadow = [], []
        for index, line in enumerate(lines):
            amount = need.get(line.unit, 0)
            exceeds = self._counters.exceeds(line, amount, now) and not line.soft
            if self._counters.overflows(line, amount, now) or (exceeds and line.enforce):
                refusing.append(index)
            elif exceeds:
                shadow.append(index)
        if refusing and not again:
            return replace(reply, outcome=Outcome.EXCEEDS_LIMIT, exceeded=tuple(refusing), shadowed=tuple(shadow))
        if request.key:
            self._ended.put_key(request.key, request.fingerprint, request.reservation_id)
        taken = self._hold if request.lease_ms > 0 else self._book_at_once
        outcome = taken(request, lines, need, now)
        return replace(reply, outcome=outcome, made_ms=request.made_ms or now, shadowed=tuple(shadow))

    def _hold(self, request: Reserve, lines: Sequence[Line], need: Mapping[str, int], now: int) -> Outcome:
        for line in lines:
            self._counters.hold(line, need.get(line.unit, 0), now, again=request.made_ms > 0)
        stone = self._ended.take(request.reservation_id)
        self._holds[request.reservation_id] = Hold(
            root=request.root,
            made_ms=request.made_ms or now,
            lease_ends_ms=now + request.lease_ms,
            lines=request.lines,
            entry=request.entry,
            ceiling={each.unit: each.held for each in request.needs},
            remaining=dict(need),
            expected={each.unit: each.expected for each in request.needs},
            known=dict.fromkeys(need, 0) | (dict(stone.known) if stone else {}),
            last_part=stone.last_part if stone else 0,
            entries=stone.entries if stone else 0,
        )
        return Outcome.HELD

    def _book_at_once(self, request: Reserve, lines: Sequence[Line], need: Mapping[str, int], now: int) -> Outcome:
        for line, asked in zip(lines, request.lines, strict=True):
            self._counters.book_at_once(line, need.get(line.unit, 0), now, asked)
        self._ended.put(request.reservation_id, Tombstone(resolution=Outcome.SETTLED, last_part=1, entries=1, made_ms=now))
        if request.entry == "{}":
            self._entries.note(request.lines, need)
        else:
            entry = Settle(
                reservation_id=request.reservation_id,
                root=request.root,
                lines=request.lines,
                amounts=(),
                made_ms=now,
                entry=request.entry,
            )
            self._entries.append(entry, 1, need, now)
        return Outcome.BOOKED

    def _look(self, lines: Sequence[Line], now: int) -> None:
        """Take off what left rolling windows: a threshold's mark falls with the sum."""
        for line in lines:
            self._counters.read(line, now)
        self._fire(now)

    def _fire(self, now: int) -> None:
        for line, spent, booked in self._counters.take_watched():
            if line.carry_cap:
                self._grants.note_booking(line, booked)
            if line.thresholds:
                self._grants.fire(line, spent, now)

    def _begin_anew(self, lines: Sequence[Line], now: int) -> None:
        """Forget idle windows that nobody used for so long, before the clean-up comes to them."""
        for line in lines:
            if self._counters.is_idle(line, now):
                self._forget(line.counter)

    def _forget(self, counter: str) -> None:
        self._grants.drop(counter)
        self._counters.drop(counter)
        del self._entries.sums[counter]

    def _balances(self, lines: Sequence[Line], now: int) -> tuple[Balance, ...]:
        read = [(line, *self._counters.read(line, now)) for line in lines]
        return tuple(Balance(line=line, spent=spent, held=held) for line, spent, held in read)

    def _rotate(self, now: int) -> None:
        self._entries.now = now
        self._ended.rotate(now)
