"""One lease: an amount held in advance on the limits of some scopes, handed out by this process alone.

For the store a lease is a reservation like any other, and what requests cost are its partial settles: no second mechanism.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from sark_mw.enforcement.settler import SettleContext, Settler
from sark_mw.reservation import Line, Need, Resolution, Settle, SettleReply

_Answer = asyncio.Future[SettleReply | None]


class Parts:
    """Send the parts of one lease in their order: each only after the one before was answered.

    Amounts are cumulative, so a part that overtakes another loses no money, but the other's ledger entry would be lost.
    """

    def __init__(self, settler: Settler) -> None:
        self._settler = settler
        self._waiting: deque[tuple[Settle, SettleContext, _Answer]] = deque()
        self._sent: asyncio.Task[SettleReply | None] | None = None
        self._hurried = False

    def put(self, settle: Settle, context: SettleContext) -> asyncio.Task[SettleReply | None]:
        """Send a part when its turn comes; the task ends with the store's answer, or None if it went to the journal."""
        answer: _Answer = asyncio.get_running_loop().create_future()
        self._waiting.append((settle, context, answer))
        self._send()
        return asyncio.ensure_future(_awaited(answer))

    def hurry(self) -> None:
        """Hand everything to the settler now, in order: at the end of a process it keeps in the journal what it has not sent."""
        self._hurried = True
        self._send()

    def _send(self) -> None:
        while self._waiting and (self._hurried or self._sent is None):
            settle, context, answer = self._waiting.popleft()
            self._sent = self._settler.submit(settle, context)
            self._sent.add_done_callback(partial(self._answered, answer))

    def _answered(self, answer: _Answer, task: asyncio.Task[SettleReply | None]) -> None:
        if self._sent is task:
            self._sent = None
        if task.cancelled():
            answer.cancel()
        elif not answer.done():
            error = task.exception()
            if error is None:
                answer.set_result(task.result())
            else:
                answer.set_exception(error)
        self._send()


async def _awaited(answer: _Answer) -> SettleReply | None:
    return await answer


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
    """What was held, what of it is left and what of that is promised to requests in flight; amounts by unit.

    `left` is what the store still holds of `ceiling` once every part sent so far has arrived. `good_until` (local monotonic
    seconds) is when the hold may have expired at the server, `ends_ms` (server time, 0 for never) when its first period ends.
    """

    reservation_id: str
    root: str
    scopes: tuple[str, ...]
    lines: tuple[Line, ...]
    epoch: str
    made_ms: int
    ends_ms: int
    good_until: float
    ceiling: Mapping[str, int]
    left: dict[str, int]
    entry: str
    parts: Parts
    on_left: Callable[[Lease, str, int], None]
    on_drained: Callable[[Lease], None]
    promised: dict[str, int] = field(default_factory=dict)
    booked: dict[str, int] = field(default_factory=dict)
    grants: int = 0
    part: int = 0
    retired: bool = False

    def fits(self, needs: Sequence[Need]) -> bool:
        """Tell whether every ceiling is still free."""
        return all(need.held <= self.left.get(need.unit, 0) - self.promised.get(need.unit, 0) for need in needs if need.held)

    def promise(self, needs: Sequence[Need]) -> None:
        """Set the ceilings of one request aside until it ends."""
        self.grants += 1
        for need in needs:
            self.promised[need.unit] = self.promised.get(need.unit, 0) + need.held

    def book(self, amounts: Mapping[str, int]) -> None:
        """Add (signed) amounts to what the lease has cost; as in the store, its ceiling beyond that stays held."""
        for unit, amount in amounts.items():
            self.booked[unit] = self.booked.get(unit, 0) + amount
            if unit in self.left:
                left = max(self.ceiling[unit] - self.booked[unit], 0)
                change, self.left[unit] = left - self.left[unit], left
                self.on_left(self, unit, change)

    def send(self, settle: Settle, context: SettleContext) -> asyncio.Task[SettleReply | None]:
        """Send a settle (its entry, its flag) as the lease's next part, with all that the lease has cost so far."""
        self.part += 1
        amounts = () if settle.kind is Resolution.RELEASE else tuple(self.booked.items())
        return self.parts.put(
            replace(
                settle,
                reservation_id=self.reservation_id,
                root=self.root,
                lines=self.lines,
                made_ms=self.made_ms,
                part=self.part,
                amounts=amounts,
            ),
            context,
        )

    def retire(self) -> None:
        """Grant nothing more; the hold goes when the last request has ended."""
        if not self.retired:
            self.retired = True
            if self.grants == 0:
                self.on_drained(self)

    def release(self) -> asyncio.Task[SettleReply | None]:
        """Give back what is left, after all parts: they booked everything, so the last one carries no amounts.

        It would book them once more in a store that lost the lease and was rebuilt.
        """
        for unit, left in self.left.items():
            self.on_left(self, unit, -left)
        self.left = {}
        ending = Settle(
            reservation_id=self.reservation_id, root=self.root, lines=(), amounts=(), kind=Resolution.RELEASE, entry=self.entry
        )
        return self.send(ending, SettleContext())


class GrantBooks:
    """Stand where an admission expects its settler: what the request books goes to the lease it was granted from."""

    def __init__(self, lease: Lease, needs: Sequence[Need], on_end: Callable[[Sequence[Need]], None]) -> None:
        self._lease = lease
        self._needs = needs
        self._on_end = on_end
        self._promised = {need.unit: need.held for need in needs}
        self._booked: dict[str, int] = {}

    def submit(self, settle: Settle, context: SettleContext | None = None) -> asyncio.Task[SettleReply | None]:
        """Book what the request has cost beyond its earlier parts; unless partial, give back what it did not need."""
        increments = {unit: amount - self._booked.get(unit, 0) for unit, amount in settle.amounts}
        self._booked.update(settle.amounts)
        self._lease.book(increments)
        final = settle.kind is not Resolution.PARTIAL
        for unit, promised in self._promised.items():
            freed = promised if final else max(min(promised, increments.get(unit, 0)), 0)
            self._promised[unit] -= freed
            self._lease.promised[unit] -= freed
        told = replace(context or SettleContext(), booked=tuple(increments.items()))
        task = self._lease.send(replace(settle, kind=Resolution.PARTIAL), told)
        if final:
            self._end()
        return task

    def _end(self) -> None:
        self._on_end(self._needs)
        self._lease.grants -= 1
        if self._lease.retired and self._lease.grants == 0:
            self._lease.on_drained(self._lease)
