"""What the admin API answers of holds and refusals; of limits see `sark_mw.limit_answers`."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from sark_mw.ledger.entries import parse_entry
from sark_mw.limit import from_units
from sark_mw.limit_answers import Amount, Answer, instant
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
