"""The provider's side: two fake providers, and a bill made from what they counted, without a line of the gateway's pricing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, MutableMapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price
from starlette.responses import JSONResponse

from sark_mw.demo.serving import serve
from sark_mw.testing import FakeCall, FakeProvider

#: A request with this header is answered at once, so that what is left of its latency is the gateway's.
INSTANT_HEADER = "x-demo-instant"
_INSTANT = (INSTANT_HEADER.encode(), b"1")


def charge_nanos(call: FakeCall) -> int:
    """Price one call with genai-prices' own arithmetic, rounded up to a whole nano-dollar."""
    usage = PricedUsage(
        input_tokens=call.usage.input_tokens,
        cache_read_tokens=call.usage.cache_read_tokens or None,
        output_tokens=call.usage.output_tokens or None,
    )
    provider = "anthropic" if call.operation == "messages" else "openai"
    price: Decimal = calc_price(usage, call.model, provider_id=provider).total_price
    return int((price * 10**9).to_integral_value(ROUND_CEILING))


def key_of(call: FakeCall) -> str:
    """Return the API key that came with a call."""
    return call.headers.get("x-api-key") or call.headers.get("authorization", "").removeprefix("Bearer ")


def bill(calls: Iterable[FakeCall]) -> dict[str, dict[str, int]]:
    """Add calls up by API key: how many, and their price in nano-dollars."""
    sums: dict[str, dict[str, int]] = {}
    for call in calls:
        entry = sums.setdefault(key_of(call), {"calls": 0, "nanos": 0})
        entry["calls"] += 1
        entry["nanos"] += charge_nanos(call)
    return sums


class BillingProvider:
    """An ASGI app: one fake provider that takes its time, one that does not, and `GET /bill`."""

    def __init__(self, *, ttft_s: float, chunk_s: float, mean_words: int) -> None:
        self.usual = FakeProvider(seed=1, ttft_s=ttft_s, chunk_s=chunk_s, mean_words=mean_words)
        self.instant = FakeProvider(seed=2)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/bill":
            seen = {"requests": self.usual.requests + self.instant.requests}
            body = {**seen, "keys": bill([*self.usual.calls, *self.instant.calls])}
            await JSONResponse(body)(scope, receive, send)
        elif scope["type"] == "http" and _INSTANT in scope["headers"]:
            await self.instant(scope, receive, send)
        else:
            await self.usual(scope, receive, send)


if __name__ == "__main__":
    ttft, chunk, words = sys.argv[1:4]
    asyncio.run(serve({"provider": (BillingProvider(ttft_s=float(ttft), chunk_s=float(chunk), mean_words=int(words)), 0)}))
