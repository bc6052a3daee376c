"""Setting limits: kept in the ledger's database for good, in force through the store within its next answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sark_mw.enforcement.recovery import Recovery
from sark_mw.enforcement.tables import LimitTables
from sark_mw.errors import StoreDataLostError
from sark_mw.ledger.base import Ledger
from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.store.base import LimitTable, ReservationStore


class LimitRegistry:
    """Set, drop and list limits. Raises `LedgerUnavailableError` or `StoreUnavailableError`; repeat the call then."""

    def __init__(self, store: ReservationStore, ledger: Ledger, *, tables: LimitTables, recovery: Recovery) -> None:
        self._store = store
        self._ledger = ledger
        self._tables = tables
        self._recovery = recovery

    async def set(self, *limits: Limit) -> None:
        """Add limits, or replace those that limit the same; a replaced one keeps what it has counted."""
        for root in dict.fromkeys(limit.root for limit in limits):
            own = [limit for limit in limits if limit.root == root]
            # The database first: what is in force after a loss of the store is at least what was asked for.
            await self._ledger.save_limits(own, ())
            table = await self._change(root, own, ())
            ids = {limit.limit_id for limit in own}
            await self._ledger.save_limits([limit for limit in table.limits if limit.limit_id in ids], ())

    async def drop(self, root: str, *limit_ids: str) -> None:
        """Remove limits by id; unknown ids are nothing."""
        await self._change(root, (), limit_ids)
        await self._ledger.save_limits((), [(root, limit_id) for limit_id in limit_ids])

    async def list(self, root: str = DEFAULT_ROOT) -> tuple[Limit, ...]:
        """List the limits of a root as the store enforces them now."""
        return (await self._table(root)).limits

    async def seed(self, limits: Sequence[Limit]) -> None:
        """Set those limits that are not in force as they stand here: what the settings file says at start."""
        for root in dict.fromkeys(limit.root for limit in limits):
            known = {limit.limit_id: replace(limit, since_ms=0) for limit in await self.list(root)}
            changed = [limit for limit in limits if limit.root == root and known.get(limit.limit_id) != limit]
            if changed:
                await self.set(*changed)

    async def _table(self, root: str) -> LimitTable:
        try:
            return await self._tables.reload(root)
        except StoreDataLostError:
            await self._recovery.rebuild()
            return await self._tables.reload(root)

    async def _change(self, root: str, put: Sequence[Limit], drop: Sequence[str]) -> LimitTable:
        try:
            table = await self._store.set_limits(root, put, drop)
        except StoreDataLostError:
            await self._recovery.rebuild()
            table = await self._store.set_limits(root, put, drop)
        self._tables.forget(root)
        return table
