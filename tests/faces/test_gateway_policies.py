"""Policies around `SARKGateway`: those of its `Sark` hold whatever manager it is given, and all are lent what HTTP's are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from plugins.adaptive_rate_limit import AdaptiveRateLimitPlugin
from plugins.approval import ApprovalPlugin
from plugins.rate_limit import RateLimitPlugin
from sark_mw import (
    FixedCostEstimator,
    InvocationRequest,
    InvocationResult,
    Limit,
    Obligation,
    PolicyContext,
    PolicyDecision,
    PolicyPlugin,
    PolicyPluginManager,
    PolicyServices,
    RefusedError,
    Sark,
    SARKGateway,
)
from sark_mw.enforcement.grants import Why
from sark_mw.policy.context import read_bytes
from sark_mw.settings_policy import RuleSettings
from tests.enforcement.whole import settings_for, until
from tests.faces.test_gateway import FIXED, Echo, invoke

WHY = Why(actor="test", reason="incident")
OWN = pytest.mark.parametrize("own", [False, True], ids=["the Sark's manager", "one of its own"])


class Asked(PolicyPlugin):
    """Allow, add a tag, and remember what was lent and how often it was asked."""

    name = "asked"

    def __init__(self) -> None:
        self.services: list[PolicyServices] = []
        self.times = 0
        self.read_bytes: int | None = -1

    def bind(self, services: PolicyServices) -> None:
        self.services.append(services)

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        self.times += 1
        self.read_bytes = read_bytes(context)
        return PolicyDecision(True, obligations=(Obligation("add_tag", "asked"),))


@pytest.fixture
async def sark(tmp_path: Path) -> AsyncIterator[Sark]:
    limits = [{"scope": "resource:none", "amount": 0}]
    settings = settings_for("memory://", tmp_path, limits=limits, admin={"token": "a token of the tests, long enough"})
    async with Sark.open(settings) as opened:
        yield opened


async def gateway_over(sark: Sark, *plugins: PolicyPlugin, own: bool = True) -> SARKGateway:
    """Make a gateway with these plugins in a manager of its own, or in that of the `Sark`."""
    manager = PolicyPluginManager() if own else sark.policies
    for plugin in plugins:
        await manager.register_plugin(plugin)
    gateway = SARKGateway(manager if own else None, sark=sark)
    gateway.cost_tracker.register_estimator("fixed", FixedCostEstimator(1))
    for resource in ("r", "none"):
        gateway.register_adapter(resource, Echo(), FIXED)
    return gateway


async def test_an_invocation_takes_nothing_away_from_the_plugins_of_its_sark(sark: Sark) -> None:
    plugin = Asked()
    gateway = await gateway_over(sark, plugin, own=False)
    assert (await invoke(gateway)).success
    other = await gateway_over(sark)
    assert (await invoke(other)).success
    (lent,) = [each for each in plugin.services if each != PolicyServices()]
    assert lent is sark.services and None not in (lent.store, lent.budgets, lent.outcomes, lent.approvals, lent.limits)


@OWN
async def test_a_rate_limit_gives_back_what_the_budget_refuses(sark: Sark, own: bool) -> None:
    gateway = await gateway_over(sark, RateLimitPlugin(max_requests=3), own=own)
    assert [(await invoke(gateway, "none")).metadata["reason"] for _ in range(3)] == ["budget"] * 3

    async def passes() -> bool:
        return (await invoke(gateway)).success  # what is refused is given back in a moment

    await until(passes)


@OWN
async def test_an_adaptive_limit_counts_what_is_under_way_and_steps_back_for_an_adapter_that_fails(sark: Sark, own: bool) -> None:
    gateway = await gateway_over(sark, AdaptiveRateLimitPlugin(start=2, most=2, key="everyone", cooldown_seconds=60), own=own)
    slow = Echo()
    slow.gate.clear()
    gateway.register_adapter("slow", slow, FIXED)

    async def at_once(resource: str = "slow") -> list[Any]:
        calls = [asyncio.ensure_future(invoke(gateway, resource)) for _ in range(3)]
        while len(slow.asked) + sum(call.done() for call in calls) < 3:
            await asyncio.sleep(0)
        slow.gate.set()
        results = await asyncio.gather(*calls)
        slow.gate.clear()
        slow.asked.clear()
        return sorted(result.metadata.get("reason", "") for result in results)

    assert await at_once() == ["", "", "policy"]
    assert await at_once() == ["", "", "policy"], "their places are free again"

    def broken(_: object) -> InvocationResult:
        raise ConnectionError("nobody there")

    gateway.register_adapter("broken", Echo(broken), FIXED)
    assert (await invoke(gateway, "broken")).metadata["reason"] == "adapter"
    assert await at_once() == ["", "policy", "policy"]


async def test_a_status_that_an_adapter_tells_is_what_a_policy_learns_from(sark: Sark) -> None:
    heard: list[tuple[bool, int | None]] = []
    sark.outcomes.listen(lambda end: heard.append((end.admitted, end.status)))
    gateway = await gateway_over(sark)
    for success, metadata in ((True, {}), (False, {"status": 429}), (False, {"status": "busy"})):
        gateway.register_adapter("r", Echo(lambda _, a=success, b=metadata: InvocationResult(a, metadata=dict(b))), FIXED)
        await invoke(gateway)
    await invoke(gateway, "none")
    assert heard == [(True, 200), (True, 429), (True, None), (False, None)]


@OWN
async def test_an_approval_is_asked_for_and_used_without_http_too(sark: Sark, own: bool) -> None:
    gateway = await gateway_over(sark, ApprovalPlugin(above_usd="0.5"), own=own)
    assert (await invoke(gateway)).metadata["reason"] == "policy"
    (waits,) = await sark.approvals.waiting("default")
    granted = await sark.approvals.grant("default", waits.approval_id, valid_s=60)
    assert (await invoke(gateway, approval=granted.token)).success
    assert "has been used" in str((await invoke(gateway, approval=granted.token)).error)


async def test_an_administrators_rule_holds_in_a_gateway_with_a_manager_of_its_own(sark: Sark) -> None:
    plugin = Asked()
    gateway = await gateway_over(sark, plugin)
    assert (await invoke(gateway)).success and plugin.times == 1
    await sark.shared_policies.set_rule("stop", RuleSettings(when="true", deny="incident"), WHY)
    later = await gateway_over(sark)
    for each in (gateway, later):
        result = await invoke(each)
        assert result.metadata["reason"] == "policy" and "stop: incident" in str(result.error)
    assert plugin.times == 1, "who is refused by an administrator is refused"
    await sark.shared_policies.drop_rule("stop", WHY)
    assert (await invoke(gateway)).success and plugin.times == 2


async def test_the_policies_of_the_settings_and_those_of_the_gateway_hold_together(tmp_path: Path) -> None:
    rules = [{"when": 'request.capability == "no"', "deny": "not this"}]
    settings = settings_for("memory://", tmp_path, budget=None, policy={"rules": rules})
    plugin = Asked()
    async with Sark.open(settings) as sark:
        gateway = await gateway_over(sark, plugin, own=True)
        assert (await invoke(gateway, capability="no")).metadata["reason"] == "policy"
        assert plugin.times == 0
        assert (await invoke(gateway)).success
        assert plugin.times == 1


async def test_both_managers_share_the_deadline_of_the_chain(tmp_path: Path) -> None:
    class Slow(Asked):
        on_error = "allow"  # type: ignore[assignment]

        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            await asyncio.sleep(60)
            return await super().evaluate(context)

    settings = settings_for("memory://", tmp_path, budget=None, policy={"chain_timeout_s": 0.05})
    async with Sark.open(settings) as sark:
        await sark.policies.register_plugin(Slow())
        gateway = await gateway_over(sark, RateLimitPlugin())
        result = await invoke(gateway)
    assert result.metadata["reason"] == "policy_unavailable", "no time was left for the second"


async def test_a_manager_that_another_open_sark_has_is_left_to_it(sark: Sark, tmp_path: Path) -> None:
    plugin = Asked()
    await sark.policies.register_plugin(plugin)
    async with Sark.open(settings_for("memory://other", tmp_path, budget=None)) as other:
        gateway = SARKGateway(sark.policies, sark=other)
        gateway.register_adapter("r", Echo())
        result = await invoke(gateway)
    assert (result.success, result.metadata["reason"]) == (False, "configuration") and "another Sark" in str(result.error)
    assert plugin.services[-1] is sark.services
    with pytest.raises(RefusedError):
        async with sark.reserve(principal="user:a", scopes=["resource:none"], estimate=1):
            raise AssertionError("unreachable")


async def test_what_cannot_be_opened_is_a_result_and_not_an_exception(sark: Sark) -> None:
    gateway = await gateway_over(sark)
    own = SARKGateway(settings={"ledger": {"url": "nothing://"}})
    own.register_adapter("r", Echo())
    assert (await invoke(own)).metadata["reason"] == "configuration"
    await gateway.aclose()
    assert (await invoke(gateway)).metadata["reason"] == "configuration"


@pytest.mark.parametrize("result", [{"success": True}, None, InvocationResult(True, metadata=None)])  # type: ignore[arg-type]
async def test_a_call_whose_adapter_returns_what_is_no_result_is_paid_all_the_same(sark: Sark, result: Any) -> None:
    class Odd(Echo):
        async def invoke(self, request: InvocationRequest) -> InvocationResult:
            await super().invoke(request)
            odd: InvocationResult = result
            return odd

    gateway = await gateway_over(sark)
    await sark.limits.set(Limit(scope="user:alice", amount=Decimal(3), window="day"))
    gateway.register_adapter("odd", Odd(), FIXED)
    reasons = [(await invoke(gateway, "odd")).metadata["reason"] for _ in range(5)]
    assert reasons == ["adapter"] * 3 + ["budget"] * 2


async def test_nobody_knows_how_long_a_call_without_http_was_whatever_its_context_says(sark: Sark) -> None:
    asked = Asked()
    gateway = await gateway_over(sark, asked)
    assert (await invoke(gateway, body_bytes=1, _read_bytes=1)).success
    assert asked.read_bytes is None
