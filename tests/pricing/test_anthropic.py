from __future__ import annotations

from decimal import Decimal

import pytest

from sark_mw.pricing.anthropic import AnthropicCostEstimator
from sark_mw.pricing.base import Estimate, InvocationRequest, InvocationResult
from sark_mw.usage import Usage
from tests.pricing.test_openai import png

HELLO = {"messages": [{"role": "user", "content": "hello world"}]}
MODEL = "claude-opus-4-5"


def estimate(anthropic: AnthropicCostEstimator, body: dict[str, object], model: str = MODEL) -> Estimate:
    return anthropic.estimate(InvocationRequest("c", "p", body), {"model": model})


def asked(*blocks: dict[str, object]) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, *blocks]}]}


def test_a_request_is_held_at_the_list_price(anthropic: AnthropicCostEstimator) -> None:
    found = estimate(anthropic, {**HELLO, "max_tokens": 100})
    assert found.max_output_tokens == 100
    assert found.ceiling_nanos == found.input_tokens * 5000 + 100 * 25_000
    assert 11 <= found.expected_input_tokens <= found.input_tokens


def test_a_missing_limit_holds_what_the_model_can_produce(anthropic: AnthropicCostEstimator) -> None:
    assert estimate(anthropic, HELLO).max_output_tokens == 64_000
    assert estimate(anthropic, HELLO, "claude-3-haiku-20240307").max_output_tokens == 4096


def test_a_thinking_budget_above_the_limit_is_held(anthropic: AnthropicCostEstimator) -> None:
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 3000}}
    assert estimate(anthropic, {**HELLO, "max_tokens": 100, **thinking}).max_output_tokens == 3000


@pytest.mark.parametrize(
    ("control", "per_token"),
    [
        (None, 5000),
        ({"type": "ephemeral"}, 6250),
        ({"type": "ephemeral", "ttl": "5m"}, 6250),
        ({"type": "ephemeral", "ttl": "1h"}, 10_000),
    ],
)
@pytest.mark.parametrize("place", ["top", "system", "tools", "block", "nested"])
def test_a_request_that_may_write_to_the_cache_is_held_at_the_price_of_writing(
    anthropic: AnthropicCostEstimator, control: dict[str, str] | None, per_token: int, place: str
) -> None:
    marked = {} if control is None else {"cache_control": control}
    text = {"type": "text", "text": "hello", **marked}
    body: dict[str, object] = {**HELLO, "max_tokens": 1}
    if place == "top":
        body.update(marked)
    elif place == "system":
        body["system"] = [text]
    elif place == "tools":
        body["tools"] = [{"name": "f", "input_schema": {"type": "object"}, **marked}]
    elif place == "block":
        body["messages"] = [{"role": "user", "content": [text]}]
    else:
        body["messages"] = [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [text]}]}]
    found = estimate(anthropic, body)
    assert found.ceiling_nanos == found.input_tokens * per_token + 25_000


def test_system_text_and_blocks_tools_and_results_add_to_the_input(anthropic: AnthropicCostEstimator) -> None:
    plain = estimate(anthropic, HELLO).input_tokens
    text = {"type": "text", "text": "You are helpful."}
    assert estimate(anthropic, {**HELLO, "system": "You are helpful."}).input_tokens > plain
    assert estimate(anthropic, {**HELLO, "system": [text]}).input_tokens > plain
    assert estimate(anthropic, {**HELLO, "tools": [{"name": "f", "input_schema": {}}]}).input_tokens > plain + 500
    assert estimate(anthropic, {**HELLO, "mcp_servers": [{"url": "u"}]}).input_tokens > plain + 30_000
    search = {"type": "web_search_20250305", "name": "web_search"}
    assert estimate(anthropic, {**HELLO, "tools": [search]}).input_tokens > plain + 30_000
    one = estimate(anthropic, asked()).input_tokens
    for block in (
        {"type": "tool_use", "id": "t", "name": "f", "input": {"q": "paris"}},
        {"type": "tool_result", "tool_use_id": "t", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "t", "content": [text]},
        {"type": "thinking", "thinking": "hmm", "signature": "abc"},
        {"type": "document", "source": {"type": "text", "data": "a page"}},
        {"type": "document", "source": {"type": "content", "content": [text]}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
        {"type": "document", "source": {"type": "file", "file_id": "f"}},
        {"type": "search_result", "source": "u", "title": "t", "content": [text]},
    ):
        assert estimate(anthropic, asked(block)).input_tokens > one


@pytest.mark.parametrize(
    ("model", "size", "least", "most"),
    [
        (MODEL, (1000, 750), 1000, 1100),
        (MODEL, (8000, 8000), 1600, 1640),
        (MODEL, None, 1600, 1640),
        ("claude-opus-5", None, 4784, 4784),
        ("claude-sonnet-4-20250514", None, 1600, 1640),
        ("claude-opus-4-7", (1000, 750), 1000, 1100),
    ],
)
def test_images_are_counted_by_area_up_to_the_models_bound(
    anthropic: AnthropicCostEstimator, model: str, size: tuple[int, int] | None, least: int, most: int
) -> None:
    data = {"type": "base64", "media_type": "image/png", "data": png(*size).partition(",")[2]} if size else {"type": "url"}
    added = estimate(anthropic, asked({"type": "image", "source": data}), model).input_tokens
    assert least <= added - estimate(anthropic, asked(), model).input_tokens <= most


def test_fast_speed_has_its_price_before_and_after(anthropic: AnthropicCostEstimator) -> None:
    body = {**HELLO, "max_tokens": 100}
    fast = estimate(anthropic, {**body, "speed": "fast"}, "claude-opus-5")
    assert fast.ceiling_nanos == 2 * estimate(anthropic, body, "claude-opus-5").ceiling_nanos
    assert anthropic.actual(Usage(output_tokens=1, service_tier="standard"), fast) == 50_000


async def test_the_actual_cost_counts_cached_tokens_beside_the_input(anthropic: AnthropicCostEstimator) -> None:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 500,
        "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 300},
        "output_tokens": 20,
        "service_tier": "standard",
    }
    nanos = 10 * 5000 + 100 * 500 + 200 * 6250 + 300 * 10_000 + 20 * 25_000
    for result in (InvocationResult(True, {"usage": usage}), InvocationResult(True, metadata={"usage": usage})):
        cost = await anthropic.record_actual_cost(InvocationRequest("c", "p", HELLO), result, {"model": MODEL})
        assert cost is not None
        assert cost.estimated_cost == Decimal(nanos).scaleb(-9)
        assert (cost.breakdown["input_tokens"], cost.breakdown["total_tokens"], cost.breakdown["actual"]) == (610, 630, True)


async def test_cache_writes_without_their_duration_are_five_minutes(anthropic: AnthropicCostEstimator) -> None:
    usage = {"input_tokens": 0, "cache_creation_input_tokens": 100, "output_tokens": 0}
    result = InvocationResult(True, {"usage": usage})
    cost = await anthropic.record_actual_cost(InvocationRequest("c", "p", HELLO), result, {"model": MODEL})
    assert cost is not None
    assert cost.estimated_cost == Decimal("0.000625")
