"""The gateway without HTTP: adapters through which resources are reached, metered by the same code as the middleware."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import TracebackType
from typing import Self

from sark_mw.attribution import CostAttributionService
from sark_mw.cost_records import scope_of, token_counts, touched_scopes
from sark_mw.direct import ended
from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.enforcer import Invocation
from sark_mw.errors import ConfigurationError, InvalidRequestError, LedgerError, StoreError
from sark_mw.money import from_nanos
from sark_mw.policy.base import PolicyServices
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.pricing.base import CostEstimator, InvocationRequest, InvocationResult, Json, Meter, in_nanos
from sark_mw.pricing.fixed import FixedCostEstimator
from sark_mw.reservation import new_reservation_id
from sark_mw.sark import Sark
from sark_mw.settings import AnySettings
from sark_mw.tracker import CostTracker, provider_of, told_cost
from sark_mw.usage import Usage
from sark_mw.wire.base import Refusal

_log = logging.getLogger(__name__)

#: How long an answer waits for its settle, so that a report made right after it has it; the settle goes on by itself.
_SETTLE_S = 1.0
#: What a relay over HTTP answers when nothing came back, as plugins know it.
_NO_ANSWER = 502


class ProtocolAdapter(ABC):
    """What a resource is reached through."""

    @abstractmethod
    async def invoke(self, request: InvocationRequest) -> InvocationResult:
        """Make the call; an exception means that nothing was charged."""


class SARKGateway:
    """Invoke resources within budget: estimate, policies, reserve, the resource's adapter, settle.

    `policy_manager` and `cost_tracker` may be given, or assigned later; by default the first is that of the `Sark` (which is
    asked in any case, and first) and the second one of its own. The `Sark` is given, or the cost tracker's, or opened from
    `settings` at the first use. Close it, or use it as an asynchronous context manager.
    """

    def __init__(
        self,
        policy_manager: PolicyPluginManager | None = None,
        cost_tracker: CostTracker | None = None,
        *,
        sark: Sark | None = None,
        settings: AnySettings = None,
    ) -> None:
        if cost_tracker is not None and (sark is not None or settings is not None):
            raise ConfigurationError("a cost tracker that is given brings its own Sark: give it to the tracker's service")
        self._policies = policy_manager
        self._service = CostAttributionService(sark, settings=settings) if cost_tracker is None else cost_tracker.service
        self._own = cost_tracker is None
        self._tracker = cost_tracker
        self._adapters: dict[str, tuple[ProtocolAdapter, Json]] = {}
        self._lent: tuple[PolicyServices, PolicyPluginManager] | None = None

    @property
    def cost_tracker(self) -> CostTracker:
        """Whose estimators price the invocations, and whose service has the budgets."""
        if self._tracker is None:
            self._tracker = CostTracker(self._service)
        return self._tracker

    @cost_tracker.setter
    def cost_tracker(self, tracker: CostTracker) -> None:
        self._tracker = tracker

    @property
    def policy_manager(self) -> PolicyPluginManager:
        """Who is asked before anything is reserved, after the policies of the `Sark`."""
        return self._policies if self._policies is not None else self.sark.policies

    @policy_manager.setter
    def policy_manager(self, manager: PolicyPluginManager) -> None:
        self._policies = manager

    @property
    def sark(self) -> Sark:
        """The system behind it, perhaps not started yet."""
        return (self._service if self._tracker is None else self._tracker.service).sark

    @property
    def db(self) -> Sark:
        """What SARK's guides hand to `CostAttributionService`."""
        return self.sark

    async def aclose(self) -> None:
        """Settle, flush and close what it opened itself."""
        if self._own:
            await self._service.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def register_adapter(self, name: str, adapter: ProtocolAdapter, resource_metadata: Json | None = None) -> None:
        """Reach a resource, or every resource `name:…` of a protocol, through `adapter`; replaces another of that name.

        `resource_metadata` says `provider` or `cost_provider` and `model`; without a provider its invocations are free.
        """
        self._adapters[name] = (adapter, resource_metadata or {})

    async def invoke(
        self,
        *,
        principal_id: str,
        resource_id: str,
        capability_id: str,
        arguments: Json | None = None,
        context: Json | None = None,
    ) -> InvocationResult:
        """Invoke a capability of a resource; what is refused or fails is a result without `success`, never an exception.

        Of a refusal `error` says why, `metadata["reason"]` its kind (`budget`, `rate_limit`, `policy` …) and
        `metadata["refusal"]` its details; a call that was made has `cost` (dollars) and `cost_estimated` in its metadata.
        """
        request = InvocationRequest(capability_id, principal_id, arguments or {}, context, resource_id)
        found = self._adapters.get(resource_id) or self._adapters.get(resource_id.partition(":")[0])
        if found is None:
            known = ", ".join(sorted(self._adapters)) or "none"
            return _failed(f"no adapter is registered for the resource {resource_id!r}; there are: {known}", "unknown_resource")
        adapter, metadata = found
        if isinstance(adapter, CostAwareAdapter):
            return await adapter.invoke(request)  # it meters by itself
        return await self.invoke_through(adapter, request, metadata)

    async def invoke_through(
        self,
        adapter: ProtocolAdapter,
        request: InvocationRequest,
        resource_metadata: Json,
        estimator: CostEstimator | None = None,
    ) -> InvocationResult:
        """Do for one call of an adapter what `invoke` does; `estimator` in place of the cost tracker's."""
        started = time.perf_counter()
        try:
            estimator = estimator or self.cost_tracker.get_estimator(provider_of(resource_metadata))
            if estimator is None:
                return _failed(f"no estimator is registered for the provider {provider_of(resource_metadata)!r}", "estimator")
            invocation = self._invocation(request, resource_metadata, estimator)
            sark = await self._opened()
        except InvalidRequestError as error:
            return _failed(str(error), "invalid")
        except ConfigurationError as error:
            _log.error("the gateway cannot be opened: %s", error)
            return _failed(str(error), "configuration")
        except (StoreError, LedgerError) as error:
            _log.error("the gateway cannot be opened: %s", error)
            return _failed("spending cannot be checked at the moment", "unavailable")
        answer: Admission | Refusal | None = None
        try:
            answer = await sark.enforcer.admit(invocation)
        finally:
            if not isinstance(answer, Admission):
                sark.instrumentation.request_finished(ended(invocation, answer))
        if isinstance(answer, Refusal):
            details = {name: value for name, value in asdict(answer).items() if value not in (None, "")}
            return _failed(answer.message, answer.kind.value, request_id=answer.request_id, refusal=details)
        try:
            result = await self._call(adapter, request, invocation, answer)
        finally:
            if answer.ended is None:  # cancelled: it may have reached the provider
                answer.settle(answer.expected())
        return result if result.duration_ms else replace(result, duration_ms=(time.perf_counter() - started) * 1000)

    async def _call(
        self,
        adapter: ProtocolAdapter,
        request: InvocationRequest,
        invocation: Invocation,
        admission: Admission,
    ) -> InvocationResult:
        result = await self._reach(adapter, request, invocation, admission)
        if isinstance(result, Exception):
            # Its text may hold what was asked, which never reaches a log.
            _log.warning("the adapter of %s failed: %s", request.resource_id, type(result).__name__)
            await _answered(admission.release())
            return _failed(f"{type(result).__name__}: {result}", "adapter", request_id=admission.request_id)
        if not _is_result(result):
            # The call was made all the same: what it was expected to cost is booked.
            await _answered(admission.settle(admission.expected()))
            said = f"the adapter returned {type(result).__name__}, which is no InvocationResult with metadata"
            return _failed(said, "adapter", request_id=admission.request_id)
        spent = await _spent(admission, invocation.estimator, request, result, invocation.resource_metadata)
        await _answered(admission.release() if spent is None else admission.settle(spent))
        told: dict[str, object] = {
            "request_id": admission.request_id,
            "cost": from_nanos(spent.cost_nanos if spent else 0),
            "cost_estimated": spent is not None and spent.estimated,
        }
        return replace(result, metadata={**told, **result.metadata})

    async def _reach(
        self, adapter: ProtocolAdapter, request: InvocationRequest, invocation: Invocation, admission: Admission
    ) -> InvocationResult | Exception:
        """Call the adapter, and tell how that ended: policies count what is under way, and judge how it is borne."""
        began, status = time.perf_counter(), None
        try:
            result = await adapter.invoke(request)
            status = _status(result)
            return result
        except Exception as error:  # noqa: BLE001  # the hook boundary: an adapter's fault is a result
            status = _NO_ANSWER
            return error
        finally:
            told = ended(invocation, admission, status=status, upstream_seconds=time.perf_counter() - began)
            self.sark.instrumentation.request_finished(told)

    def _invocation(self, request: InvocationRequest, resource_metadata: Json, estimator: CostEstimator) -> Invocation:
        scope = scope_of(request.principal_id)
        settings = self.sark.settings.principal
        named = resource_metadata.get("model") or request.arguments.get("model")
        model = named if isinstance(named, str) else None
        return Invocation(
            request=InvocationRequest(request.capability_id, scope, request.arguments, request.context, request.resource_id),
            # Policies see the principal as the caller named it.
            calls=(request,),
            estimator=estimator,
            root=settings.root,
            scopes=touched_scopes(
                scope,
                settings.default_scopes,
                provider=estimator.provider_name,
                model=model,
                resource=request.resource_id,
                capability=request.capability_id,
            ),
            request_id=new_reservation_id(),
            resource_metadata=resource_metadata,
            environment=dict(request.context),
            uses_tokens=model is not None,
            policies=None if self.policy_manager is self.sark.policies else self.policy_manager,
        )

    async def _opened(self) -> Sark:
        """Return the `Sark`, started; a manager of this gateway's own is lent all that the one of the `Sark` is."""
        sark, policies = await self.cost_tracker.service.opened(), self.policy_manager
        if policies is not sark.policies and self._lent != (sark.services, policies):
            if policies.used_by is not None and policies.used_by() is not None:
                raise ConfigurationError("another Sark that is not closed has this PolicyPluginManager: give each one of its own")
            policies.observe(sark.instrumentation)
            policies.bind(sark.services)
            self._lent = (sark.services, policies)
        return sark


class CostAwareAdapter(ProtocolAdapter):
    """Meter an adapter of one's own: through a gateway, or a `Sark`, or a gateway of its own, which `aclose` closes.

    `estimator` prices its calls, else the one of the provider that `resource_metadata` names.
    """

    def __init__(
        self,
        adapter: ProtocolAdapter,
        through: SARKGateway | Sark | None = None,
        *,
        estimator: CostEstimator | None = None,
        resource_metadata: Json | None = None,
    ) -> None:
        self._adapter = adapter
        self._own = not isinstance(through, SARKGateway)
        self.gateway = through if isinstance(through, SARKGateway) else SARKGateway(sark=through)
        self._estimator = estimator
        self._metadata: Mapping[str, object] = resource_metadata or {}

    async def invoke(self, request: InvocationRequest) -> InvocationResult:
        """Invoke the adapter within budget, as `SARKGateway.invoke` does."""
        return await self.gateway.invoke_through(self._adapter, request, self._metadata, self._estimator)

    async def aclose(self) -> None:
        """Close a gateway of its own."""
        if self._own:
            await self.gateway.aclose()


async def _spent(
    admission: Admission,
    estimator: CostEstimator,
    request: InvocationRequest,
    result: InvocationResult,
    resource_metadata: Json,
) -> Spent | None:
    """Say what to book: what the result tells, else the estimate, and None for a failed call, which is not charged it."""
    told = await told_cost(estimator, request, result, resource_metadata)
    if told is not None:
        tokens_in, tokens_out = token_counts(told.breakdown)
        if isinstance(estimator, Meter):
            estimator.observe(Usage(input_tokens=tokens_in, output_tokens=tokens_out), admission.estimate)
        return Spent(cost_nanos=in_nanos(told), input_tokens=tokens_in, output_tokens=tokens_out)
    if not result.success:
        return None
    if isinstance(estimator, FixedCostEstimator):
        return Spent(cost_nanos=admission.estimate.ceiling_nanos)
    return admission.expected()


def _is_result(result: object) -> bool:
    return isinstance(result, InvocationResult) and isinstance(result.metadata, Mapping)


def _status(result: InvocationResult) -> int | None:
    """Give the status that an adapter says it got (`metadata["status"]`), else what success would have; None: nobody knows."""
    if not _is_result(result):
        return None
    told = result.metadata.get("status")
    return told if isinstance(told, int) and 100 <= told < 600 else 200 if result.success else None


async def _answered(settle: asyncio.Task[object]) -> None:
    await asyncio.wait({settle}, timeout=_SETTLE_S)


def _failed(error: str, reason: str, **details: object) -> InvocationResult:
    return InvocationResult(False, error=error, metadata={"reason": reason, **details})
