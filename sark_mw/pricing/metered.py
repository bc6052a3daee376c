"""The estimator that prices tokens: what OpenAI's, Anthropic's and every other provider's have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

from sark_mw.errors import CostEstimationError, InvalidRequestError
from sark_mw.money import MAX_HOLD, from_nanos
from sark_mw.pricing.base import (
    CostEstimate,
    CostEstimator,
    Estimate,
    InvocationRequest,
    InvocationResult,
    Json,
    as_cost_estimate,
)
from sark_mw.pricing.fallbacks import fallbacks
from sark_mw.pricing.learned import OutputAverage
from sark_mw.pricing.prices import MAX_MODEL_NAME, PriceBook, PricingOptions
from sark_mw.pricing.rates import ModelPrice, Rates, input_yoctos, nanos_up, output_yoctos, usd, usd_per_million
from sark_mw.pricing.tally import Demand, InputTally
from sark_mw.pricing.tokens import TextCounter
from sark_mw.pricing.tool_fees import ToolCalls
from sark_mw.usage import Usage


class MeteredEstimator(CostEstimator):
    """Price requests by tokens; a provider's estimator says how its bodies are read.

    `book` and `options` are shared between estimators; without them each makes its own from the installed data.
    """

    #: What a request that names no service tier may be served in; None: the standard one.
    _unnamed_tier: str | None = None

    def __init__(self, provider: str, book: PriceBook | None = None, options: PricingOptions | None = None) -> None:
        self._provider = provider
        self._options = options or PricingOptions()
        self._book = book or PriceBook(self._options)
        self._learned = OutputAverage(self._options.prior_output_tokens)

    @property
    def provider_name(self) -> str:
        """Name the provider."""
        return self._provider

    @abstractmethod
    def _texts(self, model: str) -> TextCounter:
        """Make a counter of texts for a model."""

    @abstractmethod
    def _demand(self, body: Json, endpoint: str) -> Demand:
        """Read how much output a body asks for; `endpoint` is "" where it is not known."""

    @abstractmethod
    def _count_input(self, body: Json, model: str, tally: InputTally) -> None:
        """Add up a body's input; raises `CostEstimationError` when it has none."""

    @abstractmethod
    def _read_usage(self, usage: Json) -> Usage | None:
        """Read a provider's usage object; None where it says nothing."""

    def read_usage(self, usage: Json) -> Usage | None:
        """Read the usage object of this provider's response; None where it is none."""
        return self._read_usage(usage)

    def estimate(self, request: InvocationRequest, resource_metadata: Json) -> Estimate:
        """Estimate a request: at most this much, probably that much.

        `resource_metadata["model"]` (else the body's) names the model; `["endpoint"] == "embeddings"` says that there is no
        output. Raises `CostEstimationError` (no model, no input) or `InvalidRequestError` (malformed).
        """
        body = request.arguments
        estimate = self._of_model(self._model(body, resource_metadata), body, resource_metadata)
        for other, changed in fallbacks(body):
            estimate = _dearer(estimate, self._of_model(other, changed, resource_metadata))
        return estimate

    def _of_model(self, model: str, body: Json, resource_metadata: Json) -> Estimate:
        price = self._book.price(self._provider, model)
        if price.unknown and self._options.on_unknown_model == "deny":
            raise InvalidRequestError(f"The model '{model}' has no known price", "model")
        demand = self._demand(body, _endpoint(resource_metadata))
        tally = InputTally(self._texts(price.model or model), self._options)
        self._count_input(body, price.model or model, tally)
        no_output = demand.no_output or not price.has_output or resource_metadata.get("endpoint") == "embeddings"
        limit = 0 if no_output else self._limit(demand, price)
        return self._figures(model, price, demand, tally, limit)

    def _limit(self, demand: Demand, price: ModelPrice) -> int:
        if demand.limit is not None:
            return demand.limit
        most = price.max_output_tokens or self._options.default_max_output_tokens
        bounds = (price.context_window, self._options.max_output_tokens_cap)
        return min([most, *(bound for bound in bounds if bound is not None)])

    def _figures(self, model: str, price: ModelPrice, demand: Demand, tally: InputTally, limit: int) -> Estimate:
        tokens = tally.total(price.context_window)
        tier = demand.service_tier or self._options.default_service_tier
        input_tokens = tokens.ceiling + tally.audio_ceiling
        price = self._with_fees(price, demand)
        worst = price.worst(input_tokens, tier or self._unnamed_tier)
        input_rate = _input_rate(worst, demand)
        output_rate = max(worst.output, worst.reasoning, worst.output_audio if demand.audio_output else 0)
        fixed = price.request_yoctos + price.fees.cost(_calls(demand.calls, demand.choices))
        fixed += tokens.ceiling * input_rate + tally.audio_ceiling * max(input_rate, worst.input_audio)
        most = (limit + demand.extra_output) * demand.choices if limit else 0
        ceiling_nanos = nanos_up(fixed + most * output_rate)
        if ceiling_nanos > MAX_HOLD:
            raise InvalidRequestError("The request may cost more than can be reserved: lower its output limit", "max_tokens")
        expected_output = self._learned.expected(model, limit + demand.extra_output) * demand.choices if limit else 0
        probable = Usage(
            input_tokens=tokens.expected + tally.audio_expected,
            input_audio_tokens=tally.audio_expected,
            output_tokens=expected_output,
            # That a tool may be called does not mean that it is, but where it is on offer one call is usual.
            web_searches=min(1, demand.calls.web_searches),
            file_searches=min(1, demand.calls.file_searches),
            code_sessions=min(1, demand.calls.code_sessions),
        )
        return Estimate(
            ceiling_nanos=ceiling_nanos,
            expected_nanos=ceiling_nanos if demand.detached else min(ceiling_nanos, price.cost(probable, tier)),
            input_tokens=input_tokens,
            max_output_tokens=most,
            expected_output_tokens=most if demand.detached else expected_output,
            provider=price.provider or self._provider,
            model=model,
            unknown_model=price.unknown,
            price=price,
            expected_input_tokens=input_tokens if demand.detached else probable.input_tokens,
            audio_input_tokens=tally.audio_ceiling,
            output_limited=demand.limit is not None or limit == 0,
            choices=demand.choices,
            extra_output_tokens=demand.extra_output if limit else 0,
            service_tier=tier,
            fixed_yoctos=fixed,
            output_yoctos=output_rate,
            detached=demand.detached,
            uncounted_calls=_calls(demand.uncounted_calls, demand.choices),
        )

    def _with_fees(self, price: ModelPrice, demand: Demand) -> ModelPrice:
        """Return the price with the fees that a request's tools have."""
        return price

    def actual(self, usage: Usage, estimate: Estimate) -> int:
        """Price what was used, in nanos, in the service tier that served it."""
        if estimate.price is None:
            return estimate.ceiling_nanos
        price = self._served(estimate.price, usage)
        # The fees are those of the tools that were asked for.
        price = replace(price, fees=estimate.price.fees)
        return price.cost(_with_tier(_with_calls(usage, estimate.uncounted_calls), estimate.service_tier))

    def _served(self, asked: ModelPrice, usage: Usage) -> ModelPrice:
        """Return the price of the model that answered, where it is known better than that of the one that was asked for."""
        if usage.model is None or usage.model == asked.model or asked.overridden or len(usage.model) > MAX_MODEL_NAME:
            return asked
        return self._book.known(self._provider, usage.model) or asked

    def observe(self, usage: Usage, estimate: Estimate) -> None:
        """Learn the usual output of a model from a complete usage that the provider reported."""
        if usage.complete and not usage.estimated and estimate.model is not None and estimate.max_output_tokens:
            limit = estimate.max_output_tokens // estimate.choices
            self._learned.observe(estimate.model, limit, usage.output_tokens // estimate.choices)

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Json) -> CostEstimate:
        """Estimate a request; the breakdown's figures are those of the ceiling."""
        estimate = self.estimate(request, resource_metadata)
        assert estimate.price is not None
        rates = estimate.price.worst(estimate.input_tokens, estimate.service_tier or self._unnamed_tier)
        output = estimate.max_output_tokens * estimate.output_yoctos
        tokens = (estimate.input_tokens, estimate.max_output_tokens)
        return as_cost_estimate(estimate, _breakdown(tokens, rates, estimate.fixed_yoctos, output))

    async def record_actual_cost(
        self, request: InvocationRequest, result: InvocationResult, resource_metadata: Json
    ) -> CostEstimate | None:
        """Read the cost off a result's `metadata["usage"]`, else off its body; None where neither tells."""
        usage = self._usage_of(result)
        if usage is None:
            return None
        model = self._model(request.arguments, resource_metadata)
        price = self._served(self._book.price(self._provider, model), usage)
        demand = self._demand(request.arguments, _endpoint(resource_metadata))
        price = self._with_fees(price, demand)
        usage = _with_calls(usage, _calls(demand.uncounted_calls, demand.choices))
        usage = _with_tier(usage, demand.service_tier or self._options.default_service_tier)
        rates = price.rates(usage.input_tokens, usage.service_tier)
        counts = (usage.input_tokens, usage.output_tokens)
        fees = price.request_yoctos + price.fees.cost(usage)
        breakdown = _breakdown(counts, rates, input_yoctos(rates, usage) + fees, output_yoctos(rates, usage))
        return CostEstimate(
            from_nanos(price.cost(usage)),
            provider=price.provider or self._provider,
            model=model,
            breakdown={**breakdown, "total_tokens": usage.total_tokens, "actual": True},
            metadata={"unknown_model": True} if price.unknown else {},
        )

    def _usage_of(self, result: InvocationResult) -> Usage | None:
        body = _mapping(result.result)
        for found in (result.metadata.get("usage"), body.get("usage"), getattr(result.result, "usage", None)):
            if isinstance(found, Usage):
                return found
            if (reported := _mapping(found)) and (usage := self._read_usage(reported)) is not None:
                return usage
        return None

    def _model(self, body: Json, resource_metadata: Json) -> str:
        model = resource_metadata.get("model") or body.get("model")
        if model is None or model == "":
            raise CostEstimationError("Missing 'model' in resource metadata", provider=self._provider)
        if not isinstance(model, str) or len(model) > MAX_MODEL_NAME:
            raise InvalidRequestError(f"'model' must be a string of at most {MAX_MODEL_NAME} characters", "model")
        return model


def _dearer(asked: Estimate, other: Estimate) -> Estimate:
    """Hold as much as either may cost; what is expected is that of the model that was asked for."""
    return replace(
        asked,
        ceiling_nanos=max(asked.ceiling_nanos, other.ceiling_nanos),
        input_tokens=max(asked.input_tokens, other.input_tokens),
        max_output_tokens=max(asked.max_output_tokens, other.max_output_tokens),
        unknown_model=asked.unknown_model or other.unknown_model,
        fixed_yoctos=max(asked.fixed_yoctos, other.fixed_yoctos),
        output_yoctos=max(asked.output_yoctos, other.output_yoctos),
    )


def _endpoint(resource_metadata: Json) -> str:
    endpoint = resource_metadata.get("endpoint")
    return endpoint if isinstance(endpoint, str) else ""


def _calls(calls: ToolCalls, choices: int) -> Usage:
    return Usage(
        web_searches=calls.web_searches * choices,
        file_searches=calls.file_searches * choices,
        code_sessions=calls.code_sessions * choices,
    )


def _with_calls(usage: Usage, least: Usage | None) -> Usage:
    """Fill in the calls of tools that a response does not count."""
    if least is None or usage.web_searches >= least.web_searches:
        return usage
    return replace(usage, web_searches=least.web_searches)


def _input_rate(rates: Rates, demand: Demand) -> int:
    """Return the dearest that a token of text can be: written to a cache rather than read from it."""
    rate = max(rates.input, rates.cache_read)
    if demand.cache_writes:
        rate = max(rate, rates.cache_write_5m, rates.cache_write_1h if demand.cache_writes == "1h" else 0)
    return rate


def _with_tier(usage: Usage, asked: str | None) -> Usage:
    """Fill in the tier that was asked for where the usage does not tell."""
    # Anthropic's `standard` is a tier, its `fast` a speed: the one says nothing about the other.
    silent = usage.service_tier is None or (asked == "fast" and usage.service_tier == "standard")
    return replace(usage, service_tier=asked) if silent and asked is not None and asked != "auto" else usage


def _mapping(value: object) -> Json:
    """See an object of a provider's SDK as the mapping that it prints."""
    if isinstance(value, Mapping):
        return value
    dump = getattr(value, "model_dump", None)
    dumped = dump() if callable(dump) else None
    return dumped if isinstance(dumped, Mapping) else {}


def _breakdown(tokens: tuple[int, int], rates: Rates, input_cost: int, output_cost: int) -> dict[str, object]:
    return {
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "input_cost_per_1m": _plain(usd_per_million(rates.input)),
        "output_cost_per_1m": _plain(usd_per_million(rates.output)),
        "input_cost": _plain(usd(input_cost)),
        "output_cost": _plain(usd(output_cost)),
    }


def _plain(amount: Decimal) -> str:
    """Write an amount without an exponent, with two decimals at least."""
    whole, _, cents = format(amount, "f").partition(".")
    return f"{whole}.{cents.rstrip('0').ljust(2, '0')}"
