"""Where the limits stand that a request touches, for policies that judge by them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence

from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.policy.base import LimitFigures
from sark_mw.store.base import ReservationStore

#: Policies may judge by figures that are so old: many requests of the same scopes then cost one look into the store.
MAX_AGE_S = 0.25
_MAX_KEPT = 1000
_Key = tuple[str, tuple[str, ...]]


class StoreLimits:
    """Read limits and their counters from the store: what is spent and what is held."""

    def __init__(self, store: ReservationStore, tables: LimitTables, clock: ServerClock) -> None:
        self._store = store
        self._tables = tables
        self._clock = clock
        self._kept: OrderedDict[_Key, tuple[float, tuple[LimitFigures, ...]]] = OrderedDict()

    async def read(self, root: str, scopes: Sequence[str]) -> Sequence[LimitFigures]:
        """Return the figures of every limit that these scopes touch, parents included; raises the store's errors."""
        key = (root, tuple(scopes))
        kept = self._kept.get(key)
        if kept is not None and time.monotonic() - kept[0] < MAX_AGE_S:
            return kept[1]
        figures = await self._read(*key)
        self._kept[key] = (time.monotonic(), figures)
        self._kept.move_to_end(key)
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return figures

    async def _read(self, root: str, scopes: tuple[str, ...]) -> tuple[LimitFigures, ...]:
        layout = await self._tables.layout(root, scopes)
        if not layout.lines:
            return ()
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
            )
            for line, balance in asked
            if line.limit is not None and not line.displaced
        )
