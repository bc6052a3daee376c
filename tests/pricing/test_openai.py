from __future__ import annotations

import base64
import struct
from decimal import Decimal

import pytest

from sark_mw.errors import InvalidRequestError
from sark_mw.pricing.base import Estimate, InvocationRequest, InvocationResult
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.pricing.prices import PriceBook, PriceOverride, PricingOptions
from sark_mw.pricing.tokens import tokenizer
from sark_mw.usage import Usage

CHAT = {"messages": [{"role": "user", "content": "hello world"}]}


def estimate(openai: OpenAICostEstimator, body: dict[str, object], model: str = "gpt-4o", **metadata: object) -> Estimate:
    return openai.estimate(InvocationRequest("c", "p", body), {"model": model, **metadata})


def with_options(book: PriceBook, **options: object) -> OpenAICostEstimator:
    return OpenAICostEstimator(book, PricingOptions(**options))  # type: ignore[arg-type]


def png(width: int, height: int) -> str:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(40)
    return "data:image/png;base64," + base64.b64encode(head).decode()


def test_a_chat_request_is_priced_by_hand(openai: OpenAICostEstimator) -> None:
    if tokenizer("o200k_base") is None:
        pytest.skip("the tokenizer extra is not installed")
    found = estimate(openai, {**CHAT, "max_tokens": 100, "service_tier": "default"})
    # 2 tokens of text, 4 for the message, 3 for the primed answer; $2.50 and $10 per million.
    assert (found.input_tokens, found.max_output_tokens) == (9, 100)
    assert found.ceiling_nanos == 9 * 2500 + 100 * 10_000
    assert found.output_limited


async def test_the_breakdown_is_as_promised(openai: OpenAICostEstimator) -> None:
    if tokenizer("o200k_base") is None:
        pytest.skip("the tokenizer extra is not installed")
    cost = await openai.estimate_cost(
        InvocationRequest("c", "p", {**CHAT, "max_tokens": 100, "service_tier": "flex"}), {"model": "gpt-4o"}
    )
    assert cost.estimated_cost == Decimal("0.0010225")
    assert cost.breakdown == {
        "input_tokens": 9,
        "output_tokens": 100,
        "input_cost_per_1m": "2.50",
        "output_cost_per_1m": "10.00",
        "input_cost": "0.0000225",
        "output_cost": "0.001",
    }
    assert (cost.provider, cost.model, cost.currency) == ("openai", "gpt-4o", "USD")


LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
ENDPOINTS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "chat": (CHAT, LIMITS[:2]),
    "completions": ({"prompt": "hello"}, LIMITS[:1]),
    "responses": ({"input": "hello"}, LIMITS[2:]),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_each_endpoint_has_its_own_output_limits_and_passes_over_the_others(
    openai: OpenAICostEstimator, endpoint: str, named: bool
) -> None:
    body, own = ENDPOINTS[endpoint]
    metadata = {"endpoint": endpoint} if named else {}
    for name in LIMITS:
        found = estimate(openai, {**body, name: 50.0, "n": 3}, **metadata)
        assert (found.max_output_tokens, found.choices) == (150 if name in own else 3 * 16_384, 3)
        assert found.output_limited is (name in own)
    every = {name: 10 * (place + 1) for place, name in enumerate(LIMITS)}
    assert estimate(openai, {**body, **every}, **metadata).max_output_tokens == max(every[name] for name in own)


@pytest.mark.parametrize("nothing", [0, None, 0.0])
def test_a_limit_of_nothing_is_no_limit(openai: OpenAICostEstimator, nothing: object) -> None:
    for body, own in ENDPOINTS.values():
        found = estimate(openai, {**body, **dict.fromkeys(own, nothing)})
        assert (found.max_output_tokens, found.output_limited) == (16_384, False)
    assert estimate(openai, {**CHAT, "max_tokens": 0, "max_completion_tokens": 7}).max_output_tokens == 7


def test_a_body_that_also_looks_like_another_endpoints_is_read_as_its_own(openai: OpenAICostEstimator) -> None:
    body = {"messages": CHAT["messages"], "input": "x", "max_output_tokens": 1, "max_tokens": 100}
    assert estimate(openai, body, endpoint="chat").max_output_tokens == 100
    assert estimate(openai, body, endpoint="responses").max_output_tokens == 1


def test_completions_multiply_by_prompts_and_by_best_of(openai: OpenAICostEstimator) -> None:
    body = {"prompt": ["a", "b"], "max_tokens": 10, "n": 2, "best_of": 5}
    assert estimate(openai, body, "gpt-3.5-turbo-instruct").max_output_tokens == 100
    assert estimate(openai, {"prompt": [1, 2, 3], "max_tokens": 10}, "babbage-002").max_output_tokens == 10
    assert estimate(openai, {"prompt": [[1, 2], [3]], "max_tokens": 10}, "babbage-002").max_output_tokens == 20


def test_more_than_128_choices_are_refused(openai: OpenAICostEstimator) -> None:
    assert estimate(openai, {**CHAT, "max_tokens": 1, "n": 128}).choices == 128
    with pytest.raises(InvalidRequestError):
        estimate(openai, {**CHAT, "max_tokens": 1, "n": 129})


def test_without_a_limit_the_models_maximum_is_held_or_the_settings_cap(book: PriceBook) -> None:
    assert estimate(with_options(book), CHAT).max_output_tokens == 16_384
    assert not estimate(with_options(book), CHAT).output_limited
    assert estimate(with_options(book, max_output_tokens_cap=1000), CHAT).max_output_tokens == 1000
    assert estimate(with_options(book, max_output_tokens_cap=1000), {**CHAT, "max_tokens": 5000}).max_output_tokens == 5000
    assert estimate(with_options(book, default_max_output_tokens=777), CHAT, "gpt-77").max_output_tokens == 777


def test_an_embedding_has_no_output(openai: OpenAICostEstimator) -> None:
    found = estimate(openai, {"input": [[1, 2, 3], [4, 5]]}, "text-embedding-3-small")
    assert (found.input_tokens, found.max_output_tokens, found.ceiling_nanos) == (8, 0, 8 * 20)
    assert estimate(openai, {"input": "text"}, "unheard-of", endpoint="embeddings").max_output_tokens == 0
    assert estimate(openai, {"input": "text"}, "unheard-of").max_output_tokens > 0


def test_every_part_of_a_request_adds_to_the_input(openai: OpenAICostEstimator) -> None:
    plain = estimate(openai, CHAT).input_tokens
    tool = {"type": "function", "function": {"name": "f", "description": "finds things", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for more in (
        {"tools": [tool]},
        {"functions": [tool["function"]]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"instructions": "be brief"},
        {"messages": [*CHAT["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}]},
        {"messages": [{"role": "user", "name": "alice", "content": "hello world"}]},
        {"previous_response_id": "resp_1"},
        {"tools": [{"type": "web_search"}]},
    ):
        assert estimate(openai, {**CHAT, **more}).input_tokens > plain


def test_responses_take_text_and_items(openai: OpenAICostEstimator) -> None:
    text = estimate(openai, {"input": "hello world", "max_output_tokens": 5}, "gpt-5")
    items = estimate(
        openai,
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello world"}]}], "max_output_tokens": 5},
        "gpt-5",
    )
    assert text.input_tokens < items.input_tokens < text.input_tokens + 10
    output = {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": png(1024, 1024)}}
    assert estimate(openai, {"input": [output]}, "gpt-5").input_tokens > 600


def test_what_is_not_in_the_body_holds_the_configured_maximum_within_the_context_window(book: PriceBook) -> None:
    openai = with_options(book, opaque_tokens=10_000)
    plain = estimate(openai, {"input": "x"}).input_tokens
    assert estimate(openai, {"input": "x", "previous_response_id": "r"}).input_tokens == plain + 10_000
    assert estimate(openai, {"previous_response_id": "r"}).input_tokens >= 10_000
    files = [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}] * 50}]
    assert 128_000 < estimate(openai, {"input": files}).input_tokens < 129_000


@pytest.mark.parametrize(
    ("model", "detail", "url", "tokens"),
    [
        ("gpt-4o", "high", png(1024, 1024), 85 + 4 * 170),
        ("gpt-4o", "auto", png(2048, 4096), 85 + 6 * 170),
        ("gpt-4o", "low", png(2048, 4096), 85),
        ("gpt-4o", "high", "https://example.com/x.png", 85 + 8 * 170),
        ("gpt-4o-mini", "high", png(512, 512), 2833 + 5667),
        ("gpt-4.1-mini", "high", png(1024, 1024), 1659),
        ("gpt-6-sol", "high", "https://example.com/x.png", 12_000),
    ],
)
def test_images_are_counted_by_the_models_rule(
    openai: OpenAICostEstimator, model: str, detail: str, url: str, tokens: int
) -> None:
    def body(*parts: dict[str, object]) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, *parts]}]}

    image = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
    added = estimate(openai, body(image), model).input_tokens - estimate(openai, body(), model).input_tokens
    assert added == tokens


def test_spoken_input_is_held_at_the_price_of_audio(openai: OpenAICostEstimator) -> None:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(bytes(80_000)).decode(), "format": "wav"}}
    body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 10}
    found = estimate(openai, body, "gpt-audio")
    assert found.audio_input_tokens == 116
    assert found.ceiling_nanos == 116 * 32_000 + (found.input_tokens - 116) * 2500 + 10 * 10_000
    spoken = estimate(openai, {**body, "modalities": ["text", "audio"]}, "gpt-audio")
    assert spoken.ceiling_nanos - found.ceiling_nanos == 10 * (64_000 - 10_000)


def test_rejected_predictions_may_come_on_top_of_the_output(openai: OpenAICostEstimator) -> None:
    body = {**CHAT, "max_tokens": 10, "prediction": {"type": "content", "content": "abcdef"}}
    assert estimate(openai, body).max_output_tokens == 16


@pytest.mark.parametrize(("tier", "factor"), [(None, 2), ("default", 1), ("flex", 1), ("auto", 2), ("priority", 2), ("odd", 1)])
def test_the_ceiling_takes_the_dearest_tier_that_may_serve(openai: OpenAICostEstimator, tier: str | None, factor: int) -> None:
    body = {**CHAT, "max_tokens": 100}
    standard = estimate(openai, {**body, "service_tier": "default"}, "gpt-5").ceiling_nanos
    assert estimate(openai, {**body, "service_tier": tier}, "gpt-5").ceiling_nanos == standard * factor


def test_a_project_whose_tier_is_known_is_held_in_that(book: PriceBook) -> None:
    body = {**CHAT, "max_tokens": 100}
    costs = [estimate(with_options(book, default_service_tier=tier), body, "gpt-5") for tier in (None, "default", "priority")]
    assert costs[0].ceiling_nanos == 2 * costs[1].ceiling_nanos == costs[2].ceiling_nanos
    assert costs[0].expected_nanos == costs[1].expected_nanos == costs[2].expected_nanos // 2


def test_flex_is_expected_at_half_the_price_and_charged_so(openai: OpenAICostEstimator) -> None:
    body = {**CHAT, "max_tokens": 100}
    flex = estimate(openai, {**body, "service_tier": "flex"}, "gpt-5")
    assert flex.expected_nanos * 2 == estimate(openai, body, "gpt-5").expected_nanos
    assert openai.actual(Usage(output_tokens=100), flex) == 100 * 5000
    assert openai.actual(Usage(output_tokens=100, service_tier="default"), flex) == 100 * 10_000


def test_a_ceiling_across_the_long_context_price_is_at_the_higher_one(openai: OpenAICostEstimator) -> None:
    body = {"input": [[1] * 272_001], "max_output_tokens": 1, "service_tier": "default"}
    found = estimate(openai, body, "gpt-5.4")
    assert found.ceiling_nanos == found.input_tokens * 5000 + 22_500


def test_an_unknown_model_is_flagged_or_refused(book: PriceBook) -> None:
    found = estimate(with_options(book), {**CHAT, "max_tokens": 10}, "my-alias")
    assert found.unknown_model
    assert found.ceiling_nanos == found.input_tokens * 150_000 + 10 * 600_000
    with pytest.raises(InvalidRequestError) as refused:
        estimate(with_options(book, on_unknown_model="deny"), CHAT, "my-alias")
    assert refused.value.param == "model"


def test_a_hold_beyond_what_can_be_counted_exactly_is_refused(openai: OpenAICostEstimator) -> None:
    with pytest.raises(InvalidRequestError, match="more than can be reserved"):
        estimate(openai, {**CHAT, "max_tokens": 10**9, "n": 128}, "o1-pro")


def test_what_is_affordable_is_the_largest_limit_that_fits(openai: OpenAICostEstimator) -> None:
    body = {**CHAT, "n": 2, "max_tokens": 1000}
    limit = estimate(openai, body).affordable_output_tokens(5_000_000)
    assert limit is not None
    assert estimate(openai, {**body, "max_tokens": limit}).ceiling_nanos <= 5_000_000
    assert estimate(openai, {**body, "max_tokens": limit + 1}).ceiling_nanos > 5_000_000
    assert estimate(openai, body).affordable_output_tokens(10) is None


def test_the_model_that_answered_is_charged_where_it_is_known(openai: OpenAICostEstimator) -> None:
    asked = estimate(openai, {**CHAT, "max_tokens": 10}, "my-alias")
    assert openai.actual(Usage(output_tokens=10, model="gpt-4o-2024-08-06"), asked) == 10 * 10_000
    assert openai.actual(Usage(output_tokens=10, model="unheard-of"), asked) == 10 * 600_000


def test_the_users_own_price_is_charged_whatever_model_answered() -> None:
    own = PriceOverride(model="my-alias", input_per_1m=Decimal(1), output_per_1m=Decimal(2))
    options = PricingOptions(overrides=[own])
    openai = OpenAICostEstimator(PriceBook(options), options)
    asked = estimate(openai, {**CHAT, "max_tokens": 10}, "my-alias")
    assert openai.actual(Usage(output_tokens=10, model="gpt-4o"), asked) == 10 * 2000


USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 200,
    "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 100, "rejected_prediction_tokens": 50},
}
RESPONSES_USAGE = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 600},
    "output_tokens": 200,
    "output_tokens_details": {"reasoning_tokens": 100},
}


@pytest.mark.parametrize(
    "result",
    [
        InvocationResult(True, metadata={"usage": USAGE}),
        InvocationResult(True, {"id": "x", "usage": USAGE}),
        InvocationResult(True, {"id": "x", "usage": RESPONSES_USAGE}),
        InvocationResult(True, metadata={"usage": Usage(input_tokens=1000, cache_read_tokens=600, output_tokens=200)}),
    ],
)
async def test_the_actual_cost_is_read_off_the_metadata_and_the_body(
    openai: OpenAICostEstimator, result: InvocationResult
) -> None:
    cost = await openai.record_actual_cost(InvocationRequest("c", "p", CHAT), result, {"model": "gpt-4o"})
    assert cost is not None
    assert cost.estimated_cost == Decimal("0.00375")
    assert cost.breakdown == {
        "input_tokens": 1000,
        "output_tokens": 200,
        "input_cost_per_1m": "2.50",
        "output_cost_per_1m": "10.00",
        "input_cost": "0.00175",
        "output_cost": "0.002",
        "total_tokens": 1200,
        "actual": True,
    }


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -5}, {"prompt_tokens": "7"}, {"prompt_tokens": True}, "many"])
async def test_no_usage_is_no_actual_cost_but_a_zero_is_zero(openai: OpenAICostEstimator, usage: object) -> None:
    request = InvocationRequest("c", "p", CHAT)
    assert await openai.record_actual_cost(request, InvocationResult(True, {"usage": usage}), {"model": "gpt-4o"}) is None
    zero = InvocationResult(True, {"usage": {"prompt_tokens": 0, "completion_tokens": 0}})
    cost = await openai.record_actual_cost(request, zero, {"model": "gpt-4o"})
    assert cost is not None
    assert cost.estimated_cost == 0


def test_another_provider_that_speaks_the_dialect_has_its_own_prices(book: PriceBook) -> None:
    groq = OpenAICostEstimator(book, PricingOptions(), provider="groq")
    found = estimate(groq, {**CHAT, "max_tokens": 10}, "llama-3.3-70b-versatile")
    assert (found.provider, found.unknown_model) == ("groq", False)
