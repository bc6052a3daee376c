from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sark_mw.pricing.anthropic import AnthropicCostEstimator
from sark_mw.pricing.base import Estimate, InvocationRequest
from sark_mw.pricing.learned import OutputAverage
from sark_mw.pricing.metered import MeteredEstimator
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.pricing.prices import PriceBook, PricingOptions
from sark_mw.usage import Usage
from tests.pricing.conftest import NOW

BOOK = PriceBook(clock=lambda: NOW)
OPENAI = OpenAICostEstimator(BOOK, PricingOptions())
ANTHROPIC = AnthropicCostEstimator(BOOK, PricingOptions())

OPENAI_MODELS = ["gpt-4o", "gpt-5", "gpt-5.4", "gpt-5.6-sol", "gpt-6-luna", "o3", "gpt-audio", "text-embedding-3-small", "gpt-77"]
ANTHROPIC_MODELS = ["claude-sonnet-4-5", "claude-haiku-5-5", "claude-opus-5", "claude-3-haiku-20240307", "claude-unheard-of"]

_share = st.floats(min_value=0, max_value=1)


def used(draw: st.DrawFn, estimate: Estimate, *, writes: str, tier: str | None, audio: bool) -> Usage:
    """Draw any consistent usage within the token ceilings of an estimate."""
    read = int(estimate.input_tokens * draw(_share))
    cached = int(read * draw(_share))
    written = int((read - cached) * draw(_share))
    output = int(estimate.max_output_tokens * draw(_share))
    return Usage(
        input_tokens=read,
        cache_read_tokens=cached,
        cache_write_5m_tokens=written if writes == "5m" else 0,
        cache_write_1h_tokens=written if writes == "1h" else 0,
        input_audio_tokens=min(int(estimate.audio_input_tokens * draw(_share)), read),
        output_tokens=output,
        reasoning_tokens=int(output * draw(_share)),
        output_audio_tokens=int(output * draw(_share)) if audio else 0,
        service_tier=tier,
    )


def check(estimator: MeteredEstimator, estimate: Estimate, usage: Usage) -> None:
    assert estimator.actual(usage, estimate) <= estimate.ceiling_nanos
    assert 0 <= estimate.expected_nanos <= estimate.ceiling_nanos


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_usage_within_the_token_ceilings_costs_more_than_the_hold_at_openai(data: st.DataObject) -> None:
    tier = data.draw(st.sampled_from([None, "auto", "default", "flex", "priority"]))
    audio = data.draw(st.booleans())
    content: list[dict[str, object]] = [{"type": "text", "text": "x " * data.draw(st.integers(0, 50))}]
    if data.draw(st.booleans()):
        content.append({"type": "input_audio", "input_audio": {"data": "A" * 5000, "format": "mp3"}})
    body: dict[str, object] = {"messages": [{"role": "user", "content": content}], "n": data.draw(st.integers(1, 4))}
    if data.draw(st.booleans()):
        # Enough to cross the long-context prices.
        body["prompt"] = [1] * data.draw(st.sampled_from([1, 271_000, 272_000, 300_000]))
    if tier is not None:
        body["service_tier"] = tier
    if audio:
        body["modalities"] = ["text", "audio"]
    if data.draw(st.booleans()):
        body["max_tokens"] = data.draw(st.integers(0, 200_000))
    estimate = OPENAI.estimate(InvocationRequest("c", "p", body), {"model": data.draw(st.sampled_from(OPENAI_MODELS))})
    served = data.draw(st.sampled_from([None, "default", {None: "default", "auto": "priority"}.get(tier, tier)]))
    writes = data.draw(st.sampled_from(["", "5m"]))
    check(OPENAI, estimate, data.draw(st.composite(used)(estimate, writes=writes, tier=served, audio=audio)))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_usage_within_the_token_ceilings_costs_more_than_the_hold_at_anthropic(data: st.DataObject) -> None:
    writes = data.draw(st.sampled_from(["", "5m", "1h"]))
    block: dict[str, object] = {"type": "text", "text": "ab " * data.draw(st.sampled_from([1, 60_000, 90_000, 120_000]))}
    if writes:
        block["cache_control"] = {"type": "ephemeral", "ttl": writes}
    body: dict[str, object] = {"messages": [{"role": "user", "content": [block]}]}
    if data.draw(st.booleans()):
        body["speed"] = "fast"
    if data.draw(st.booleans()):
        body["max_tokens"] = data.draw(st.integers(0, 200_000))
    estimate = ANTHROPIC.estimate(InvocationRequest("c", "p", body), {"model": data.draw(st.sampled_from(ANTHROPIC_MODELS))})
    served = data.draw(st.sampled_from([None, "standard", "priority"]))
    check(ANTHROPIC, estimate, data.draw(st.composite(used)(estimate, writes=writes, tier=served, audio=False)))


def test_the_expected_output_is_learned_per_model_and_never_above_the_limit() -> None:
    openai = OpenAICostEstimator(BOOK, PricingOptions(prior_output_tokens=512))
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4000, "n": 2}
    request = InvocationRequest("c", "p", body)
    before = openai.estimate(request, {"model": "gpt-4o"})
    assert before.expected_output_tokens == 2 * 512
    for _ in range(200):
        openai.observe(Usage(output_tokens=60), before)
    after = openai.estimate(request, {"model": "gpt-4o"})
    assert 2 * 28 <= after.expected_output_tokens <= 2 * 34
    assert after.expected_nanos < before.expected_nanos
    assert openai.estimate(request, {"model": "gpt-5"}).expected_output_tokens == 2 * 512
    short = InvocationRequest("c", "p", {**body, "max_tokens": 3})
    assert openai.estimate(short, {"model": "gpt-4o"}).expected_output_tokens == 6


def test_neither_guessed_nor_unfinished_usage_is_learned_from() -> None:
    openai = OpenAICostEstimator(BOOK, PricingOptions())
    request = InvocationRequest("c", "p", {"prompt": "x", "max_tokens": 4000})
    estimate = openai.estimate(request, {"model": "gpt-4o"})
    openai.observe(Usage(output_tokens=1, estimated=True), estimate)
    openai.observe(Usage(output_tokens=1, complete=False), estimate)
    assert openai.estimate(request, {"model": "gpt-4o"}).expected_output_tokens == 512


def test_what_is_learned_stays_bounded_whatever_names_come() -> None:
    average = OutputAverage(100)
    average.observe("first", 1000, 10)
    for index in range(1024):
        average.observe(f"model-{index}", 1000, 10)
    assert average.expected("first", 1000) == 100
    assert average.expected("model-1023", 1000) == 55


@pytest.mark.parametrize("service", ["code", "conv"])
def test_on_real_traffic_the_expected_output_adds_up_to_the_actual_one(service: str) -> None:
    directory = os.environ.get("SARK_TEST_TRACES", str(Path(__file__).parents[3] / "shared" / "traces"))
    trace = Path(directory) / f"azure_llm_2023_{service}.csv"
    if not trace.exists():
        pytest.skip("the traces are not here (SARK_TEST_TRACES)")
    average = OutputAverage(512)
    expected = actual = 0
    with trace.open(newline="") as rows:
        for row in csv.DictReader(rows):
            output = int(row["GeneratedTokens"])
            expected += average.expected("m", 4096)
            actual += output
            average.observe("m", 4096, output)
    assert abs(expected - actual) < actual * 0.1
