"""The limits of each root as this process knows them, and the lines that a request touches, by the server's clock."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sark_mw.limit import Limit
from sark_mw.limit_index import LimitIndex
from sark_mw.reservation import Line
from sark_mw.store.base import LimitTable, ReservationStore

_MAX_CACHED = 10_000
_MAX_ROOTS = 10_000


class ServerClock:
    """Tell the store's time between its answers; before the first one, this machine's."""

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000

    def now_ms(self) -> int:
        """Estimate the server's Unix time in milliseconds."""
        return int(time.monotonic() * 1000 + self._offset_ms)

    def heard(self, at_ms: int) -> None:
        """Take over the server's time from an answer that has just come."""
        if at_ms > 0:
            self._offset_ms = at_ms - time.monotonic() * 1000


@dataclass(frozen=True, slots=True)
class Layout:
    """The lines of one request, and the table that they were made from."""

    lines: tuple[Line, ...]
    version: int
    epoch: str
    #: All scopes that it touches: its own, the parents of limits, asserted ones that a limit is about.
    scopes: tuple[str, ...] = ()


#: Root, scopes, those asserted scopes that a limit is about, limits of the request's own: see `sark_mw.enforcer.Invocation`.
_Request = tuple[str, tuple[str, ...], tuple[str, ...], tuple[Limit, ...]]


@dataclass(frozen=True, slots=True)
class _Laid:
    """Lines that stand as long as their table is in force and the server's time lies between these."""

    table: LimitTable
    layout: Layout
    from_ms: int
    until_ms: int


class LimitTables:
    """Read each root's limits once; the store says (`stale_limits`) when they have changed."""

    def __init__(self, store: ReservationStore, clock: ServerClock) -> None:
        self._store = store
        self.clock = clock
        self._tables: OrderedDict[str, LimitTable] = OrderedDict()
        self._read_at: dict[str, float] = {}
        self._indices: dict[str, tuple[LimitTable, LimitIndex]] = {}
        self._laid: OrderedDict[_Request, _Laid] = OrderedDict()
        #: Whether a limit is about an asserted scope. Emptied when it is full: callers may assert what they like.
        self._limited: dict[tuple[str, str], tuple[LimitTable, bool]] = {}
        self._reading: dict[str, asyncio.Task[LimitTable]] = {}
        #: Hears of every table that was read; must not raise or block.
        self.on_read: Callable[[LimitTable], None] | None = None

    async def layout(
        self, root: str, scopes: tuple[str, ...], asserted: tuple[str, ...] = (), extra_limits: tuple[Limit, ...] = ()
    ) -> Layout:
        """Lay out the limits that a request touches now."""
        table = self._tables.get(root) or await self.reload(root)
        return self._lay_out(table, scopes, asserted, extra_limits)

    def last_layout(
        self, root: str, scopes: tuple[str, ...], asserted: tuple[str, ...] = (), extra_limits: tuple[Limit, ...] = ()
    ) -> Layout | None:
        """Lay out by the limits that were read last, without asking the store; None if none ever were."""
        table = self._tables.get(root)
        return None if table is None else self._lay_out(table, scopes, asserted, extra_limits)

    async def reload(self, root: str) -> LimitTable:
        """Read a root's limits from the store, once for all who ask at the same time."""
        task = self._reading.get(root)
        if task is None:
            task = asyncio.ensure_future(self._read(root))
            self._reading[root] = task
            task.add_done_callback(lambda _: self._reading.pop(root, None))
        return await asyncio.shield(task)

    def was_read(self, root: str, within_s: float) -> bool:
        """Tell whether a root's limits were read from the store so shortly ago."""
        return root in self._tables and time.monotonic() - self._read_at.get(root, float("-inf")) <= within_s

    async def _read(self, root: str) -> LimitTable:
        table = await self._store.limits(root)
        self.clock.heard(table.at_ms)
        known = self._tables.get(root)
        if known is None or (known.epoch, known.version) != (table.epoch, table.version):
            # The same limits, read again, stay what lines and indices were made of.
            self._tables[root] = table
        self._tables.move_to_end(root)
        self._read_at[root] = time.monotonic()
        if len(self._tables) > _MAX_ROOTS:
            self._drop(next(iter(self._tables)))
        if self.on_read is not None:
            self.on_read(table)
        return table

    def forget(self, root: str) -> None:
        """Read a root's limits anew at the next request."""
        self._tables.pop(root, None)

    def _drop(self, root: str) -> None:
        del self._tables[root]
        self._indices.pop(root, None)
        self._read_at.pop(root, None)

    def known(self) -> list[LimitTable]:
        """List the tables that this process has read."""
        return list(self._tables.values())

    def _lay_out(
        self, table: LimitTable, scopes: tuple[str, ...], asserted: tuple[str, ...], extra_limits: tuple[Limit, ...]
    ) -> Layout:
        now = self.clock.now_ms()
        # What no limit is about changes no line: with it, each request of a caller that makes names up would be kept.
        about = tuple([scope for scope in asserted if self._is_limited(table, scope)])
        key = (table.root, scopes, about, extra_limits)
        laid = self._laid.get(key)
        if laid is not None and laid.table is table and laid.from_ms <= now < laid.until_ms:
            self._laid.move_to_end(key)
            return laid.layout
        touched = self._index(table).touch(scopes, about, extra_limits)
        lines = touched.lines(now)
        layout = Layout(lines, table.version, table.epoch, touched.scopes)
        starts = max((line.starts_ms for line in lines), default=0)
        ends = min((line.ends_ms for line in lines if line.ends_ms), default=2**62)
        self._laid[key] = _Laid(table, layout, min(starts, now), ends)
        if len(self._laid) > _MAX_CACHED:
            self._laid.popitem(last=False)
        return layout

    def _is_limited(self, table: LimitTable, scope: str) -> bool:
        known = self._limited.get((table.root, scope))
        if known is not None and known[0] is table:
            return known[1]
        if len(self._limited) >= _MAX_CACHED:
            self._limited.clear()
        found = bool(self._index(table).on(scope))
        self._limited[table.root, scope] = (table, found)
        return found

    def _index(self, table: LimitTable) -> LimitIndex:
        known = self._indices.get(table.root)
        if known is None or known[0] is not table:
            known = self._indices[table.root] = (table, LimitIndex(table.limits))
        return known[1]
