"""Let a request above an amount wait for an administrator's word."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation

from sark_mw import (
    Approval,
    Approvals,
    ConfigurationError,
    PolicyContext,
    PolicyDecision,
    PolicyEvaluationError,
    PolicyPlugin,
    PolicyServices,
    RollingWindow,
)

_NANOS = 1_000_000_000
#: Longer than any token is good for: it can be used up once, and is forgotten only after its time.
_REMEMBERED_S = 30 * 86_400
_MAX_NAME = 300


class ApprovalPlugin(PolicyPlugin):
    """Deny what may cost more than `above_usd`, unless it comes with a token that an administrator gave for it.

    The denial names an id (`approval_id`). An administrator finds it under `/approvals` of the admin API, approves it there (or
    by `sark-mw approvals`), and gets a token; the caller sends the request again with the header `x-sark-approval`. A token is
    for one principal, one capability and one amount at most, for a time, and for one request: it is used up in the store, so
    once for all processes, and given back if a later policy or a limit refuses the request. An MCP batch is one request, and its
    capability all the tools that it calls. Needs the admin API's token.
    """

    version = "1.0.0"
    description = "Let dear requests wait for an administrator's word"
    priority = 80

    def __init__(self, above_usd: float | str | Decimal = 1, *, name: str = "approval") -> None:
        self._name = name
        self._above_nanos = _nanos(above_usd)
        self._approvals: Approvals | None = None
        self._used = RollingWindow(name=name, amount=1, window_seconds=_REMEMBERED_S, each_call=False)

    @property
    def name(self) -> str:
        return self._name

    def bind(self, services: PolicyServices) -> None:
        self._approvals = services.approvals
        self._used.bind(services)

    async def on_unload(self) -> None:
        await self._used.aclose()

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        amount = context.environment.get("estimated_nanos")
        if not isinstance(amount, int):
            raise PolicyEvaluationError("it is not known what the request may cost")
        if amount <= self._above_nanos:
            return PolicyDecision(True, "no approval is needed")
        if self._approvals is None:
            raise PolicyEvaluationError("approvals need the admin API's token in the settings: SARK_ADMIN__TOKEN")
        token = context.environment.get("approval")
        if not token:
            return await self._ask(context, amount, "")
        approval = self._approvals.read(str(token))
        refused = _refuses(approval, context, amount)
        if approval is None or refused:
            return await self._ask(context, amount, refused)
        used = await self._used.take(approval.token_id, context, epoch=approval.epoch)
        if used.lost:  # with it, which approvals were used
            return await self._ask(context, amount, "the approval is void, since the store has lost its data")
        if not used.admitted:
            return await self._ask(context, amount, "the approval has been used")
        return PolicyDecision(True, "approved", {"approval_id": approval.approval_id})

    async def _ask(self, context: PolicyContext, amount: int, refused: str) -> PolicyDecision:
        what = (
            f"it may cost ${Decimal(amount) / _NANOS:.2f}, and above ${Decimal(self._above_nanos) / _NANOS:f} needs an approval"
        )
        reason = f"{refused}: {what}" if refused else what
        capability = _capability(context)
        if self._approvals is None or len(capability) > _MAX_NAME or len(context.principal_id) > _MAX_NAME:
            return PolicyDecision(False, f"{reason}, which cannot be given to it")
        asked = await self._approvals.ask(
            root=context.environment.get("root") or "default",
            principal_id=context.principal_id,
            capability_id=capability,
            amount_nanos=amount,
            resource_id=context.resource_id,
            model=str(context.environment.get("model") or ""),
            request_id=str(context.environment.get("request_id") or ""),
        )
        return PolicyDecision(False, f"{reason}: {asked.approval_id}", {"approval_id": asked.approval_id})


def _capability(context: PolicyContext) -> str:
    """Name what a request wants to do: of a batch, whose calls are judged one by one, every tool unless its route has a name."""
    tools = [scope[5:] for scope in context.environment.get("scopes") or () if scope.startswith("tool:")]
    if len(tools) < 2 or context.capability_id not in tools:
        return context.capability_id
    return json.dumps(sorted(tools), ensure_ascii=False)


def _refuses(approval: Approval | None, context: PolicyContext, amount: int) -> str:
    """Say why a token does not let this request pass; empty if it does."""
    if approval is None:
        return "the approval is not genuine, or its time is over"
    given = (approval.root, approval.principal_id, approval.capability_id)
    if given != (context.environment.get("root") or "default", context.principal_id, _capability(context)):
        return "the approval is for another request"
    if amount > approval.amount_nanos:
        return f"the approval is for at most ${Decimal(approval.amount_nanos) / _NANOS:.2f}"
    return ""


def _nanos(value: float | str | Decimal) -> int:
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal(-1)
    if isinstance(value, bool) or not amount.is_finite() or amount < 0:
        raise ConfigurationError(f"above_usd must be an amount of dollars from 0, not {value!r}")
    return int(amount * _NANOS)
