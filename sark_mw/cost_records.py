"""What the compatibility faces answer with, and how a recorded cost becomes an expense in the books."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b

from sark_mw.enforcement.expense import Expense
from sark_mw.enforcement.members import MAX_NAME_CHARS, with_kind
from sark_mw.errors import InvalidRequestError, MoneyError
from sark_mw.ledger.base import CostTotal
from sark_mw.ledger.entries import CallerEntry
from sark_mw.limit import Unit
from sark_mw.money import from_nanos, to_decimal, to_nanos
from sark_mw.reservation import new_reservation_id

#: What an amount may be given as: dollars.
Dollars = Decimal | int | str

#: What names one invocation in a record's metadata, so that the same record counts once.
_RECORD_KEYS = ("record_id", "invocation_id", "request_id")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatus:
    """What a principal may spend, has spent and has left; budgets and rests are None where there is no such budget.

    A rest leaves out what requests in flight hold, and is negative after an overrun. Without a budget the spend is the ledger's.
    """

    principal_id: str
    daily_budget: Decimal | None = None
    monthly_budget: Decimal | None = None
    daily_spent: Decimal = Decimal("0.00")
    monthly_spent: Decimal = Decimal("0.00")
    daily_remaining: Decimal | None = None
    monthly_remaining: Decimal | None = None
    daily_percent_used: float = 0.0
    monthly_percent_used: float = 0.0
    currency: str = "USD"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSummary:
    """A sum over the ledger, and what was asked for; `breakdown` has dollars `by_provider` and `by_model`."""

    total_cost: Decimal
    record_count: int
    principal_id: str | None = None
    resource_id: str | None = None
    capability_id: str | None = None
    period_start: datetime | None = None
    period_end: datetime | None = None
    breakdown: dict[str, dict[str, Decimal]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostAttributionRecord:
    """One cost as it was recorded; `timestamp` is the store's, and decides the period."""

    timestamp: datetime
    principal_id: str
    resource_id: str
    capability_id: str
    estimated_cost: Decimal | None = None
    actual_cost: Decimal | None = None
    provider: str | None = None
    model: str | None = None
    breakdown: dict[str, object] = field(default_factory=dict)
    metadata: dict[str, object] = field(default_factory=dict)


def scope_of(principal_id: str) -> str:
    """Name a principal as the middleware does: `alice` is `user:alice`. Raises `InvalidRequestError` for what is no name."""
    scope = with_kind(principal_id)
    kind, _, name = scope.partition(":")
    if not kind or not name or len(scope) > MAX_NAME_CHARS or not scope.isprintable():
        raise InvalidRequestError(
            f"a principal is a name, or kind:name, of at most {MAX_NAME_CHARS} printable characters: {principal_id!r}"
        )
    return scope


def touched_scopes(
    scope: str,
    defaults: Iterable[str],
    *,
    provider: str | None = None,
    model: str | None = None,
    resource: str | None = None,
    capability: str | None = None,
) -> tuple[str, ...]:
    """List what an invocation touches, spelt as in the middleware; a capability is a tool."""
    touched = [scope, *defaults]
    if provider:
        touched.append(f"provider:{provider}")
    if model:
        name = model.strip().lower()
        touched += [f"model:{each}" for each in (model, name, name.rpartition("/")[2]) if each]
    if resource:
        touched.append(f"resource:{resource}")
    if capability:
        touched.append(f"tool:{capability}")
    return tuple(dict.fromkeys(touched))


def dollars(name: str, amount: Dollars | None) -> Decimal | None:
    """Read an amount that may be absent; raises `MoneyError` that names it."""
    if amount is None:
        return None
    try:
        to_nanos(amount)
    except MoneyError as error:
        raise MoneyError(f"{name}: {error}") from None
    return to_decimal(amount)


def expense_of(record: CostAttributionRecord, root: str, defaults: Iterable[str], record_id: str | None) -> tuple[Expense, bool]:
    """Make the expense of a record, and tell whether it has an id by which it counts once."""
    cost = record.estimated_cost if record.actual_cost is None else record.actual_cost
    if cost is None:
        raise MoneyError("a record needs an estimated or an actual cost")
    scope, notes = scope_of(record.principal_id), record.metadata
    key = record_id or next((str(notes[name]) for name in _RECORD_KEYS if notes.get(name)), None)
    tokens_in, tokens_out = token_counts(record.breakdown)
    entry = CallerEntry(
        principal_id=scope,
        resource_id=record.resource_id,
        capability_id=record.capability_id,
        scopes=touched_scopes(
            scope,
            defaults,
            provider=record.provider,
            model=record.model,
            resource=record.resource_id,
            capability=record.capability_id,
        ),
        provider=record.provider,
        model=record.model,
        held_nanos=to_nanos(cost),
        expected_nanos=0 if record.estimated_cost is None else to_nanos(record.estimated_cost),
        actual_nanos=None if record.actual_cost is None else to_nanos(record.actual_cost),
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        request_id=key or "",
        metadata=_plain(notes) or None,
    )
    units = {
        Unit.USD: to_nanos(cost),
        Unit.REQUESTS: 1,
        Unit.INPUT_TOKENS: tokens_in,
        Unit.OUTPUT_TOKENS: tokens_out,
        Unit.TOKENS: tokens_in + tokens_out,
    }
    expense = Expense(
        reservation_id=new_reservation_id() if key is None else _id_of(root, scope, record, key),
        root=root,
        entry=entry,
        amounts=tuple((unit.value, amount) for unit, amount in units.items()),
        estimated=record.actual_cost is None,
    )
    return expense, key is not None


def _id_of(root: str, scope: str, record: CostAttributionRecord, key: str) -> str:
    named = json.dumps([root, scope, record.resource_id, record.capability_id, key])
    return f"record-{blake2b(named.encode(), digest_size=20).hexdigest()}"


def token_counts(breakdown: Mapping[str, object]) -> tuple[int, int]:
    """Read the tokens that a breakdown tells, 0 where it does not."""
    counts = [breakdown.get(name) for name in ("input_tokens", "output_tokens")]
    known = [count if type(count) is int and count >= 0 else 0 for count in counts]
    return known[0], known[1]


def _plain(notes: Mapping[str, object]) -> dict[str, object]:
    """Make metadata JSON; whatever the caller put into it, the money is booked."""
    try:
        plain: dict[str, object] = json.loads(json.dumps(dict(notes), default=str, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return {"malformed": True}
    return plain


def text_or_none(value: object) -> str | None:
    """Read a name that metadata may hold."""
    return value if isinstance(value, str) and value else None


def by_group(total: CostTotal) -> dict[str, Decimal]:
    """Lay out a grouped sum in dollars; what has no name is `unknown`."""
    return {name or "unknown": from_nanos(nanos) for name, nanos in total.groups}


def floor_ms(moment: datetime) -> int:
    """Return the Unix millisecond that a moment lies in; a naive one is UTC."""
    return (_aware(moment) - _EPOCH) // _MS


def ceil_ms(moment: datetime) -> int:
    """Return the first Unix millisecond that does not begin before a moment."""
    return -((_EPOCH - _aware(moment)) // _MS)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
