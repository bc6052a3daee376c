"""The store as policies are lent it: one that has lost its data is rebuilt before it answers them, as for the enforcer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from sark_mw.errors import StoreDataLostError
from sark_mw.reservation import Reserve, ReserveReply
from sark_mw.store.base import LimitTable, ReservationStore

_T = TypeVar("_T")
Rebuild = Callable[[], Awaitable[object]]


async def once_rebuilt(rebuild: Rebuild | None, ask: Callable[[], Awaitable[_T]]) -> _T:
    """Ask the store, and once more after a rebuild where it has lost its data; raises what that raises. None: nobody can."""
    try:
        return await ask()
    except StoreDataLostError:
        if rebuild is None:
            raise
        await rebuild()
        return await ask()


class LentStore:
    """The part of a store that policies count with."""

    def __init__(self, store: ReservationStore, rebuild: Rebuild) -> None:
        self._store = store
        self._rebuild = rebuild

    async def reserve(self, request: Reserve) -> ReserveReply:
        """Count, or hold, and decide in one step; of data that were rebuilt since `stale_limits` is the answer."""
        return await once_rebuilt(self._rebuild, lambda: self._store.reserve(request))

    async def limits(self, root: str) -> LimitTable:
        """Read the version and epoch of a root's limits, which every reserve names."""
        return await once_rebuilt(self._rebuild, lambda: self._store.limits(root))

    async def give_back(self, booked: Reserve) -> bool:
        """Take back what a reserve without a lease has counted; of data that are lost nothing is there."""
        return await once_rebuilt(self._rebuild, lambda: self._store.give_back(booked))
