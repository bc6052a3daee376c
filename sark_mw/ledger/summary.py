"""Sums over the ledger: one filter, spelt for two databases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from sark_mw.errors import ConfigurationError
from sark_mw.ledger.base import CostFilter, CostTotal, ResolvedReservation
from sark_mw.ledger.rows import MAX_MS, clean_name

#: What a sum may be grouped by: nothing else reaches the SQL.
GROUPS = frozenset({"principal_id", "resource_id", "capability_id", "provider", "model"})
#: A column for each unit that a limit may have.
SUMMED = ("cost_nanos", "requests", "tokens", "booked_input_tokens", "booked_output_tokens")
_UNITS = ("usd", "requests", "tokens", "input_tokens", "output_tokens")
#: How far back `complete_up_to` looks: flushers overtake each other by batches, not by more.
LOOK_BACK = 10_000
#: More entries than an outbox can have held when it was lost.
_EPOCH_GAP = 1_000_000
#: Parameters: shard, epoch, above which, up to which; the judge is `is_complete`.
COUNTED = (
    "select count(*), min(shard_seq) from cost_tracking where shard = {} and epoch = {} and shard_seq > {} and shard_seq <= {}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How one database writes what the other writes differently; `{}` is the parameter."""

    from_ms: str
    until_ms: str
    scope: str
    #: A parameter by its number, from 1.
    parameter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SumQuery:
    """What to run. `group` is an expression that is a string, `where` starts with a space or is empty."""

    group: str
    where: str
    parameters: tuple[str | int, ...]
    grouped: bool

    @property
    def group_by(self) -> str:
        """The last clause."""
        return " group by 1" if self.grouped else ""


def sum_query(query: CostFilter, group_by: str | None, spelling: Spelling) -> SumQuery:
    """Spell a filter; an unknown group raises `ConfigurationError`."""
    if group_by is not None and group_by not in GROUPS:
        raise ConfigurationError(f"costs cannot be grouped by {group_by!r}: one of {', '.join(sorted(GROUPS))}")
    conditions = [
        (template.format(spelling.parameter.format(number)), value)
        for number, (template, value) in enumerate(_conditions(query, spelling), start=1)
    ]
    return SumQuery(
        group="''" if group_by is None else f"coalesce({group_by}, '')",
        where=" where " + " and ".join(sql for sql, _ in conditions) if conditions else "",
        parameters=tuple(value for _, value in conditions),
        grouped=group_by is not None,
    )


def _conditions(query: CostFilter, spelling: Spelling) -> Iterable[tuple[str, str | int]]:
    for column in ("principal_id", "resource_id", "capability_id", "root", "provider", "model"):
        name = getattr(query, column)
        if name is not None:
            yield f"{column} = {{}}", clean_name(name)
    if query.scope is not None:
        yield spelling.scope, clean_name(query.scope)
    if query.from_ms is not None:
        yield spelling.from_ms, min(max(query.from_ms, 0), MAX_MS)
    if query.until_ms is not None:
        yield spelling.until_ms, min(max(query.until_ms, 0), MAX_MS)
    if query.shard is not None:
        yield "shard = {}", query.shard
    if query.max_shard_seq is not None:
        yield "shard_seq <= {}", query.max_shard_seq


def total_of(groups: Sequence[tuple[str, int, tuple[int, ...]]], *, grouped: bool) -> CostTotal:
    """Add up what came back: name, number of rows and the sums of `SUMMED`, per group; the dearest group comes first."""
    sums = [sum(amounts) for amounts in zip(*(group[2] for group in groups), strict=True)] or [0] * len(SUMMED)
    named = sorted(((name, amounts[0]) for name, _, amounts in groups), key=lambda group: (-group[1], group[0]))
    return CostTotal(
        **dict(zip(SUMMED, sums, strict=True)),
        rows=sum(rows for _, rows, _ in groups),
        groups=tuple(named) if grouped else (),
    )


def base_after(last_seq: int) -> int:
    """Choose where a new epoch begins to number: after the last number that was flushed, and any that was not."""
    return last_seq + _EPOCH_GAP if last_seq else 0


def is_complete(seq: int, rows: int, first: int | None, base_seq: int | None = None) -> bool:
    """Judge by the number of rows and the lowest sequence number among the last `LOOK_BACK` up to `seq`.

    `base_seq`, where it is known, is the one before the epoch's first.
    """
    if base_seq is not None:
        return rows == seq - max(base_seq, seq - LOOK_BACK)
    return seq == 0 if first is None else rows == seq - first + 1


def resolved_of(rows: Iterable[Sequence[Any]]) -> list[ResolvedReservation]:
    """Fold entries (reservation id, part, kind, reserved_ms, then `SUMMED`), in the order of their parts, into reservations."""
    return [_fold(name, list(parts)) for name, parts in groupby(rows, key=itemgetter(0))]


def _fold(reservation_id: str, parts: Sequence[Sequence[Any]]) -> ResolvedReservation:
    resolution, known, estimated = "released", [0] * len(_UNITS), [0] * len(_UNITS)
    unended = all(kind == "partial" for _, _, kind, *_ in parts)
    for _, _, kind, _, *amounts in parts:
        if kind == "expire":
            resolution, estimated = "expired", amounts
            continue
        # A correction after an expiry is booked as the difference: with it, what was guessed has become known.
        known = [sum(each) for each in zip(known, estimated, amounts, strict=True)]
        estimated = [0] * len(_UNITS)
        if resolution != "settled":
            resolution = (
                "settled" if kind == "settle" else "expired" if resolution == "expired" and kind == "partial" else "released"
            )
    return ResolvedReservation(
        reservation_id=reservation_id,
        resolution=resolution,
        entries=len(parts),
        last_part=parts[-1][1],
        reserved_ms=int(parts[0][3]),
        known=_by_unit(known),
        estimated=_by_unit(estimated),
        unended=unended,
    )


def _by_unit(amounts: Sequence[int]) -> tuple[tuple[str, int], ...]:
    return tuple((unit, int(amount)) for unit, amount in zip(_UNITS, amounts, strict=True) if amount)
