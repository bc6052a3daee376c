"""What a request may cost that names other models to fall back to: as much as the dearest of them."""

from __future__ import annotations

from typing import Any

import pytest

from sark_mw._fake_provider import FakeProvider
from sark_mw.errors import InvalidRequestError
from sark_mw.pricing.anthropic import AnthropicCostEstimator
from sark_mw.pricing.base import Estimate, InvocationRequest
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.usage import Usage
from tests.asgi.conftest import MakeGateway, make  # noqa: F401  # a fixture
from tests.asgi.driving import CHAT

BODY = {"messages": [{"role": "user", "content": "hello world"}], "max_tokens": 1000, "service_tier": "default"}


def estimate(openai: OpenAICostEstimator, model: str, **more: Any) -> Estimate:
    body = {**BODY, "model": model, **more}
    return openai.estimate(InvocationRequest("c", "p", body), {"model": model})


@pytest.mark.parametrize(
    "named",
    [
        {"models": ["gpt-4o-mini", "gpt-4o"]},
        {"fallbacks": ["gpt-4o"]},
        {"fallbacks": [{"model": "gpt-4o"}]},
        {"fallbacks": [{"gpt-4o-mini": ["gpt-4.1-mini", "gpt-4o"]}]},
        {"context_window_fallbacks": [{"gpt-4o-mini": "gpt-4o"}]},
        {"content_policy_fallbacks": {"gpt-4o-mini": ["gpt-4o"]}},
    ],
)
def test_the_dearest_model_is_held_and_the_one_that_was_asked_for_is_expected(
    openai: OpenAICostEstimator, named: dict[str, Any]
) -> None:
    small, large = estimate(openai, "gpt-4o-mini"), estimate(openai, "gpt-4o")
    found = estimate(openai, "gpt-4o-mini", **named)
    assert large.ceiling_nanos > 10 * small.ceiling_nanos
    assert (found.ceiling_nanos, found.expected_nanos, found.model) == (large.ceiling_nanos, small.expected_nanos, "gpt-4o-mini")
    served = Usage(input_tokens=9, output_tokens=1000, model="gpt-4o", service_tier="default")
    assert small.ceiling_nanos < openai.actual(served, found) <= found.ceiling_nanos
    assert openai.actual(Usage(input_tokens=9, output_tokens=1000), found) <= small.ceiling_nanos


def test_a_fallbacks_own_limit_counts(openai: OpenAICostEstimator) -> None:
    longer = estimate(openai, "gpt-4o-mini", fallbacks=[{"model": "gpt-4o-mini", "max_tokens": 9000}])
    assert longer.ceiling_nanos == estimate(openai, "gpt-4o-mini", max_tokens=9000).ceiling_nanos


def test_cheaper_fallbacks_and_none_change_nothing(openai: OpenAICostEstimator) -> None:
    alone = estimate(openai, "gpt-4o")
    for named in ({"models": ["gpt-4o", "gpt-4o-mini"]}, {"fallbacks": []}, {"fallbacks": None}):
        assert estimate(openai, "gpt-4o", **named) == alone


@pytest.mark.parametrize(
    "named",
    [
        {"fallbacks": "default"},
        {"fallbacks": [1]},
        {"fallbacks": [{"model": None}]},
        {"models": [""]},
        {"models": [f"m{n}" for n in range(9)]},
        {"models": [[[["gpt-4o"]]]] * 2000},
    ],
)
def test_fallbacks_that_cannot_be_read_are_refused(openai: OpenAICostEstimator, named: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        estimate(openai, "gpt-4o", **named)
    assert refused.value.param == next(iter(named))


def test_anthropics_requests_too(anthropic: AnthropicCostEstimator) -> None:
    def of(model: str, **more: Any) -> Estimate:
        body = {"model": model, "max_tokens": 500, "messages": [{"role": "user", "content": "hello"}], **more}
        return anthropic.estimate(InvocationRequest("c", "p", body), {"model": model})

    assert of("claude-haiku-4-5", fallbacks=[{"model": "claude-opus-4-1"}]).ceiling_nanos == of("claude-opus-4-1").ceiling_nanos


async def test_a_budget_that_the_dearest_does_not_fit_refuses(make: MakeGateway) -> None:  # noqa: F811
    gateway = await make(FakeProvider(), limits=({"scope": "user:a", "amount": "0.001"},))
    body = {**CHAT, "model": "gpt-4o-mini", "max_tokens": 200}
    assert (await gateway.post(body)).status == 200
    assert (await gateway.post({**body, "models": ["gpt-4o"]})).status == 402
