"""`CostAttributionService`: what its callers were promised, and that its books are the store's and the ledger's."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from sark_mw import (
    ConfigurationError,
    CostAttributionService,
    InvalidRequestError,
    Limit,
    Mode,
    MoneyError,
    RefusedError,
    Sark,
    Settings,
)
from sark_mw._memory_store import ManualClock
from sark_mw.ledger.base import CostFilter
from sark_mw.limit import DEFAULT_ROOT
from tests.conformance.clocks import FaketimeClock, fakeredis_time
from tests.enforcement.whole import settings_for, until
from tests.servers.faketime import FaketimeServer
from tests.servers.fixtures import FreshValkey

ONE = Decimal(1)
CALL = ("alice", "openai", "chat")
DAY_MS = 86_400_000


async def spent_today(service: CostAttributionService, principal: str = "alice") -> Decimal:
    status = await service.get_budget_status(principal)
    assert status is not None
    return status.daily_spent


async def assert_balanced(service: CostAttributionService, dollars: str, scope: str = "user:alice") -> None:
    """Check that the counters of today, the ledger and the report agree."""
    amount = Decimal(dollars)
    assert (await service.get_cost_summary(scope)).total_cost == amount
    assert (await service.sark.ledger.total(CostFilter(scope=scope))).cost == amount
    assert await spent_today(service, scope) == amount
    limits = await service.sark.limits.list()
    comparisons = await service.sark.drift.compare(DEFAULT_ROOT, limits)
    assert [(each.settled, each.drift) for each in comparisons] == [(True, 0)] * len(comparisons)


async def test_fifty_concurrent_records_of_one_add_up_to_fifty(service: CostAttributionService) -> None:
    await service.set_budget("alice", daily_budget=100, monthly_budget=1000)
    await asyncio.gather(*(service.record_cost(*CALL, actual_cost=ONE) for _ in range(50)))
    await assert_balanced(service, "50")
    assert (await service.get_cost_summary()).record_count == 50


async def test_twenty_concurrent_first_calls_of_a_new_principal_all_count(settings: Settings) -> None:
    async with CostAttributionService(settings=settings) as service:
        await asyncio.gather(*(service.record_cost("new", "openai", "chat", estimated_cost=ONE) for _ in range(20)))
        summary = await service.get_cost_summary(principal_id="new")
        assert (summary.total_cost, summary.record_count) == (20, 20)
        assert await spent_today(service, "new") == 20


async def test_a_thousand_calls_of_four_thousandths_of_a_cent_cost_four_cents_exactly(service: CostAttributionService) -> None:
    await service.set_budget("alice", daily_budget=1)
    for _ in range(20):
        await asyncio.gather(*(service.record_cost(*CALL, actual_cost=Decimal("0.00004")) for _ in range(50)))
    await assert_balanced(service, "0.04")


async def test_what_was_spent_is_booked_in_full_beyond_a_budget_too(service: CostAttributionService) -> None:
    await service.set_budget("alice", daily_budget=10)
    await asyncio.gather(*(service.record_cost(*CALL, actual_cost=3) for _ in range(5)))
    await assert_balanced(service, "15")
    status = await service.get_budget_status("alice")
    assert status
    assert (status.daily_remaining, status.daily_percent_used) == (-5, 150.0)
    assert await service.check_budget("alice", "0.01") == (
        False,
        "Daily budget exceeded (limit: 10.00 USD): 15.00 spent, 0.00 held by requests in flight, 0.01 needed",
    )


async def test_an_actual_cost_of_nothing_costs_nothing(service: CostAttributionService) -> None:
    await service.set_budget("alice", daily_budget=10)
    record = await service.record_cost(*CALL, estimated_cost="0.05", actual_cost=0)
    assert (record.estimated_cost, record.actual_cost) == (Decimal("0.05"), 0)
    await assert_balanced(service, "0")
    assert (await service.get_cost_summary()).record_count == 1


async def test_estimate_and_actual_stand_on_every_entry_and_an_estimate_alone_is_flagged(
    settings: Settings, tmp_path: Path
) -> None:
    async with CostAttributionService(settings=settings) as service:
        await service.record_cost(*CALL, estimated_cost="0.05", actual_cost="0.048")
        await service.record_cost(*CALL, estimated_cost="0.05")
        await service.get_cost_summary()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        rows = database.execute(
            "select cost_nanos, expected_nanos, actual_nanos, estimated from cost_tracking order by cost_nanos"
        ).fetchall()
    assert rows == [(48_000_000, 50_000_000, 48_000_000, 0), (50_000_000, 50_000_000, None, 1)]


@pytest.mark.parametrize("name", ["record_id", "invocation_id", "request_id"])
async def test_the_same_record_three_times_counts_once(service: CostAttributionService, name: str) -> None:
    await service.set_budget("alice", daily_budget=10)
    notes = {name: "one"}
    await asyncio.gather(*(service.record_cost(*CALL, actual_cost=ONE, metadata=notes) for _ in range(2)))
    await service.record_cost(*CALL, actual_cost=ONE, record_id="one")
    await assert_balanced(service, "1")
    await service.record_cost(*CALL, actual_cost=ONE, record_id="two")
    await service.record_cost("bob", "openai", "chat", actual_cost=ONE, record_id="one")
    await assert_balanced(service, "2")


@pytest.mark.fakeredis
async def test_the_same_record_counts_once_long_after_the_store_has_forgotten_it(tmp_path: Path) -> None:
    clock = ManualClock(1_792_000_000_123)
    with fakeredis_time(clock):
        async with CostAttributionService(settings=settings_for("memory://", tmp_path, budget=None)) as service:
            for _ in range(3):
                await service.record_cost(*CALL, actual_cost=ONE, record_id="one")
                assert (await service.get_cost_summary()).total_cost == 1
                clock.advance(3 * 3_600_000)


@pytest.mark.fakeredis
async def test_an_exhausted_daily_budget_is_open_again_the_next_day_without_any_call_in_between(tmp_path: Path) -> None:
    clock = ManualClock(1_792_000_000_123)
    with fakeredis_time(clock):
        async with CostAttributionService(settings=settings_for("memory://", tmp_path, budget=None)) as service:
            await service.set_budget("alice", daily_budget=1, monthly_budget=10)
            await service.record_cost(*CALL, actual_cost=1)
            assert (await service.check_budget("alice", "0.01"))[0] is False
            clock.advance(DAY_MS)
            assert await service.check_budget("alice", 1) == (True, None)
            status = await service.get_budget_status("alice")
            assert status
            assert (status.daily_spent, status.monthly_spent) == (0, 1)


async def test_on_a_real_server_too_the_next_day_opens_the_budget(faketime_valkey: FaketimeServer, tmp_path: Path) -> None:
    faketime_valkey.set_time(datetime(2031, 5, 14, 12, tzinfo=UTC))
    async with CostAttributionService(settings=settings_for(faketime_valkey.url, tmp_path, budget=None)) as service:
        await service.set_budget("alice", daily_budget=1)
        await service.record_cost(*CALL, actual_cost=1)
        assert (await service.check_budget("alice", "0.01"))[0] is False
        FaketimeClock(faketime_valkey).step(DAY_MS)
        assert await service.check_budget("alice", 1) == (True, None)
        assert await spent_today(service) == 0


async def test_a_cost_that_equals_what_is_left_is_allowed_and_the_daily_budget_is_named_before_the_monthly(
    service: CostAttributionService,
) -> None:
    assert await service.check_budget("alice", 1000) == (True, None)
    await service.set_budget("alice", daily_budget=10, monthly_budget=10)
    assert await service.check_budget("alice", 10) == (True, None)
    allowed, reason = await service.check_budget("alice", "10.000000001")
    assert (allowed, (reason or "")[:42]) == (False, "Daily budget exceeded (limit: 10.00 USD): ")
    await service.set_budget("alice", daily_budget=20, monthly_budget=10)
    allowed, reason = await service.check_budget("alice", 11)
    assert (allowed, (reason or "")[:44]) == (False, "Monthly budget exceeded (limit: 10.00 USD): ")


async def test_a_budget_can_be_removed_again_and_counts_anew_when_it_is_set_again(service: CostAttributionService) -> None:
    await service.set_budget("alice", daily_budget=1, monthly_budget=1)
    await service.record_cost(*CALL, actual_cost=1)
    status = await service.set_budget("alice", monthly_budget=5)
    assert (status.daily_budget, status.monthly_budget, status.monthly_remaining) == (None, 5, 4)
    assert await service.check_budget("alice", 4) == (True, None)
    await service.set_budget("alice")
    assert await service.check_budget("alice", 1000) == (True, None)
    assert await service.sark.limits.list() == ()
    status = await service.set_budget("alice", daily_budget=1)
    assert (status.daily_spent, status.daily_remaining) == (0, 1)


async def test_a_changed_budget_keeps_what_it_has_counted(service: CostAttributionService) -> None:
    await service.set_budget("alice", daily_budget=1)
    await service.record_cost(*CALL, actual_cost=1)
    status = await service.set_budget("alice", daily_budget=4)
    assert (status.principal_id, status.daily_spent, status.daily_remaining, status.daily_percent_used) == ("alice", 1, 3, 25.0)


async def test_amounts_that_are_none_and_currencies_without_a_rate_are_refused_and_change_nothing(
    service: CostAttributionService,
) -> None:
    await service.set_budget("alice", daily_budget=1)
    with pytest.raises(MoneyError, match="daily_budget: an amount must not be negative"):
        await service.set_budget("alice", daily_budget=-1, monthly_budget=5)
    with pytest.raises(MoneyError, match="monthly_budget"):
        await service.set_budget("alice", monthly_budget=0.1)  # type: ignore[arg-type]
    with pytest.raises(MoneyError, match="actual_cost: an amount must not be negative"):
        await service.record_cost(*CALL, actual_cost=Decimal("-0.01"))
    with pytest.raises(MoneyError, match="estimated or an actual"):
        await service.record_cost(*CALL)
    with pytest.raises(MoneyError):
        await service.check_budget("alice", -1)
    with pytest.raises(ConfigurationError, match="EUR"):
        await service.set_budget("alice", daily_budget=1, currency="EUR")
    with pytest.raises(InvalidRequestError):
        await service.set_budget("", daily_budget=1)
    with pytest.raises(ConfigurationError, match="Mars"):
        CostAttributionService(timezone="Mars/Olympus")
    (limit,) = await service.sark.limits.list()
    assert (limit.scope, limit.amount) == ("user:alice", 1)
    await assert_balanced(service, "0")


async def test_budgets_are_those_that_reservations_of_the_same_principal_meet(service: CostAttributionService) -> None:
    await service.set_budget("alice", daily_budget=1)
    sark = service.sark
    async with sark.reserve(principal="user:alice", estimate="0.6") as reservation:
        status = await service.get_budget_status("alice")
        assert status
        assert (status.daily_spent, status.daily_remaining) == (0, Decimal("0.4"))
        assert (await service.check_budget("alice", "0.5"))[0] is False
        reservation.settle("0.25")
    await sark.settler.drain(10)
    await service.record_cost(*CALL, actual_cost="0.5")
    with pytest.raises(RefusedError):
        async with sark.reserve(principal="user:alice", estimate="0.3"):
            pytest.fail("it was admitted")
    await assert_balanced(service, "0.75")


async def test_any_budget_that_a_principal_touches_can_say_no_and_a_shadow_limit_cannot(service: CostAttributionService) -> None:
    await service.opened()
    await service.sark.limits.set(
        Limit(scope="user:*", amount=Decimal(5), window="week"),
        Limit(scope="user:alice", amount=Decimal(1), window="day", mode=Mode.SHADOW),
    )
    assert await service.check_budget("alice", 5) == (True, None)
    allowed, reason = await service.check_budget("alice", 6)
    assert not allowed
    assert (reason or "").startswith("Budget of user:alice per week exceeded (limit: 5.00 USD)")


async def test_a_recorded_cost_counts_for_the_parent_of_a_budget_and_the_parent_s_budget_is_checked(
    service: CostAttributionService,
) -> None:
    await service.opened()
    await service.sark.limits.set(
        Limit(scope="team:ml", amount=Decimal(3), window="day"),
        Limit(scope="user:alice", amount=Decimal(2), window="day", parent="team:ml"),
        Limit(scope="user:bob", amount=Decimal(1), window="day", parent="team:ml"),
    )
    status = await service.set_budget("alice", daily_budget=1)  # the parent stays
    assert (status.daily_budget, status.daily_remaining) == (1, 1)
    await service.record_cost(*CALL, actual_cost="2.5")
    await assert_balanced(service, "2.5")
    assert (await service.sark.ledger.total(CostFilter(scope="team:ml"))).cost == Decimal("2.5")
    allowed, reason = await service.check_budget("bob", "0.6")
    assert not allowed
    assert (reason or "").startswith("Budget of team:ml per day exceeded (limit: 3.00 USD): 2.50 spent")


async def test_a_limit_that_another_process_sets_is_heeded_by_the_next_check_and_record(settings: Settings) -> None:
    if settings.store.url == "memory://":
        settings = Settings.of({**settings.model_dump(), "store": {**settings.store.model_dump(), "url": "memory://shared"}})
    async with (
        CostAttributionService(settings=settings) as one,
        CostAttributionService(settings=settings) as other,
    ):
        assert await one.check_budget("alice", 5) == (True, None)
        await one.record_cost(*CALL, actual_cost=1)
        await other.set_budget("alice", daily_budget=2)
        await one.record_cost(*CALL, actual_cost=1)
        assert (await one.check_budget("alice", 2))[0] is False
        assert await spent_today(other) == 1
        assert (await other.get_cost_summary("alice")).total_cost == 2


async def test_a_summary_has_what_was_just_recorded_filtered_and_broken_down(service: CostAttributionService) -> None:
    gpt = {"provider": "openai", "model": "gpt-4o", "breakdown": {"input_tokens": 10, "output_tokens": 5, "cost": Decimal(1)}}
    first = await service.record_cost("alice", "r1", "chat", actual_cost=1, metadata=gpt)
    await service.record_cost("alice", "r1", "embed", estimated_cost=2, metadata={"provider": "openai", "odd": object()})
    await service.record_cost("bob", "r2", "chat", actual_cost=4, metadata={"provider": "anthropic", "model": "claude"})
    summary = await service.get_cost_summary()
    assert (summary.total_cost, summary.record_count) == (7, 3)
    assert summary.breakdown == {
        "by_provider": {"anthropic": 4, "openai": 3},
        "by_model": {"claude": 4, "unknown": 2, "gpt-4o": 1},
    }
    assert (await service.get_cost_summary(principal_id="alice")).total_cost == 3
    assert (await service.get_cost_summary(principal_id="user:alice", capability_id="chat")).total_cost == 1
    assert (await service.get_cost_summary(resource_id="r2")).total_cost == 4
    tokens = await service.sark.ledger.total(CostFilter(model="gpt-4o"))
    assert (tokens.booked_input_tokens, tokens.booked_output_tokens, tokens.tokens) == (10, 5, 15)
    now = datetime.now(UTC)
    assert (await service.get_cost_summary(period_start=first.timestamp, period_end=now + timedelta(seconds=1))).total_cost == 7
    naive = now.replace(tzinfo=None)
    assert (await service.get_cost_summary(period_start=naive + timedelta(hours=1))).record_count == 0
    assert (await service.get_cost_summary(period_end=naive - timedelta(hours=1))).total_cost == 0
    nobody = await service.get_cost_summary(principal_id="nobody")
    assert (nobody.total_cost, nobody.record_count, nobody.principal_id) == (0, 0, "nobody")


async def test_metadata_of_any_kind_is_kept_as_far_as_it_can_be_and_never_loses_a_cost(
    service: CostAttributionService,
) -> None:
    loop: dict[str, object] = {}
    loop["self"] = loop
    for notes in (loop, {"text": "a\nb"}, {"amount": Decimal("0.1")}, {"share": float("nan")}, {"provider": 7, "model": None}):
        await service.record_cost(*CALL, actual_cost=1, metadata=notes)
    assert (await service.get_cost_summary()).total_cost == 5


async def test_a_cost_recorded_while_the_store_is_away_waits_in_the_journal_and_counts_once(
    fresh_valkey: FreshValkey, tmp_path: Path
) -> None:
    server = fresh_valkey()
    settings = settings_for(server.url, tmp_path, budget=None, store={"deadline_ms": 100})
    async with CostAttributionService(settings=settings) as service:
        await service.set_budget("alice", daily_budget=1)
        await service.record_cost(*CALL, actual_cost=1)
        server.kill()
        await service.record_cost(*CALL, actual_cost=2, record_id="while away")
        assert len(service.sark.journal) == 1
        server.start()

        async def booked() -> bool:
            return await spent_today(service) == 3

        await until(booked)
        await service.record_cost(*CALL, actual_cost=2, record_id="while away")
        await assert_balanced(service, "3")


async def test_a_caller_that_is_cancelled_has_its_cost_booked_all_the_same(service: CostAttributionService) -> None:
    await service.set_budget("alice", daily_budget=10)
    task = asyncio.ensure_future(service.record_cost(*CALL, actual_cost=1))
    await asyncio.sleep(0)
    while service.sark.settler.pending == 0 and not task.done():
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})

    async def booked() -> bool:
        return await spent_today(service) == 1

    await until(booked)
    await assert_balanced(service, "1")


async def test_a_service_without_anything_keeps_its_books_in_memory_and_a_closed_one_says_so() -> None:
    service = CostAttributionService()
    await service.record_cost(*CALL, actual_cost=1)
    assert (await service.get_cost_summary()).total_cost == 1
    await service.aclose()
    with pytest.raises(ConfigurationError, match="closed"):
        await service.check_budget("alice", 1)


async def test_a_given_sark_is_started_and_left_open(settings: Settings) -> None:
    sark = Sark(settings)
    service = CostAttributionService(sark)
    await service.set_budget("alice", daily_budget=1)
    await service.aclose()
    assert sark.started
    assert [limit.scope for limit in await sark.limits.list()] == ["user:alice"]
    await sark.aclose()
    with pytest.raises(ConfigurationError):
        CostAttributionService(sark, settings=settings)
