from __future__ import annotations

from decimal import Decimal

import pytest

from sark_mw.errors import CostEstimationError, InvalidRequestError, MoneyError
from sark_mw.pricing.anthropic import AnthropicCostEstimator
from sark_mw.pricing.base import CostEstimate, CostEstimator, InvocationRequest, InvocationResult, Json, Meter, estimate_with
from sark_mw.pricing.fixed import FixedCostEstimator, NoCostEstimator
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.pricing.prices import PriceBook
from sark_mw.pricing.registry import builtin_estimators
from sark_mw.usage import Usage

REQUEST = InvocationRequest("chat", "user:alice", {"messages": [{"role": "user", "content": "hi"}]})


class OnlyEstimates(CostEstimator):
    @property
    def provider_name(self) -> str:
        return "own"

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Json) -> CostEstimate:
        return CostEstimate(Decimal("0.0000000015"), provider="own", expected_cost=Decimal("0.000000001"))


class RecordsToo(OnlyEstimates):
    async def record_actual_cost(
        self, request: InvocationRequest, result: InvocationResult, resource_metadata: Json
    ) -> CostEstimate | None:
        return CostEstimate(Decimal(1))


def test_unknown_fields_of_a_request_are_ignored_and_no_prompt_is_shown() -> None:
    request = InvocationRequest("c", "p", {"prompt": "secret"}, trace_id="x", session=1)
    assert (request.context, request.resource_id) == ({}, None)
    assert "secret" not in repr(request)


def test_a_result_needs_only_its_success() -> None:
    result = InvocationResult(success=True)
    assert (result.result, result.error, result.metadata, result.duration_ms) == (None, None, {}, 0.0)


def test_a_cost_estimate_is_a_decimal_ceiling_and_cannot_be_changed() -> None:
    estimate = CostEstimate(Decimal("0.5"))
    assert (estimate.currency, estimate.provider, estimate.model, estimate.breakdown, estimate.metadata) == (
        "USD",
        None,
        None,
        {},
        {},
    )
    assert estimate.expected_cost == Decimal("0.5")
    with pytest.raises(AttributeError):
        estimate.estimated_cost = Decimal(0)  # type: ignore[misc]
    with pytest.raises(MoneyError):
        CostEstimate(0.5)  # type: ignore[arg-type]


async def test_actual_costs_are_supported_exactly_where_a_class_says_how() -> None:
    assert not OnlyEstimates().supports_actual_cost()
    assert await OnlyEstimates().record_actual_cost(REQUEST, InvocationResult(True), {}) is None
    assert RecordsToo().supports_actual_cost()
    assert RecordsToo().get_estimator_info() == {
        "provider_name": "own",
        "estimator_class": "RecordsToo",
        "supports_actual_cost": True,
        "module": __name__,
    }


async def test_a_users_own_estimator_gives_the_figures_that_the_enforcer_needs() -> None:
    estimate = await estimate_with(OnlyEstimates(), REQUEST, {})
    assert (estimate.ceiling_nanos, estimate.expected_nanos, estimate.provider) == (2, 1, "own")
    assert not isinstance(OnlyEstimates(), Meter)


async def test_a_free_call_costs_nothing() -> None:
    free = NoCostEstimator()
    cost = await free.estimate_cost(REQUEST, {})
    assert (free.provider_name, cost.estimated_cost, str(cost.estimated_cost)) == ("free", Decimal("0.00"), "0.00")
    assert (await estimate_with(free, REQUEST, {})).ceiling_nanos == 0


async def test_a_fixed_cost_is_the_same_before_and_after() -> None:
    fixed = FixedCostEstimator(Decimal("0.05"))
    cost = await fixed.estimate_cost(REQUEST, {})
    assert (cost.provider, cost.estimated_cost, cost.breakdown) == (
        "fixed",
        Decimal("0.05"),
        {"cost_per_call": "0.05", "call_count": 1},
    )
    estimate = fixed.estimate(REQUEST, {})
    assert estimate.ceiling_nanos == estimate.expected_nanos == fixed.actual(Usage(output_tokens=9), estimate) == 50_000_000
    assert FixedCostEstimator("1", provider="search").provider_name == "search"
    for wrong in (Decimal(-1), Decimal("NaN"), 0.1):
        with pytest.raises(MoneyError):
            FixedCostEstimator(wrong)  # type: ignore[arg-type]


def test_the_built_in_estimators_are_there_and_fast() -> None:
    estimators = builtin_estimators(book=PriceBook())
    assert {name: estimator.provider_name for name, estimator in estimators.items()} == {
        "openai": "openai",
        "anthropic": "anthropic",
        "gemini": "google",
        "google": "google",
        "free": "free",
    }
    assert all(isinstance(estimator, Meter) for estimator in estimators.values())


async def test_what_is_missing_is_named(openai: OpenAICostEstimator, anthropic: AnthropicCostEstimator) -> None:
    for estimator in (openai, anthropic):
        with pytest.raises(CostEstimationError, match="Missing 'model' in resource metadata") as no_model:
            await estimator.estimate_cost(REQUEST, {})
        assert no_model.value.provider == estimator.provider_name
    with pytest.raises(CostEstimationError, match="Missing 'messages', 'prompt' or 'input'"):
        await openai.estimate_cost(InvocationRequest("c", "p", {}), {"model": "gpt-4o"})
    with pytest.raises(CostEstimationError, match="Missing 'messages'"):
        await anthropic.estimate_cost(InvocationRequest("c", "p", {"messages": []}), {"model": "claude-opus-4-5"})


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"])
@pytest.mark.parametrize("value", [-1, True, 1.5, "100", 10**9 + 1, float("nan"), float("inf"), 1e300, [], {}])
def test_absurd_numbers_are_the_callers_mistake(openai: OpenAICostEstimator, name: str, value: object) -> None:
    request = InvocationRequest("c", "p", {"messages": [{"role": "user", "content": "x"}], name: value})
    with pytest.raises(InvalidRequestError) as wrong:
        openai.estimate(request, {"model": "gpt-4o"})
    assert wrong.value.param == name


@pytest.mark.parametrize("value", [-1, False, 0.5, "1", 10**10, float("nan")])
def test_absurd_numbers_are_refused_for_anthropic_too(anthropic: AnthropicCostEstimator, value: object) -> None:
    messages = [{"role": "user", "content": "x"}]
    for body in ({"max_tokens": value}, {"max_tokens": 10, "thinking": {"type": "enabled", "budget_tokens": value}}):
        with pytest.raises(InvalidRequestError) as wrong:
            anthropic.estimate(InvocationRequest("c", "p", {"messages": messages, **body}), {"model": "claude-opus-4-5"})
        assert wrong.value.param in ("max_tokens", "budget_tokens")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, 3]}]}, "messages[0].content[1]"),
    ],
)
def test_malformed_bodies_are_the_callers_mistake_in_both_dialects(
    openai: OpenAICostEstimator, anthropic: AnthropicCostEstimator, body: Json, param: str
) -> None:
    for estimator, model in ((openai, "gpt-4o"), (anthropic, "claude-opus-4-5")):
        with pytest.raises(InvalidRequestError) as wrong:
            estimator.estimate(InvocationRequest("c", "p", body), {"model": model})
        assert wrong.value.param == param


@pytest.mark.parametrize("model", [7, ["gpt-4o"], "x" * 257])
def test_a_model_that_is_no_name_is_refused(openai: OpenAICostEstimator, model: object) -> None:
    with pytest.raises(InvalidRequestError) as wrong:
        openai.estimate(InvocationRequest("c", "p", {"prompt": "x", "model": model}), {})
    assert wrong.value.param == "model"


def test_content_nested_without_end_is_refused(openai: OpenAICostEstimator, anthropic: AnthropicCostEstimator) -> None:
    deep: dict[str, object] = {"type": "tool_result", "content": "x"}
    for _ in range(500):
        deep = {"type": "tool_result", "content": [deep]}
    body = {"messages": [{"role": "user", "content": [deep]}]}
    for estimator, model in ((openai, "gpt-4o"), (anthropic, "claude-opus-4-5")):
        with pytest.raises(InvalidRequestError, match="nested too deeply"):
            estimator.estimate(InvocationRequest("c", "p", body), {"model": model})


def test_very_many_messages_are_held_like_few_ones(openai: OpenAICostEstimator, anthropic: AnthropicCostEstimator) -> None:
    def body(count: int) -> InvocationRequest:
        named = {"role": "user", "content": [{"type": "text", "text": "see you"}]}
        return InvocationRequest("c", "p", {"messages": [named, *[{"role": "user", "content": "hello world"}] * count]})

    for estimator, model in ((openai, "gpt-4o"), (anthropic, "claude-opus-4-5")):
        few = estimator.estimate(body(500), {"model": model}).input_tokens
        many = estimator.estimate(body(50_000), {"model": model}).input_tokens
        # Two tokens and the format's four for each; beyond the exact budget the bound is wider.
        assert 50_000 * 6 <= many <= 200 * few
