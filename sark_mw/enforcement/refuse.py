"""Refusals: what a caller is told when a limit or a policy says no."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from sark_mw.instrumentation.base import RequestOutcome
from sark_mw.limit import Unit
from sark_mw.money import from_nanos
from sark_mw.policy.base import PolicyDecision, PolicyOutcome
from sark_mw.pricing.base import Estimate
from sark_mw.reservation import Balance, Need, Outcome, ReserveReply
from sark_mw.window_words import per
from sark_mw.wire.base import Refusal, RefusalKind

#: What never opens, or is less than this request alone needs: any wait is in vain.
_NEVER_S = 31_536_000.0


_OUTCOME = {
    RefusalKind.BUDGET: RequestOutcome.REFUSED_BUDGET,
    RefusalKind.RATE_LIMIT: RequestOutcome.REFUSED_RATE,
    RefusalKind.CONCURRENCY: RequestOutcome.REFUSED_RATE,
    RefusalKind.POLICY: RequestOutcome.REFUSED_POLICY,
    RefusalKind.UNAVAILABLE: RequestOutcome.UNAVAILABLE,
    RefusalKind.POLICY_UNAVAILABLE: RequestOutcome.UNAVAILABLE,
}


def outcome_of(refusal: Refusal) -> RequestOutcome:
    """Name the outcome of a refused request."""
    return _OUTCOME.get(refusal.kind, RequestOutcome.INVALID)


def reason_of(refusal: Refusal) -> str:
    """Name what refused, from a small set: a unit, a plugin, or the fault."""
    if refusal.kind in (RefusalKind.POLICY, RefusalKind.POLICY_UNAVAILABLE):
        return refusal.plugin or ""
    return refusal.unit or refusal.reason or refusal.kind.value


def refuse_limit(reply: ReserveReply, needs: Sequence[Need], estimate: Estimate, request_id: str, budget_status: int) -> Refusal:
    """Say which limit refused: a budget before the others, and of several the one that opens last."""
    exceeded = [reply.balances[n] for n in reply.exceeded]
    budgets = [balance for balance in exceeded if balance.line.unit == Unit.USD]
    balance = max(budgets or exceeded, key=lambda each: each.line.ends_ms or 2**62)
    line = balance.line
    need = next(need.held for need in needs if need.unit == line.unit)
    kind = {Unit.USD: RefusalKind.BUDGET, Unit.CONCURRENCY: RefusalKind.CONCURRENCY}.get(Unit(line.unit), RefusalKind.RATE_LIMIT)
    resets_at_ms = line.ends_ms or (reply.at_ms + line.rolling_ms if line.rolling_ms else None)
    return Refusal(
        kind=kind,
        message=_sentence(balance, need),
        request_id=request_id,
        scope=line.scope,
        limit=line.limit.limit_id if line.limit else line.counter,
        unit=line.unit,
        window=line.limit.window if line.limit else None,
        amount=_shown(line.unit, line.amount),
        spent=_shown(line.unit, balance.spent),
        held=_shown(line.unit, balance.held),
        needed=_shown(line.unit, need),
        remaining=_shown(line.unit, max(line.amount - balance.spent - balance.held, 0)),
        resets_at_ms=resets_at_ms,
        now_ms=reply.at_ms,
        retry_after_s=_retry_after(kind, balance, need, reply.at_ms),
        affordable_output_tokens=_affordable(reply, estimate) if kind is RefusalKind.BUDGET else None,
        status_override=budget_status if kind is RefusalKind.BUDGET else None,
    )


def _affordable(reply: ReserveReply, estimate: Estimate) -> int | None:
    left = [b.remaining for b in reply.balances if b.line.unit == Unit.USD and b.line.enforce and b.remaining is not None]
    return estimate.affordable_output_tokens(max(min(left), 0)) if left else None


def _retry_after(kind: RefusalKind, balance: Balance, need: int, now_ms: int) -> float | None:
    if kind is RefusalKind.BUDGET:
        return None
    line = balance.line
    if need > line.amount:
        return _NEVER_S
    if kind is RefusalKind.CONCURRENCY:
        return 1.0
    wait_ms = line.ends_ms - now_ms if line.ends_ms else line.bucket_ms
    return max(wait_ms / 1000, 1.0) if wait_ms else _NEVER_S


def _shown(unit: str, amount: int) -> Decimal | int:
    return from_nanos(amount) if unit == Unit.USD else amount


def _sentence(balance: Balance, need: int) -> str:
    line = balance.line
    figures = (line.amount, balance.spent, balance.held, need)
    amount, spent, held, needed = (f"{from_nanos(n):f}" if line.unit == Unit.USD else str(n) for n in figures)
    how_long = per(line.limit.window) if line.limit else ""
    window = f" {how_long}" if how_long else ""
    what = "budget" if line.unit == Unit.USD else f"{line.unit.replace('_', ' ')} limit"
    return (
        f"The {what} of {line.scope} ({amount} {line.unit}{window}) does not allow this request: "
        f"{spent} spent, {held} held by requests in flight, {needed} needed."
    )


#: Answers of the store about another reservation with the same idempotency key.
IDEMPOTENT = (Outcome.IN_FLIGHT, Outcome.ALREADY_DONE, Outcome.KEY_REUSED)


def refuse_repeated(reply: ReserveReply, request_id: str) -> Refusal:
    """Say why a request whose idempotency key has been here is not made again."""
    if reply.outcome is Outcome.IN_FLIGHT:
        message = "A request with this idempotency key is being answered: wait for it."
        return Refusal(kind=RefusalKind.IN_FLIGHT, message=message, request_id=request_id, retry_after_s=1)
    if reply.outcome is Outcome.ALREADY_DONE:
        message = (
            "A request with this idempotency key has been answered and paid for. Its answer is not kept here; "
            "another key makes a new request."
        )
        return Refusal(kind=RefusalKind.ALREADY_DONE, message=message, request_id=request_id)
    message = "This idempotency key came with another request before: use a new key for each request."
    return Refusal(kind=RefusalKind.IDEMPOTENCY, message=message, request_id=request_id)


def refuse_policy(decision: PolicyDecision, request_id: str) -> Refusal:
    """Say which plugin denied, and why; one that timed out or crashed did not judge, and waiting may help."""
    if decision.outcome in (PolicyOutcome.TIMED_OUT, PolicyOutcome.FAILED):
        return Refusal(
            kind=RefusalKind.POLICY_UNAVAILABLE,
            message=f"The policy {decision.plugin_name} cannot be asked at the moment.",
            request_id=request_id,
            plugin=decision.plugin_name,
            reason=decision.reason,
            retry_after_s=1.0,
        )
    return Refusal(
        kind=RefusalKind.POLICY,
        message=f"Denied by policy {decision.plugin_name}: {decision.reason}",
        request_id=request_id,
        plugin=decision.plugin_name,
        reason=decision.reason,
        retry_after_s=_seconds(decision.metadata.get("retry_after")),
    )


def _seconds(retry_after: object) -> float | None:
    """Take what a plugin says of waiting where it is a time: it may say infinity, or no number."""
    if isinstance(retry_after, bool) or not isinstance(retry_after, (int, float)) or not retry_after >= 0:
        return None
    return float(min(retry_after, _NEVER_S))
