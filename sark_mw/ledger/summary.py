"""Sums over the ledger: one filter, spelt for two databases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sark_mw.errors import ConfigurationError
from sark_mw.ledger.base import CostFilter, CostTotal
from sark_mw.ledger.rows import MAX_MS, clean_name

#: What a sum may be grouped by: nothing else reaches the SQL.
GROUPS = frozenset({"principal_id", "resource_id", "capability_id", "provider", "model"})
SUMMED = ("cost_nanos", "requests", "tokens", "booked_input_tokens", "booked_output_tokens")


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
