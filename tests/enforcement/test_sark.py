"""`Sark` from start to end: started once, settled with whatever a provider says, limits from the settings, drift."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest
from openai.types import CompletionUsage

from sark_mw.enforcement.admission import Spent
from sark_mw.errors import ConfigurationError, CostEstimationError, RefusedError, StoreUnavailableError
from sark_mw.instrumentation.base import NullInstrumentation, RequestFinished
from sark_mw.limit import DEFAULT_ROOT
from sark_mw.pricing.base import CostEstimate
from sark_mw.reservation import Outcome
from sark_mw.sark import Sark
from sark_mw.usage import Usage
from tests.enforcement.whole import TEAM, admitted, assert_balanced, counted, in_ledger, settings_for, until
from tests.servers.fixtures import FreshValkey
from tests.servers.redis_server import RedisHandle

CENT = 10_000_000
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
#: 10 tokens in at $2.50 and 20 out at $10 per million.
COST = 10 * 2_500 + 20 * 10_000


class Drifts(NullInstrumentation):
    """Remember what the drift gauge was last set to."""

    def __init__(self) -> None:
        self.last: dict[tuple[int, str], int] = {}

    def drift_measured(self, shard: int, unit: str, amount: int) -> None:
        self.last[shard, unit] = amount


@pytest.fixture
async def sark(valkey_server: RedisHandle, tmp_path: Path) -> AsyncIterator[Sark]:
    async with Sark.open(settings_for(valkey_server.url, tmp_path)) as opened:
        yield opened


async def test_started_many_times_at_once_it_starts_once(valkey_server: RedisHandle, tmp_path: Path) -> None:
    sark = Sark(settings_for(valkey_server.url, tmp_path))
    await asyncio.gather(*(sark.start() for _ in range(5)))
    store = sark.store
    await sark.start()
    assert sark.store is store
    (limit,) = await sark.limits.list()
    assert (limit.scope, limit.amount) == (TEAM, 1)
    await sark.aclose()


async def test_without_a_store_it_does_not_start_and_later_does(fresh_valkey: FreshValkey, tmp_path: Path) -> None:
    server = fresh_valkey()
    server.kill()
    sark = Sark(settings_for(server.url, tmp_path, store={"deadline_ms": 300, "breaker_failures": 1_000_000}))
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await sark.start()
        assert not sark.started
    server.start()
    await sark.start()
    await (await admitted(sark, "0.1")).settle(Spent(cost_nanos=CENT))
    await assert_balanced(sark, CENT)
    await sark.aclose()


async def test_one_that_never_started_can_be_closed_and_one_that_did_twice(valkey_server: RedisHandle, tmp_path: Path) -> None:
    await Sark(settings_for(valkey_server.url, tmp_path)).aclose()
    sark = Sark(settings_for(valkey_server.url, tmp_path))
    await sark.start()
    await sark.aclose()
    await sark.aclose()


async def test_closing_settles_what_is_in_flight_and_empties_the_outbox(valkey_server: RedisHandle, tmp_path: Path) -> None:
    settings = settings_for(valkey_server.url, tmp_path, ledger={"flush_interval_ms": 60_000})
    async with Sark.open(settings) as sark:
        for _ in range(20):
            async with sark.reserve(principal="user:alice", scopes=[TEAM], estimate="0.02") as reservation:
                reservation.settle("0.01")
    async with Sark.open(settings_for(valkey_server.url, tmp_path, ledger={"flush": False})) as after:
        assert await after.store.backlog() == 0
        await assert_balanced(after, 20 * CENT)


class Told(NullInstrumentation):
    """Remember how requests ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []

    def request_finished(self, event: RequestFinished) -> None:
        self.ends.append((event.outcome, event.reason))


async def test_requests_without_http_are_told_like_any_other(valkey_server: RedisHandle, tmp_path: Path) -> None:
    told = Told()
    async with Sark.open(settings_for(valkey_server.url, tmp_path), instrumentation=told) as sark:
        async with sark.reserve(principal="user:a", scopes=[TEAM], estimate=Decimal("0.01")):
            pass
        with pytest.raises(RefusedError):
            async with sark.reserve(principal="user:a", scopes=[TEAM], estimate=Decimal("1000")):
                raise AssertionError("it must not get here")
    assert told.ends == [("admitted", ""), ("refused_budget", "usd")]


async def test_a_cost_in_another_currency_is_not_charged_as_dollars(sark: Sark) -> None:
    async with sark.reserve(principal="user:a", estimate=Decimal("0.05")) as reservation:
        with pytest.raises(CostEstimationError, match="KWD"):
            reservation.settle(CostEstimate(Decimal("0.03"), currency="KWD"))
        assert not reservation.resolved


@pytest.mark.parametrize("actual", [Decimal("0.03"), "0.03", CostEstimate(Decimal("0.03"))], ids=["Decimal", "text", "estimate"])
async def test_a_call_of_known_cost_is_booked_at_it(sark: Sark, actual: Decimal | str | CostEstimate) -> None:
    async with sark.reserve(principal="user:alice", scopes=[TEAM], estimate="0.05") as reservation:
        assert await counted(sark) == (0, 5 * CENT)
        reservation.settle(actual)
    await sark.settler.drain(10)
    await assert_balanced(sark, 3 * CENT)


@pytest.mark.parametrize(
    "usage",
    [
        Usage(input_tokens=10, output_tokens=20),
        CompletionUsage(prompt_tokens=10, completion_tokens=20, total_tokens=30),
        {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
    ],
    ids=["ours", "the SDK's", "a mapping"],
)
async def test_a_call_is_booked_at_what_the_provider_says_it_used(sark: Sark, usage: object) -> None:
    async with sark.reserve(principal="user:alice", scopes=[TEAM], provider="openai", request=BODY) as reservation:
        reservation.settle(usage)
    await sark.settler.drain(10)
    await assert_balanced(sark, COST)


async def test_a_call_without_a_settle_or_with_an_exception_is_given_back(sark: Sark) -> None:
    async with sark.reserve(principal="user:alice", scopes=[TEAM], estimate="0.05"):
        pass
    with pytest.raises(ZeroDivisionError):
        async with sark.reserve(principal="user:alice", scopes=[TEAM], estimate="0.05"):
            raise ZeroDivisionError
    await sark.settler.drain(10)
    await assert_balanced(sark, 0)


async def test_a_cost_that_cannot_be_read_is_an_error_and_the_hold_stays_for_another_try(sark: Sark) -> None:
    async with sark.reserve(principal="user:alice", scopes=[TEAM], estimate="0.05") as reservation:
        for nonsense in (1.5, object(), {"usage": {}}, None):
            with pytest.raises(CostEstimationError):
                reservation.settle(nonsense)
        assert await counted(sark) == (0, 5 * CENT)
        reservation.settle("0.01")
    await sark.settler.drain(10)
    await assert_balanced(sark, CENT)


async def test_a_refused_reservation_raises_what_refused_it(sark: Sark) -> None:
    with pytest.raises(RefusedError) as raised:
        async with sark.reserve(principal="user:alice", scopes=[TEAM], estimate="1.01"):
            pytest.fail("it was admitted")
    assert raised.value.kind == "budget"
    with pytest.raises(ConfigurationError):
        async with sark.reserve(principal="user:alice"):
            pytest.fail("it was admitted")


async def test_limits_of_the_settings_are_set_at_start_changed_by_the_next_and_keep_what_they_counted(
    valkey_server: RedisHandle, tmp_path: Path
) -> None:
    async with Sark.open(settings_for(valkey_server.url, tmp_path, budget="1")) as first:
        await (await admitted(first, "0.5")).settle(Spent(cost_nanos=50 * CENT))
        version = (await first.store.limits(DEFAULT_ROOT)).version
        async with Sark.open(settings_for(valkey_server.url, tmp_path, budget="1")) as same:
            assert (await same.store.limits(DEFAULT_ROOT)).version == version
        async with Sark.open(settings_for(valkey_server.url, tmp_path, budget="0.6")) as second:
            (limit,) = await second.limits.list()
            assert limit.amount == Decimal("0.6")
            assert await counted(first) == (50 * CENT, 0)
            with pytest.raises(RefusedError):
                async with first.reserve(principal="user:alice", scopes=[TEAM], estimate="0.11"):
                    pytest.fail("it was admitted")


async def test_drift_is_nothing_under_traffic_and_what_was_tampered_with_afterwards(
    valkey_server: RedisHandle, tmp_path: Path
) -> None:
    gauge = Drifts()
    async with Sark.open(settings_for(valkey_server.url, tmp_path, budget="1000"), instrumentation=gauge) as sark:
        shard = sark.store.shard_of(DEFAULT_ROOT)
        stop = asyncio.Event()

        async def traffic() -> None:
            while not stop.is_set():
                await (await admitted(sark, "0.02")).settle(Spent(cost_nanos=CENT))

        async def measured() -> bool:
            gauge.last.clear()
            await sark.drift.measure()
            return (shard, "usd") in gauge.last

        running = [asyncio.ensure_future(traffic()) for _ in range(4)]
        for _ in range(10):
            await until(measured)
            assert gauge.last[shard, "usd"] == 0
        stop.set()
        await asyncio.gather(*running)
        await in_ledger(sark)
        (line,) = (await sark.tables.layout(DEFAULT_ROOT, (TEAM,))).lines
        valkey_server.command("HINCRBY", sark.store.keys_of(shard).all[1], line.counter, 777)
        await until(measured)
        assert gauge.last[shard, "usd"] == 777


async def test_a_settle_after_the_lease_ended_corrects_what_was_guessed(valkey_server: RedisHandle, tmp_path: Path) -> None:
    settings = settings_for(valkey_server.url, tmp_path, reservation={"lease_s": 0.05})
    async with Sark.open(settings) as sark:
        await sark.upkeep.aclose()  # nobody renews the lease
        admission = await admitted(sark, "0.5", expected="0.3")

        async def expired() -> bool:
            await sark.store.sweep()
            return await counted(sark) == (30 * CENT, 0)

        await until(expired)
        reply = await admission.settle(Spent(cost_nanos=12 * CENT))
        assert reply
        assert (reply.outcome, reply.late) == (Outcome.SETTLED, True)
        await assert_balanced(sark, 12 * CENT)
