"""What is in flight, held again after the store has lost it: a process knows its own requests best."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from sark_mw.enforcement.admission import Admission
from sark_mw.enforcement.tables import LimitTables
from sark_mw.errors import SarkError
from sark_mw.reservation import Outcome, Reserve
from sark_mw.store.base import LimitTable, ReservationStore

_log = logging.getLogger(__name__)

_ATTEMPTS = 4


class Rehold:
    """Present the live admissions of this process to a store that was rebuilt; never refused, and held once however often."""

    def __init__(self, store: ReservationStore, *, tables: LimitTables, live: Mapping[str, Admission], lease_ms: int) -> None:
        self._store = store
        self._tables = tables
        self._live = live
        self._lease_ms = lease_ms
        self._epochs: dict[str, str] = {}
        self._tasks: set[asyncio.Task[int]] = set()

    def heard(self, table: LimitTable) -> None:
        """Hear of a root's limits as they were just read: in another epoch its holds are gone."""
        if self._epochs.get(table.root) == table.epoch:
            return
        self._epochs[table.root] = table.epoch
        ours = [admission for admission in self._live.values() if admission.root == table.root]
        if ours:
            task = asyncio.ensure_future(self.present(ours))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def present(self, admissions: Iterable[Admission]) -> int:
        """Hold again what is still in flight of these; return how many were. What fails comes again with the next renewal."""
        waiting = [a for a in admissions if a.ended is None and not a.unreserved]
        answers = await asyncio.gather(*(self._present(admission) for admission in waiting))
        return sum(answers)

    async def _present(self, admission: Admission) -> bool:
        try:
            for _ in range(_ATTEMPTS):
                layout = await self._tables.layout(admission.root, ())
                reply = await self._store.reserve(
                    Reserve(
                        reservation_id=admission.reservation_id,
                        root=admission.root,
                        lines=admission.lines,
                        needs=admission.needs,
                        lease_ms=self._lease_ms,
                        version=layout.version,
                        epoch=layout.epoch,
                        entry=admission.entry.to_json(),
                        made_ms=admission.made_ms,
                    )
                )
                if reply.outcome is not Outcome.STALE_LIMITS:
                    return reply.outcome is Outcome.HELD and not reply.repeated
                await self._tables.reload(admission.root)
        except SarkError as error:
            _log.warning("store: reservation %s could not be held again yet: %s", admission.reservation_id, error)
        return False

    async def aclose(self) -> None:
        """Wait for what is under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)
