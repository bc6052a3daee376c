from __future__ import annotations

import pytest

from sark_mw.pricing.anthropic import AnthropicCostEstimator
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.pricing.prices import PriceBook, PricingOptions

#: 2026-11-22, when the installed data is current: prices change on dates.
NOW = 1_795_334_400.0


@pytest.fixture(scope="session")
def book() -> PriceBook:
    return PriceBook(clock=lambda: NOW)


@pytest.fixture
def openai(book: PriceBook) -> OpenAICostEstimator:
    return OpenAICostEstimator(book, PricingOptions())


@pytest.fixture
def anthropic(book: PriceBook) -> AnthropicCostEstimator:
    return AnthropicCostEstimator(book, PricingOptions())
