"""Let as many requests be under way at once as their upstream bears: more while it is quick, half when it fails or is slow."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sark_mw import (
    ConfigurationError,
    Outcomes,
    PolicyContext,
    PolicyDecision,
    PolicyEvaluationError,
    PolicyPlugin,
    PolicyServices,
    RequestEnd,
)

_KEYS: dict[str, Callable[[PolicyContext], str]] = {
    "resource": lambda context: context.resource_id,
    "model": lambda context: str(context.environment.get("model") or ""),
    "principal": lambda context: context.principal_id,
    "everyone": lambda context: "*",
}
#: The limits of so many keys are remembered; the one that was used longest ago begins anew.
_MAX_KEYS = 10_000


@dataclass(slots=True, kw_only=True)
class _Upstream:
    limit: float
    running: int = 0
    #: The most that ran at once since the limit last rose, or since nothing ran.
    peak: int = 0
    slowed_at: float = float("-inf")


class AdaptiveRateLimitPlugin(PolicyPlugin):
    """Deny above a limit of requests under way for each `key` (`resource`, `model`, `principal`, `everyone`); it moves by itself.

    It begins at `start`. Where it is made use of, each answer that began within `latency_seconds` adds a share, so that a whole
    round of quick answers adds `step`; a slow one, or one whose status is among `errors`, multiplies it by `backoff`, once in
    `cooldown_seconds`. It stays from `least` to `most`. Each process learns for itself. Requests of which no end is told within
    `forget_seconds` are not counted any more.
    """

    version = "1.0.0"
    description = "Limit the requests under way to what their upstream bears"
    priority = 25

    def __init__(
        self,
        start: int = 20,
        least: int = 1,
        most: int = 1000,
        latency_seconds: float = 10.0,
        errors: Iterable[int] = (408, 429, 500, 502, 503, 504, 529),
        step: float = 1.0,
        backoff: float = 0.5,
        cooldown_seconds: float = 1.0,
        forget_seconds: float = 3600.0,
        key: str = "resource",
        *,
        name: str = "adaptive_rate_limit",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 1 <= least <= start <= most:
            raise ConfigurationError(f"1 <= least <= start <= most is needed, not {least}, {start}, {most}")
        if not 0 < backoff < 1 or not 0 < step <= most or latency_seconds <= 0 or cooldown_seconds < 0:
            raise ConfigurationError("backoff must lie between 0 and 1, step and latency_seconds above 0")
        if key not in _KEYS:
            raise ConfigurationError(f"key must be one of {', '.join(_KEYS)}, not {key!r}")
        self._name, self._key_of, self._clock = name, _KEYS[key], clock
        self._start, self._least, self._most = start, least, most
        self._latency, self._errors = latency_seconds, frozenset(errors)
        self._step, self._backoff, self._cooldown = step, backoff, cooldown_seconds
        self._forget_after = forget_seconds
        self._upstreams: OrderedDict[str, _Upstream] = OrderedDict()
        self._running: OrderedDict[str, tuple[_Upstream, float]] = OrderedDict()
        self._outcomes: Outcomes | None = None

    @property
    def name(self) -> str:
        return self._name

    def bind(self, services: PolicyServices) -> None:
        if self._outcomes is not None:
            self._outcomes.forget(self._heard)
        self._outcomes = services.outcomes
        if self._outcomes is not None:
            self._outcomes.listen(self._heard)

    async def on_unload(self) -> None:
        self.bind(PolicyServices())

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        request_id = context.environment.get("request_id")
        if self._outcomes is None or request_id is None:
            raise PolicyEvaluationError("no gateway tells how requests end")
        self._forget()
        if request_id in self._running:  # asked about again, with another model
            self._release(request_id)
        upstream = self._upstream(self._key_of(context))
        limit = int(upstream.limit)
        metadata = {"limit": limit, "running": upstream.running}
        if upstream.running >= limit:
            metadata["retry_after"] = 1
            return PolicyDecision(False, f"{upstream.running} requests are under way, as many as are borne now", metadata)
        upstream.running += 1
        upstream.peak = max(upstream.peak, upstream.running)
        self._running[request_id] = (upstream, self._clock())
        return PolicyDecision(True, "within what the upstream bears", metadata)

    def _heard(self, end: RequestEnd) -> None:
        upstream = self._release(end.request_id)
        if upstream is not None and end.admitted and end.status is not None:  # else it says nothing about the upstream
            self._learn(upstream, end, end.status)
        if upstream is not None and upstream.running == 0:
            upstream.peak = 0

    def _learn(self, upstream: _Upstream, end: RequestEnd, status: int) -> None:
        now = self._clock()
        slow = end.upstream_seconds is not None and end.upstream_seconds > self._latency
        if slow or status in self._errors:
            # What was sent before the last step back tells no more than that did.
            if now - upstream.slowed_at >= self._cooldown:
                upstream.limit, upstream.slowed_at = max(upstream.limit * self._backoff, self._least), now
        elif upstream.peak >= upstream.limit / 2:  # a limit that nobody comes near says nothing about what is borne
            before = int(upstream.limit)
            upstream.limit = min(upstream.limit + self._step / upstream.limit, self._most)
            if int(upstream.limit) > before:
                upstream.peak = upstream.running

    def _release(self, request_id: str) -> _Upstream | None:
        upstream, _ = self._running.pop(request_id, (None, 0.0))
        if upstream is not None:
            upstream.running -= 1
        return upstream

    def _forget(self) -> None:
        while self._running:
            request_id, (_, began) = next(iter(self._running.items()))
            if self._clock() - began < self._forget_after:
                return
            self._release(request_id)

    def _upstream(self, key: str) -> _Upstream:
        upstream = self._upstreams.setdefault(key, _Upstream(limit=float(self._start)))
        self._upstreams.move_to_end(key)
        if len(self._upstreams) > _MAX_KEYS:
            self._upstreams.popitem(last=False)
        return upstream
