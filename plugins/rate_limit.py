"""Allow so many requests per principal, resource or capability in a sliding window, counted over all processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from sark_mw import ConfigurationError, PolicyContext, PolicyDecision, PolicyPlugin, PolicyServices, RollingWindow, SharedStore

_PARTS: dict[str, Callable[[PolicyContext], str]] = {
    "principal": lambda context: context.principal_id,
    "resource": lambda context: context.resource_id,
    "capability": lambda context: context.capability_id,
    "everyone": lambda context: "*",
}


class RateLimitPlugin(PolicyPlugin):
    """Allow `max_requests` in any `window_seconds` (or `window_minutes`) for each `key`; only what passes is counted.

    `key` is `principal`, `resource`, `capability`, `everyone`, or several joined by `+`. Counts in `store`, or in the one that
    the gateway binds, so all processes share the count; without either each process counts alone (`metadata["shared"]` says so).
    It is asked before the later plugins and the budget are: what those refuse is counted until they have, then given back.
    A denial carries `retry_after` in seconds. A store that does not answer is decided by `on_error`.
    """

    version = "1.0.0"
    description = "Allow so many requests in a sliding window"
    priority = 20

    def __init__(
        self,
        max_requests: int = 100,
        window_seconds: int = 3600,
        window_minutes: int | None = None,
        store: SharedStore | None = None,
        key: str = "principal",
        *,
        name: str = "rate_limit",
        on_error: str = "deny",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if window_minutes is not None:
            if window_seconds != 3600:
                raise ConfigurationError("give window_seconds or window_minutes, not both")
            window_seconds = window_minutes * 60
        parts = key.split("+")
        if not set(parts) <= set(_PARTS):
            raise ConfigurationError(f"key must be of {', '.join(_PARTS)}, joined by '+', not {key!r}")
        self._parts = [_PARTS[part] for part in parts]
        self._name, self._on_error = name, on_error
        self._seconds = window_seconds
        self._window = RollingWindow(name=name, amount=max_requests, window_seconds=window_seconds, store=store, clock=clock)

    @property
    def name(self) -> str:
        return self._name

    @property
    def on_error(self) -> str:
        return self._on_error

    def bind(self, services: PolicyServices) -> None:
        self._window.bind(services)

    async def on_unload(self) -> None:
        await self._window.aclose()

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        # Lengths keep "a" + "b|c" and "a|b" + "c" apart.
        values = [part(context) for part in self._parts]
        key = values[0] if len(values) == 1 else "|".join(f"{len(value)}:{value}" for value in values)
        count = await self._window.take(key, context)
        metadata = {"limit": count.limit, "remaining": count.remaining, "window_seconds": self._seconds, "shared": count.shared}
        if count.admitted:
            return PolicyDecision(True, "within the rate limit", metadata)
        metadata["retry_after"] = math.ceil(count.retry_after_s)
        return PolicyDecision(False, f"rate limit exceeded: {count.limit} requests in {self._seconds} s", metadata)
