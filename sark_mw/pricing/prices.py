"""The price book: which prices hold for a model now, from the settings first and from the installed data second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from sark_mw.errors import ConfigurationError
from sark_mw.money import to_decimal
from sark_mw.pricing.catalog import Catalog, price_of, rates_from
from sark_mw.pricing.output_limits import max_output_tokens
from sark_mw.pricing.rates import NO_FEES, Band, Fees, ModelPrice, dearest, exact_product
from sark_mw.pricing.tool_fees import fees_of, own_fees

if TYPE_CHECKING:
    from genai_prices import types as gp

#: Prices are looked up anew after this long: some change on a date, some with the time of day.
_FRESH_SECONDS = 900
_CACHED_MODELS = 4_096
#: Names in front of a model's that are tried as its seller's (`openrouter/anthropic/…`); each is looked up in all of the data.
_MAX_SELLERS = 4
#: A longer name is nobody's model.
MAX_MODEL_NAME = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOverride:
    """A price of the user's own, in `currency` per million tokens.

    `model` is a name, or a prefix when it ends in `*`; `provider` None means any. What is None costs as plain input or output
    does. Amounts are Decimal, int or str. `per_request` is in `currency` per call.
    """

    model: str
    input_per_1m: Decimal
    output_per_1m: Decimal | None = None
    provider: str | None = None
    cache_read_per_1m: Decimal | None = None
    cache_write_5m_per_1m: Decimal | None = None
    cache_write_1h_per_1m: Decimal | None = None
    input_audio_per_1m: Decimal | None = None
    output_audio_per_1m: Decimal | None = None
    reasoning_per_1m: Decimal | None = None
    per_request: Decimal = Decimal(0)
    currency: str = "USD"
    max_output_tokens: int | None = None
    context_window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PricingOptions:
    """How to price and to estimate; the settings' pricing section.

    `usd_per` gives dollars for one unit of another currency. `on_unknown_model`: `dearest` or `deny`.
    `default_max_output_tokens` is held where neither the request nor the data limits the output; `max_output_tokens_cap` caps
    what is held for a request without a limit. `opaque_tokens` is held for each input whose size is not in the body (a file id,
    an earlier response, what a search finds); None holds the model's whole context window. `tool_calls` is how many calls of a
    provider's own tools are held for a request that does not bound them, `tool_fees` what a thousand of them cost, in dollars by
    kind (`web_search`, `file_search`, `code_session`), where the published fees are not to hold. `exact_bytes` of text per
    request go through the real tokenizer, of the rest samples. `default_service_tier` is the one that a request without one is
    served in; None where that is the provider's choice, so that the hold is at the dearest that it may choose.
    """

    overrides: Sequence[PriceOverride] = ()
    usd_per: Mapping[str, Decimal] = field(default_factory=dict)
    on_unknown_model: str = "dearest"
    default_max_output_tokens: int = 32_768
    max_output_tokens_cap: int | None = None
    opaque_tokens: int | None = None
    expected_opaque_tokens: int = 4_096
    prior_output_tokens: int = 512
    tool_calls: int = 16
    tool_fees: Mapping[str, Decimal] = field(default_factory=dict)
    exact_bytes: int = 65_536
    tokenizer: bool = True
    default_service_tier: str | None = None

    def __post_init__(self) -> None:
        if self.on_unknown_model not in ("dearest", "deny"):
            raise ConfigurationError(f"on_unknown_model must be 'dearest' or 'deny', not {self.on_unknown_model!r}")


class PriceBook:
    """Resolve (provider, model) to its price once, then answer from a bounded cache; reads the data when it is made.

    Raises `ConfigurationError` for an override in a currency without a rate, or with an amount that is none.
    """

    def __init__(self, options: PricingOptions | None = None, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._catalog = Catalog()
        options = options or PricingOptions()
        self._overrides = [(override, _override_price(override, options.usd_per)) for override in options.overrides]
        self._fees = options.tool_fees
        own_fees(NO_FEES, self._fees)
        self._find = lru_cache(maxsize=_CACHED_MODELS)(self._resolve)
        self._dearest = lru_cache(maxsize=256)(self._dearest_of)

    def price(self, provider: str, model: str) -> ModelPrice:
        """Return the price of a model, or its provider's dearest flagged `unknown`; microseconds when it was asked for before."""
        return self._find(provider, model, int(self._clock()) // _FRESH_SECONDS)

    def known(self, provider: str, model: str) -> ModelPrice | None:
        """Return the price of a model only if it is known."""
        price = self.price(provider, model)
        return None if price.unknown else price

    def _resolve(self, provider: str, model: str, moment: int) -> ModelPrice:
        price = self._found(provider, model, moment)
        return replace(price, fees=own_fees(price.fees, self._fees)) if self._fees else price

    def _found(self, provider: str, model: str, moment: int) -> ModelPrice:
        name = model.strip().lower()
        if (own := self._overridden(provider, name)) is not None:
            return own
        at = datetime.fromtimestamp(moment * _FRESH_SECONDS, UTC)
        for house, rest in self._readings(provider.lower(), name):
            if (own := self._overridden(house.id, rest)) is not None:
                return own
            found = self._catalog.model(house, rest)
            if found is not None and (price := price_of(house, found, at)) is not None:
                return price
        return replace(self._dearest(provider.lower(), moment), model=model)

    def _readings(self, provider: str, name: str) -> list[tuple[gp.Provider, str]]:
        """List who may sell a model of this name: a provider named in front of it, the given one, whose it looks like."""
        readings: list[tuple[gp.Provider, str]] = []
        given = self._catalog.provider(provider)
        if given is not None:
            readings.append((given, name))
        rest = name
        for _ in range(min(name.count("/"), _MAX_SELLERS)):
            head, _, rest = rest.partition("/")
            if (house := self._catalog.provider(head)) is not None:
                readings.append((house, rest))
            if given is not None:
                readings.append((given, rest))
        # Bedrock's names (`us.anthropic.claude-…-v1:0`) say whose a model is, not who sells it.
        seller = self._catalog.provider("aws") if "anthropic." in rest else self._catalog.provider_of(rest)
        if seller is not None:
            readings.append((seller, rest))
        return readings

    def _overridden(self, provider: str, name: str) -> ModelPrice | None:
        best: ModelPrice | None = None
        best_length = -1
        for override, price in self._overrides:
            if override.provider is not None and override.provider.lower() != provider.lower():
                continue
            pattern = override.model.lower()
            seller = override.provider or provider
            own = replace(price, provider=seller, fees=fees_of(seller))
            if pattern == name:
                return own
            if pattern.endswith("*") and name.startswith(pattern[:-1]) and len(pattern) > best_length:
                best, best_length = replace(own, model=name), len(pattern)
        return best

    def _dearest_of(self, provider: str, moment: int) -> ModelPrice:
        """Make a price out of the highest of each kind that a provider asks for any model in any tier."""
        house = self._catalog.provider(provider) or self._catalog.provider("openai")
        assert house is not None
        at = datetime.fromtimestamp(moment * _FRESH_SECONDS, UTC)
        prices = [price for model in house.models if (price := price_of(house, model, at)) is not None]
        rates = dearest(band.rates for price in prices for bands in (price.bands, *price.tiers.values()) for band in bands)
        return ModelPrice(
            provider=provider,
            model="",
            bands=(Band(above=-1, rates=rates),),
            request_yoctos=max(price.request_yoctos for price in prices),
            fees=Fees(*map(max, zip(*(price.fees for price in prices), strict=True))),
            unknown=True,
        )


def _override_price(override: PriceOverride, usd_per: Mapping[str, Decimal]) -> ModelPrice:
    rate = Decimal(1) if override.currency == "USD" else usd_per.get(override.currency)
    if rate is None or to_decimal(rate) <= 0:
        raise ConfigurationError(f"the price of {override.model!r} is in {override.currency}: the settings need its rate to USD")

    def usd(amount: Decimal | None) -> Decimal | None:
        if amount is None:
            return None
        if (value := to_decimal(amount)) < 0:
            raise ConfigurationError(f"the price of {override.model!r} must not be negative: {amount}")
        return exact_product(value, to_decimal(rate))

    rates = rates_from(
        input_price=usd(override.input_per_1m) or Decimal(0),
        output_price=usd(override.output_per_1m) or Decimal(0),
        cache_read=usd(override.cache_read_per_1m),
        cache_write_5m=usd(override.cache_write_5m_per_1m),
        cache_write_1h=usd(override.cache_write_1h_per_1m),
        input_audio=usd(override.input_audio_per_1m),
        reasoning=usd(override.reasoning_per_1m),
        output_audio=usd(override.output_audio_per_1m),
        cache_premium=override.provider == "anthropic" or "claude" in override.model.lower(),
    )
    fee = usd(override.per_request) or Decimal(0)
    return ModelPrice(
        provider=override.provider or "",
        model=override.model,
        bands=(Band(above=-1, rates=rates),),
        request_yoctos=int(fee.scaleb(24)),
        context_window=override.context_window,
        max_output_tokens=override.max_output_tokens or max_output_tokens(override.model),
        has_output=override.output_per_1m is not None,
        overridden=True,
    )
