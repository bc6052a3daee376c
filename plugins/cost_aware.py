"""Warn, then deny, as a budget is used up: the principal's own, or that of any scope that a request touches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from sark_mw import (
    BudgetReader,
    ConfigurationError,
    PolicyContext,
    PolicyDecision,
    PolicyEvaluationError,
    PolicyPlugin,
    PolicyServices,
    RootBudgetReader,
)

#: A `cost_service` may let budgets be overspent, so that a share above 1 makes sense; what is above this was meant in percent.
_MOST_SHARE = 10


class CostAwarePlugin(PolicyPlugin):
    """Warn in the metadata from `warning_threshold` of a budget on, deny from `deny_threshold` on (shares, above 0 to 10).

    The figures come from `cost_service` (anything with `async get_budget_status(principal_id)`), else from the one that the
    gateway binds, else from `context.environment["budget"]`: a mapping or object with `daily_budget`, `daily_spent`,
    `monthly_budget`, `monthly_spent`, or None for no budget. The gateway's reads the principal's limits over `day` and `month`
    (`month:15` too) in the request's own root, and no others. With `scopes`, kinds (`team`) or names (`org:acme`), the budgets of
    those that a request touches decide, whatever their window (a principal's week or prepaid `total` by `scopes = ["user"]`), and
    what requests in flight hold counts as well. The budget that is used most decides; one in mode `shadow` or `soft` is none. No
    figures is an error.
    """

    version = "1.1.0"
    description = "Warn, then deny, as a budget is used up"
    priority = 30

    def __init__(
        self,
        cost_service: BudgetReader | None = None,
        warning_threshold: float = 0.8,
        deny_threshold: float = 0.95,
        scopes: Iterable[str] = (),
        *,
        name: str = "cost_aware",
        on_error: str = "deny",
    ) -> None:
        self._warn = _share("warning_threshold", warning_threshold)
        self._deny = _share("deny_threshold", deny_threshold)
        if self._warn > self._deny:
            raise ConfigurationError(f"warning_threshold {self._warn} is above deny_threshold {self._deny}: it would never warn")
        self._scopes = _scopes(scopes)
        self._name, self._on_error = name, on_error
        self._own_service = cost_service is not None
        self._service = cost_service

    @property
    def name(self) -> str:
        return self._name

    @property
    def on_error(self) -> str:
        return self._on_error

    @property
    def needs(self) -> frozenset[str] | None:
        # The gateway reads where limits stand for those that ask for it by name.
        return frozenset({"principal_id", "environment", "environment.limits"}) if self._scopes else None

    def bind(self, services: PolicyServices) -> None:
        if not self._own_service:
            self._service = services.budgets

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        used = self._used_by_scopes(context) if self._scopes else await self._used_by_principal(context)
        return self._judge(used) if used else PolicyDecision(True, "no budget is set")

    async def _used_by_principal(self, context: PolicyContext) -> dict[str, Decimal]:
        if self._service is not None:
            status: object = await self._status(self._service, context)
        elif "budget" in context.environment:
            status = context.environment["budget"]
        else:
            raise PolicyEvaluationError("no cost service, and no 'budget' in the context's environment")
        return {} if status is None else _used(status)

    async def _status(self, service: BudgetReader, context: PolicyContext) -> object:
        root = context.environment.get("root")
        if root and not self._own_service and isinstance(service, RootBudgetReader):  # one's own answers for all roots
            return await service.get_budget_status_in(str(root), context.principal_id)
        return await service.get_budget_status(context.principal_id)

    def _used_by_scopes(self, context: PolicyContext) -> dict[str, Decimal]:
        limits = context.environment.get("limits")
        if not isinstance(limits, list):
            raise PolicyEvaluationError("the gateway does not tell where limits stand")
        used = {}
        for limit in limits:
            scope = str(limit["scope"])
            if (
                limit["unit"] == "usd"
                and limit.get("enforced", True)
                and (scope in self._scopes or scope.partition(":")[0] in self._scopes)
            ):
                amount = _amount(limit, "amount") or Decimal(0)
                taken = (_amount(limit, "spent") or Decimal(0)) + (_amount(limit, "held") or Decimal(0))
                used[f"{scope}/{limit['window']}"] = taken / amount if amount > 0 else Decimal(1)
        return used

    def _judge(self, used: dict[str, Decimal]) -> PolicyDecision:
        window, share = max(used.items(), key=lambda item: item[1])
        metadata: dict[str, Any] = {f"{name}_percent_used": float(value * 100) for name, value in used.items()}
        spent = f"{share * 100:.1f} % of the {window} budget is spent"
        if share >= self._deny:
            return PolicyDecision(False, f"{spent}: denied from {self._deny * 100:.1f} % on", metadata)
        if share >= self._warn:
            return PolicyDecision(True, "within budget, but close to it", metadata | {"warning": spent})
        return PolicyDecision(True, "within budget", metadata)


def _used(status: object) -> dict[str, Decimal]:
    """Compute the share used of each budget that is set; of a budget of 0 everything is used."""
    used = {}
    for window in ("daily", "monthly"):
        budget = _amount(status, f"{window}_budget")
        if budget is not None:
            spent = _amount(status, f"{window}_spent")
            if spent is None:
                raise PolicyEvaluationError(f"the budget figures have a {window}_budget but no {window}_spent")
            used[window] = spent / budget if budget > 0 else Decimal(1)
    return used


def _amount(status: object, field: str) -> Decimal | None:
    value = status.get(field) if isinstance(status, Mapping) else getattr(status, field)
    if value is None:
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise PolicyEvaluationError(f"{field} is no amount: {value!r}") from None
    if not amount.is_finite():
        raise PolicyEvaluationError(f"{field} is no amount: {value!r}")
    return amount


def _scopes(values: Iterable[str]) -> frozenset[str]:
    if isinstance(values, str):
        raise ConfigurationError(f"scopes must be a list of kinds or scopes, not {values!r}")
    scopes = list(values)
    for scope in scopes:
        if not isinstance(scope, str) or not _names_scopes(scope):
            raise ConfigurationError(f"scopes must be kinds ('team': all of them) or scopes ('org:acme'), not {scope!r}")
    return frozenset(scopes)


def _names_scopes(scope: str) -> bool:
    """Tell whether a budget could ever go by this name; a pattern is none, since the kind alone says as much."""
    kind, colon, name = scope.partition(":")
    return bool(kind) and (bool(name) or not colon) and scope.isprintable() and scope == scope.strip() and scope[-1] != "*"


def _share(field: str, value: float) -> Decimal:
    try:
        share = Decimal(str(value))
    except InvalidOperation:
        share = Decimal(0)
    if isinstance(value, bool) or not share.is_finite() or not 0 < share <= _MOST_SHARE:
        raise ConfigurationError(f"{field} must be a share above 0, at most {_MOST_SHARE} (0.8 is 80 %), not {value!r}")
    return share
