"""The one place where the order stands: estimate → policies → reserve → settle | release."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from sark_mw.enforcement.admission import Admission, tell_held
from sark_mw.enforcement.invocation import Idempotency, Invocation, entry_of, needs_of, under_every_name
from sark_mw.enforcement.leases import LeasePool
from sark_mw.enforcement.limit_figures import StoreLimits
from sark_mw.enforcement.members import Memberships
from sark_mw.enforcement.obligations import obey
from sark_mw.enforcement.policies import PolicyGate
from sark_mw.enforcement.refusals import RecentRefusals
from sark_mw.enforcement.refuse import IDEMPOTENT, refuse_limit, refuse_repeated
from sark_mw.enforcement.settler import Settler
from sark_mw.enforcement.tables import Layout, LimitTables, ServerClock
from sark_mw.errors import CostEstimationError, InvalidRequestError, MoneyError, StoreDataLostError, StoreUnavailableError
from sark_mw.instrumentation.base import Instrumentation, Reserved
from sark_mw.ledger.entries import CallerEntry
from sark_mw.money import MAX_HOLD
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.pricing.base import Estimate, estimate_with
from sark_mw.reservation import Need, Outcome, Reserve, ReserveReply, Resolution, Settle, new_reservation_id
from sark_mw.store.base import ReservationStore
from sark_mw.wire.base import Refusal, RefusalKind

__all__ = ["Enforcer", "EnforcerOptions", "Idempotency", "Invocation", "needs_of"]

_log = logging.getLogger(__name__)

#: Stale limits, a period that just changed, rebuilt data: each is set right and asked again, but not for ever.
_ATTEMPTS = 6
_POLL_S = 0.01
_CLOSING = "this process is shutting down"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnforcerOptions:
    """How the enforcer decides; see the settings of the same names."""

    lease_ms: int = 120_000
    policy_timeout_s: float = 5.0
    policy_chain_timeout_s: float | None = None
    on_store_failure: Literal["deny", "allow", "leased"] = "deny"
    on_unknown_model: Literal["dearest", "deny"] = "dearest"
    budget_status: int = 402
    members: Memberships = field(default_factory=lambda: Memberships({}))


class Enforcer:
    """Admit or refuse invocations; every admitted one is settled, released, or expires."""

    def __init__(
        self,
        store: ReservationStore,
        *,
        tables: LimitTables,
        clock: ServerClock,
        settler: Settler,
        policies: PolicyPluginManager,
        instrumentation: Instrumentation,
        rebuild: Callable[[], Awaitable[object]],
        leases: LeasePool,
        options: EnforcerOptions,
        refusals: RecentRefusals | None = None,
        limit_figures: StoreLimits | None = None,
    ) -> None:
        self._store = store
        self._tables = tables
        self._clock = clock
        self._settler = settler
        self._gate = PolicyGate(
            policies,
            instrumentation,
            limits=limit_figures,
            timeout_s=options.policy_timeout_s,
            chain_timeout_s=options.policy_chain_timeout_s,
        )
        self._instrumentation = instrumentation
        self._rebuild = rebuild
        self._leases = leases
        self.options = options
        self._refusals = refusals
        self.live: dict[str, Admission] = {}
        self._deciding = 0
        self._closing = self._closed = False

    async def close(self, deadline_s: float) -> None:
        """Refuse who comes from now on; those that are being decided have `deadline_s`, those admitted go on to their end."""
        self._closing = True
        ends = time.monotonic() + deadline_s
        while self._deciding and time.monotonic() < ends:  # noqa: ASYNC110  # once in a process's life
            await asyncio.sleep(_POLL_S)
        self._closed = True

    async def admit(self, invocation: Invocation) -> Admission | Refusal:
        """Estimate, ask the policies, reserve: an `Admission` to be ended once, or why not."""
        self._deciding += 1
        try:
            answer = await self._admit(invocation)
        finally:
            self._deciding -= 1
        if self._refusals is not None:
            if isinstance(answer, Refusal):
                who = invocation.request.principal_id
                self._refusals.refused(answer, root=invocation.root, principal_id=who, scopes=invocation.scopes)
            else:
                self._refusals.admitted(invocation.request_id)
        return answer

    async def _admit(self, invocation: Invocation) -> Admission | Refusal:
        if self._closing:
            return self._unavailable(invocation, _CLOSING, reason="closing")
        estimate = await self._estimate(invocation)
        if isinstance(estimate, Refusal):
            return estimate
        owed = await self._gate.ask(invocation, estimate)
        if isinstance(owed, Refusal):
            return owed
        if owed:
            obeyed = await obey(owed, invocation, estimate, self._estimate, self.options.members)
            if isinstance(obeyed, Refusal):
                return obeyed
            invocation, estimate = obeyed
        if self._closed:  # policies may have been taken out while it was decided
            return self._unavailable(invocation, _CLOSING, reason="closing")
        invocation = under_every_name(invocation, estimate)
        needs = needs_of(estimate, max(len(invocation.calls), 1), uses_tokens=invocation.uses_tokens)
        task = asyncio.ensure_future(self._reserve(invocation, estimate, needs))
        try:
            answer = await asyncio.shield(task)
        except asyncio.CancelledError:
            # The client has gone, but the reserve is under way: give back what it gets.
            task.add_done_callback(_release_unused)
            raise
        if owed and isinstance(answer, Admission):
            answer.obligations = tuple(each.obligation for each in owed)
        return answer

    async def _estimate(self, invocation: Invocation) -> Estimate | Refusal:
        started = time.perf_counter()
        outcome = "priced"
        try:
            estimate = await estimate_with(invocation.estimator, invocation.request, invocation.resource_metadata)
        except InvalidRequestError as error:
            outcome = "invalid"
            return Refusal(kind=RefusalKind.INVALID, message=str(error), param=error.param, request_id=invocation.request_id)
        except (CostEstimationError, MoneyError) as error:
            outcome = "failed"
            if isinstance(error, CostEstimationError) and error.metadata.get("failed"):
                return self._unavailable(invocation, str(error), reason="estimator")
            return Refusal(kind=RefusalKind.INVALID, message=str(error), request_id=invocation.request_id)
        finally:
            self._instrumentation.estimated(outcome, time.perf_counter() - started)
        if estimate.unknown_model:
            self._instrumentation.unknown_model(estimate.provider or "", estimate.model or "")
            if self.options.on_unknown_model == "deny":
                message = f"the price of model {estimate.model!r} is not known, and unknown models are refused here"
                return Refusal(kind=RefusalKind.INVALID, message=message, param="model", request_id=invocation.request_id)
        if estimate.ceiling_nanos > MAX_HOLD:
            message = "a single request may not cost more than $9,007,199"
            return Refusal(kind=RefusalKind.INVALID, message=message, request_id=invocation.request_id)
        return estimate

    async def _reserve(self, invocation: Invocation, estimate: Estimate, needs: tuple[Need, ...]) -> Admission | Refusal:
        entry = entry_of(invocation, estimate)
        reservation_id = new_reservation_id()
        started = time.perf_counter()
        try:
            layout, reply, entry = await self._reserve_until_answered(invocation, reservation_id, needs, entry)
        except (StoreUnavailableError, StoreDataLostError):
            self._note(invocation, estimate, "unavailable", started, reservation_id)
            # The answer may only be lost: whatever the store holds under this id is given back.
            self._give_back(invocation.root, reservation_id, entry)
            return await self._without_store(invocation, estimate, needs, entry)
        self._note(invocation, estimate, reply.outcome, started, reservation_id, needs if reply.admitted else (), reply)
        if not reply.admitted:
            if reply.outcome is Outcome.EXCEEDS_LIMIT:
                return refuse_limit(reply, needs, estimate, invocation.request_id, self.options.budget_status)
            if reply.outcome in IDEMPOTENT:
                return refuse_repeated(reply, invocation.request_id)
            return self._unavailable(invocation, f"the limits could not be decided: {reply.outcome}")
        if not invocation.extra_limits:
            self._leases.touch(invocation.root, layout.scopes)
        return self._admission(invocation, estimate, needs, entry, reservation_id, layout, reply)

    def _admission(
        self,
        invocation: Invocation,
        estimate: Estimate,
        needs: tuple[Need, ...],
        entry: CallerEntry,
        reservation_id: str,
        layout: Layout | None,
        reply: ReserveReply | None,
    ) -> Admission:
        tell_held(self._instrumentation, needs, 1)
        admission = Admission(
            reservation_id=reservation_id,
            root=invocation.root,
            lines=layout.lines if layout else (),
            needs=needs,
            # Without lines (limits never read) it is booked from the journal, by the limits in force then.
            made_ms=reply.made_ms if reply else self._clock.now_ms() if layout else 0,
            estimate=estimate,
            entry=entry,
            request_id=invocation.request_id,
            settler=self._settler,
            instrumentation=self._instrumentation,
            on_end=self._ended,
            balances=reply.balances if reply else (),
            shadowed=reply.shadowed if reply else (),
            unreserved=reply is None,
        )
        if reply is not None:
            self.live[reservation_id] = admission
        return admission

    def _ended(self, admission: Admission) -> None:
        self.live.pop(admission.reservation_id, None)

    async def _reserve_until_answered(
        self, invocation: Invocation, reservation_id: str, needs: tuple[Need, ...], entry: CallerEntry
    ) -> tuple[Layout, ReserveReply, CallerEntry]:
        same = invocation.idempotency
        for _ in range(_ATTEMPTS):
            try:
                layout = await self._tables.layout(
                    invocation.root, invocation.scopes, invocation.asserted, invocation.extra_limits
                )
                if layout.scopes != entry.scopes:
                    entry = replace(entry, scopes=layout.scopes)
                reply = await self._store.reserve(
                    Reserve(
                        reservation_id=reservation_id,
                        root=invocation.root,
                        lines=layout.lines,
                        needs=needs,
                        lease_ms=self.options.lease_ms,
                        version=layout.version,
                        epoch=layout.epoch,
                        entry=entry.to_json(),
                        key=same.key if same else "",
                        fingerprint=same.fingerprint if same else "",
                    )
                )
            except StoreDataLostError:
                self._tables.forget(invocation.root)
                await self._rebuild()
                continue
            self._clock.heard(reply.at_ms)
            if reply.outcome is Outcome.STALE_LIMITS:
                await self._tables.reload(invocation.root)
            elif reply.outcome is Outcome.WRONG_PERIOD:
                # A limit set in this very millisecond counts from the next one on.
                ahead = max((line.starts_ms for line in layout.lines), default=0) - reply.at_ms
                await asyncio.sleep(min(max(ahead, 0), 50) / 1000)
            else:
                return layout, reply, entry
        raise StoreUnavailableError("the limits kept changing while a request was decided")

    async def _without_store(
        self, invocation: Invocation, estimate: Estimate, needs: tuple[Need, ...], entry: CallerEntry
    ) -> Admission | Refusal:
        mode = self.options.on_store_failure
        if mode == "allow":
            return await self._allow(invocation, estimate, needs, entry)
        if mode == "leased" and not invocation.extra_limits:
            layout = self._tables.last_layout(invocation.root, invocation.scopes, invocation.asserted)
            entry = replace(entry, scopes=layout.scopes) if layout else entry
            leased = self._leases.take(invocation.root, entry.scopes, needs)
            if leased is not None:
                self._instrumentation.store_failure_allowed(mode)
                return self._leases.admission(leased, needs, estimate, entry, invocation.request_id)
        return self._unavailable(invocation, "spending cannot be checked at the moment")

    async def _allow(
        self, invocation: Invocation, estimate: Estimate, needs: tuple[Need, ...], entry: CallerEntry
    ) -> Admission | Refusal:
        """Let a request pass without a hold, once the journal has what to book for it should this process die."""
        layout = self._tables.last_layout(invocation.root, invocation.scopes, invocation.asserted, invocation.extra_limits)
        if layout is not None:
            entry = replace(entry, scopes=layout.scopes)
        admission = self._admission(invocation, estimate, needs, entry, new_reservation_id(), layout, None)
        try:
            await self._settler.keep(admission.in_doubt())
        except OSError as error:
            admission.release()
            _log.error("a request cannot be let pass without the store, as the journal cannot be written: %s", error)
            return self._unavailable(invocation, "spending cannot be checked at the moment")
        self._instrumentation.store_failure_allowed("allow")
        return admission

    def _unavailable(self, invocation: Invocation, message: str, reason: str = "store") -> Refusal:
        return Refusal(
            kind=RefusalKind.UNAVAILABLE, message=message, request_id=invocation.request_id, retry_after_s=1, reason=reason
        )

    def _give_back(self, root: str, reservation_id: str, entry: CallerEntry) -> None:
        # With its entry: if the hold has expired by then, what was booked is taken back from the same scopes.
        self._settler.submit(
            Settle(
                reservation_id=reservation_id,
                root=root,
                lines=(),
                amounts=(),
                kind=Resolution.RELEASE,
                entry=entry.to_json(),
            )
        )

    def _note(
        self,
        invocation: Invocation,
        estimate: Estimate,
        outcome: str,
        started: float,
        reservation_id: str,
        needs: tuple[Need, ...] = (),
        reply: ReserveReply | None = None,
    ) -> None:
        self._instrumentation.reserved(
            Reserved(
                outcome=outcome,
                seconds=time.perf_counter() - started,
                reservation_id=reservation_id,
                request_id=invocation.request_id,
                root=invocation.root,
                principal_id=invocation.request.principal_id,
                provider=estimate.provider or "",
                model=None if estimate.unknown_model else estimate.model,
                held=tuple((need.unit, need.held) for need in needs),
                shadowed=len(reply.shadowed) if reply else 0,
            )
        )


def _release_unused(task: asyncio.Task[Admission | Refusal]) -> None:
    if not task.cancelled() and task.exception() is None:
        answer = task.result()
        if isinstance(answer, Admission):
            answer.release()
