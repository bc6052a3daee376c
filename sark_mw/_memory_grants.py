"""What changes a limit's amount in the in-memory store: top-ups, overrides, what is carried over; and thresholds that fired."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from sark_mw.money import MAX_LIMIT_NANOS
from sark_mw.reservation import UNLIMITED, Line, base_of
from sark_mw.store.base import Grant

#: (spent, held) of a counter by its name.
Read = Callable[[str], tuple[int, int]]
#: Publishes a ledger event: kind, counter, event id, detail.
Tell = Callable[[str, str, str, Mapping[str, object]], None]


@dataclass(slots=True, kw_only=True)
class Slot:
    """One period in a carry record: its amount, or once its counter was deleted what it left for good."""

    ordinal: int
    counter: str
    amount: int
    rest: int | None = None


@dataclass(slots=True, kw_only=True)
class Carry:
    """The period of one limit and scope that was touched last, and the one before it while its rest may change."""

    current: Slot
    cap: int
    before: Slot | None = None
    #: What is carried into the period before, where that is only looked at and not written.
    unwritten: int = 0
    #: What was spent in periods between the two, by bookings that came without a reserve in them.
    gap: int = 0


class Grants:
    """The grants of one shard; the same rules as lua/include/grants.lua and thresholds.lua."""

    def __init__(self, read: Read, tell: Tell, retention_ms: int) -> None:
        self._read = read
        self._tell = tell
        self._retention_ms = retention_ms
        self._top_ups: dict[str, Grant] = {}
        self._overrides: dict[str, Grant] = {}
        self._carried: dict[str, int] = {}
        self._carries: dict[str, Carry] = {}
        self._fired: dict[str, int] = {}
        self._repaired: dict[str, int] = {}
        #: Counters to be looked at by the clean-up although nothing was spent on them, and from when on.
        self.due: dict[str, int] = {}

    def adjust(self, grant: Grant) -> None:
        """Set a sum of top-ups or an override, over one made of fewer events."""
        kept = self._overrides if grant.until_ms else self._top_ups
        before = kept.get(grant.counter)
        if before is None or grant.count > before.count:
            kept[grant.counter] = grant
            if grant.keep_until_ms and grant.until_ms:
                # An override that was made longer is kept longer.
                until = grant.keep_until_ms + self._retention_ms
                self.due[grant.field] = max(self.due.get(grant.field, 0), until)
            elif grant.keep_until_ms:
                self.due.setdefault(grant.counter, grant.keep_until_ms + self._retention_ms)

    def restore(self, fields: Iterable[tuple[str, str]]) -> None:
        """Take over fields of the grants hash as a rebuild writes them."""
        for field, value in fields:
            name, _, what = field.rpartition("|")
            words = value.split()
            if what == "override":
                amount, until_ms, count = map(int, words)
                self._overrides[name] = Grant(root="", counter=name, amount=amount, until_ms=until_ms, count=count)
            elif what == "carried":
                self._carried[name] = int(value)
            elif what == "carry":
                self._carries[name] = _carry(words)
            else:
                self._top_ups[field] = Grant(root="", counter=field, amount=int(words[0]), count=int(words[1]))

    def in_effect(self, lines: Iterable[Line], now: int, *, write: bool) -> tuple[Line, ...]:
        """Give lines the amounts in effect; `write` takes the turn of periods down."""
        return tuple(self._in_effect(line, now, write=write) for line in lines)

    def _in_effect(self, line: Line, now: int, *, write: bool) -> Line:
        if line.amount == UNLIMITED:
            return line
        override, topped = self._granted(line.counter, now)
        in_period = line.starts_ms <= now and (not line.ends_ms or now < line.ends_ms)
        carried = self._carry_over(line, now, write=write) if line.carry_cap and in_period else 0
        amount = (line.amount if override is None else override) + topped + carried
        return replace(line, amount=min(max(amount, 0), MAX_LIMIT_NANOS))

    def _granted(self, counter: str, now: int) -> tuple[int | None, int]:
        override, top_up = self._overrides.get(base_of(counter)), self._top_ups.get(counter)
        in_force = override is not None and now < override.until_ms
        return override.amount if override and in_force else None, top_up.amount if top_up else 0

    def _carry_over(self, line: Line, now: int, *, write: bool) -> int:
        carry = self._carries.get(base_of(line.counter))
        carried = self._carried.get(line.counter, 0)
        if carry and line.ordinal < carry.current.ordinal:
            # The clock went back: what was carried on, and is used there, is not there a second time. Nor are periods between
            # idle any more.
            if write and carry.before and line.ordinal > carry.before.ordinal:
                between = carry.current.ordinal - carry.before.ordinal - 1
                carry.gap = max(carry.gap, between * carry.current.amount)
            before = carry.before.ordinal if carry.before else carry.current.ordinal - 1
            if line.ordinal < before or carry.current.rest is not None:
                # Further back than can be told: what this period left, a cap at most, went on for good and may be spent.
                return carried - max(carry.cap, line.carry_cap)
            return carried - self._used_beyond(carry.current)
        if carry is None or line.ordinal > carry.current.ordinal:
            looked = self._turned(carry, line, write=write)
        else:
            current = Slot(ordinal=line.ordinal, counter=line.counter, amount=line.amount)
            looked = replace(carry, current=current, cap=line.carry_cap)
        if looked.before:
            carried = self._carried_into(looked)
        if write:
            self._put(line, looked)
            if looked.before and looked.before.rest is not None:
                self._finish(looked)
        return carried

    def _turned(self, carry: Carry | None, line: Line, *, write: bool) -> Carry:
        """Turn a record to a line's period: the one that it named becomes the one before."""
        if carry and carry.current.ordinal < line.carry_from:
            carry = None  # of a time before anything was carried over
        unwritten = 0
        if carry and carry.before:
            unwritten = self._carried_into(carry)
            if write:
                self._finish(carry)
                unwritten = 0
        current = Slot(ordinal=line.ordinal, counter=line.counter, amount=line.amount)
        before = carry.current if carry else None
        return Carry(current=current, cap=line.carry_cap, before=before, unwritten=unwritten)

    def _put(self, line: Line, carry: Carry) -> None:
        self._carries[base_of(line.counter)] = carry
        self.due.setdefault(line.counter, line.ends_ms + self._retention_ms)

    def note_booking(self, line: Line, booked: int) -> None:
        """Hear of a booking, perhaps in a period in which nobody reserved."""
        carry = self._carries.get(base_of(line.counter))
        if carry is None or line.ordinal > carry.current.ordinal:
            self._put(line, self._turned(carry, line, write=True))
        elif carry.before and carry.before.ordinal < line.ordinal < carry.current.ordinal:
            carry.gap += booked

    def _used_beyond(self, slot: Slot) -> int:
        """Tell what a period has used beyond its own amount and top-ups: of what was carried into it."""
        if slot.rest is not None:
            return 0
        spent, held = self._read(slot.counter)
        top_up = self._top_ups.get(slot.counter)
        return max(spent + held - slot.amount - (top_up.amount if top_up else 0), 0)

    def _rest(self, slot: Slot, unwritten: int = 0) -> int:
        if slot.rest is not None:
            return slot.rest
        spent, held = self._read(slot.counter)
        top_up = self._top_ups.get(slot.counter)
        granted = (top_up.amount if top_up else 0) + self._carried.get(slot.counter, 0)
        return max(slot.amount + granted + unwritten - spent - held, 0)

    def _carried_into(self, carry: Carry) -> int:
        assert carry.before is not None
        carried = min(carry.cap, self._rest(carry.before, carry.unwritten))
        between = carry.current.ordinal - carry.before.ordinal - 1
        if between <= 0:
            return carried
        return min(carry.cap, max(carried + between * carry.current.amount - carry.gap, 0))

    def _finish(self, carry: Carry) -> None:
        """Write down for good what was carried into the current period of a record."""
        carried, counter = self._carried_into(carry), carry.current.counter
        self._carried[counter] = carried
        if carried > 0:
            detail = {"counter": counter, "amount": str(carried), "ordinal": str(carry.current.ordinal)}
            self._tell("rollover", counter, f"{counter}#rollover", detail)
        carry.before = None

    def drop(self, counter: str) -> None:
        """Keep what a carry record needs of a counter that is about to be deleted, and forget what was granted to it."""
        if counter.endswith("|override"):
            self._overrides.pop(counter.removesuffix("|override"), None)
            self.due.pop(counter, None)
            return
        carry = self._carries.get(base_of(counter))
        if carry and carry.before and counter in (carry.before.counter, carry.current.counter):
            self._finish(carry)
        if carry and carry.current.counter == counter:
            carry.current.rest = self._rest(carry.current)
        self.due.pop(counter, None)
        for kept in (self._top_ups, self._carried, self._fired, self._repaired):
            kept.pop(counter, None)

    def fire(self, line: Line, spent: int, now: int) -> None:
        """Tell of every threshold that a booking has carried a counter past, once in its period."""
        override, topped = self._granted(line.counter, now)
        carry = self._carries.get(base_of(line.counter)) if line.carry_cap else None
        pending = carry is not None and carry.before is not None and carry.current.counter == line.counter
        carried = self._carried_into(carry) if carry and pending else self._carried.get(line.counter, 0)
        amount = (line.amount if override is None else override) + topped + carried
        fired, reached = self._fired.get(line.counter, 0), _reached(line.thresholds, spent, amount * 10)
        falls_to = _reached(line.thresholds, spent, amount * 9) if line.rolling_ms else fired
        for percent in line.thresholds:
            if fired < percent <= reached:
                again = f"#{now}" if line.rolling_ms or line.idle_ms else ""
                detail = {"counter": line.counter, "percent": percent, "spent": str(spent), "amount": str(amount)}
                self._tell("threshold", line.counter, f"{line.counter}#{percent}{again}", detail)
        if reached > fired or falls_to < fired:
            self._fired[line.counter] = max(reached, falls_to)

    def repair(self, counter: str, measured_seq: int, seq: int) -> bool:
        """Note a repair of a counter; False if it was repaired since the difference was measured."""
        if measured_seq <= self._repaired.get(counter, -1):
            return False
        self._repaired[counter] = seq
        return True


def _reached(thresholds: Iterable[int], spent: int, tenths: int) -> int:
    """Return the highest threshold that `spent` has reached of an amount in tenths, 0 for none."""
    return max((each for each in thresholds if spent * 1000 >= each * tenths and spent > 0), default=0)


def _carry(words: list[str]) -> Carry:
    slots = [
        Slot(
            ordinal=int(ordinal),
            counter=counter,
            amount=int(slot[1:]),
            rest=int(slot[1:]) if slot.startswith("r") else None,
        )
        for ordinal, counter, slot in (words[:3], words[4:7])
        if ordinal != "-"
    ]
    return Carry(current=slots[0], cap=int(words[3]), before=slots[1] if len(slots) > 1 else None, gap=int(words[7]))


def event_json(detail: Mapping[str, object]) -> str:
    """Write an event's detail as the scripts do."""
    return json.dumps(detail, separators=(",", ":"))
