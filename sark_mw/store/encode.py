"""Groups of requests as script arguments, and script replies as answers: no I/O here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sark_mw.reservation import (
    Balance,
    ExtendReply,
    Line,
    Outcome,
    Reserve,
    ReserveReply,
    Settle,
    SettleReply,
)
from sark_mw.store.base import LiveHold

Args = list[str | int]


def line_args(lines: Iterable[Line]) -> Args:
    """Lay out lines as the scripts read them."""
    args: Args = []
    for line in lines:
        args += (
            line.counter,
            line.unit,
            line.amount,
            line.starts_ms,
            line.ends_ms,
            _kind(line),
        )
    return args


def _kind(line: Line) -> str:
    kind = "e" if line.enforce else "o" if line.soft else "s"
    if line.rolling_ms:
        kind += f" r{line.rolling_ms},{line.bucket_ms}"
    if line.idle_ms:
        kind += f" k{line.idle_ms}"
    if line.carry_cap:
        kind += f" c{line.carry_cap},{line.ordinal},{line.carry_from}"
    if line.thresholds:
        kind += f" t{','.join(map(str, line.thresholds))}"
    return kind


def line_texts(lines: Iterable[Line]) -> str:
    """Write lines as hold records have them: each after a newline."""
    return "".join(
        f"\n{line.unit} {line.rolling_ms} {line.bucket_ms} {line.ends_ms} {line.options} {line.counter}" for line in lines
    )


class LineTable:
    """The distinct lines of a group; no counter stands in it twice, or its running total would be kept twice."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._index: dict[str, int] = {}
        self._words: dict[int, tuple[str, str]] = {}

    def fits(self, lines: Sequence[Line], most: int) -> bool:
        """Tell whether the lines agree with those that are here, and leave the group small enough."""
        if id(lines) in self._words:
            return True
        new = 0
        for line in lines:
            at = self._index.get(line.counter)
            if at is None:
                new += 1
            elif self.lines[at] is not line and self.lines[at] != line:
                return False
        return not self.lines or len(self.lines) + new <= most

    def add(self, lines: tuple[Line, ...]) -> tuple[str, str]:
        """Put the lines in; return their indices, and their texts, as the scripts read them."""
        known = self._words.get(id(lines))
        if known is None:
            known = (" ".join([str(self._add(line) + 1) for line in lines]), line_texts(lines))
            self._words[id(lines)] = known
        return known

    def _add(self, line: Line) -> int:
        at = self._index.setdefault(line.counter, len(self.lines))
        if at == len(self.lines):
            self.lines.append(line)
        return at

    def index(self, line: Line) -> int:
        """Find a line of the table."""
        return self._index[line.counter]


#: An item of a reserve has so many arguments, and this one says which lines it touches.
_ITEM_WORDS, _LINES_AT = 8, 5


def reserve_args(group: Sequence[Reserve], table: LineTable, retention_ms: int, shard: int) -> Args:
    """Lay out a group of reserves of one epoch and version."""
    items: Args = []
    for r in group:
        needs = " ".join(f"{n.unit}:{n.held}:{n.expected}:0" for n in r.needs)
        words, texts = table.add(r.lines)
        key = f"{r.key} {r.fingerprint}" if r.key else ""
        items += (r.reservation_id, r.root, r.lease_ms, r.made_ms, needs, words, f"{texts}\n{r.entry}", key)
    every = " ".join(map(str, range(1, len(table.lines) + 1)))
    # Mostly all items touch all lines: the script need not read which.
    items[_LINES_AT::_ITEM_WORDS] = ["*" if words == every else words for words in items[_LINES_AT::_ITEM_WORDS]]
    first = group[0]
    return [first.epoch, first.version, retention_ms, shard, len(table.lines), *line_args(table.lines), len(group), *items]


def settle_args(group: Sequence[Settle], retention_ms: int, shard: int) -> Args:
    """Lay out a group of settles and releases."""
    items: Args = []
    texts = {id(s.lines): line_texts(s.lines) for s in group}
    for s in group:
        amounts = " ".join(["+"] * s.relative + [f"{unit}:{amount}" for unit, amount in s.amounts])
        items += (s.reservation_id, s.root, s.part, s.kind, s.made_ms, amounts, texts[id(s.lines)], int(s.estimated), s.entry)
    return [retention_ms, shard, len(group), *items]


def reserve_replies(group: Sequence[Reserve], table: LineTable, reply: Sequence[Any]) -> list[ReserveReply]:
    """Read a reserve's answer; balances come from replaying the decisions over the counters that were read."""
    code, now, *_, spent_texts, held_texts, answers, amounts = reply
    if code != "ok":
        return [ReserveReply(reservation_id=r.reservation_id, outcome=Outcome(code), at_ms=now) for r in group]
    spent, held = [int(text) for text in spent_texts], [int(text) for text in held_texts]
    lines = in_effect(table.lines, amounts)
    replies = []
    for request, answer in zip(group, answers, strict=True):
        verdict, _, shadow = answer.partition(" shadow ")
        what, *words = verdict.split()
        if what in ("held", "booked"):
            into = held if what == "held" else spent
            needs = {need.unit: need.held for need in request.needs}
            for line in request.lines:
                into[table.index(line)] += needs.get(line.unit, 0)
        balances = tuple(
            Balance(line=lines[at], spent=spent[at], held=held[at]) for line in request.lines for at in (table.index(line),)
        )
        places = {str(table.index(line) + 1): n for n, line in enumerate(request.lines)}
        replies.append(
            ReserveReply(
                reservation_id=words[0] if what in _OTHERS else request.reservation_id,
                outcome=_reserve_outcome(what, words, request),
                at_ms=now,
                made_ms=_made_ms(what, words, request, now),
                repeated=what == "repeated",
                balances=balances,
                exceeded=tuple(places[word] for word in words) if what == "exceeds_limit" else (),
                shadowed=tuple(places[word] for word in shadow.split()),
            )
        )
    return replies


#: Answers that name another reservation, with the same idempotency key.
_OTHERS = ("in_flight", "already_done")


def in_effect(lines: Sequence[Line], amounts: Sequence[str]) -> Sequence[Line]:
    """Give lines the amounts that the server reckoned with; none where nothing changes them."""
    if not amounts:
        return lines
    return [
        line if line.amount == int(amount) else replace(line, amount=int(amount))
        for line, amount in zip(lines, amounts, strict=True)
    ]


def _reserve_outcome(what: str, words: Sequence[str], request: Reserve) -> Outcome:
    if what != "repeated":
        return Outcome(what)
    # A booking without a lease is settled at once: repeated, it is the same booking.
    return Outcome.BOOKED if request.lease_ms == 0 and words[0] == "settled" else Outcome(words[0])


def _made_ms(what: str, words: Sequence[str], request: Reserve, now: int) -> int:
    if what == "repeated":
        return int(words[1]) if words[0] == "held" else 0
    return (request.made_ms or now) if what in ("held", "booked") else 0


def live_hold(reservation_id: str, ends: str, record: str, *, now: int) -> LiveHold:
    """Read a hold record, as docs/architecture.md lays it out."""
    head, _, rest = record.partition("\n")
    made, last_part, entries, root, *units = head.split(" ")
    line_texts, _, entry = rest.rpartition("\n")
    held, expected, known = {}, {}, {}
    for word in units:
        unit, ceiling, likely, so_far = word.rsplit(":", 3)
        held[unit], expected[unit], known[unit] = max(int(ceiling) - int(so_far), 0), int(likely), int(so_far)
    return LiveHold(
        reservation_id=reservation_id,
        root=root,
        made_ms=int(made),
        ends_ms=int(float(ends)),
        at_ms=now,
        last_part=int(last_part),
        entries=int(entries),
        held=held,
        expected=expected,
        known=known,
        counters=tuple(text.rpartition(" ")[2] for text in line_texts.split("\n") if text),
        entry_json=entry,
    )


def settle_replies(group: Sequence[Settle], reply: Sequence[Any]) -> list[SettleReply]:
    """Read a settle's answer."""
    _, now, *_, answers = reply
    return [_settle_reply(s.reservation_id, now, answer) for s, answer in zip(group, answers, strict=True)]


def _settle_reply(reservation_id: str, now: int, answer: str) -> SettleReply:
    verdict, _, over = answer.partition(" over ")
    words = verdict.split()
    repeated = words[0] == "repeated"
    overrun = tuple((unit, int(amount)) for unit, _, amount in (word.rpartition(":") for word in over.split()))
    return SettleReply(
        reservation_id=reservation_id,
        outcome=Outcome(words[1] if repeated else words[0]),
        at_ms=now,
        repeated=repeated,
        late="late" in words,
        overrun=overrun,
    )


def extend_replies(group: Sequence[tuple[str, int]], reply: Sequence[Any]) -> list[ExtendReply]:
    """Read an extend's answer."""
    _, now, *_, answers = reply
    return [
        ExtendReply(reservation_id=reservation_id, outcome=Outcome(answer), at_ms=now)
        for (reservation_id, _), answer in zip(group, answers, strict=True)
    ]
