"""The estimators that are there from the start."""

from __future__ import annotations

from sark_mw.pricing.anthropic import AnthropicCostEstimator
from sark_mw.pricing.base import CostEstimator
from sark_mw.pricing.fixed import NoCostEstimator
from sark_mw.pricing.gemini import GeminiCostEstimator
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.pricing.prices import PriceBook, PricingOptions


def builtin_estimators(options: PricingOptions | None = None, book: PriceBook | None = None) -> dict[str, CostEstimator]:
    """Make the built-in estimators, by provider, over one price book: reads prices and vocabularies, so do it at start."""
    options = options or PricingOptions()
    book = book or PriceBook(options)
    gemini = GeminiCostEstimator(book, options)
    return {
        "openai": OpenAICostEstimator(book, options),
        "anthropic": AnthropicCostEstimator(book, options),
        # By the name of its wire, and by that of who sells it.
        "gemini": gemini,
        "google": gemini,
        "free": NoCostEstimator(),
    }
