"""What a Gemini request may cost: its contents, its thinking, its media; and what it did cost."""

from __future__ import annotations

import base64
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sark_mw.errors import CostEstimationError, InvalidRequestError
from sark_mw.pricing.base import Estimate, InvocationRequest, InvocationResult
from sark_mw.pricing.gemini import GeminiCostEstimator
from sark_mw.pricing.prices import PriceBook, PricingOptions
from sark_mw.usage import Usage
from tests.pricing.conftest import NOW
from tests.pricing.test_ceiling import check, used
from tests.pricing.test_openai import png

GEMINI = GeminiCostEstimator(PriceBook(clock=lambda: NOW), PricingOptions())
HELLO = {"contents": [{"role": "user", "parts": [{"text": "hello world"}]}]}
FLASH, PRO = "gemini-2.5-flash", "gemini-2.5-pro"
UNTHINKING = {"thinkingConfig": {"thinkingBudget": 0}}


def estimate(body: dict[str, object], model: str = FLASH) -> Estimate:
    return GEMINI.estimate(InvocationRequest("c", "p", body), {"model": model})


def asked(*parts: dict[str, object], **more: object) -> dict[str, object]:
    return {"contents": [{"parts": [{"text": "x"}, *parts]}], **more}


def configured(**config: object) -> dict[str, object]:
    return {**HELLO, "generationConfig": config}


def inline(kind: str, data: bytes | str) -> dict[str, object]:
    encoded = data if isinstance(data, str) else base64.b64encode(data).decode()
    return {"inlineData": {"mimeType": kind, "data": encoded}}


def test_a_request_is_held_at_the_list_price() -> None:
    found = estimate(configured(maxOutputTokens=100, **UNTHINKING))
    assert found.ceiling_nanos == found.input_tokens * 300 + 100 * 2500
    assert 10 <= found.expected_input_tokens <= found.input_tokens <= 30
    assert (found.provider, found.model, found.output_limited) == ("google", FLASH, True)


@pytest.mark.parametrize(
    ("model", "thinking", "thoughts"),
    [
        (FLASH, {}, 24_576),
        (FLASH, {"thinkingBudget": -1}, 24_576),
        (FLASH, {"thinkingBudget": 0}, 0),
        (FLASH, {"thinkingBudget": 1000}, 1000),
        (FLASH, {"thinkingBudget": 10**6}, 24_576),
        (FLASH, {"thinkingBudget": 1000, "thinking_budget": 2000}, 2000),
        (PRO, {"thinkingLevel": "low"}, 32_768),
        (PRO, {"thinkingBudget": 0}, 128),
        ("gemini-3-pro-preview", {}, 32_768),
        ("models/gemini-2.5-flash-lite", {}, 24_576),
        ("gemini-2.5-flash-image", {}, 0),
        ("gemini-2.0-flash", {}, 0),
        # Its output limit covers its thoughts.
        ("gemini-4-argon", {}, 0),
        ("gemini-unheard-of", {}, 32_768),
    ],
)
def test_thoughts_are_held_on_top_of_the_output_limit(model: str, thinking: dict[str, object], thoughts: int) -> None:
    found = estimate(configured(maxOutputTokens=100, thinkingConfig=thinking), model)
    assert found.max_output_tokens == 100 + thoughts
    assert GEMINI.actual(Usage(output_tokens=100 + thoughts, reasoning_tokens=thoughts), found) <= found.ceiling_nanos


@pytest.mark.parametrize(
    ("model", "most"),
    [
        (PRO, 65_536 + 32_768),
        ("gemini-2.0-flash", 8_192),
        ("gemini-4-argon", 65_536),
        ("gemini-pro-latest", 65_536 + 32_768),
        ("gemini-unheard-of", 65_536 + 32_768),
    ],
)
def test_a_missing_limit_and_one_of_zero_hold_what_the_model_can_produce(model: str, most: int) -> None:
    assert estimate(HELLO, model).max_output_tokens == most
    assert estimate(configured(maxOutputTokens=0), model).max_output_tokens == most


def test_what_is_affordable_leaves_room_for_the_thoughts() -> None:
    found = estimate(configured(maxOutputTokens=500, thinkingConfig={"thinkingBudget": 1000}))
    fixed = found.ceiling_nanos - 1500 * 2500
    assert found.affordable_output_tokens(fixed + 1200 * 2500) == 200
    assert found.affordable_output_tokens(fixed + 900 * 2500) is None


def test_both_spellings_count_and_the_larger_limit_is_held() -> None:
    snake = {"contents": HELLO["contents"], "generation_config": {"max_output_tokens": 300, "candidate_count": 3}}
    config = {"generationConfig": {"maxOutputTokens": 100, "thinkingConfig": {"thinkingBudget": 0}}}
    assert estimate({**snake, **config}).max_output_tokens == 3 * 300
    instructed = estimate({**HELLO, "system_instruction": {"parts": [{"text": "be brief " * 50}]}}).input_tokens
    assert instructed == estimate({**HELLO, "systemInstruction": {"parts": {"text": "be brief " * 50}}}).input_tokens
    assert instructed > estimate(HELLO).input_tokens + 100


def test_a_long_prompt_is_held_and_priced_at_the_long_context_rates() -> None:
    body = {
        **asked({"text": "ab " * 250_000}),
        "generationConfig": {"maxOutputTokens": 100, "thinkingConfig": {"thinkingBudget": 128}},
    }
    found = estimate(body, PRO)
    assert found.input_tokens > 200_000
    assert found.ceiling_nanos == found.input_tokens * 2500 + 228 * 15_000
    assert GEMINI.actual(Usage(input_tokens=200_001, output_tokens=10), found) == 200_001 * 2500 + 150_000
    assert GEMINI.actual(Usage(input_tokens=200_000, output_tokens=10), found) == 200_000 * 1250 + 100_000


@pytest.mark.parametrize(
    ("model", "data", "tokens"),
    [
        (FLASH, png(300, 384), 258),
        (FLASH, png(960, 540), 6 * 258),
        (FLASH, png(9000, 9000), 16 * 258),
        (FLASH, "not an image", 16 * 258),
        ("gemini-3-pro-preview", png(300, 300), 2240),
    ],
)
def test_images_are_counted_by_their_tiles_or_their_models_resolution(model: str, data: str, tokens: int) -> None:
    part = inline("image/png", data.partition(",")[2] or data)
    assert estimate(asked(part), model).input_tokens - estimate(asked(), model).input_tokens == tokens


def test_sound_film_and_pages_are_bounded_by_their_size_and_never_above_what_a_model_reads() -> None:
    plain = estimate(asked(), FLASH)
    # Ten seconds of a narrow-band recording are 320 tokens at the price of sound.
    sound = estimate(asked(inline("audio/mp3", b"\0" * 10_000)))
    assert 320 <= sound.audio_input_tokens <= 352
    assert sound.ceiling_nanos - plain.ceiling_nanos == sound.audio_input_tokens * 1000
    film = estimate(asked(inline("video/mp4", b"\0" * 100_000)))
    assert 10 * 290 <= film.input_tokens - plain.input_tokens <= 11 * 330
    fast = estimate(asked({**inline("video/mp4", b"\0" * 100_000), "videoMetadata": {"fps": 10}}))
    assert fast.input_tokens > 9 * (film.input_tokens - plain.input_tokens)
    pages = estimate(asked(inline("application/pdf", b"\0" * 5_000)))
    assert pages.input_tokens - plain.input_tokens == 11 * 258
    for kind in ("audio/mp3", "video/mp4", "application/pdf", "text/csv"):
        huge = estimate(asked(inline(kind, "A" * 20_000_000)))
        assert huge.expected_nanos < huge.ceiling_nanos and huge.input_tokens < 2_200_000


def test_everything_else_that_is_read_adds_to_the_input() -> None:
    one = estimate(asked()).input_tokens
    for part in (
        {"functionCall": {"name": "f", "args": {"q": "paris"}}},
        {"functionResponse": {"name": "f", "response": {"answer": "sunny"}}},
        {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
        {"text": "hmm", "thought": True, "thoughtSignature": "c2ln"},
        {"fileData": {"fileUri": "gs://bucket/a.pdf"}},
    ):
        assert estimate(asked(part)).input_tokens > one
    for more in (
        {"tools": [{"functionDeclarations": [{"name": "f", "description": "finds"}]}]},
        {"generationConfig": {"responseSchema": {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}}}},
    ):
        assert one < estimate(asked(**more)).input_tokens < one + 1_000
    for opaque in ({"tools": [{"googleSearch": {}}]}, {"cachedContent": "cachedContents/abc"}, {"cached_content": "x"}):
        assert estimate(asked(**opaque)).input_tokens > one + 30_000


def test_contents_may_be_one_content_one_text_or_a_hundred_thousand() -> None:
    assert estimate({"contents": "hello world"}).input_tokens == estimate(HELLO).input_tokens
    assert estimate({"contents": HELLO["contents"][0]}).input_tokens == estimate(HELLO).input_tokens
    many = estimate({"contents": HELLO["contents"] * 100_000}).input_tokens
    assert many > 100_000 * 7


def test_a_model_that_writes_pictures_is_held_and_priced_at_what_they_cost() -> None:
    found = estimate(configured(maxOutputTokens=2000), "gemini-2.5-flash-image")
    assert found.ceiling_nanos == found.input_tokens * 300 + 2000 * 30_000
    assert GEMINI.actual(Usage(output_tokens=1300, output_audio_tokens=1290), found) == 10 * 2500 + 1290 * 30_000


@pytest.mark.parametrize(("name", "least"), [("maxOutputTokens", 0), ("max_output_tokens", 0), ("candidateCount", 1)])
@pytest.mark.parametrize("value", [-1, True, 1.5, "100", 10**9 + 1, float("nan"), float("inf"), [], {}])
def test_a_number_that_is_none_is_refused(name: str, least: int, value: object) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        estimate(configured(**{name: value}))
    assert refused.value.param == name
    with pytest.raises(InvalidRequestError):
        estimate(configured(**{name: least - 1}))


@pytest.mark.parametrize(
    "body",
    [
        configured(thinkingConfig={"thinkingBudget": -2}),
        configured(thinkingConfig={"thinkingBudget": "much"}),
        configured(thinkingConfig=7),
        {**HELLO, "generationConfig": []},
        {"contents": 7},
        {"contents": [7]},
        {"contents": [{"parts": "x"}]},
        {"contents": [{"parts": [7]}]},
        {"contents": [{"parts": [{"inlineData": "x"}]}]},
        {**HELLO, "systemInstruction": 7},
        {**HELLO, "tools": [7]},
        asked({**inline("video/mp4", b""), "videoMetadata": {"fps": 0}}),
        asked({**inline("video/mp4", b""), "videoMetadata": {"fps": float("nan")}}),
        asked({**inline("video/mp4", b""), "video_metadata": {"fps": 1000}}),
    ],
)
def test_a_malformed_request_is_refused_as_one(body: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        estimate(body)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(CostEstimationError, match="Missing 'contents'"):
        estimate({"contents": []})
    with pytest.raises(CostEstimationError, match="Missing 'model' in resource metadata"):
        GEMINI.estimate(InvocationRequest("c", "p", HELLO), {})


@pytest.mark.parametrize("spelling", ["camel", "snake"])
async def test_the_actual_cost_takes_thoughts_as_output_and_cached_tokens_at_their_price(spelling: str) -> None:
    camel = {
        "promptTokenCount": 1000,
        "cachedContentTokenCount": 600,
        "toolUsePromptTokenCount": 50,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 80,
    }
    snake = {"".join(f"_{c.lower()}" if c.isupper() else c for c in name): count for name, count in camel.items()}
    body = {"usageMetadata": camel} if spelling == "camel" else {"usage_metadata": snake}
    cost = await GEMINI.record_actual_cost(InvocationRequest("c", "p", HELLO), InvocationResult(True, body), {"model": FLASH})
    assert cost is not None
    assert cost.estimated_cost == Decimal(450 * 300 + 600 * 30 + 100 * 2500).scaleb(-9)
    assert (cost.breakdown["output_tokens"], cost.breakdown["actual"], cost.provider) == (100, True, "google")
    handed = InvocationResult(True, metadata={"usage": camel})
    again = await GEMINI.record_actual_cost(InvocationRequest("c", "p", HELLO), handed, {"model": FLASH})
    assert again is not None and again.estimated_cost == cost.estimated_cost
    assert (
        await GEMINI.record_actual_cost(InvocationRequest("c", "p", HELLO), InvocationResult(True, {}), {"model": FLASH}) is None
    )


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_usage_within_the_token_ceilings_costs_more_than_the_hold(data: st.DataObject) -> None:
    body = asked({"text": "ab " * data.draw(st.sampled_from([1, 80_000, 130_000]))})
    if data.draw(st.booleans()):
        body["contents"][0]["parts"].append(inline("audio/mp3", b"\0" * 5_000))  # type: ignore[index]
    config: dict[str, object] = {"candidateCount": data.draw(st.integers(1, 4))}
    if data.draw(st.booleans()):
        config["maxOutputTokens"] = data.draw(st.integers(0, 100_000))
    if data.draw(st.booleans()):
        config["thinkingConfig"] = {"thinkingBudget": data.draw(st.integers(-1, 40_000))}
    media = data.draw(st.booleans())
    if media:
        config["responseModalities"] = ["TEXT", "IMAGE"]
    models = [FLASH, PRO, "gemini-3-pro-preview", "gemini-2.5-flash-image", "gemini-4-argon", "gemini-unheard-of"]
    found = estimate({**body, "generationConfig": config}, data.draw(st.sampled_from(models)))
    check(GEMINI, found, data.draw(st.composite(used)(found, writes="", tier=None, audio=media)))
