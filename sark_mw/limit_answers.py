"""Limits, where they stand and what happened to them, as JSON: what the admin API answers and what `--json` prints.

Amounts are decimal strings: dollars for `usd`, whole numbers for the other units. Instants are UTC.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from sark_mw.enforcement.limits import Changes
from sark_mw.enforcement.status import LimitStatus
from sark_mw.ledger.events import RecordedEvent
from sark_mw.limit import Limit, from_units

Amount = Annotated[str, Field(description="A decimal: dollars for `usd`, a whole number for the other units.")]


class Answer(BaseModel):
    """What is answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LimitAnswer(Answer):
    """A limit as it is enforced."""

    limit_id: str
    scope: str
    amount: Amount
    unit: str
    window: str
    timezone: str
    mode: str
    root: str
    parent: str
    overcommit: bool
    thresholds: tuple[int, ...]
    rollover: Amount
    since_ms: int = Field(description="Server time from which it counts; 0 where it is not in force yet.")

    @classmethod
    def of(cls, limit: Limit) -> LimitAnswer:
        """Tell of a limit."""
        return cls(
            limit_id=limit.limit_id,
            scope=limit.scope,
            amount=f"{limit.amount:f}",
            unit=limit.unit,
            window=limit.window,
            timezone=limit.timezone,
            mode=limit.mode,
            root=limit.root,
            parent=limit.parent,
            overcommit=limit.overcommit,
            thresholds=limit.thresholds,
            rollover=f"{limit.rollover:f}",
            since_ms=limit.since_ms,
        )


class LimitsAnswer(Answer):
    """The limits of a root."""

    root: str
    limits: tuple[LimitAnswer, ...]


class ChangedAnswer(Answer):
    """A limit that replaces another, which limits the same."""

    before: LimitAnswer
    after: LimitAnswer


class ChangesAnswer(Answer):
    """What was changed, or with `dry_run` what would be."""

    dry_run: bool
    added: tuple[LimitAnswer, ...]
    changed: tuple[ChangedAnswer, ...]
    dropped: tuple[LimitAnswer, ...]
    unchanged: tuple[LimitAnswer, ...]

    @classmethod
    def of(cls, several: Sequence[Changes], *, dry_run: bool) -> ChangesAnswer:
        """Tell of the changes of several roots."""
        added, changed = [], []
        for changes in several:
            before = {limit.limit_id: limit for limit in changes.replaced}
            for limit in changes.put:
                if limit.limit_id in before:
                    old = LimitAnswer.of(before[limit.limit_id])
                    changed.append(ChangedAnswer(before=old, after=LimitAnswer.of(limit)))
                else:
                    added.append(LimitAnswer.of(limit))
        return cls(
            dry_run=dry_run,
            added=tuple(added),
            changed=tuple(changed),
            dropped=tuple(LimitAnswer.of(limit) for changes in several for limit in changes.drop),
            unchanged=tuple(LimitAnswer.of(limit) for changes in several for limit in changes.unchanged),
        )


class StatusAnswer(Answer):
    """Where a limit stands on one scope."""

    limit_id: str
    scope: str
    root: str
    unit: str
    window: str
    timezone: str
    mode: str
    period: str
    amount: Amount = Field(description="What is allowed now: `base_amount`, what was topped up, and what was carried over.")
    base_amount: Amount = Field(description="The limit's own amount, or that of the override in force.")
    topped_up: Amount
    carried: Amount
    spent: Amount
    held: Amount
    remaining: Amount = Field(description="What is left; negative after an overrun.")
    override_until: datetime | None
    resets_at: datetime | None

    @classmethod
    def of(cls, status: LimitStatus) -> StatusAnswer:
        """Tell where a limit stands."""
        limit = status.limit

        def shown(amount: int) -> str:
            return f"{status.shown(amount):f}"

        return cls(
            limit_id=limit.limit_id,
            scope=status.scope,
            root=limit.root,
            unit=limit.unit,
            window=limit.window,
            timezone=limit.timezone,
            mode=limit.mode,
            period=status.period.name,
            amount=shown(status.amount),
            base_amount=shown(status.base_amount),
            topped_up=shown(status.topped_up),
            carried=shown(status.carried),
            spent=shown(status.spent),
            held=shown(status.held),
            remaining=shown(status.remaining),
            override_until=instant(status.override_until_ms),
            resets_at=instant(status.resets_at_ms),
        )


class StatusesAnswer(Answer):
    """Where limits stand."""

    root: str
    limits: tuple[StatusAnswer, ...]


class EventAnswer(Answer):
    """One thing that happened to a limit, as the ledger has it."""

    seq: int
    event_id: str
    kind: str
    at: datetime | None
    root: str
    limit_id: str
    scope: str
    counter: str
    unit: str
    amount: Amount | None
    until: datetime | None
    actor: str
    reason: str
    detail: dict[str, Any]

    @classmethod
    def of(cls, recorded: RecordedEvent) -> EventAnswer:
        """Tell of an event."""
        event = recorded.event
        return cls(
            seq=recorded.seq,
            event_id=event.event_id,
            kind=event.kind,
            at=instant(event.at_ms),
            root=event.root,
            limit_id=event.limit_id,
            scope=event.scope,
            counter=event.counter,
            unit=event.unit,
            amount=None if event.amount is None else f"{from_units(event.unit, event.amount):f}",
            until=instant(event.until_ms or 0),
            actor=event.actor,
            reason=event.reason,
            detail=json.loads(event.detail_json),
        )


class EventsAnswer(Answer):
    """What happened to limits, the newest first."""

    events: tuple[EventAnswer, ...]


def instant(at_ms: int) -> datetime | None:
    """Turn Unix milliseconds into an instant; 0 into none."""
    return datetime.fromtimestamp(at_ms / 1000, UTC) if at_ms else None
