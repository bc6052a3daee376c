"""Notice a principal that spends far more in an hour than it usually does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sark_mw import (
    ConfigurationError,
    HourlyAmounts,
    PolicyContext,
    PolicyDecision,
    PolicyEvaluationError,
    PolicyPlugin,
    PolicyServices,
)

_NANOS = 1_000_000_000


class AnomalyPlugin(PolicyPlugin):
    """Deny, or only warn, when an hour comes to more than `deviations` deviations above a principal's usual one.

    Usual is a moving mean over the hours in which it spent anything, of the last `hours` (UTC); `weight` is that of the newest.
    A deviation counts as at least a quarter of the mean, so that a steady principal may still vary, and nothing below
    `least_usd` an hour is ever too much. Before `cold_hours` such hours nothing is judged. Counts what requests are expected to
    cost, in the store, over all processes; what is refused is not counted. `action`: `deny` or `warn`.
    """

    version = "1.0.0"
    description = "Notice spend far above a principal's own history"
    priority = 40

    def __init__(
        self,
        deviations: float = 4.0,
        least_usd: float = 1.0,
        hours: int = 72,
        cold_hours: int = 8,
        weight: float = 0.2,
        action: str = "deny",
        *,
        name: str = "anomaly",
        on_error: str = "allow",
    ) -> None:
        if deviations <= 0 or least_usd < 0 or not 0 < weight <= 1 or not 1 <= cold_hours <= hours:
            raise ConfigurationError("deviations above 0, weight above 0 to 1 and cold_hours from 1 to hours are needed")
        if action not in ("deny", "warn"):
            raise ConfigurationError(f"action must be 'deny' or 'warn', not {action!r}")
        self._name, self._on_error, self._denies = name, on_error, action == "deny"
        self._deviations, self._weight, self._cold = deviations, weight, cold_hours
        self._least = int(least_usd * _NANOS)
        self._history = HourlyAmounts(name=name, hours=hours)

    @property
    def name(self) -> str:
        return self._name

    @property
    def on_error(self) -> str:
        return self._on_error

    def bind(self, services: PolicyServices) -> None:
        self._history.bind(services)

    async def on_unload(self) -> None:
        await self._history.aclose()

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        environment = context.environment
        amount = environment.get("expected_nanos", environment.get("estimated_nanos"))
        if not isinstance(amount, int):
            raise PolicyEvaluationError("it is not known what the request may cost")
        spent = [nanos for nanos in await self._history.past(context.principal_id, context) if nanos > 0]
        mean, deviation = _usual(spent, self._weight)
        warm = len(spent) >= self._cold
        threshold = max(int(mean + self._deviations * max(deviation, mean / 4)), self._least) if warm else None
        hour = await self._history.add(context.principal_id, context, amount, threshold if self._denies else None)
        metadata: dict[str, Any] = {"hour_usd": _usd(hour.nanos), "hours_seen": len(spent)}
        if threshold is None:
            return PolicyDecision(True, "too little history to judge by", metadata | {"cold_start": True})
        metadata |= {"usual_usd": _usd(mean), "deviation_usd": _usd(deviation), "threshold_usd": _usd(threshold)}
        if hour.admitted and hour.nanos <= threshold:
            return PolicyDecision(True, "as usual", metadata)
        what = f"this hour comes to more than ${_usd(threshold)}; usual is ${_usd(mean)}"
        if not self._denies:
            return PolicyDecision(True, "more than usual, but allowed", metadata | {"warning": what})
        metadata["retry_after"] = 3600 - int(context.timestamp.timestamp()) % 3600
        return PolicyDecision(False, what, metadata | {"request_usd": _usd(amount)})


def _usual(spent: Sequence[int], weight: float) -> tuple[float, float]:
    """Move a mean and a deviation along the hours, the oldest first (West's update of an exponentially weighted variance)."""
    mean, variance = float(spent[0]) if spent else 0.0, 0.0
    for nanos in spent[1:]:
        distance = nanos - mean
        mean += weight * distance
        variance = (1 - weight) * (variance + weight * distance * distance)
    return mean, math.sqrt(variance)


def _usd(nanos: float) -> str:
    return f"{Decimal(int(nanos)) / _NANOS:.4f}"
