"""An administrator's word for single requests: who waits for it, and the signed tokens that give it.

A token says in clear what it allows, and is signed with a key derived from the admin API's own token: every process that has the
same settings reads it, nobody else makes one, and another admin token makes all of them void.
"""

from __future__ import annotations

import binascii
import hmac
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from typing import Any, Protocol, runtime_checkable

from sark_mw.enforcement.tables import ServerClock
from sark_mw.errors import ConfigurationError, StoreError
from sark_mw.ledger.events import EventKind, LimitEvent
from sark_mw.limit import Unit
from sark_mw.policy.approvals import Approval, ApprovalRequest
from sark_mw.policy.base import LimitVersion
from sark_mw.store.base import KeepsApprovals

#: How long a request waits, and the longest that a token may be good for.
WAITS_MS = 86_400_000
MAX_VALID_S = 7 * 86_400
#: Of one principal so many requests wait at most; another takes the place of one of its own, never of somebody else's.
_PLACES = 8
_MAX_CHARS = 200
_MAX_TOKEN = 4096
_CENT = 10_000_000


class NotWaitingError(ConfigurationError):
    """No such request waits: it was answered, its time is over, or it never was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """What an administrator granted, and the token that says so."""

    asked: ApprovalRequest
    approval: Approval
    token: str


@runtime_checkable
class _Keeper(KeepsApprovals, Protocol):
    async def limits(self, root: str) -> LimitVersion:
        """Tell the epoch of a root's data."""


class StoreApprovals:
    """Implements `Approvals` over a store that keeps the requests which wait; `admin_token` is the settings' own."""

    def __init__(self, store: object, clock: ServerClock, admin_token: str) -> None:
        self._store = store if isinstance(store, _Keeper) else None
        self._clock = clock
        self._key = hmac.digest(admin_token.encode(), b"sark approvals 1", "sha256") if admin_token else b""

    @property
    def usable(self) -> bool:
        """Tell whether tokens can be made: it takes an admin token, and a store that keeps who waits."""
        return bool(self._key) and self._store is not None

    async def ask(self, *, root: str, principal_id: str, capability_id: str, amount_nanos: int, **about: str) -> ApprovalRequest:
        """List a request as waiting; the same one asked again is the same.

        The amount is part of what is the same, rounded up to cents: nobody can have another one approved than was looked at.
        """
        now, amount = self._clock.now_ms(), -(-amount_nanos // _CENT) * _CENT
        asked = ApprovalRequest(
            approval_id=_digest(root, principal_id, capability_id, str(amount)),
            root=root,
            principal_id=principal_id,
            capability_id=capability_id,
            amount_nanos=amount,
            at_ms=now,
            until_ms=now + WAITS_MS,
            **{name: text[:_MAX_CHARS] for name, text in about.items()},
        )
        await self._list(asked)
        return asked

    async def waiting(self, root: str) -> list[ApprovalRequest]:
        """List the requests of a root that wait, the newest first."""
        return [asked for asked, _ in await self._waiting(root)]

    async def grant(self, root: str, approval_id: str, *, valid_s: int, amount_nanos: int | None = None) -> Granted:
        """Let a waiting request happen once, within `valid_s` seconds, for at most its amount (or another).

        Raises `NotWaitingError`: of several who answer the same request one does.
        """
        epoch = (await self._keeper().limits(root)).epoch
        asked = await self.turn_down(root, approval_id)
        approval = Approval(
            token_id=secrets.token_hex(12),
            approval_id=asked.approval_id,
            root=root,
            principal_id=asked.principal_id,
            capability_id=asked.capability_id,
            amount_nanos=asked.amount_nanos if amount_nanos is None else amount_nanos,
            until_ms=self._clock.now_ms() + min(valid_s, MAX_VALID_S) * 1000,
            epoch=epoch,
        )
        said = _encoded(json.dumps(asdict(approval), separators=(",", ":")).encode())
        return Granted(asked=asked, approval=approval, token=f"{said}.{self._signature(said)}")

    async def turn_down(self, root: str, approval_id: str) -> ApprovalRequest:
        """Take a request off the list; raises `NotWaitingError`."""
        for asked, places in await self._waiting(root):
            # In one call, so that of several who answer one empties any of them.
            if asked.approval_id == approval_id and await self._keeper().drop_approvals(root, places):
                return asked
        raise NotWaitingError(f"no request {approval_id!r} of root {root!r} waits for an approval")

    @asynccontextmanager
    async def listed_again_on_failure(self, asked: ApprovalRequest) -> AsyncIterator[None]:
        """Record an answer in here: where that fails the request waits as before, and can be answered again."""
        try:
            yield
        except BaseException:
            if asked.until_ms > self._clock.now_ms():
                with suppress(StoreError):  # away as well: what failed first is told
                    await self._list(asked)
            raise

    async def _list(self, asked: ApprovalRequest) -> None:
        """Put a request where it waits already, in a free place of its principal's, or in that of the one asked longest ago.

        Looking and putting are two steps. Whoever puts a request into the same place in between pushes it off the list, or it is
        pushed off: that is one request of the same principal, which lists itself again as soon as it is asked again, in another
        place now. Two who ask the same may list it in two places: it is shown once, and answered in all of them at once.
        """
        places, now = _places(asked), self._clock.now_ms()
        texts = await self._keeper().approvals(asked.root, places)
        found = {place: _read(text) for place, text in texts.items()}
        holds = {each.approval_id: place for place, each in found.items()}
        free = [place for place in places if place not in found or found[place].until_ms <= now]
        place = holds.get(asked.approval_id) or next(iter(free), None) or min(found, key=lambda place: found[place].at_ms)
        text = json.dumps(asdict(asked), separators=(",", ":"))
        # Each says its own end; the time with which it is put is that of all the others too.
        await self._keeper().put_approval(asked.root, place, text, WAITS_MS)

    async def _waiting(self, root: str) -> list[tuple[ApprovalRequest, list[str]]]:
        """List the requests of a root that wait and their places, the newest first; empty the places of those that are over."""
        found = {place: _read(text) for place, text in (await self._keeper().approvals(root)).items()}
        now = self._clock.now_ms()
        await self._keeper().drop_approvals(root, [place for place, each in found.items() if each.until_ms <= now])
        mine: dict[str, tuple[ApprovalRequest, list[str]]] = {}
        for place, each in sorted(found.items(), key=lambda item: item[1].at_ms, reverse=True):
            if each.root == root and each.until_ms > now:
                mine.setdefault(each.approval_id, (each, []))[1].append(place)
        return list(mine.values())

    def read(self, token: str) -> Approval | None:
        """Return what a token allows; None for one that is forged or whose time is over."""
        said, _, signature = token.partition(".")
        genuine = hmac.compare_digest(signature.encode("utf-8", "replace"), self._signature(said).encode())
        if not self._key or not genuine or len(token) > _MAX_TOKEN:
            return None
        try:
            approval = Approval(**json.loads(urlsafe_b64decode(said + "=" * (-len(said) % 4))))
        except (binascii.Error, ValueError, TypeError):
            return None  # signed by another version
        return approval if self._clock.now_ms() < approval.until_ms else None

    def _signature(self, said: str) -> str:
        return _encoded(hmac.digest(self._key, said.encode("utf-8", "replace"), "sha256")) if self._key else ""

    def _keeper(self) -> _Keeper:
        if self._store is None or not self._key:
            raise ConfigurationError("approvals need the admin API's token (SARK_ADMIN__TOKEN) in the settings of every process")
        return self._store


def approval_event(granted: Granted, *, actor: str, reason: str, at_ms: int) -> LimitEvent:
    """Say for the record what was approved, by whom and why; the token is not in it."""
    event = _event(granted.approval, granted.approval.token_id, {}, actor=actor, reason=reason, at_ms=at_ms)
    return replace(event, until_ms=granted.approval.until_ms)


def refusal_event(refused: ApprovalRequest, *, actor: str, reason: str, at_ms: int) -> LimitEvent:
    """Say for the record what was turned down, by whom and why."""
    event_id = f"refused:{secrets.token_hex(12)}"
    return _event(refused, event_id, {"refused": True}, actor=actor, reason=reason, at_ms=at_ms)


def _event(
    said: Approval | ApprovalRequest, event_id: str, more: Mapping[str, object], *, actor: str, reason: str, at_ms: int
) -> LimitEvent:
    detail = {"approval_id": said.approval_id, "capability": said.capability_id, **more}
    return LimitEvent(
        event_id=f"approval:{event_id}",
        kind=EventKind.APPROVAL,
        root=said.root,
        scope=said.principal_id,
        unit=Unit.USD,
        amount=said.amount_nanos,
        at_ms=at_ms,
        actor=actor,
        reason=reason,
        detail_json=json.dumps(detail, separators=(",", ":")),
    )


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _digest(*parts: str) -> str:
    digest = blake2b(digest_size=10)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _places(asked: ApprovalRequest) -> list[str]:
    """Name the places of a principal, first one that others of its requests hardly begin with: who asks at once seldom meets."""
    of, first = _digest(asked.root, asked.principal_id), int(asked.approval_id, 16) % _PLACES
    return [f"{of}:{(first + n) % _PLACES}" for n in range(_PLACES)]


def _read(text: str) -> ApprovalRequest:
    said: Mapping[str, Any] = json.loads(text)
    return ApprovalRequest(**{each.name: said[each.name] for each in fields(ApprovalRequest) if each.name in said})
