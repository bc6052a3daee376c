"""Prices of one model: integers per token, exact, rounded up once per request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Context, Decimal
from typing import NamedTuple

from sark_mw.usage import Usage

#: 1e-24 USD: every published price per token (up to 18 decimals per million) is a whole number of these.
YOCTOS_PER_NANO = 10**15
_YOCTOS_PER_USD_PER_MILLION = Decimal(10) ** 18
_EXACT = Context(prec=60, rounding=ROUND_CEILING)


def yoctos_per_token(usd_per_million: Decimal) -> int:
    """Convert a price to yocto-dollars per token; a price finer than 1e-18 USD per million is rounded up."""
    return int(_EXACT.multiply(usd_per_million, _YOCTOS_PER_USD_PER_MILLION).to_integral_value(ROUND_CEILING))


def exact_product(a: Decimal, b: Decimal) -> Decimal:
    """Multiply without losing digits (to 60 of them, and up beyond)."""
    return _EXACT.multiply(a, b)


def usd_per_million(yoctos: int) -> Decimal:
    """Convert a price in yocto-dollars per token back to dollars per million."""
    return Decimal(yoctos).scaleb(-18, _EXACT)


def usd(yoctos: int) -> Decimal:
    """Convert yocto-dollars to dollars, exactly."""
    return Decimal(yoctos).scaleb(-24, _EXACT)


def nanos_up(yoctos: int) -> int:
    """Round yocto-dollars up to whole nanos: the one rounding of a request."""
    return -(-yoctos // YOCTOS_PER_NANO)


class Rates(NamedTuple):
    """Prices in yocto-dollars per token (a tuple, so that a dearest-of-all is one `map(max, …)`)."""

    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    input_audio: int
    reasoning: int
    output_audio: int


def dearest(rates: Iterable[Rates]) -> Rates:
    """Take the highest price of each kind."""
    return Rates(*map(max, zip(*rates, strict=True)))


class Fees(NamedTuple):
    """What one call of a provider's own tools costs beside its tokens, in yocto-dollars."""

    web_search: int = 0
    file_search: int = 0
    code_session: int = 0

    def cost(self, usage: Usage) -> int:
        """Sum up the fees of a usage, in yocto-dollars."""
        return (
            usage.web_searches * self.web_search
            + usage.file_searches * self.file_search
            + usage.code_sessions * self.code_session
        )


NO_FEES = Fees()


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Rates of requests with more than `above` input tokens: a long-context price holds for the whole request."""

    above: int
    rates: Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """Prices of one model at one time.

    `bands` ascend, the first is always in force (`above` −1). `tiers` are the bands of other service tiers. Token limits are None
    where unknown. `unknown`: nobody knows this model, these are its provider's dearest prices. `overridden`: from the settings.
    """

    provider: str
    model: str
    bands: tuple[Band, ...]
    tiers: Mapping[str, tuple[Band, ...]] = field(default_factory=dict)
    request_yoctos: int = 0
    fees: Fees = NO_FEES
    context_window: int | None = None
    max_output_tokens: int | None = None
    has_output: bool = True
    unknown: bool = False
    overridden: bool = False

    def rates(self, input_tokens: int, service_tier: str | None = None) -> Rates:
        """Return the rates of a request of this size in this service tier."""
        bands = self.tiers.get(service_tier, self.bands) if service_tier else self.bands
        found = bands[0]
        for band in bands[1:]:
            if input_tokens > band.above:
                found = band
        return found.rates

    def worst(self, input_tokens: int, service_tier: str | None = None) -> Rates:
        """Return the dearest rates that a request of at most this size can come to be charged.

        The provider may serve a request in the standard tier whatever was asked, and `auto` in the priority tier.
        """
        tiers = ("priority",) if service_tier == "auto" else (service_tier,)
        others = [self.tiers[tier] for tier in tiers if tier is not None and tier in self.tiers]
        if len(self.bands) == 1 and not others:
            return self.bands[0].rates
        return dearest(band.rates for bands in (self.bands, *others) for band in bands if band.above < input_tokens)

    def cost(self, usage: Usage, service_tier: str | None = None) -> int:
        """Price a usage in nanos; the usage's own service tier, where it names one, is the one that was served."""
        rates = self.rates(usage.input_tokens, usage.service_tier or service_tier)
        tokens = input_yoctos(rates, usage) + output_yoctos(rates, usage)
        return nanos_up(self.request_yoctos + self.fees.cost(usage) + tokens)


def input_yoctos(rates: Rates, usage: Usage) -> int:
    """Price the input: cached, cache-writing and audio tokens apart, what is left as plain input."""
    cached = usage.cache_read_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    plain = max(usage.input_tokens - cached, 0)
    # Audio may be among the cached tokens; then it costs what cached tokens cost.
    audio = min(usage.input_audio_tokens, plain)
    return (
        (plain - audio) * rates.input
        + audio * rates.input_audio
        + usage.cache_read_tokens * rates.cache_read
        + usage.cache_write_5m_tokens * rates.cache_write_5m
        + usage.cache_write_1h_tokens * rates.cache_write_1h
    )


def output_yoctos(rates: Rates, usage: Usage) -> int:
    """Price the output; reasoning and rejected predictions are inside the count."""
    audio = min(usage.output_audio_tokens, usage.output_tokens)
    reasoning = min(usage.reasoning_tokens, usage.output_tokens - audio)
    plain = usage.output_tokens - audio - reasoning
    return plain * rates.output + reasoning * rates.reasoning + audio * rates.output_audio
