from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sark_mw.errors import ConfigurationError, MoneyError
from sark_mw.pricing.prices import PriceBook, PriceOverride, PricingOptions
from sark_mw.pricing.rates import Band, ModelPrice, Rates, yoctos_per_token
from sark_mw.usage import Usage
from tests.pricing.conftest import NOW

MILLION = 1_000_000


def test_openai_prices_are_those_of_the_price_list(book: PriceBook) -> None:
    price = book.price("openai", "gpt-4o")
    # 1000 in at $2.50, of which 400 cached at $1.25; 500 out at $10.
    usage = Usage(input_tokens=1000, cache_read_tokens=400, output_tokens=500)
    assert price.cost(usage) == 600 * 2500 + 400 * 1250 + 500 * 10_000


def test_reasoning_tokens_are_inside_the_output_and_cost_once(book: PriceBook) -> None:
    price = book.price("openai", "gpt-5")
    assert price.cost(Usage(output_tokens=100, reasoning_tokens=90)) == price.cost(Usage(output_tokens=100)) == 100 * 10_000


def test_audio_tokens_have_their_own_price(book: PriceBook) -> None:
    price = book.price("openai", "gpt-audio")
    usage = Usage(input_tokens=100, input_audio_tokens=60, output_tokens=50, output_audio_tokens=30)
    assert price.cost(usage) == 40 * 2500 + 60 * 32_000 + 20 * 10_000 + 30 * 64_000


def test_anthropic_cache_reads_and_both_kinds_of_writes_are_priced_apart(book: PriceBook) -> None:
    price = book.price("anthropic", "claude-opus-4-5")
    usage = Usage(
        input_tokens=1000, cache_read_tokens=100, cache_write_5m_tokens=200, cache_write_1h_tokens=300, output_tokens=10
    )
    assert price.cost(usage) == 400 * 5000 + 100 * 500 + 200 * 6250 + 300 * 10_000 + 10 * 25_000


def test_cache_writes_without_a_published_price_cost_a_quarter_more_or_twice_the_input() -> None:
    own = PriceOverride(model="claude-own", provider="anthropic", input_per_1m=Decimal(4), output_per_1m=Decimal(8))
    price = PriceBook(PricingOptions(overrides=[own]), clock=lambda: NOW).price("anthropic", "claude-own")
    assert price.cost(Usage(input_tokens=10, cache_write_5m_tokens=10)) == 10 * 5000
    assert price.cost(Usage(input_tokens=10, cache_write_1h_tokens=10)) == 10 * 8000


@pytest.mark.parametrize(("tokens", "per_input", "per_output"), [(200_000, 3000, 15_000), (200_001, 6000, 22_500)])
def test_a_long_context_is_priced_as_a_whole(book: PriceBook, tokens: int, per_input: int, per_output: int) -> None:
    price = book.price("anthropic", "claude-sonnet-4-5")
    assert price.cost(Usage(input_tokens=tokens, output_tokens=100)) == tokens * per_input + 100 * per_output


@pytest.mark.parametrize(("tier", "factor"), [("flex", Decimal("0.5")), ("priority", 2), ("default", 1), ("unheard-of", 1)])
def test_the_service_tier_that_served_the_request_sets_its_price(book: PriceBook, tier: str, factor: Decimal) -> None:
    price = book.price("openai", "gpt-5")
    usage = Usage(input_tokens=1000, output_tokens=100, service_tier=tier)
    assert price.cost(usage) == (1000 * 1250 + 100 * 10_000) * factor


@pytest.mark.parametrize(
    ("provider", "model", "means"),
    [
        ("openai", "gpt-4o-mini", "gpt-4o-mini"),
        ("openai", "gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("openai", "GPT-4o", "gpt-4o"),
        ("openai", "gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("openai", "gpt-4o-2031-01-01", "gpt-4o"),
        ("openai", "gpt-4.1-mini-2031-01-01", "gpt-4.1-mini"),
        ("openai", "gpt-4-32k", "gpt-4-32k"),
        ("openai", "openai/gpt-4o", "gpt-4o"),
        ("openai", "azure/gpt-4o-mini", "gpt-4o-mini"),
        ("openai", "openrouter/openai/gpt-4o", "openai/gpt-4o"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme::x1", "ft:gpt-4o-mini"),
        ("openai", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("anthropic", "claude-3-5-sonnet-20241022", "claude-3-5-sonnet"),
        ("anthropic", "anthropic/claude-opus-4-1", "claude-opus-4-1"),
    ],
)
def test_a_model_is_found_exactly_before_by_its_longest_prefix(book: PriceBook, provider: str, model: str, means: str) -> None:
    price = book.price(provider, model)
    assert (price.model, price.unknown) == (means, False)


@pytest.mark.parametrize("model", ["gpt-99", "gpt-5-ultra", "whisper-1", "my-alias", ""])
def test_an_unknown_model_gets_the_dearest_price_of_its_provider_and_is_flagged(book: PriceBook, model: str) -> None:
    price = book.price("openai", model)
    rates = price.rates(1)
    assert price.unknown
    assert rates.input == yoctos_per_token(Decimal(150))
    assert rates.output == yoctos_per_token(Decimal(600))


def test_no_known_model_is_dearer_than_the_price_of_an_unknown_one(book: PriceBook) -> None:
    dearest = book.price("anthropic", "claude-unheard-of").rates(1)
    for model in ("claude-3-opus-latest", "claude-fable-5-2", "claude-sonnet-4-5", "claude-opus-5"):
        for tier in (None, "fast"):
            known = book.price("anthropic", model).rates(MILLION, tier)
            assert all(most >= rate for most, rate in zip(dearest, known, strict=True))


def test_a_price_that_changes_on_a_date_changes_in_a_running_process() -> None:
    now = [1_749_513_600.0 - 86_400]  # the day before 2025-06-10
    book = PriceBook(clock=lambda: now[0])
    before = book.price("openai", "o3").cost(Usage(input_tokens=1))
    now[0] += 2 * 86_400
    assert (before, book.price("openai", "o3").cost(Usage(input_tokens=1))) == (10_000, 2000)


def test_the_users_own_price_comes_before_the_installed_one_and_a_name_before_a_prefix() -> None:
    overrides = [
        PriceOverride(model="gpt-*", input_per_1m=Decimal(7), output_per_1m=Decimal(7)),
        PriceOverride(model="gpt-4o", input_per_1m=Decimal(9), output_per_1m=Decimal("9.5"), per_request=Decimal("0.01")),
    ]
    book = PriceBook(PricingOptions(overrides=overrides), clock=lambda: NOW)
    assert book.price("openai", "gpt-4o").cost(Usage(input_tokens=2, output_tokens=2)) == 10_000_000 + 18_000 + 19_000
    assert book.price("openai", "openai/gpt-77").cost(Usage(input_tokens=1)) == 7000


def test_a_price_in_another_currency_needs_a_rate() -> None:
    own = PriceOverride(model="m", input_per_1m=Decimal("0.3"), output_per_1m=Decimal(1), currency="EUR")
    with pytest.raises(ConfigurationError, match="EUR"):
        PriceBook(PricingOptions(overrides=[own]))
    book = PriceBook(PricingOptions(overrides=[own], usd_per={"EUR": Decimal("1.1")}), clock=lambda: NOW)
    assert book.price("openai", "m").cost(Usage(input_tokens=100)) == 33_000


def test_a_price_that_is_no_price_is_refused_at_start() -> None:
    with pytest.raises(ConfigurationError, match="negative"):
        PriceBook(PricingOptions(overrides=[PriceOverride(model="m", input_per_1m=Decimal(-1))]))
    with pytest.raises(MoneyError):
        PriceBook(PricingOptions(overrides=[PriceOverride(model="m", input_per_1m=0.1)]))  # type: ignore[arg-type]


_prices = st.decimals(min_value=0, max_value=1000, places=9)
_counts = st.integers(min_value=0, max_value=10**9)


@given(prices=st.lists(_prices, min_size=8, max_size=8), counts=st.lists(_counts, min_size=5, max_size=5))
def test_cost_is_exact_and_rounded_up_once(prices: list[Decimal], counts: list[int]) -> None:
    rates = Rates(*map(yoctos_per_token, prices))
    price = ModelPrice(provider="p", model="m", bands=(Band(above=-1, rates=rates),))
    plain, read, short, long, output = counts
    usage = Usage(
        input_tokens=plain + read + short + long,
        cache_read_tokens=read,
        cache_write_5m_tokens=short,
        cache_write_1h_tokens=long,
        output_tokens=output,
    )
    named = rates._asdict()
    by_price = dict(zip(named, prices, strict=True))
    exact = (
        plain * by_price["input"]
        + read * by_price["cache_read"]
        + short * by_price["cache_write_5m"]
        + long * by_price["cache_write_1h"]
        + output * by_price["output"]
    ) * 1000
    assert price.cost(usage) == int(exact.to_integral_value(ROUND_CEILING))


def test_one_token_of_the_cheapest_model_is_not_rounded_to_nothing(book: PriceBook) -> None:
    assert book.price("openai", "text-embedding-3-small").cost(Usage(input_tokens=1)) == 20
