from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from unittest.mock import AsyncMock

import pytest

from plugins.cost_aware import CostAwarePlugin
from sark_mw import (
    BudgetReader,
    ConfigurationError,
    Limit,
    PolicyDecision,
    PolicyEvaluationError,
    PolicyPluginManager,
    PolicyServices,
)
from sark_mw._fake_provider import FakeProvider
from tests.asgi.conftest import MakeGateway
from tests.policy.samples import a_context


@dataclass
class Figures:
    daily_budget: Decimal | None = None
    monthly_budget: Decimal | None = None
    daily_spent: Decimal = Decimal(0)
    monthly_spent: Decimal = Decimal(0)


class Books:
    def __init__(self, **figures: Figures) -> None:
        self.figures = figures

    async def get_budget_status(self, principal_id: str) -> Figures | None:
        return self.figures.get(principal_id)


def daily(spent: str, budget: str = "10") -> Figures:
    return Figures(daily_budget=Decimal(budget), daily_spent=Decimal(spent))


async def ask(figures: object, **options: Any) -> PolicyDecision:
    return await CostAwarePlugin(**options).evaluate(a_context(environment={"budget": figures}))


@pytest.mark.parametrize(
    ("spent", "allowed", "warned"),
    [
        ("0", True, False),
        ("7.999999999", True, False),
        ("8", True, True),
        ("9.499999999", True, True),
        ("9.5", False, False),
        ("11", False, False),
    ],
)
async def test_it_warns_from_the_one_threshold_on_and_denies_from_the_other(spent: str, allowed: bool, warned: bool) -> None:
    decision = await ask(daily(spent))
    assert decision.allowed is allowed
    assert ("warning" in decision.metadata) is warned
    assert decision.metadata["daily_percent_used"] == pytest.approx(float(spent) * 10)


async def test_the_budget_that_is_used_most_decides() -> None:
    figures = Figures(Decimal(10), Decimal(100), Decimal(1), Decimal(96))
    decision = await ask(figures)
    assert decision.allowed is False and "96.0 % of the monthly budget" in decision.reason
    assert decision.metadata == {"daily_percent_used": 10.0, "monthly_percent_used": 96.0}


async def test_a_budget_of_nothing_is_used_up_and_no_budget_allows() -> None:
    assert (await ask(daily("0", budget="0"))).allowed is False
    assert (await ask(Figures())).allowed is True
    assert (await ask(None)).allowed is True


async def test_figures_may_be_a_mapping_of_numbers_or_strings() -> None:
    assert (await ask({"daily_budget": 10, "daily_spent": 9.6})).allowed is False
    assert (await ask({"monthly_budget": "10", "monthly_spent": "1"})).allowed is True


@pytest.mark.parametrize(
    "figures", [{"daily_budget": "ten", "daily_spent": 1}, {"daily_budget": 10}, {"daily_budget": "nan", "daily_spent": 1}]
)
async def test_figures_that_make_no_sense_are_an_error(figures: dict[str, object]) -> None:
    with pytest.raises(PolicyEvaluationError, match="daily"):
        await ask(figures)


async def test_the_service_is_asked_for_the_requests_own_principal() -> None:
    plugin = CostAwarePlugin(Books(**{"user:alice": daily("9.9"), "user:bob": daily("1")}))
    assert (await plugin.evaluate(a_context())).allowed is False
    assert (await plugin.evaluate(a_context(principal_id="user:bob"))).allowed is True
    assert (await plugin.evaluate(a_context(principal_id="user:carol"))).reason == "no budget is set"


async def test_the_gateways_budgets_are_used_unless_a_service_was_given() -> None:
    gateways: BudgetReader = Books(**{"user:alice": daily("9.9")})
    manager = PolicyPluginManager(services=PolicyServices(budgets=gateways))
    await manager.register_plugin(CostAwarePlugin())
    assert [d.allowed for d in await manager.evaluate_all(a_context())] == [False]
    own = PolicyPluginManager(services=PolicyServices(budgets=gateways))
    await own.register_plugin(CostAwarePlugin(cost_service=Books()))
    assert [d.allowed for d in await own.evaluate_all(a_context())] == [True]


@pytest.mark.parametrize("on_error", ["deny", "allow"])
async def test_without_figures_from_anywhere_its_on_error_decides(on_error: str) -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(CostAwarePlugin(on_error=on_error))
    decision = (await manager.evaluate_all(a_context()))[0]
    assert decision.allowed is (on_error == "allow") and "no cost service" in decision.metadata["error"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"warning_threshold": 0}, "warning_threshold"),
        ({"deny_threshold": -1}, "deny_threshold"),
        ({"deny_threshold": "most"}, "deny_threshold"),
        ({"deny_threshold": float("nan")}, "deny_threshold"),
        ({"warning_threshold": 0.96}, "never warn"),
        ({"deny_threshold": 80}, r"deny_threshold must be a share .* \(0.8 is 80 %\), not 80"),
        ({"warning_threshold": 80, "deny_threshold": 95}, "warning_threshold must be a share"),
        ({"deny_threshold": 10.1}, "deny_threshold"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        CostAwarePlugin(**options)


async def test_a_soft_budget_may_be_overspent_up_to_a_share_above_one() -> None:
    for spent, allowed in (("14.9", True), ("15", False)):
        assert (await ask(daily(spent), deny_threshold=1.5)).allowed is allowed
    assert (await ask(daily("99"), warning_threshold=1, deny_threshold=10)).allowed


@pytest.mark.parametrize("scope", ["team:", ":ml", "", ":", "team:*", "*", "team :", " team", "te\nam", 7, None])
def test_scopes_that_no_budget_has_are_refused(scope: Any) -> None:
    with pytest.raises(ConfigurationError, match="scopes must be kinds"):
        CostAwarePlugin(scopes=["team", scope])


def limit(scope: str, spent: int, held: int = 0, unit: str = "usd", amount: int = 100, window: str = "day") -> dict[str, Any]:
    return {"scope": scope, "unit": unit, "window": window, "amount": amount, "spent": spent, "held": held, "used": 0}


async def ask_of_scopes(scopes: list[str], *limits: dict[str, Any]) -> PolicyDecision:
    return await CostAwarePlugin(scopes=scopes).evaluate(a_context(environment={"limits": list(limits)}))


async def test_any_scopes_share_warns_then_denies() -> None:
    assert "warning" in (await ask_of_scopes(["team"], limit("team:ml", 85))).metadata
    denied = await ask_of_scopes(["team"], limit("team:ml", 85, held=10), limit("user:alice", 10))
    assert not denied.allowed and denied.reason.startswith("95.0 % of the team:ml/day budget")
    assert denied.metadata == {"team:ml/day_percent_used": 95.0}
    assert (await ask_of_scopes(["org:acme"], limit("org:other", 99), limit("team:ml", 99))).reason == "no budget is set"
    assert not (await ask_of_scopes(["org:acme", "team"], limit("org:acme", 96))).allowed


async def test_of_scopes_only_budgets_in_dollars_count() -> None:
    assert (await ask_of_scopes(["team"], limit("team:ml", 99, unit="requests"))).allowed
    assert not (await ask_of_scopes(["team"], limit("team:ml", 0, amount=0))).allowed
    assert not (await ask_of_scopes(["team"], limit("team:ml", 1), limit("team:ml", 96, window="month"))).allowed


@pytest.mark.parametrize("mode", ["shadow", "soft"])
async def test_a_limit_that_refuses_nothing_refuses_nothing_through_it_either(make: MakeGateway, mode: str) -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(CostAwarePlugin(scopes=["team"]))
    slots = {"scope": "user:a", "amount": 100, "unit": "concurrency"}
    gateway = await make(
        FakeProvider(),
        {"policies": manager},
        limits=({"scope": "team:ml", "amount": "0.000001", "mode": mode}, slots),
        principal={"anonymous": "user:a", "default_scopes": ("team:ml",)},
    )
    async with gateway.sark.reserve(principal="user:b", scopes=["team:ml"], estimate="9.5"):
        assert (await gateway.post()).status == 200
    await gateway.quiet()


async def test_without_the_gateways_limits_its_on_error_decides() -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(CostAwarePlugin(scopes=["team"]))
    assert (await manager.evaluate_all(a_context()))[0].allowed is False
    with pytest.raises(ConfigurationError, match="scopes must be a list"):
        CostAwarePlugin(scopes="team")


SLOTS = {"scope": "user:a", "amount": 100, "unit": "concurrency"}


async def test_a_principal_is_judged_by_its_budget_in_the_requests_own_root(make: MakeGateway) -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(CostAwarePlugin(deny_threshold=0.5, warning_threshold=0.5))
    budgets = {"default": "1", "acme": "10", "bee": "1"}
    gateway = await make(
        FakeProvider(),
        {"policies": manager},
        limits=({**SLOTS, "root": "default"}, *({"scope": "user:a", "root": root, "amount": budgets[root]} for root in budgets)),
        principal={"trusted_proxies": ("203.0.113.9",)},
    )
    for root, spent in (("default", "0.6"), ("acme", "0.6"), ("bee", "0.4")):
        async with gateway.sark.reserve(principal="user:a", root=root, estimate=spent) as reservation:
            reservation.settle(spent)
    await gateway.quiet()

    async def status(**named: str) -> int | None:
        return (await gateway.post(headers={"x-sark-principal": "user:a", **named})).status

    assert [await status(**{"x-sark-root": root}) for root in budgets] == [403, 200, 200]
    assert await status() == 403
    await gateway.quiet()


async def test_the_principals_root_that_the_settings_name_is_the_one_that_is_read(make: MakeGateway) -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(CostAwarePlugin())
    gateway = await make(
        FakeProvider(),
        {"policies": manager},
        limits=({**SLOTS, "root": "acme"}, {"scope": "user:a", "root": "acme", "amount": 1}),
        principal={"anonymous": "user:a", "root": "acme"},
    )
    async with gateway.sark.reserve(principal="user:a", estimate="0.96") as reservation:
        reservation.settle("0.96")
    await gateway.quiet()
    assert (await gateway.post()).status == 403


@pytest.mark.parametrize(("window", "scopes", "status"), [("month:15", [], 403), ("week", [], 200), ("week", ["user"], 403)])
async def test_of_a_principal_the_day_and_any_month_are_read_and_by_scopes_every_window(
    make: MakeGateway, window: str, scopes: list[str], status: int
) -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(CostAwarePlugin(scopes=scopes))
    gateway = await make(
        FakeProvider(), {"policies": manager}, limits=({"scope": "user:a", "amount": 1, "window": window}, SLOTS)
    )
    async with gateway.sark.reserve(principal="user:a", estimate="0.96") as reservation:
        reservation.settle("0.96")
    await gateway.quiet()
    assert (await gateway.post()).status == status
    await gateway.quiet()


async def test_of_two_months_the_one_that_is_used_most_decides(make: MakeGateway) -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(CostAwarePlugin())
    gateway = await make(
        FakeProvider(), {"policies": manager}, limits=({"scope": "user:a", "amount": 100, "window": "month"}, SLOTS)
    )
    async with gateway.sark.reserve(principal="user:a", estimate="96") as reservation:
        reservation.settle("96")
    await gateway.quiet()
    await gateway.sark.limits.set(Limit(scope="user:a", amount=Decimal(3), window="month:15"))
    assert (await gateway.post()).status == 403


async def test_a_service_of_ones_own_that_answers_to_every_name_is_asked_by_the_one_that_is_promised() -> None:
    service = AsyncMock()
    service.get_budget_status.return_value = {"daily_budget": 10, "daily_spent": 1}
    plugin = CostAwarePlugin(cost_service=service)
    decision = await plugin.evaluate(a_context(environment={"root": "acme"}))
    assert (decision.allowed, decision.reason) == (True, "within budget")


async def test_a_gateway_tells_it_where_the_teams_budget_stands(make: MakeGateway) -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(CostAwarePlugin(scopes=["team"], deny_threshold=0.9))
    slots = {"scope": "user:a", "amount": 100, "unit": "concurrency"}
    principal = {"anonymous": "user:a", "default_scopes": ("team:ml",)}
    gateway = await make(
        FakeProvider(), {"policies": manager}, limits=({"scope": "team:ml", "amount": "10"}, slots), principal=principal
    )
    assert (await gateway.post()).status == 200
    async with gateway.sark.reserve(principal="user:b", scopes=["team:ml"], estimate="9.5"):
        # The figures may be a moment old.
        later = [await gateway.post()]
        while later[-1].status == 200:
            later.append(await gateway.post())
    assert later[-1].status == 403 and "% of the team:ml/day budget is spent" in later[-1].json["error"]["message"]
