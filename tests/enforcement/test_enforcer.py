"""The enforcer on a real store: the order, the refusals, and whatever may come between a question and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.errors import CostEstimationError
from sark_mw.limit import Limit
from sark_mw.policy.base import PolicyContext, PolicyDecision, PolicyPlugin
from sark_mw.pricing.base import CostEstimate, CostEstimator, InvocationRequest, Json
from sark_mw.reservation import Outcome
from sark_mw.sark import Sark
from sark_mw.wire.base import RefusalKind
from tests.enforcement.whole import (
    TEAM,
    admitted,
    assert_balanced,
    counted,
    invocation,
    refused,
    settings_for,
    until,
)
from tests.servers.redis_server import RedisHandle

CENT = 10_000_000


@pytest.fixture
async def sark(valkey_server: RedisHandle, tmp_path: Path) -> AsyncIterator[Sark]:
    async with Sark.open(settings_for(valkey_server.url, tmp_path)) as opened:
        yield opened


class Denying(PolicyPlugin):
    """Deny, and remember what it was asked."""

    def __init__(self, allow: bool = False) -> None:
        self.allow = allow
        self.asked: list[PolicyContext] = []

    @property
    def name(self) -> str:
        return "denying"

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        self.asked.append(context)
        return PolicyDecision(self.allow, "not on my watch", metadata={"retry_after": 7})


class Failing(CostEstimator):
    provider_name = "failing"  # type: ignore[assignment]

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Json) -> CostEstimate:
        raise CostEstimationError("no idea what this costs")


async def test_a_request_without_a_price_reaches_neither_policies_nor_the_store(sark: Sark) -> None:
    plugin = Denying()
    await sark.policies.register_plugin(plugin)
    refusal = await refused(sark, "0.1", estimator=Failing())
    assert (refusal.kind, refusal.message) == (RefusalKind.INVALID, "no idea what this costs")
    assert plugin.asked == []
    assert await counted(sark) == (0, 0)


async def test_a_policy_hears_the_estimate_and_its_denial_holds_nothing(sark: Sark) -> None:
    plugin = Denying()
    await sark.policies.register_plugin(plugin)
    refusal = await refused(sark, "0.1")
    assert (refusal.kind, refusal.plugin, refusal.reason, refusal.retry_after_s) == (
        RefusalKind.POLICY,
        "denying",
        "not on my watch",
        7.0,
    )
    assert plugin.asked[0].environment["estimated_nanos"] == 10 * CENT
    assert await counted(sark) == (0, 0)


async def test_what_is_admitted_is_held_then_booked_and_the_rest_given_back(sark: Sark) -> None:
    admission = await admitted(sark, "0.4")
    assert await counted(sark) == (0, 40 * CENT)
    assert admission.remaining_nanos == 60 * CENT
    reply = await admission.settle(Spent(cost_nanos=25 * CENT))
    assert reply
    assert reply.outcome is Outcome.SETTLED
    await assert_balanced(sark, 25 * CENT)


async def test_only_the_first_end_of_a_request_counts(sark: Sark) -> None:
    admission = await admitted(sark, "0.4")
    first = admission.settle(Spent(cost_nanos=25 * CENT))
    assert admission.settle(Spent(cost_nanos=1)) is first
    assert admission.release() is first
    await first
    await assert_balanced(sark, 25 * CENT)


async def test_a_refusal_for_lack_of_budget_says_what_there_is(sark: Sark) -> None:
    await admitted(sark, "0.25")
    await (await admitted(sark, "0.5")).settle(Spent(cost_nanos=50 * CENT))
    refusal = await refused(sark, "0.26")
    assert refusal.kind is RefusalKind.BUDGET
    assert (refusal.scope, refusal.unit, refusal.window) == (TEAM, "usd", "total")
    figures = (refusal.amount, refusal.spent, refusal.held, refusal.needed, refusal.remaining)
    assert figures == (Decimal(1), Decimal("0.5"), Decimal("0.25"), Decimal("0.26"), Decimal("0.25"))
    assert refusal.message == (
        "The budget of team:ml (1.00 usd) does not allow this request: 0.50 spent, 0.25 held by requests in flight, 0.26 needed."
    )
    assert refusal.retry_after_s is None
    assert refusal.resets_at_ms is None
    await admitted(sark, "0.25")


async def test_a_refusal_says_how_many_tokens_could_be_afforded(valkey_server: RedisHandle, tmp_path: Path) -> None:
    async with Sark.open(settings_for(valkey_server.url, tmp_path, budget="0.01")) as sark:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4096}
        asked = replace(
            invocation("0"), estimator=sark.estimators["openai"], request=InvocationRequest("chat", "user:alice", body)
        )
        refusal = await sark.enforcer.admit(asked)
        assert not hasattr(refusal, "settle")
        affordable = refusal.affordable_output_tokens
        assert 0 < affordable < 4096
        for tokens, passes in ((affordable, True), (affordable + 1, False)):
            less = InvocationRequest("chat", "user:alice", {**body, "max_tokens": tokens})
            answer = await sark.enforcer.admit(replace(asked, request=less))
            assert hasattr(answer, "settle") is passes
            if passes:
                await answer.release()


@pytest.mark.parametrize(
    ("unit", "window", "kind", "longest"),
    [
        ("requests", "minute", RefusalKind.RATE_LIMIT, 60),
        ("requests", "day", RefusalKind.RATE_LIMIT, 86_400),
        ("requests", "rolling:3600", RefusalKind.RATE_LIMIT, 3_600),
        ("concurrency", "total", RefusalKind.CONCURRENCY, 1),
    ],
)
async def test_a_rate_or_concurrency_limit_says_when_to_come_again(
    valkey_server: RedisHandle, tmp_path: Path, unit: str, window: str, kind: RefusalKind, longest: int
) -> None:
    limits = [{"scope": TEAM, "unit": unit, "amount": 1, "window": window}]
    async with Sark.open(settings_for(valkey_server.url, tmp_path, limits=limits)) as sark:
        admission = await admitted(sark, "0.1")
        refusal = await refused(sark, "0.1")
        assert (refusal.kind, refusal.unit, refusal.amount, refusal.held, refusal.needed) == (kind, unit, 1, 1, 1)
        assert refusal.retry_after_s is not None
        assert 1 <= refusal.retry_after_s <= longest
        await admission.release()
        await admitted(sark, "0.1")


async def test_a_request_that_costs_more_than_can_be_held_at_all_is_refused_as_malformed(sark: Sark) -> None:
    assert (await refused(sark, "9007200")).kind is RefusalKind.INVALID


async def test_limits_changed_by_another_process_count_for_the_next_request(
    valkey_server: RedisHandle, sark: Sark, tmp_path: Path
) -> None:
    await (await admitted(sark, "0.4")).release()
    async with Sark.open(settings_for(valkey_server.url, tmp_path / "other", budget=None)) as other:
        await other.limits.set(Limit(scope=TEAM, amount=Decimal("0.3"), window="total"))
        assert (await refused(sark, "0.4")).amount == Decimal("0.3")
        (limit,) = await other.limits.list()
        await other.limits.drop("default", limit.limit_id)
        assert (await admitted(sark, "1000")).balances == ()


async def test_a_clock_that_is_a_day_slow_asks_again_and_spends_today(valkey_server: RedisHandle, tmp_path: Path) -> None:
    limits = [{"scope": TEAM, "amount": "1", "window": "minute"}]
    async with Sark.open(settings_for(valkey_server.url, tmp_path, limits=limits)) as sark:
        await (await admitted(sark, "0.1")).settle(Spent(cost_nanos=CENT))
        sark.clock._offset_ms -= 86_400_000
        admission = await admitted(sark, "0.1")
        assert abs(admission.made_ms - sark.clock.now_ms()) < 60_000
        assert admission.balances[0].line.starts_ms <= admission.made_ms < admission.balances[0].line.ends_ms
        await admission.settle(Spent(cost_nanos=CENT))


async def test_a_client_that_goes_while_its_reserve_is_under_way_leaves_nothing_held(sark: Sark) -> None:
    for turns in range(12):
        task = asyncio.ensure_future(sark.enforcer.admit(invocation("0.05")))
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():  # a quick server answers within some turns: nobody has gone then
            admission = task.result()
            assert isinstance(admission, Admission)
            await admission.release()
            continue
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def answered() -> bool:
        return not any("Enforcer._reserve" in repr(task.get_coro()) for task in asyncio.all_tasks())

    await until(answered)
    await until(lambda: _nothing_held(sark))
    assert sark.enforcer.live == {}
    await assert_balanced(sark, 0)


async def test_a_stream_is_booked_as_it_goes_and_its_lease_renewed(valkey_server: RedisHandle, tmp_path: Path) -> None:
    settings = settings_for(valkey_server.url, tmp_path, reservation={"lease_s": 0.6, "sweep_interval_ms": 10})
    async with Sark.open(settings) as sark:
        admission = await admitted(sark, "0.5", expected="0.3")
        first = (await sark.store.limits("default")).at_ms

        async def progressed(nanos: int) -> bool:
            return await counted(sark) == (nanos, 50 * CENT - nanos)

        for cents in (5, 12):
            admission.report(Spent(cost_nanos=cents * CENT))
            await until(lambda cents=cents: progressed(cents * CENT))

        async def older_than_its_lease() -> bool:
            return (await sark.store.limits("default")).at_ms > first + 1_500

        await until(older_than_its_lease)
        assert await counted(sark) == (12 * CENT, 38 * CENT)
        reply = await admission.settle(Spent(cost_nanos=20 * CENT))
        assert reply
        assert (reply.outcome, reply.late) == (Outcome.SETTLED, False)
        await assert_balanced(sark, 20 * CENT)


async def _nothing_held(sark: Sark) -> bool:
    return sark.settler.pending == 0 and (await counted(sark))[1] == 0
