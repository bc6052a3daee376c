"""Count in the store, together with every other process, and take back what was counted for requests that went no further."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from hashlib import blake2b
from typing import Protocol, runtime_checkable

from sark_mw.errors import PolicyEvaluationError, StoreError
from sark_mw.limit import DEFAULT_ROOT
from sark_mw.policy.base import LimitVersion, SharedStore
from sark_mw.policy.context import PolicyContext
from sark_mw.policy.outcomes import Outcomes, RequestEnd
from sark_mw.reservation import Line, Need, Outcome, Reserve, ReserveReply, new_reservation_id

logger = logging.getLogger(__name__)

#: A change of the limits makes the store send a reserve back once; only a storm of changes does so again and again.
MAX_ATTEMPTS = 5
#: Requests under way of which a process remembers what it counted; each is told of when it ends, so they are never so many.
MAX_PENDING = 100_000


class OtherEpochError(PolicyEvaluationError):
    """The store's data are not those that were meant: they were lost in between."""


@runtime_checkable
class GivesBack(Protocol):
    """A store that can take back what a reserve without a lease has counted."""

    async def give_back(self, booked: Reserve) -> bool:
        """Take it back; False if it is not, or no more, there."""


def root_of(context: PolicyContext) -> str:
    """Name the root (tenant) that a request is counted in."""
    return context.environment.get("root") or DEFAULT_ROOT


def asked_by(context: PolicyContext, *, each_call: bool = True) -> tuple[str, str] | None:
    """Name the request, and which call of it this is (`each_call`); None outside a gateway. It may be asked about again."""
    request_id = context.environment.get("request_id")
    if request_id is None:
        return None
    return str(request_id), f"{request_id}.{context.environment.get('call', 0) if each_call else 0}"


class Counting:
    """Reserves of a plugin's own, on lines of its own, without a lease: counted and decided in one round trip.

    The same request, asked about again (with a cheaper model), is counted once; of an MCP batch each call (`each_call`), or the
    batch once. What was counted for a request that is refused afterwards, by another plugin or by a limit, is given back as soon
    as `outcomes` tells of it.
    """

    def __init__(self, name: str, *, each_call: bool = True) -> None:
        self.name = name
        self._each_call = each_call
        self._tables: dict[str, LimitVersion] = {}
        self._booked: OrderedDict[str, dict[str, tuple[SharedStore, Reserve]]] = OrderedDict()
        self._sending: dict[str, set[asyncio.Task[ReserveReply]]] = {}
        self._giving: set[asyncio.Task[None]] = set()
        self._outcomes: Outcomes | None = None

    def listen(self, outcomes: Outcomes | None) -> None:
        """Hear of requests' ends from `outcomes`, in place of whatever was heard before."""
        if self._outcomes is not None and self._outcomes is not outcomes:
            self._outcomes.forget(self._heard)
        self._outcomes = outcomes
        if outcomes is not None:
            outcomes.listen(self._heard)

    async def take(
        self,
        store: SharedStore,
        context: PolicyContext,
        lines: tuple[Line, ...],
        needs: tuple[Need, ...],
        epoch: str | None = None,
    ) -> ReserveReply:
        """Count `needs` on `lines` if they fit, and if the store's data are still those of `epoch` where one is given.

        Raises the store's errors, `OtherEpochError`, and `PolicyEvaluationError` in a storm of changes.
        """
        asked, root = asked_by(context, each_call=self._each_call), root_of(context)
        reservation_id = new_reservation_id() if asked is None else f"{asked[1]}.{_digest(lines)}"
        table = self._tables.get(root)
        if table is not None and epoch not in (None, table.epoch):
            table = None
        for _ in range(MAX_ATTEMPTS):
            if table is None:
                table = self._tables[root] = await store.limits(root)
            if epoch not in (None, table.epoch):
                raise OtherEpochError(f"{self.name}: the store has lost its data since")
            reserve = Reserve(
                reservation_id=reservation_id,
                root=root,
                lines=lines,
                needs=needs,
                lease_ms=0,
                version=table.version,
                epoch=table.epoch,
            )
            if asked is not None and self._outcomes is not None:
                self._remember(asked[0], store, reserve)
                reply = await self._send(asked[0], store, reserve)
            else:
                reply = await store.reserve(reserve)
            if reply.outcome is Outcome.EXCEEDS_LIMIT and asked is not None:
                self._booked.get(asked[0], {}).pop(reservation_id, None)
            if reply.outcome is not Outcome.STALE_LIMITS:
                return reply
            table = None
        raise PolicyEvaluationError(f"{self.name}: the limits of root {root!r} changed {MAX_ATTEMPTS} times during one request")

    def _remember(self, request_id: str, store: SharedStore, reserve: Reserve) -> None:
        # Before it is sent: if its answer never comes, it may have been counted all the same.
        self._booked.setdefault(request_id, {})[reserve.reservation_id] = (store, reserve)
        while len(self._booked) > MAX_PENDING:
            self._booked.popitem(last=False)

    async def _send(self, request_id: str, store: SharedStore, reserve: Reserve) -> ReserveReply:
        """Reserve to the end even if nobody waits for it any more: given back too early, it would stay counted."""
        task = asyncio.ensure_future(store.reserve(reserve))
        self._sending.setdefault(request_id, set()).add(task)
        task.add_done_callback(lambda done: self._sent(request_id, done))
        await asyncio.wait([task])
        return task.result()

    def _sent(self, request_id: str, task: asyncio.Task[ReserveReply]) -> None:
        under_way = self._sending[request_id]
        under_way.discard(task)
        if not under_way:
            del self._sending[request_id]
        if not task.cancelled():
            task.exception()  # told to whoever still waits, and to nobody else

    def _heard(self, end: RequestEnd) -> None:
        booked = self._booked.pop(end.request_id, None)
        if booked and not end.admitted:
            task = asyncio.ensure_future(self._give_back([*booked.values()], [*self._sending.get(end.request_id, ())]))
            self._giving.add(task)
            task.add_done_callback(self._giving.discard)

    async def _give_back(self, booked: list[tuple[SharedStore, Reserve]], under_way: list[asyncio.Task[ReserveReply]]) -> None:
        if under_way:
            await asyncio.wait(under_way)
        for store, reserve in booked:
            if isinstance(store, GivesBack):
                await self._give_back_one(store, reserve)

    async def _give_back_one(self, store: GivesBack, reserve: Reserve) -> None:
        try:
            await store.give_back(reserve)
        except StoreError:
            try:  # once more: it is taken back once, however often it is asked for
                await store.give_back(reserve)
            except StoreError as error:
                logger.warning("%s: a refused request stays counted, the store did not take it back: %s", self.name, error)

    async def aclose(self) -> None:
        """Hear no more, and end what is being sent and given back."""
        self.listen(None)
        under_way = {*self._giving, *(task for tasks in self._sending.values() for task in tasks)}
        if under_way:
            await asyncio.wait(under_way)


def _digest(lines: tuple[Line, ...]) -> str:
    return blake2b("\n".join(line.counter for line in lines).encode(errors="surrogatepass"), digest_size=8).hexdigest()
