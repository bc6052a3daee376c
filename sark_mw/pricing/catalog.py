"""Read the installed genai-prices data: which model a name means, and its prices at a moment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from sark_mw.pricing.output_limits import max_output_tokens
from sark_mw.pricing.rates import Band, ModelPrice, Rates, yoctos_per_token
from sark_mw.pricing.tool_fees import fees_of

if TYPE_CHECKING:
    from genai_prices import types as gp

#: How well a clause of the data fits a name: (kind, length of what matched); the greatest wins.
Fit = tuple[int, int]
_EXACT, _PATTERN, _PREFIX, _PART = 3, 2, 1, 0

# What may follow a known name without making another, dearer model of it: dates, versions, smaller sizes.
# Each piece begins with a mark that is in no other place, so that there is one way to read a name, and never a way back.
_NEUTRAL = re.compile(r"(?:[-@:.](?:v?\d++|latest|preview|beta|exp|chat|instruct|mini|nano|lite|small))++")
_TOKEN_KEYS = ("input_mtok", "output_mtok")
_MEDIA_KEYS = ("output_audio_mtok", "output_image_mtok", "output_video_mtok")
_TIER_KEYS = frozenset({"service_tier", "processing", "speed"})


def fit(clause: gp.MatchLogic, name: str) -> Fit | None:
    """Tell how well a clause fits a lower-case name; None where it does not."""
    from genai_prices import types as gp

    if isinstance(clause, gp.ClauseOr):
        return max((found for part in clause.or_ if (found := fit(part, name)) is not None), default=None)
    if not clause.is_match(name):
        return None
    if isinstance(clause, gp.ClauseEquals):
        return (_EXACT, len(name))
    if isinstance(clause, gp.ClauseRegex):
        return (_PATTERN, len(clause.regex))
    if isinstance(clause, gp.ClauseStartsWith):
        return (_PREFIX, len(clause.starts_with))
    return (_PART, 0)


def _literals(clause: gp.MatchLogic) -> Iterator[str]:
    from genai_prices import types as gp

    if isinstance(clause, gp.ClauseOr):
        for part in clause.or_:
            yield from _literals(part)
    elif isinstance(clause, gp.ClauseEquals):
        yield clause.equals.lower()
    elif isinstance(clause, gp.ClauseStartsWith):
        yield clause.starts_with.lower()


class Catalog:
    """The bundled price data, without any network access."""

    def __init__(self) -> None:
        from genai_prices.data import providers
        from genai_prices.data_snapshot import find_provider_by_id

        self._providers = providers
        self._by_id = {provider.id: provider for provider in providers}
        self._find_provider = find_provider_by_id

    def provider(self, name: str) -> gp.Provider | None:
        """Find a provider by its id or a name that the data takes for it."""
        return self._by_id.get(name) or self._find_provider(self._providers, name)

    def provider_of(self, name: str) -> gp.Provider | None:
        """Guess the provider from a model's name alone."""
        return next((p for p in self._providers if p.model_match is not None and p.model_match.is_match(name)), None)

    def model(self, provider: gp.Provider, name: str) -> gp.ModelInfo | None:
        """Find a model: exact before pattern before the longest prefix, then a known name with a harmless suffix."""
        houses = [provider, *(self._by_id[i] for i in provider.fallback_model_providers or () if i in self._by_id)]
        for house in houses:
            if found := _best(house.models, name):
                return found
        for house in houses:
            if found := _longest_prefix(house.models, name):
                return found
        return None


def _best(models: Iterable[gp.ModelInfo], name: str) -> gp.ModelInfo | None:
    best: gp.ModelInfo | None = None
    best_fit: Fit = (-1, -1)
    for model in models:
        found = (_EXACT, len(name)) if model.id.lower() == name else fit(model.match, name)
        if found is not None and found > best_fit:
            best, best_fit = model, found
    return best


def _longest_prefix(models: Iterable[gp.ModelInfo], name: str) -> gp.ModelInfo | None:
    best: gp.ModelInfo | None = None
    length = 0
    for model in models:
        for literal in (model.id.lower(), *_literals(model.match)):
            if len(literal) > length and name.startswith(literal) and _NEUTRAL.fullmatch(name, len(literal)):
                best, length = model, len(literal)
    return best


def price_of(provider: gp.Provider, model: gp.ModelInfo, at: datetime) -> ModelPrice | None:
    """Convert a model's prices at a moment; None where it is not sold by the token (audio hours, characters)."""
    standard = _by_key(model.get_prices(at))
    if standard and not any(key in standard for key in _TOKEN_KEYS):
        return None
    tiers: dict[str, tuple[Band, ...]] = {}
    for variant in model.price_variants or ():
        key, value = next(iter(variant.when.items()))
        if key in _TIER_KEYS and len(variant.when) == 1 and (variant.constraint is None or variant.constraint.active(at)):
            tiers.setdefault(value, _bands(standard | _by_key(variant.prices), model.id))
    tiers.pop("default", None)
    fee = standard.get("requests_kcount")
    per_request = fee if isinstance(fee, Decimal) else Decimal(0)
    return ModelPrice(
        provider=provider.id,
        model=model.id,
        bands=_bands(standard, model.id),
        tiers=tiers,
        # Per thousand requests: a million times a thousandth of a price per million.
        request_yoctos=yoctos_per_token(per_request) * 1000,
        fees=fees_of(provider.id, standard.get("web_searches_kcount"), standard.get("storage_searches_kcount")),
        context_window=model.context_window,
        max_output_tokens=max_output_tokens(model.id),
        has_output="output_mtok" in standard,
    )


def _by_key(prices: gp.ModelPrice) -> dict[str, Decimal | gp.TieredPrices]:
    return {key: value for key, value in vars(prices).items() if value is not None and not key.startswith("_")}


def _bands(prices: dict[str, Decimal | gp.TieredPrices], model: str) -> tuple[Band, ...]:
    starts = {tier.start for price in prices.values() if not isinstance(price, Decimal) for tier in price.tiers}
    return tuple(Band(above=start, rates=_rates(prices, start + 1, model)) for start in (-1, *sorted(starts)))


def _rates(prices: dict[str, Decimal | gp.TieredPrices], input_tokens: int, model: str) -> Rates:
    def at(key: str) -> Decimal | None:
        price = prices.get(key)
        if price is None or isinstance(price, Decimal):
            return price
        return next((tier.price for tier in reversed(price.tiers) if input_tokens > tier.start), price.base)

    return rates_from(
        input_price=at("input_mtok") or Decimal(0),
        output_price=at("output_mtok") or Decimal(0),
        cache_read=at("cache_read_mtok"),
        cache_write_5m=at("cache_write_mtok"),
        cache_write_1h=at("cache_write_1h_mtok"),
        input_audio=at("input_audio_mtok"),
        reasoning=at("output_reasoning_mtok"),
        # No model writes more than one of these, and it is the dearest of what it writes.
        output_audio=max((price for key in _MEDIA_KEYS if (price := at(key)) is not None), default=None),
        cache_premium="claude" in model,
    )


def rates_from(
    *,
    input_price: Decimal,
    output_price: Decimal,
    cache_read: Decimal | None = None,
    cache_write_5m: Decimal | None = None,
    cache_write_1h: Decimal | None = None,
    input_audio: Decimal | None = None,
    reasoning: Decimal | None = None,
    output_audio: Decimal | None = None,
    cache_premium: bool = False,
) -> Rates:
    """Fill the gaps of a price list (USD per million tokens): what is not priced apart costs as its kind does.

    With `cache_premium` (Anthropic's models) a 5-minute cache write costs 1.25 of the input price and a 1-hour one 2.
    """

    def either(price: Decimal | None, fallback: Decimal) -> int:
        return yoctos_per_token(fallback if price is None else price)

    write = input_price * Decimal("1.25") if cache_premium else input_price
    long_write = input_price * 2 if cache_premium else write if cache_write_5m is None else cache_write_5m
    return Rates(
        input=yoctos_per_token(input_price),
        output=yoctos_per_token(output_price),
        cache_read=either(cache_read, input_price),
        cache_write_5m=either(cache_write_5m, write),
        cache_write_1h=either(cache_write_1h, long_write),
        input_audio=either(input_audio, input_price),
        reasoning=either(reasoning, output_price),
        output_audio=either(output_audio, output_price),
    )
