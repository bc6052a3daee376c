"""The whole system: opened from settings, started once, drained at the end. `SarkMiddleware` is this with HTTP around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from decimal import Decimal

from sark_mw.assembly import (
    check_ledger_lasts,
    lease_options,
    make_estimators,
    make_instrumentation,
    make_ledger,
    make_prometheus,
    make_store,
)
from sark_mw.direct import DirectReservation, GivenEstimate, Money, ended, limit_of_run, same_request, scope_of_run
from sark_mw.enforcement.admission import Admission
from sark_mw.enforcement.approvals import StoreApprovals
from sark_mw.enforcement.budgets import StoreBudgets
from sark_mw.enforcement.drift import Drift
from sark_mw.enforcement.ending import end_tasks
from sark_mw.enforcement.journal import Journal
from sark_mw.enforcement.leases import LeasePool
from sark_mw.enforcement.lent import LentStore
from sark_mw.enforcement.limit_figures import StoreLimits
from sark_mw.enforcement.limits import LimitRegistry, detail_of
from sark_mw.enforcement.members import Memberships
from sark_mw.enforcement.outcomes import OutcomesInstrumentation
from sark_mw.enforcement.rebook import Rebooker
from sark_mw.enforcement.recovery import Recovery
from sark_mw.enforcement.refusals import RecentRefusals
from sark_mw.enforcement.rehold import Rehold
from sark_mw.enforcement.settler import Settler
from sark_mw.enforcement.shared_policies import SharedPolicies
from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.enforcement.upkeep import Upkeep, UpkeepOptions
from sark_mw.enforcement.webhooks import Webhooks
from sark_mw.enforcer import Enforcer, EnforcerOptions, Invocation
from sark_mw.errors import ConfigurationError, RefusedError, StoreError
from sark_mw.instrumentation.base import Instrumentation
from sark_mw.ledger import Flusher
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import LimitEvent
from sark_mw.plugin_loading import PluginUpkeep, missing_layers, policies_for, tell_isolation
from sark_mw.policy.base import PolicyServices
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.pricing.base import CostEstimator, InvocationRequest
from sark_mw.reservation import new_reservation_id
from sark_mw.settings import AnySettings, as_settings
from sark_mw.store.base import OutboxEntry
from sark_mw.store.redis_store import RedisStore
from sark_mw.wire.base import Refusal


class Sark:
    """Budget enforcement for one process. Use `Sark.open`, or `start` and `aclose`; raises `ConfigurationError` when made.

    `limits` sets and lists limits, `enforcer` admits and settles. `store` and `ledger` may be given (a test's own) and are closed
    with it. A manager of `policies` heeds what the settings say of policies; one that says otherwise is refused.
    """

    def __init__(
        self,
        settings: AnySettings = None,
        *,
        store: RedisStore | None = None,
        ledger: Ledger | None = None,
        policies: PolicyPluginManager | None = None,
        estimators: Mapping[str, CostEstimator] | None = None,
        instrumentation: Instrumentation | None = None,
    ) -> None:
        self.settings = as_settings(settings)
        if store is None and ledger is None:
            check_ledger_lasts(self.settings)
        self.estimators = make_estimators(self.settings.pricing, estimators)
        self.prometheus = make_prometheus(self.settings.observe)
        hears = OutcomesInstrumentation()
        self.outcomes = hears.outcomes
        self.instrumentation = make_instrumentation(self.settings.observe, self.prometheus, instrumentation, hears)
        self.policies = policies_for(policies, self.settings.policy)
        self.ledger = ledger or make_ledger(self.settings.ledger)
        self._members = Memberships(self.settings.principal.members)
        self._given_store = store
        self._starting: asyncio.Task[None] | None = None
        self._flushing: asyncio.Task[None] | None = None
        self.started = False

    @property
    def missing_layers(self) -> tuple[str, ...]:
        """Name the layers of isolation that policy plugins run without; none is the good answer."""
        return missing_layers(self.policies)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: AnySettings = None, **parts: object) -> AsyncIterator[Sark]:
        """Start, and drain at the end. `parts` are those of the constructor."""
        sark = cls(settings, **parts)  # type: ignore[arg-type]  # checked by the constructor's own signature
        await sark.start()
        try:
            yield sark
        finally:
            await sark.aclose()

    async def start(self) -> None:
        """Connect, migrate, begin or rebuild the store, set the settings' limits, start the tasks; once for all who call.

        Raises `ConfigurationError`, `StoreUnavailableError` or `LedgerUnavailableError`: a gateway that cannot decide does
        not start.
        """
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        starting = self._starting
        try:
            await asyncio.shield(starting)
        except Exception:
            if self._starting is starting:
                self._starting = None  # the next call tries again
            raise

    async def _start(self) -> None:
        settings = self.settings
        async with AsyncExitStack() as undo:  # nothing stays of a start that fails: the next one finds things as this one did
            self.store = self._given_store or await make_store(settings.store, self.instrumentation)
            if self._given_store is None:
                undo.push_async_callback(self.store.aclose)
            if settings.ledger.migrate:
                await self.ledger.migrate()
            self.plugins = PluginUpkeep(self.policies, settings.policy)
            undo.push_async_callback(self.plugins.aclose)
            self._compose()
            undo.push_async_callback(self.shared_policies.aclose)
            await self.recovery.rebuild()
            await self.limits.seed([limit.to_limit() for limit in settings.limits])
            await self.plugins.load()
            await self.shared_policies.refresh()
            tell_isolation(self.policies, self.instrumentation)
            self.plugins.start()
            undo.pop_all()
        if settings.ledger.flush:
            self._flushing = asyncio.ensure_future(self.flusher.run())
        self.upkeep.start()
        self.started = True

    @asynccontextmanager
    async def reserve(
        self,
        *,
        principal: str,
        scopes: Sequence[str] = (),
        estimate: Money | None = None,
        provider: str | None = None,
        request: Mapping[str, object] | None = None,
        root: str | None = None,
        capability: str = "direct",
        resource: str | None = None,
        metadata: Mapping[str, object] | None = None,
        asserted: Sequence[str] = (),
        run: str | None = None,
        run_budget: Decimal | int | str | None = None,
        idempotency_key: str | None = None,
        obeys: Sequence[str] = (),
        approval: str | None = None,
    ) -> AsyncIterator[DirectReservation]:
        """Hold what a call may cost; leaving the block without a settle releases it, a crash lets it expire.

        The cost is either `estimate` (a ceiling in dollars, or a `CostEstimate`) or that of `request`, the body that goes to
        `provider` ("openai", "anthropic", or an estimator of your own). `asserted` scopes (`end_user:…`, `tag:…`) are touched
        where a limit is about them. All calls of a `run` of this principal share its `run_budget`, in dollars. A call with the
        `idempotency_key` of one that is in flight or done is refused. `obeys` names the kinds of obligations (`use_model`,
        `cap_output_tokens`) that the caller sees to itself, by `reservation.obligations`; otherwise these deny. `approval` is an
        administrator's token, as `x-sark-approval` carries it. Raises `RefusedError`; `ConfigurationError` for neither.
        """
        estimator = self._estimator(estimate, provider)
        settings = self.settings.principal
        run_scope = scope_of_run(principal, run) if run is not None else None
        invocation = Invocation(
            request=InvocationRequest(capability, principal, dict(request or {}), resource_id=resource),
            estimator=estimator,
            root=root or settings.root,
            scopes=self._members.of((principal, *scopes, *settings.default_scopes, *([run_scope] if run_scope else []))),
            request_id=new_reservation_id(),
            metadata=metadata,
            environment={"approval": approval} if approval else {},
            asserted=tuple(asserted),
            extra_limits=(limit_of_run(root or settings.root, run_scope, run_budget),) if run_scope else (),
            obeys=frozenset(obeys),
            idempotency=same_request(root or settings.root, principal, idempotency_key, request) if idempotency_key else None,
        )
        admission: Admission | Refusal | None = None
        try:
            admission = await self.enforcer.admit(invocation)
        finally:
            self.instrumentation.request_finished(ended(invocation, admission))
        if isinstance(admission, Refusal):
            raise RefusedError(admission.message, admission.kind, admission)
        reservation = DirectReservation(admission, estimator)
        try:
            yield reservation
        finally:
            if not reservation.resolved:
                reservation.release()

    def _estimator(self, estimate: Money | None, provider: str | None) -> CostEstimator:
        if estimate is not None:
            return GivenEstimate(estimate)
        if provider not in self.estimators:
            raise ConfigurationError(f"reserve needs an estimate, or a provider of {', '.join(self.estimators)} and its request")
        return self.estimators[provider]

    def _compose(self) -> None:
        self._lease_ms = round(self.settings.reservation.lease_s * 1000)
        self._compose_books()
        self._compose_policies()
        self._compose_enforcer()
        self._compose_upkeep()

    def _compose_books(self) -> None:
        """Make what reads and writes limits, holds and the ledger."""
        settings, store = self.settings, self.store
        self.clock = ServerClock()
        self.tables = LimitTables(store, self.clock)
        self.recovery = Recovery(store, self.ledger, drain=lambda: self.flusher.flush_once())  # noqa: PLW0108  # made below
        self.limits = LimitRegistry(store, self.ledger, tables=self.tables, recovery=self.recovery, on_event=self._tell_of_limit)
        self.journal = Journal(settings.store.journal)
        self.settler = Settler(
            store, clock=self.clock, journal=self.journal, instrumentation=self.instrumentation, rebuild=self.recovery.ensure
        )
        self.leases = LeasePool(
            store,
            tables=self.tables,
            clock=self.clock,
            settler=self.settler,
            instrumentation=self.instrumentation,
            lease_ms=self._lease_ms,
            options=lease_options(settings.store),
        )
        self.drift = Drift(store, self.ledger, tables=self.tables, clock=self.clock, instrumentation=self.instrumentation)
        self.flusher: Flusher[OutboxEntry] = Flusher(
            store,
            self.ledger,
            batch=settings.ledger.batch,
            interval_s=settings.ledger.flush_interval_ms / 1000,
            events=self.instrumentation,
            keeper=Rebooker(store, self.ledger, self.recovery),
        )

    def _compose_policies(self) -> None:
        """Make what policies are lent, and lend it."""
        settings, store, rebuild = self.settings, self.store, self.recovery.ensure
        self.shared_policies = SharedPolicies(self.ledger, self.policies, clock=self.clock, record=self.limits.record)
        self.refusals = RecentRefusals(store, self.clock)
        self.limit_figures = StoreLimits(store, self.tables, self.clock, rebuild)
        self.lent_store = LentStore(store, rebuild)
        self.approvals = StoreApprovals(store, self.clock, settings.admin.token.get_secret_value())
        self.services = PolicyServices(
            store=self.lent_store,
            budgets=StoreBudgets(store, self.tables, rebuild, settings.principal.root),
            outcomes=self.outcomes,
            approvals=self.approvals if self.approvals.usable else None,
            limits=self.limit_figures,
        )
        self.policies.bind(self.services)
        self.policies.observe(self.instrumentation)

    def _compose_enforcer(self) -> None:
        settings = self.settings
        self.enforcer = Enforcer(
            self.store,
            tables=self.tables,
            clock=self.clock,
            settler=self.settler,
            policies=self.policies,
            instrumentation=self.instrumentation,
            rebuild=self.recovery.ensure,
            leases=self.leases,
            options=EnforcerOptions(
                members=self._members,
                lease_ms=self._lease_ms,
                policy_timeout_s=settings.policy.timeout_s,
                policy_chain_timeout_s=settings.policy.chain_timeout_s or None,
                on_store_failure=settings.store.on_store_failure,
                on_unknown_model=settings.pricing.on_unknown_model,
                budget_status=settings.http.budget_status,
            ),
            refusals=self.refusals,
            limit_figures=self.limit_figures,
        )

    def _compose_upkeep(self) -> None:
        """Make what goes on in the background."""
        settings, store = self.settings, self.store
        self.rehold = Rehold(store, tables=self.tables, live=self.enforcer.live, lease_ms=self._lease_ms)
        self.tables.on_read = self.rehold.heard
        self._webhooks = Webhooks(self.ledger, settings.webhooks, self.instrumentation) if settings.webhooks else None
        self.upkeep = Upkeep(
            store,
            live=self.enforcer.live,
            clock=self.clock,
            tables=self.tables,
            journal=self.journal,
            leases=self.leases,
            ledger=self.ledger,
            drift=self.drift,
            recovery=self.recovery,
            rehold=self.rehold,
            grants=self.limits.grants,
            webhooks=self._webhooks,
            refusals=self.refusals,
            shared_policies=self.shared_policies,
            instrumentation=self.instrumentation,
            options=UpkeepOptions(
                lease_ms=self._lease_ms,
                sweep_s=settings.reservation.sweep_interval_ms / 1000,
                drift_s=settings.observe.drift_interval_s,
            ),
        )

    def _tell_of_limit(self, event: LimitEvent) -> None:
        self.instrumentation.limit_event(event.kind, event.unit, event.scope, event.limit_id, event.root, detail_of(event))

    async def aclose(self, deadline_s: float = 10.0) -> None:
        """Refuse what comes, settle what is in flight, flush what is in the outbox, close; each at most about `deadline_s`."""
        if not self.started:
            if self._starting is not None:
                await end_tasks([self._starting])
            await self.ledger.aclose()
            return
        self.started = False
        ends = asyncio.get_running_loop().time() + deadline_s
        await self.enforcer.close(deadline_s)
        await self.leases.aclose()
        await self.settler.drain(deadline_s)
        await self.upkeep.aclose()
        if self._webhooks is not None:
            await self._webhooks.aclose()
        await self.rehold.aclose()
        with suppress(StoreError):
            await self.refusals.write()
        if self._flushing is not None:
            await self.flusher.drain(deadline_s)
            await self._flushing
        await self.plugins.aclose(max(ends - asyncio.get_running_loop().time(), 1.0))
        await self.shared_policies.aclose()
        await self.store.aclose()
        await self.ledger.aclose()
