"""Where the limits stand that a request touches, for policies that judge by them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence

from sark_mw.enforcement.lent import Rebuild, once_rebuilt
from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.limit import Limit
from sark_mw.policy.base import LimitFigures
from sark_mw.reservation import Line
from sark_mw.store.base import ReservationStore

#: Policies may judge by figures that are so old: many requests of the same scopes then cost one look into the store.
MAX_AGE_S = 0.25
_MAX_KEPT = 1000
#: Requests that are decided at the same time, of which more is known than their scopes.
_MAX_ASKED = 10_000
#: Root, scopes, asserted scopes, limits of the request's own.
_Key = tuple[str, tuple[str, ...], tuple[str, ...], tuple[Limit, ...]]


class StoreLimits:
    """Read limits and their counters from the store: what is spent and what is held."""

    def __init__(self, store: ReservationStore, tables: LimitTables, clock: ServerClock, rebuild: Rebuild) -> None:
        self._store = store
        self._tables = tables
        self._clock = clock
        self._rebuild = rebuild
        self._asked: OrderedDict[str, tuple[tuple[str, ...], tuple[Limit, ...]]] = OrderedDict()
        self._kept: OrderedDict[_Key, tuple[float, tuple[LimitFigures, ...]]] = OrderedDict()

    def asked(self, request_id: str, asserted: tuple[str, ...], extra_limits: tuple[Limit, ...]) -> None:
        """Note what else a request touches while policies are asked about it: asserted scopes, and limits of its own."""
        if asserted or extra_limits:
            self._asked[request_id] = (asserted, extra_limits)
            if len(self._asked) > _MAX_ASKED:
                self._asked.popitem(last=False)

    def answered(self, request_id: str) -> None:
        """Forget that again."""
        self._asked.pop(request_id, None)

    async def read(self, root: str, scopes: Sequence[str], request_id: str = "") -> Sequence[LimitFigures]:
        """Return the figures of every limit that a request with these scopes touches; raises the store's errors."""
        key = (root, tuple(scopes), *self._asked.get(request_id, ((), ())))
        kept = self._kept.get(key)
        if kept is not None and time.monotonic() - kept[0] < MAX_AGE_S:
            return kept[1]
        figures = await once_rebuilt(lambda: self._again(root), lambda: self._read(*key))
        self._kept[key] = (time.monotonic(), figures)
        self._kept.move_to_end(key)
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return figures

    async def _again(self, root: str) -> None:
        self._tables.forget(root)
        await self._rebuild()

    async def _read(
        self, root: str, scopes: tuple[str, ...], asserted: tuple[str, ...], extra_limits: tuple[Limit, ...]
    ) -> tuple[LimitFigures, ...]:
        own = tuple([limit.scope for limit in extra_limits if limit.scope not in scopes])
        layout = await self._tables.layout(root, (*scopes, *own), asserted, extra_limits)
        if not layout.lines:
            return ()
        certain = await self._certain(root, scopes, asserted) if asserted or extra_limits else layout.lines
        # By limit and not by counter: a period may have begun in between.
        counted = {(line.scope, line.limit) for line in certain}
        snapshot = await self._store.balance(root, layout.lines)
        self._clock.heard(snapshot.at_ms)
        asked = zip(layout.lines, snapshot.balances, strict=True)
        return tuple(
            LimitFigures(
                scope=balance.line.scope,
                unit=balance.line.unit,
                window=line.limit.window,
                amount=balance.line.amount,
                spent=balance.spent,
                held=balance.held,
                enforced=line.enforce,
                asserted=(line.scope, line.limit) not in counted,
            )
            for line, balance in asked
            if line.limit is not None and not line.displaced
        )

    async def _certain(self, root: str, scopes: tuple[str, ...], asserted: tuple[str, ...]) -> tuple[Line, ...]:
        """Lay out what a request touches whatever its caller says: an end user's limit may bring along that one's parent."""
        # What it is about is where it really goes.
        about = tuple([scope for scope in asserted if scope.startswith("resource:")])
        return (await self._tables.layout(root, scopes, about)).lines
