"""What the admin API answers of holds, refusals and approvals; of limits see `sark_mw.limit_answers`."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from sark_mw.enforcement.approvals import Granted
from sark_mw.ledger.entries import parse_entry
from sark_mw.limit import Unit, from_units
from sark_mw.limit_answers import Amount, Answer, instant
from sark_mw.policy.approvals import ApprovalRequest
from sark_mw.store.base import LiveHold, RecentRefusal


class HoldAnswer(Answer):
    """A reservation that is held now; amounts by unit."""

    id: str
    made_at: datetime | None
    lease_ends_at: datetime | None
    principal: str
    scopes: tuple[str, ...]
    request_id: str
    provider: str | None
    model: str | None
    held: dict[str, Amount] = Field(description="Held still.")
    expected: dict[str, Amount] = Field(description="Booked if its lease ends.")
    booked: dict[str, Amount] = Field(description="Booked so far.")
    counters: tuple[str, ...]

    @classmethod
    def of(cls, hold: LiveHold) -> HoldAnswer:
        """Tell of a hold."""
        entry, _ = parse_entry(hold.entry_json)
        by_unit = [{u: f"{from_units(u, n):f}" for u, n in each.items()} for each in (hold.held, hold.expected, hold.known)]
        return cls(
            id=hold.reservation_id,
            made_at=instant(hold.made_ms),
            lease_ends_at=instant(hold.ends_ms),
            principal=entry.principal_id,
            scopes=entry.scopes,
            request_id=entry.request_id,
            provider=entry.provider,
            model=entry.model,
            held=by_unit[0],
            expected=by_unit[1],
            booked=by_unit[2],
            counters=hold.counters,
        )


class HoldsAnswer(Answer):
    """The live holds of a root, those whose lease ends first at the head."""

    root: str
    holds: tuple[HoldAnswer, ...]


class ReleasedAnswer(Answer):
    """A hold that was released by hand: it books nothing more, unless its request settles after all."""

    released: HoldAnswer


class RefusalAnswer(Answer):
    """A request that was refused."""

    at: datetime | None
    principal: str
    scopes: tuple[str, ...]
    kind: str
    limit_id: str
    unit: str
    message: str
    request_id: str
    needed: str
    remaining: str

    @classmethod
    def of(cls, refusal: RecentRefusal) -> RefusalAnswer:
        """Tell of a refusal."""
        names = ("kind", "limit_id", "unit", "message", "request_id", "needed", "remaining", "scopes")
        same = {name: getattr(refusal, name) for name in names}
        return cls(at=instant(refusal.at_ms), principal=refusal.principal_id, **same)


class RefusalsAnswer(Answer):
    """The last refusals of a root, by all processes, the newest first."""

    root: str
    refusals: tuple[RefusalAnswer, ...]
    left_out: int = Field(description="So many more were refused among them; a process lists at most 100 a second.")

    @classmethod
    def of(cls, root: str, found: list[RecentRefusal]) -> RefusalsAnswer:
        """Tell of refusals."""
        return cls(
            root=root,
            refusals=tuple(RefusalAnswer.of(each) for each in found if each.kind),
            left_out=sum(each.left_out for each in found),
        )


class ApprovalAnswer(Answer):
    """A request that waits for an administrator's word: nothing of what it says."""

    id: str
    at: datetime | None
    waits_until: datetime | None
    principal: str
    capability: str
    resource: str
    model: str
    amount: Amount = Field(description="Dollars that it may cost, rounded up to cents.")
    request_id: str

    @classmethod
    def of(cls, asked: ApprovalRequest) -> ApprovalAnswer:
        """Tell of a request."""
        return cls(
            id=asked.approval_id,
            at=instant(asked.at_ms),
            waits_until=instant(asked.until_ms),
            principal=asked.principal_id,
            capability=asked.capability_id,
            resource=asked.resource_id,
            model=asked.model,
            amount=f"{from_units(Unit.USD, asked.amount_nanos):f}",
            request_id=asked.request_id,
        )


class ApprovalsAnswer(Answer):
    """The requests of a root that wait, the newest first; at most eight of one principal."""

    root: str
    approvals: tuple[ApprovalAnswer, ...]


class GrantedAnswer(Answer):
    """An administrator's word: the caller sends `token` as the header `x-sark-approval`, once."""

    id: str
    principal: str
    capability: str
    amount: Amount = Field(description="Dollars at most.")
    until: datetime | None
    token: str

    @classmethod
    def of(cls, granted: Granted) -> GrantedAnswer:
        """Tell of what was granted."""
        approval = granted.approval
        return cls(
            id=approval.approval_id,
            principal=approval.principal_id,
            capability=approval.capability_id,
            amount=f"{from_units(Unit.USD, approval.amount_nanos):f}",
            until=instant(approval.until_ms),
            token=granted.token,
        )


class TurnedDownAnswer(Answer):
    """A request that waits no more, and got no token."""

    turned_down: ApprovalAnswer
