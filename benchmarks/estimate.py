"""Estimating a request: how long the price and the tokens of one take. Target: under a millisecond."""

from __future__ import annotations

import json

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from benchmarks.figures import Figure, Options, p50_p99, percentile, time_calls
from sark_mw.pricing.base import InvocationRequest
from sark_mw.pricing.metered import MeteredEstimator
from sark_mw.pricing.registry import builtin_estimators

_SENTENCE = "The harbour was quiet in the early morning, and the first boats had not come back yet. "


def _bodies() -> dict[str, tuple[str, dict[str, object]]]:
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": _SENTENCE * 20} for n in range(20)]
    tool = {
        "name": "search",
        "description": _SENTENCE,
        "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}},
    }
    return {
        "chat, 20 words": (
            "openai",
            {"model": "gpt-4o", "max_tokens": 100, "messages": [{"role": "user", "content": _SENTENCE}]},
        ),
        "chat, 20 turns, 7,000 words": ("openai", {"model": "gpt-4o", "messages": turns}),
        "embeddings, 64 texts": ("openai", {"model": "text-embedding-3-small", "input": [_SENTENCE] * 64}),
        "messages with system and 5 tools": (
            "anthropic",
            {
                "model": "claude-sonnet-4-5",
                "max_tokens": 1000,
                "system": [{"type": "text", "text": _SENTENCE * 20}],
                "tools": [tool] * 5,
                "messages": [{"role": "user", "content": _SENTENCE}],
            },
        ),
    }


async def run(options: Options) -> list[Figure]:
    """Measure estimates of four bodies, pricing of a usage, and genai-prices' own pricing beside it."""
    estimators = builtin_estimators()
    figures: list[Figure] = []
    small: MeteredEstimator | None = None
    for name, (provider, body) in _bodies().items():
        estimator = estimators[provider]
        assert isinstance(estimator, MeteredEstimator)
        request = InvocationRequest("chat", "user:alice", body)
        metadata = {"model": body["model"]}
        once = estimator.estimate
        once(request, metadata)
        took = time_calls(lambda once=once, request=request, metadata=metadata: once(request, metadata), options.count(2000))
        raw = json.dumps(body)
        parsing = percentile(time_calls(lambda raw=raw: json.loads(raw), options.count(500)), 50)
        note = f"{percentile(took, 50) / parsing:.1f} × json.loads of the same body"
        figures += p50_p99(name, took, most_p99=1000, note=note)
        small = small or estimator
    return figures + _pricing(small, options)


def _pricing(estimator: MeteredEstimator | None, options: Options) -> list[Figure]:
    assert estimator is not None
    from sark_mw.usage import Usage

    body = {"model": "gpt-4o", "max_tokens": 100, "messages": [{"role": "user", "content": _SENTENCE}]}
    estimate = estimator.estimate(InvocationRequest("chat", "user:alice", body), {"model": "gpt-4o"})
    usage = Usage(input_tokens=100, cache_read_tokens=50, output_tokens=80, model="gpt-4o")
    ours = time_calls(lambda: estimator.actual(usage, estimate), options.count(5000))
    priced = PricedUsage(input_tokens=100, cache_read_tokens=50, output_tokens=80)
    theirs = time_calls(lambda: calc_price(priced, "gpt-4o", provider_id="openai"), options.count(1000))
    ratio = percentile(ours, 50) / percentile(theirs, 50)
    return [
        *p50_p99("price of a usage", ours),
        Figure(name="the same by genai-prices, p50", value=percentile(theirs, 50) * 1e6, unit="µs"),
        Figure(name="ours ÷ genai-prices", value=ratio, unit="×", most=0.1),
    ]
