"""Ask the policies about a request, tell of every decision, and keep what the decisions oblige to."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass

from sark_mw.enforcement.invocation import Invocation, under_every_name
from sark_mw.enforcement.limit_figures import StoreLimits
from sark_mw.enforcement.refuse import refuse_policy
from sark_mw.errors import StoreError
from sark_mw.instrumentation.base import Instrumentation, PolicyDecided
from sark_mw.policy.base import Obligation, PolicyContext, PolicyDecision
from sark_mw.policy.context import with_read_bytes
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.pricing.base import Estimate, InvocationRequest
from sark_mw.wire.base import Refusal

#: Requests whose obligations are remembered, for those that are tried in several ways.
_MOST_REMEMBERED = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """An obligation, and the plugin whose decision it came with."""

    plugin: str
    obligation: Obligation


class _InTurn:
    """Managers of which each is asked if those before it allow."""

    def __init__(self, managers: tuple[PolicyPluginManager, ...]) -> None:
        self._managers = managers

    @property
    def active(self) -> bool:
        return any(manager.active for manager in self._managers)

    @property
    def needs_limits(self) -> bool:
        return any(manager.needs_limits for manager in self._managers)

    async def evaluate_all(self, context: PolicyContext, seconds: float, chain_seconds: float | None) -> list[PolicyDecision]:
        """Return all decisions, a denial last; all together have `chain_seconds`."""
        if len(self._managers) == 1:
            return await self._managers[0].evaluate_all(context, seconds, chain_seconds)
        decisions: list[PolicyDecision] = []
        ends = None if chain_seconds is None else time.perf_counter() + chain_seconds
        for manager in self._managers:
            left = None if ends is None else max(ends - time.perf_counter(), 0)
            decisions += await manager.evaluate_all(context, seconds, left)
            if decisions and not decisions[-1].allowed:
                break
        return decisions


class PolicyGate:
    """The policies of one enforcer, as requests meet them."""

    def __init__(
        self,
        policies: PolicyPluginManager,
        instrumentation: Instrumentation,
        *,
        limits: StoreLimits | None,
        timeout_s: float,
        chain_timeout_s: float | None,
    ) -> None:
        self._policies = policies
        self._instrumentation = instrumentation
        self._limits = limits
        self._timeout_s = timeout_s
        self._chain_timeout_s = chain_timeout_s
        self._owed: OrderedDict[tuple[str, str | None], tuple[Owed, ...]] = OrderedDict()

    async def ask(self, invocation: Invocation, estimate: Estimate) -> Refusal | tuple[Owed, ...]:
        """Return what the decisions oblige to, or the refusal of the first that denies.

        A request that was `allowed` for this model before is not put to them again: what they obliged it to stands.
        """
        policies = _InTurn((self._policies, *([invocation.policies] if invocation.policies is not None else [])))
        if not policies.active:
            return ()
        asked = (invocation.request_id, estimate.model)
        if invocation.allowed and asked in self._owed:
            return self._owed[asked]
        if self._limits is None:
            return await self._ask(policies, asked, invocation, estimate)
        self._limits.asked(invocation.request_id, invocation.asserted, invocation.extra_limits)
        try:
            return await self._ask(policies, asked, invocation, estimate)
        finally:
            self._limits.answered(invocation.request_id)

    async def _ask(
        self, policies: _InTurn, asked: tuple[str, str | None], invocation: Invocation, estimate: Estimate
    ) -> Refusal | tuple[Owed, ...]:
        # A run is named by its caller alone, and may be named like anything that a policy looks for.
        own = {limit.scope for limit in invocation.extra_limits}
        scopes = tuple([scope for scope in under_every_name(invocation, estimate).scopes if scope not in own])
        environment = {
            **invocation.environment,
            "provider": estimate.provider,
            "model": estimate.model,
            "scopes": scopes,
            "root": invocation.root,
            "estimated_nanos": estimate.ceiling_nanos,
            "expected_nanos": estimate.expected_nanos,
            "request_id": invocation.request_id,
            "attempt": invocation.attempt,
        }
        if policies.needs_limits and self._limits is not None:
            environment.update(await self._where_limits_stand(self._limits, invocation, scopes))
        owed: list[Owed] = []
        for number, request in enumerate(invocation.calls or (invocation.request,)):
            context = _context(invocation, request, {**environment, "call": number})
            decisions = await policies.evaluate_all(context, self._timeout_s, self._chain_timeout_s)
            for decision in decisions:
                self._tell(decision, invocation)
                owed += [Owed(plugin=decision.plugin_name or "", obligation=each) for each in decision.obligations]
            if decisions and not decisions[-1].allowed:
                return refuse_policy(decisions[-1], invocation.request_id)
        self._owed[asked] = found = tuple(dict.fromkeys(owed))
        if len(self._owed) > _MOST_REMEMBERED:
            self._owed.popitem(last=False)
        return found

    async def _where_limits_stand(
        self, limits: StoreLimits, invocation: Invocation, scopes: tuple[str, ...]
    ) -> dict[str, object]:
        try:
            figures = await limits.read(invocation.root, scopes, invocation.request_id)
        except StoreError:
            # Absent, and not empty: whoever needs them fails, and its `on_error` decides.
            return {}
        return {"limits": [{**asdict(each), "used": each.used} for each in figures]}

    def _tell(self, decision: PolicyDecision, invocation: Invocation) -> None:
        self._instrumentation.policy_decided(
            PolicyDecided(
                plugin=decision.plugin_name or "",
                version=decision.plugin_version,
                outcome=decision.outcome or "",
                allowed=decision.allowed,
                reason=decision.reason,
                seconds=decision.duration_ms / 1000,
                obligations=tuple(f"{each.kind}={each.value}" for each in decision.obligations),
                metadata=_metadata(decision),
                request_id=invocation.request_id,
                root=invocation.root,
                principal_id=invocation.request.principal_id,
            )
        )


def _metadata(decision: PolicyDecision) -> str:
    if not decision.metadata:
        return ""
    try:
        return json.dumps(decision.metadata, default=str, separators=(",", ":"))
    except Exception:  # noqa: BLE001  # the plugin boundary: whatever it put there
        return ""


def _context(invocation: Invocation, request: InvocationRequest, environment: dict[str, object]) -> PolicyContext:
    context = PolicyContext(
        principal_id=request.principal_id,
        resource_id=request.resource_id or "",
        capability_id=request.capability_id,
        action=invocation.action,
        arguments=dict(request.arguments),
        environment=environment,
    )
    return with_read_bytes(context, invocation.body_bytes)
