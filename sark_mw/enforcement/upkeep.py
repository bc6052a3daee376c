"""The tasks beside the requests: leases renewed, holds swept, the ledger flushed, journal booked, drift measured."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from sark_mw.enforcement.admission import Admission
from sark_mw.enforcement.drift import Drift
from sark_mw.enforcement.ending import end_tasks
from sark_mw.enforcement.grants import Grants
from sark_mw.enforcement.journal import Journal
from sark_mw.enforcement.leases import LeasePool
from sark_mw.enforcement.recovery import Recovery
from sark_mw.enforcement.refusals import RecentRefusals
from sark_mw.enforcement.rehold import Rehold
from sark_mw.enforcement.shared_policies import SharedPolicies
from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.enforcement.webhooks import Webhooks
from sark_mw.errors import SarkError
from sark_mw.instrumentation.base import Instrumentation, Settled
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.entries import parse_entry
from sark_mw.reservation import ExtendReply, Outcome, Resolution, Settle, SettleReply
from sark_mw.store.base import ReservationStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpkeepOptions:
    """How often each thing is done, in seconds; `lease_ms` is the lease of a reservation."""

    lease_ms: int = 120_000
    sweep_s: float = 1.0
    journal_s: float = 5.0
    drift_s: float = 60.0
    watch_s: float = 5.0
    grants_s: float = 10.0
    webhooks_s: float = 1.0
    refusals_s: float = 1.0
    policies_s: float = 1.0


class Upkeep:
    """Run the periodic tasks of one process; a fault of one round is logged, the next round comes."""

    def __init__(
        self,
        store: ReservationStore,
        *,
        live: Mapping[str, Admission],
        clock: ServerClock,
        tables: LimitTables,
        journal: Journal,
        leases: LeasePool,
        ledger: Ledger,
        drift: Drift,
        recovery: Recovery,
        rehold: Rehold,
        grants: Grants,
        webhooks: Webhooks | None = None,
        refusals: RecentRefusals | None = None,
        shared_policies: SharedPolicies | None = None,
        instrumentation: Instrumentation,
        options: UpkeepOptions,
    ) -> None:
        self._store = store
        self._live = live
        self._clock = clock
        self._tables = tables
        self._journal = journal
        self._leases = leases
        self._ledger = ledger
        self._drift = drift
        self._recovery = recovery
        self._rehold = rehold
        self._grants = grants
        self._webhooks = webhooks
        self._refusals = refusals
        self._shared_policies = shared_policies
        self._instrumentation = instrumentation
        self._options = options
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; call from the event loop that serves requests."""
        lease_s = self._options.lease_ms / 1000
        rounds: tuple[tuple[Callable[[], Awaitable[object]], float], ...] = (
            (self._renew, lease_s / 3),
            (self._leases.renew, lease_s / 4),
            (self._sweep, self._options.sweep_s),
            (self.book_journal, self._options.journal_s),
            (self._drift.measure, self._options.drift_s),
            (self._recovery.watch, self._options.watch_s),
            (self._grants.send_again, self._options.grants_s),
        )
        if self._webhooks is not None:
            rounds = (*rounds, (self._webhooks.round, self._options.webhooks_s))
        if self._refusals is not None:
            rounds = (*rounds, (self._refusals.write, self._options.refusals_s))
        if self._shared_policies is not None:
            rounds = (*rounds, (self._shared_policies.refresh, self._options.policies_s))
        self._tasks = [asyncio.ensure_future(self._repeat(one, every)) for one, every in rounds]

    async def aclose(self) -> None:
        """Stop all of it."""
        await end_tasks(self._tasks)
        self._tasks = []

    async def _repeat(self, one: Callable[[], Awaitable[object]], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await one()
            except (SarkError, OSError) as error:
                _log.warning("upkeep: %s failed: %s", getattr(one, "__name__", one), error)
            except Exception:  # noqa: BLE001  a fault of ours in one round must not end all the rounds to come
                _log.exception("upkeep: %s failed", getattr(one, "__name__", one))

    async def _renew(self) -> None:
        """Book the progress of long streams and renew the leases of all that is in flight."""
        live = [admission for admission in self._live.values() if not admission.unreserved]
        for admission in live:
            admission.book_progress()
        replies = await asyncio.gather(
            *(self._store.extend(a.root, a.reservation_id, self._options.lease_ms) for a in live), return_exceptions=True
        )
        # A store that was rebuilt does not hold them, or only knows of parts of them.
        gone = (Outcome.FORGOTTEN, Outcome.HELD)
        await self._rehold.present(
            a for a, reply in zip(live, replies, strict=True) if isinstance(reply, ExtendReply) and reply.outcome in gone
        )

    async def _sweep(self) -> None:
        swept = await self._store.sweep()
        if swept:
            self._instrumentation.holds_expired(swept)

    async def book_journal(self) -> None:
        """Try to book what is in the journal."""
        await self._journal.take_over()
        for settle in self._journal.entries():
            started = time.perf_counter()
            reply = await self._store.settle(settle)
            self._clock.heard(reply.at_ms)
            if reply.outcome is Outcome.FORGOTTEN:
                # Older than the store remembers resolutions, so the ledger is asked; what it does not have is booked as made now.
                if settle.part > 1 or settle.kind is Resolution.PARTIAL:
                    continue  # which parts the ledger has is not for this code to guess: it stays, counted, for a person
                if await self._ledger.has(settle.reservation_id):
                    await self._journal.remove(settle)
                    continue
                layout = await self._tables.layout(settle.root, parse_entry(settle.entry)[0].scopes)
                reply = await self._store.settle(replace(settle, made_ms=reply.at_ms, lines=layout.lines))
            if reply.outcome not in (Outcome.FORGOTTEN, Outcome.OUT_OF_RANGE):
                await self._journal.remove(settle)
                self._tell(settle, reply, time.perf_counter() - started)
        self._instrumentation.journal_measured(len(self._journal))

    def _tell(self, settle: Settle, reply: SettleReply, seconds: float) -> None:
        """Tell of a settle that its request could not tell of: what is booked is counted, whenever it is."""
        entry, _ = parse_entry(settle.entry)
        self._instrumentation.settled(
            Settled(
                outcome=reply.outcome,
                kind=settle.kind,
                seconds=seconds,
                reservation_id=settle.reservation_id,
                request_id=entry.request_id,
                root=settle.root,
                principal_id=entry.principal_id,
                provider=entry.provider or "",
                booked=() if settle.kind is Resolution.PARTIAL else settle.amounts,
                overrun=reply.overrun,
                estimated_nanos=entry.expected_nanos,
                actual_nanos=entry.actual_nanos,
                repeated=reply.repeated,
                late=reply.late,
            )
        )
