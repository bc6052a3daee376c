from __future__ import annotations

import sys

import pytest
from genai_prices.types import ClauseContains, ClauseEquals, ClauseOr, ClauseRegex, ClauseStartsWith, ModelInfo, Provider

from sark_mw.pricing import tokens
from sark_mw.pricing.base import InvocationRequest
from sark_mw.pricing.catalog import Catalog
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.pricing.prices import PriceBook, PricingOptions

# In the order in which a first match would go wrong.
MODELS = [
    ModelInfo(id="any", match=ClauseContains(contains="big")),
    ModelInfo(id="short", match=ClauseStartsWith(starts_with="big-")),
    ModelInfo(id="long", match=ClauseOr(or_=[ClauseStartsWith(starts_with="big-model"), ClauseEquals(equals="odd")])),
    ModelInfo(id="dated", match=ClauseRegex(regex=r"^big-model-\d{8}$")),
    ModelInfo(id="exact", match=ClauseEquals(equals="big-model-1")),
]
HOUSE = Provider(id="house", name="House", api_pattern="", models=MODELS)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("big-model-1", "exact"),
        ("big-model-20260101", "dated"),
        ("big-model-x", "long"),
        ("big-thing", "short"),
        ("very-big", "any"),
        ("odd", "long"),
        ("odd-2026-01-01", "long"),
        ("odd-ultra", None),
        ("oddity", None),
    ],
)
def test_exact_comes_before_pattern_before_the_longest_prefix(name: str, model: str | None) -> None:
    found = Catalog().model(HOUSE, name)
    assert (found.id if found else None) == model


def test_without_the_tokenizer_extra_the_hold_is_wider_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, book: PriceBook
) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20
    request = InvocationRequest("c", "p", {"messages": [{"role": "user", "content": text}], "max_tokens": 10})
    exact = OpenAICostEstimator(book, PricingOptions()).estimate(request, {"model": "gpt-4o"})
    tokens.tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    try:
        without = OpenAICostEstimator(book, PricingOptions()).estimate(request, {"model": "gpt-4o"})
    finally:
        tokens.tokenizer.cache_clear()
    switched_off = OpenAICostEstimator(book, PricingOptions(tokenizer=False)).estimate(request, {"model": "gpt-4o"})
    assert without == switched_off
    assert without.input_tokens > exact.input_tokens
    assert abs(without.expected_input_tokens - exact.expected_input_tokens) < exact.expected_input_tokens * 0.3


def test_a_name_that_may_be_read_in_many_ways_is_read_in_one(book: PriceBook) -> None:
    # By a pattern that tries every way, each of these takes longer than the universe has.
    for name in ("gpt-4.1" + "-1" * 60 + "!", "gpt-4o" + ".1-2:3" * 30 + "x", "gpt-4o" + "-v1" * 40 + "_"):
        assert book.price("openai", name).unknown
    assert book.price("openai", "gpt-4.1" + "-1" * 60).model == "gpt-4.1"
    assert book.price("openai", "gpt-4o-2024.08-06@v1:2-latest").model == "gpt-4o"


def test_sellers_in_front_of_a_name_are_tried_up_to_a_bound(book: PriceBook) -> None:
    assert not book.price("openai", "openrouter/proxies/openai/gpt-4o").unknown
    asked: list[str] = []
    provider = book._catalog.provider
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book._catalog, "provider", lambda name: asked.append(name) or provider(name))
        assert book.price("openai", "a/" * 127 + "b").unknown
    assert len(asked) < 12
