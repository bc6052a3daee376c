"""Added latency: the same request through the middleware and past it, in turn, to the same gateway in the same process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles

import httpx2

from sark_mw.demo.cast import BYPASS_KEY, PROBE_KEY
from sark_mw.demo.provider import INSTANT_HEADER

_PAUSE_S = 0.02
_BODY = {"model": "text-embedding-3-small", "input": "how long does this take"}


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile by interpolation; 0 where there is nothing to judge by."""
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else sum(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What the middleware adds to a request, in milliseconds: the difference of each percentile, and how many pairs."""

    p50_ms: float
    p99_ms: float
    bare_p50_ms: float
    bare_p99_ms: float
    pairs: int


@dataclass(slots=True)
class Probe:
    """Times requests in pairs, through the middleware and bare, in changing order; their provider answers at once."""

    gateway: str
    bare: str
    through: list[float] = field(default_factory=list)
    past: list[float] = field(default_factory=list)

    async def run(self, pairs: int | None = None) -> None:
        """Measure so many pairs, or until cancelled."""
        async with httpx2.AsyncClient(timeout=60) as client:
            for base in (self.gateway, self.bare):
                await self._time(client, base)  # the first call of a connection is another thing
            number = 0
            while pairs is None or number < pairs:
                order = ((self.gateway, self.through), (self.bare, self.past))
                took = [(into, await self._time(client, base)) for base, into in (order if number % 2 else order[::-1])]
                for into, seconds in took:
                    into.append(seconds)
                number += 1
                await asyncio.sleep(_PAUSE_S)

    async def _time(self, client: httpx2.AsyncClient, base: str) -> float:
        started = time.perf_counter()
        headers = {"authorization": f"Bearer {BYPASS_KEY if base == self.bare else PROBE_KEY}", INSTANT_HEADER: "1"}
        answer = await client.post(f"{base}/v1/embeddings", json=_BODY, headers=headers)
        took = time.perf_counter() - started
        answer.raise_for_status()
        return took

    def added(self) -> Added:
        """Compare what was measured."""
        through = [percentile(self.through, p) * 1000 for p in (50, 99)]
        past = [percentile(self.past, p) * 1000 for p in (50, 99)]
        return Added(
            p50_ms=through[0] - past[0],
            p99_ms=through[1] - past[1],
            bare_p50_ms=past[0],
            bare_p99_ms=past[1],
            pairs=len(self.past),
        )
