"""Requests that are made to cost more than is held for them, or that cost what no count of tokens tells."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest

from sark_mw.assembly import make_estimators
from sark_mw.errors import ConfigurationError
from sark_mw.pricing.anthropic import AnthropicCostEstimator
from sark_mw.pricing.base import Estimate, InvocationRequest, InvocationResult
from sark_mw.pricing.gemini import GeminiCostEstimator
from sark_mw.pricing.metered import MeteredEstimator
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.pricing.prices import PriceBook, PriceOverride, PricingOptions
from sark_mw.pricing.tokens import TextCounter, tokenizer
from sark_mw.settings import PricingSettings
from sark_mw.usage import Usage
from tests.pricing.conftest import NOW

CHAT: dict[str, object] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1, "service_tier": "default"}
ASK: dict[str, object] = {"input": "hello", "max_output_tokens": 1, "service_tier": "default"}
MESSAGES: dict[str, object] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
CENT = 10_000_000
WINDOWS = {"gpt-4o": 128_000, "gpt-4.1": 1_000_000, "unheard-of": 1_050_000}


def estimate(estimator: MeteredEstimator, body: dict[str, object], model: str, **metadata: object) -> Estimate:
    return estimator.estimate(InvocationRequest("c", "p", body), {"model": model, **metadata})


@pytest.mark.parametrize("model", WINDOWS)
@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"type": "item_reference", "id": "i"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://example.com/x.pdf"}]}]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "mcp", "server_url": "https://example.com"}]},
    ],
)
def test_what_is_not_in_the_body_holds_the_whole_context_window(
    openai: OpenAICostEstimator, model: str, more: dict[str, object]
) -> None:
    assert estimate(openai, {**ASK, **more}, model).input_tokens >= WINDOWS[model]
    assert estimate(openai, ASK, model).input_tokens < 20


def test_so_it_does_at_anthropic_and_google(anthropic: AnthropicCostEstimator, book: PriceBook) -> None:
    document = {"type": "document", "source": {"type": "url", "url": "https://example.com/x.pdf"}}
    for more in ({"messages": [{"role": "user", "content": [document]}]}, {"mcp_servers": [{"url": "u"}]}):
        assert estimate(anthropic, {**MESSAGES, **more}, "claude-opus-4-5").input_tokens >= 200_000
    part = {"fileData": {"fileUri": "https://example.com/x.mp4"}}
    found = estimate(GeminiCostEstimator(book), {"contents": [{"parts": [part]}]}, "gemini-2.5-flash")
    assert found.input_tokens >= 1_000_000


def test_who_knows_how_long_these_are_may_say_so(book: PriceBook) -> None:
    openai = OpenAICostEstimator(book, PricingOptions(opaque_tokens=7))
    known = estimate(openai, ASK, "gpt-4o").input_tokens
    assert estimate(openai, {**ASK, "previous_response_id": "r"}, "gpt-4o").input_tokens == known + 7


# --- fees -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tools", "more", "model", "fee"),
    [
        ([{"type": "web_search"}], {"max_tool_calls": 5}, "gpt-5", 5 * CENT),
        ([{"type": "web_search"}], {}, "gpt-5", 16 * CENT),
        ([{"type": "web_search_preview"}], {"max_tool_calls": 2}, "gpt-4o", 5 * CENT),
        ([{"type": "web_search_preview"}], {"max_tool_calls": 2}, "gpt-5", 2 * CENT),
        ([{"type": "file_search"}], {"max_tool_calls": 4}, "gpt-5", CENT),
        ([{"type": "code_interpreter", "container": {"type": "auto"}}], {}, "gpt-5", 3 * CENT),
        ([{"type": "function", "name": "f"}], {}, "gpt-5", 0),
    ],
)
def test_the_fees_of_openais_tools_are_held_up_to_a_bound(
    book: PriceBook, tools: list[object], more: dict[str, object], model: str, fee: int
) -> None:
    openai = OpenAICostEstimator(book, PricingOptions(opaque_tokens=0))
    found = estimate(openai, {**ASK, **more, "tools": tools}, model)
    free = OpenAICostEstimator(PriceBook(FREE, clock=lambda: NOW), FREE)
    assert found.ceiling_nanos - estimate(free, {**ASK, **more, "tools": tools}, model).ceiling_nanos == fee


FREE = PricingOptions(opaque_tokens=0, tool_fees=dict.fromkeys(("web_search", "file_search", "code_session"), Decimal(0)))


def test_a_fee_is_charged_for_each_call_that_was_made(openai: OpenAICostEstimator, anthropic: AnthropicCostEstimator) -> None:
    searching = estimate(openai, {**ASK, "tools": [{"type": "web_search"}, {"type": "file_search"}]}, "gpt-5")
    assert openai.actual(Usage(web_searches=3, file_searches=4, code_sessions=1), searching) == 3 * CENT + CENT + 3 * CENT
    assert openai.actual(Usage(), searching) == 0
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 50}
    asked = estimate(anthropic, {**MESSAGES, "tools": [tool]}, "claude-sonnet-4-5")
    assert anthropic.actual(Usage(web_searches=50), asked) == 50 * CENT
    never = estimate(anthropic, {**MESSAGES, "tools": [{**tool, "max_uses": 0}]}, "claude-sonnet-4-5")
    assert asked.ceiling_nanos > never.ceiling_nanos + 49 * CENT


async def test_the_fee_is_read_off_anthropics_usage(anthropic: AnthropicCostEstimator) -> None:
    usage = {"input_tokens": 0, "output_tokens": 0, "server_tool_use": {"web_search_requests": 50}}
    request = InvocationRequest("c", "p", MESSAGES)
    cost = await anthropic.record_actual_cost(request, InvocationResult(True, {"usage": usage}), {"model": "claude-sonnet-4-5"})
    assert cost is not None and cost.estimated_cost == Decimal("0.5")


def test_a_chat_that_searches_is_charged_though_its_response_does_not_say_so(openai: OpenAICostEstimator) -> None:
    asked = estimate(openai, {**CHAT, "web_search_options": {}, "n": 2}, "gpt-4o-search-preview")
    assert openai.actual(Usage(), asked) == 2 * CENT <= asked.ceiling_nanos
    assert openai.actual(Usage(), estimate(openai, CHAT, "gpt-4o")) == 0


def test_google_charges_for_a_prompt_or_for_each_query(book: PriceBook) -> None:
    gemini = GeminiCostEstimator(book)
    body: dict[str, object] = {"contents": "x", "tools": [{"googleSearch": {}}]}
    second, third = (estimate(gemini, body, model) for model in ("gemini-2.5-flash", "gemini-3-flash-preview"))
    assert gemini.actual(Usage(web_searches=4), second) == 35_000_000
    assert gemini.actual(Usage(web_searches=4), third) == 4 * 14_000_000
    assert third.ceiling_nanos > 16 * 14_000_000


def test_own_fees_come_before_the_published_ones() -> None:
    own = PriceOverride(model="my-model", provider="openai", input_per_1m=Decimal(0), output_per_1m=Decimal(0))
    options = PricingOptions(overrides=[own], tool_fees={"web_search": Decimal(1)})
    openai = OpenAICostEstimator(PriceBook(options, clock=lambda: NOW), options)
    for model in ("gpt-5", "my-model", "unheard-of"):
        assert (
            openai.actual(Usage(web_searches=2, file_searches=2), estimate(openai, ASK, model)) == 2 * 1_000_000 + 2 * 2_500_000
        )
    with pytest.raises(ConfigurationError, match="no fee for 'searching'"):
        PriceBook(PricingOptions(tool_fees={"searching": Decimal(1)}))


def test_a_response_in_the_background_is_expected_at_its_ceiling(openai: OpenAICostEstimator) -> None:
    found = estimate(openai, {**ASK, "max_output_tokens": 100_000, "background": True}, "gpt-5")
    assert found.expected_nanos == found.ceiling_nanos >= 1_000_000_000
    assert (found.expected_output_tokens, found.detached) == (100_000, True)
    assert estimate(openai, {**ASK, "background": False}, "gpt-5").expected_nanos < found.ceiling_nanos


# --- the body's fine print --------------------------------------------------------------------------------------------


def test_a_detail_beside_the_image_is_passed_over_as_the_api_passes_over_it(openai: OpenAICostEstimator) -> None:
    def tokens(*parts: dict[str, object]) -> int:
        return estimate(openai, {**CHAT, "messages": [{"role": "user", "content": list(parts)}]}, "gpt-4o").input_tokens

    image: dict[str, object] = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    assert tokens({**image, "detail": "low"}) == tokens(image)
    assert tokens({**image, "image_url": "https://example.com/x.png", "detail": "low"}) == tokens(image)
    assert tokens({**image, "image_url": {"url": "https://example.com/x.png", "detail": "low"}}) < tokens(image)
    item: dict[str, object] = {"type": "input_image", "image_url": "https://example.com/x.png"}
    high = estimate(openai, {"input": [{"role": "user", "content": [item]}]}, "gpt-4o").input_tokens
    low = estimate(openai, {"input": [{"role": "user", "content": [{**item, "detail": "low"}]}]}, "gpt-4o").input_tokens
    assert low < high


def test_a_long_conversation_hides_nothing_in_messages_of_two_fields(openai: OpenAICostEstimator) -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": "z " * 20_000}}]
    plain: list[object] = [{"role": "user", "content": "x"}]
    for hidden in ({"content": "x", "tool_calls": calls}, {"content": "x", "refusal": "z " * 20_000}):
        few, many = (estimate(openai, {**CHAT, "messages": [hidden, *plain * n]}, "gpt-4.1").input_tokens for n in (999, 1_001))
        assert 20_000 < few < many


# --- text that is made to be weighed wrongly ---------------------------------------------------------------------------

_R = random.Random(7)
_SLICE = 2_048


def between_fixed_slices(dense: str, length: int = 1_000_000) -> str:
    """Put prose where 64 evenly spread slices would look, and something dense everywhere else."""
    step = length // 64
    return "".join(("a word " * 400)[:_SLICE] + "".join(_R.choices(dense, k=step - _SLICE)) for _ in range(64))


STEERED = {
    "rare characters": between_fixed_slices("㐀㐁䨻龘𠀀ꙮᚠ☃"),
    "old cyrillic": between_fixed_slices("ԀѠҀҊӀ"),
    "consonants": between_fixed_slices("qzxjkv "),
    "marks": between_fixed_slices("~^|`\\@#"),
    "half and half": "a word " * 70_000 + "".join(_R.choices("㐀㐁䨻龘", k=500_000)),
}


@pytest.mark.parametrize("name", STEERED)
def test_no_place_in_a_long_text_is_safe_to_be_dense_in(name: str) -> None:
    count = tokenizer("o200k_base")
    if count is None:
        pytest.skip("the tokenizer extra is not installed")
    text = STEERED[name]
    real = count(text)
    counter = TextCounter(count, 65_536)
    counter.add(text)
    # Three standard errors: fewer than one in a hundred fail, and then by a few percent.
    assert real * 0.97 <= counter.ceiling <= real * 1.5
    weighed = TextCounter(None, 0, ceiling_factor=1.35)
    weighed.add(text)
    assert weighed.ceiling * 1.9 >= real


def test_cutting_a_dense_text_into_messages_does_not_make_it_lighter() -> None:
    count = tokenizer("o200k_base")
    if count is None:
        pytest.skip("the tokenizer extra is not installed")
    text = "".join(_R.choices("㐀㐁䨻龘ԀѠҀҊӀ", k=400_000))
    pieces = TextCounter(count, 65_536)
    for start in range(0, len(text), 5_000):
        pieces.add(text[start : start + 5_000])
    assert pieces.ceiling >= count(text) * 0.97


def test_slices_are_not_taken_twice_from_the_same_places() -> None:
    text = "".join("㐀" * 5_000 + "a" * 5_000 for _ in range(100))
    counted: set[int] = set()
    for _ in range(8):
        counter = TextCounter(None, 0)
        counter.add(text)
        counted.add(counter.ceiling)
    assert len(counted) > 1


def test_the_settings_reach_the_estimators() -> None:
    told = PricingSettings(opaque_tokens=7, default_service_tier="default", tool_calls=3, web_search_usd_per_thousand=Decimal(20))
    openai, silent = (make_estimators(settings)["openai"] for settings in (told, PricingSettings()))
    body: dict[str, object] = {"input": "x", "max_output_tokens": 1, "tools": [{"type": "web_search"}]}
    assert isinstance(openai, MeteredEstimator) and isinstance(silent, MeteredEstimator)
    assert (
        estimate(openai, body, "gpt-4o").ceiling_nanos
        < 3 * 20_000_000 + 1_000_000
        < estimate(silent, body, "gpt-4o").ceiling_nanos
    )
