"""The registry of limits: hierarchy and delegation, top-ups and overrides, all of it recorded, none of it torn by others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from sark_mw.enforcement.limits import LimitRegistry, LimitStatus
from sark_mw.errors import ConfigurationError, LedgerUnavailableError, MoneyError, RefusedError, StoreDataLostError
from sark_mw.ledger.base import CostFilter
from sark_mw.ledger.events import EventFilter, LimitEvent
from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.sark import Sark
from tests.enforcement.whole import settings_for, until
from tests.servers.redis_server import RedisHandle


def budget(scope: str, amount: str, **fields: object) -> Limit:
    return Limit(**{"scope": scope, "amount": Decimal(amount), "window": "month", **fields})  # type: ignore[arg-type]


@pytest.fixture
async def sark(valkey_server: RedisHandle, tmp_path: Path) -> AsyncIterator[Sark]:
    async with Sark.open(settings_for(valkey_server.url, tmp_path, budget=None)) as opened:
        yield opened


async def spend(sark: Sark, scope: str, dollars: str, **words: object) -> None:
    async with sark.reserve(principal=scope, estimate=dollars, **words) as reservation:  # type: ignore[arg-type]
        reservation.settle(Decimal(dollars))


async def kinds(sark: Sark) -> list[tuple[str, str, str, str]]:
    found = await sark.limits.history(EventFilter(root=DEFAULT_ROOT))
    return [(each.event.kind, each.event.scope, each.event.actor, each.event.reason) for each in reversed(found)]


# --- hierarchy -------------------------------------------------------------------------------------------------------


async def test_the_parent_holds_whatever_a_request_says_of_itself(sark: Sark) -> None:
    await sark.limits.set(
        budget("org:acme", "10"),
        budget("team:ml", "8", parent="org:acme"),
        budget("user:*", "5", window="day", parent="team:ml"),
    )
    await spend(sark, "user:al", "4")
    await spend(sark, "user:bo", "3")
    with pytest.raises(RefusedError) as refused:
        await spend(sark, "user:cy", "2")
    assert refused.value.refusal.scope == "team:ml"  # type: ignore[attr-defined]
    by_scope = {status.scope: status for status in await sark.limits.status(DEFAULT_ROOT, ["user:al"])}
    assert {scope: s.spent // 10**9 for scope, s in by_scope.items()} == {"user:al": 4, "team:ml": 7, "org:acme": 7}


async def test_the_ledger_sums_by_parent_too_and_nothing_drifts(sark: Sark) -> None:
    await sark.limits.set(budget("org:acme", "10"), budget("user:al", "5", parent="org:acme"))
    await spend(sark, "user:al", "4")
    await until(lambda: _drained(sark))
    assert (await sark.ledger.total(CostFilter(scope="org:acme"))).cost == 4
    compared = await sark.drift.compare(DEFAULT_ROOT, await sark.limits.list())
    assert [(one.drift, one.settled) for one in compared] == [(0, True), (0, True)]


async def test_what_is_handed_out_may_not_sum_up_to_more_than_there_is(sark: Sark) -> None:
    await sark.limits.set(budget("team:ml", "10"), budget("user:al", "6", parent="team:ml"))
    with pytest.raises(ConfigurationError, match=r"would hand out 10\.5"):
        await sark.limits.set(budget("user:bo", "4.50", parent="team:ml"))
    await sark.limits.set(budget("user:bo", "4", parent="team:ml"))
    with pytest.raises(ConfigurationError, match="would hand out"):
        await sark.limits.set(budget("team:ml", "9"))
    assert {limit.scope for limit in await sark.limits.list()} == {"team:ml", "user:al", "user:bo"}
    assert {limit.scope: limit.amount for limit in await sark.ledger.load_limits()} == {
        "team:ml": 10,
        "user:al": 6,
        "user:bo": 4,
    }


async def test_a_parent_that_may_overcommit_hands_out_more_and_still_holds(sark: Sark) -> None:
    await sark.limits.set(budget("team:ml", "10", overcommit=True), budget("user:*", "6", parent="team:ml"))
    await spend(sark, "user:al", "6")
    await spend(sark, "user:bo", "4")
    with pytest.raises(RefusedError):
        await spend(sark, "user:cy", "0.01")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ([budget("user:al", "1", parent="team:ml")], "has no limit"),
        ([budget("team:ml", "1"), budget("user:*", "1", parent="team:ml")], "overcommit"),
        ([budget("team:a", "1", parent="team:b"), budget("team:b", "1", parent="team:a")], "circle"),
    ],
)
async def test_parents_that_cannot_be_are_refused_before_anything_is_written(sark: Sark, limits: list[Limit], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        await sark.limits.set(*limits)
    assert await sark.limits.list() == ()
    assert await sark.ledger.load_limits() == []


async def test_the_parent_of_a_part_cannot_be_dropped(sark: Sark) -> None:
    await sark.limits.set(budget("team:ml", "10"), budget("user:al", "6", parent="team:ml"))
    with pytest.raises(ConfigurationError, match="has no limit"):
        await sark.limits.drop(DEFAULT_ROOT, "team:ml/usd/month@UTC")
    await sark.limits.drop(DEFAULT_ROOT, "user:al/usd/month@UTC", "team:ml/usd/month@UTC")
    assert await sark.limits.list() == ()


async def test_of_two_who_hand_out_the_last_part_one_is_refused(valkey_server: RedisHandle, tmp_path: Path) -> None:
    settings = settings_for(valkey_server.url, tmp_path, budget=None)
    async with Sark.open(settings) as one, Sark.open(settings) as other:
        await one.limits.set(budget("team:ml", "10"))
        asked = [
            (one if n % 2 else other).limits.set(budget(f"user:{n}", "6", parent="team:ml"), actor=f"admin {n}") for n in range(6)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(answer, ConfigurationError) for answer in answers) == 5
        parts = [limit for limit in await one.limits.list() if limit.parent]
        assert len(parts) == 1
        assert {limit.scope for limit in await one.ledger.load_limits()} == {"team:ml", parts[0].scope}


async def test_after_changes_by_many_the_database_says_what_the_store_says(valkey_server: RedisHandle, tmp_path: Path) -> None:
    settings = settings_for(valkey_server.url, tmp_path, budget=None)
    async with Sark.open(settings) as one, Sark.open(settings) as other:

        async def change(n: int) -> None:
            registry = (one if n % 2 else other).limits
            if n % 5 == 4:
                await registry.drop(DEFAULT_ROOT, f"user:{n % 3}/usd/month@UTC")
            else:
                await registry.set(budget(f"user:{n % 3}", str(n + 1)))

        await asyncio.gather(*(change(n) for n in range(24)))
        in_force = {limit.limit_id: (limit.amount, limit.since_ms) for limit in await one.limits.list()}
        assert {limit.limit_id: (limit.amount, limit.since_ms) for limit in await one.ledger.load_limits()} == in_force


async def test_asserted_scopes_count_where_a_limit_is_about_them(sark: Sark) -> None:
    await sark.limits.set(budget("end_user:*", "1"))
    await spend(sark, "key:app", "0.75", asserted=["end_user:mia", "tag:free"])
    with pytest.raises(RefusedError):
        await spend(sark, "key:app", "0.75", asserted=["end_user:mia"])
    await spend(sark, "key:app", "0.75", asserted=["end_user:tom"])
    await until(lambda: _drained(sark))
    assert (await sark.ledger.total(CostFilter(scope="end_user:mia"))).cost == Decimal("0.75")
    assert (await sark.ledger.total(CostFilter(scope="tag:free"))).rows == 0


async def test_calls_of_a_run_share_its_budget(sark: Sark) -> None:
    async def call(n: int) -> bool:
        try:
            await spend(sark, "user:al", "1", run="job-7", run_budget=Decimal(5))
        except RefusedError:
            return False
        return True

    assert sum(await asyncio.gather(*(call(n) for n in range(20)))) == 5
    await spend(sark, "user:al", "1", run="job-8", run_budget=Decimal(1))
    await spend(sark, "user:bo", "1", run="job-7", run_budget=Decimal(1))


async def test_a_key_that_is_here_already_is_refused(sark: Sark) -> None:
    async with sark.reserve(principal="user:al", estimate="1", idempotency_key="k") as reservation:
        with pytest.raises(RefusedError) as refused:
            await spend(sark, "user:al", "1", idempotency_key="k")
        assert refused.value.kind == "in_flight"
        reservation.settle(Decimal(1))
    await until(lambda: _settled(sark))
    with pytest.raises(RefusedError) as refused:
        await spend(sark, "user:al", "1", idempotency_key="k")
    assert refused.value.kind == "already_done"
    await spend(sark, "user:bo", "1", idempotency_key="k")


# --- top-ups and overrides -------------------------------------------------------------------------------------------


async def test_a_prepaid_balance_is_topped_up_and_recorded_with_who_and_why(sark: Sark) -> None:
    await sark.limits.set(budget("key:*", "0", window="total"), actor="root", reason="prepaid")
    with pytest.raises(RefusedError):
        await spend(sark, "key:shop", "1")
    status = await sark.limits.top_up("key:shop", Decimal("2.50"), actor="ann", reason="invoice 7")
    assert (status.amount, status.topped_up, status.base_amount) == (2_500_000_000, 2_500_000_000, 0)
    await spend(sark, "key:shop", "2")
    with pytest.raises(RefusedError):
        await spend(sark, "key:shop", "1")
    status = await sark.limits.top_up("key:shop", Decimal("0.50"), actor="ann", reason="invoice 8")
    assert (status.amount, status.spent, status.remaining) == (3_000_000_000, 2_000_000_000, 1_000_000_000)
    await spend(sark, "key:shop", "1")
    assert (await kinds(sark))[1:] == [("top_up", "key:shop", "ann", "invoice 7"), ("top_up", "key:shop", "ann", "invoice 8")]


async def test_the_same_top_up_twice_counts_once(sark: Sark) -> None:
    await sark.limits.set(budget("key:shop", "1", window="total"))
    for _ in range(3):
        status = await sark.limits.top_up("key:shop", Decimal(5), event_id="payment-77")
    assert status.topped_up == 5 * 10**9


async def test_a_repeat_changes_nothing_even_when_its_override_has_ended(sark: Sark) -> None:
    await sark.limits.set(budget("key:shop", "1"))
    (status,) = await sark.limits.status(DEFAULT_ROOT, ["key:shop"])
    ended = LimitEvent(
        event_id="launch",
        kind="override",
        root=DEFAULT_ROOT,
        limit_id=status.limit.limit_id,
        scope="key:shop",
        counter=status.limit.base("key:shop"),
        unit="usd",
        amount=5 * 10**9,
        until_ms=1_000,
    )
    await sark.ledger.record_events([ended])
    status = await sark.limits.override("key:shop", Decimal(5), 1_000, event_id="launch")
    assert (status.amount, status.override_until_ms) == (10**9, 0)
    with pytest.raises(ConfigurationError, match="in the future"):
        await sark.limits.override("key:shop", Decimal(5), 1_000, event_id="another")


async def test_an_override_for_so_long_is_the_same_when_it_is_repeated_later(sark: Sark, monkeypatch: pytest.MonkeyPatch) -> None:
    await sark.limits.set(budget("key:shop", "1"))
    first = await sark.limits.override("key:shop", Decimal(5), for_s=3600, event_id="launch")
    monkeypatch.setattr(sark.clock, "now_ms", lambda: first.at_ms + 60_000)
    again = await sark.limits.override("key:shop", Decimal(5), for_s=3600, event_id="launch")
    assert again.override_until_ms == first.override_until_ms
    (recorded,) = await sark.limits.history(EventFilter(kinds=("override",)))
    assert (recorded.event.detail_json, recorded.event.until_ms) == ('{"for_s":3600}', first.override_until_ms)
    for other in ({"for_s": 3601}, {"until_ms": first.override_until_ms}):
        with pytest.raises(ConfigurationError, match="another change"):
            await sark.limits.override("key:shop", Decimal(5), event_id="launch", **other)
    with pytest.raises(ConfigurationError, match="not both"):
        await sark.limits.override("key:shop", Decimal(5), first.override_until_ms, for_s=60)


@pytest.mark.parametrize(
    "other", [{"root": "other"}, {"scope": "key:b"}, {"window": "day"}, {"unit": "requests", "window": "month"}, {"amount": 6}]
)
async def test_an_event_id_belongs_to_one_change(sark: Sark, other: dict[str, object]) -> None:
    await sark.limits.set(
        budget("key:*", "1"),
        budget("key:*", "1", window="day"),
        budget("key:*", "1", unit="requests"),
        budget("key:*", "1", root="other"),
    )
    first = {"scope": "key:a", "amount": 5, "unit": "usd", "window": "month"}
    for _ in range(2):
        assert (await _top_up(sark, **first)).topped_up == 5 * 10**9
    with pytest.raises(ConfigurationError, match="another change"):
        await _top_up(sark, **{**first, **other})
    with pytest.raises(ConfigurationError, match="another change"):
        await sark.limits.override("key:a", Decimal(5), for_s=60, unit="usd", window="month", event_id="payment-77")
    assert len(await sark.limits.history(EventFilter(kinds=("top_up", "override")))) == 1


async def _top_up(sark: Sark, scope: str, amount: int, **which: str) -> LimitStatus:
    return await sark.limits.top_up(scope, Decimal(amount), event_id="payment-77", **which)


async def test_a_limit_that_only_counts_on_a_scope_is_not_topped_up_there(sark: Sark) -> None:
    await sark.limits.set(budget("user:*", "1"), budget("user:al", "2"))
    with pytest.raises(ConfigurationError, match="only counts on 'user:al'"):
        await sark.limits.top_up("user:al", Decimal(1), limit_id="user:*/usd/month@UTC")
    with pytest.raises(ConfigurationError, match="only counts on 'user:al'"):
        await sark.limits.override("user:al", Decimal(1), for_s=60, limit_id="user:*/usd/month@UTC")
    assert (await sark.limits.top_up("user:al", Decimal(1))).amount == 3 * 10**9


@pytest.mark.parametrize("unit", ["usd", "requests"])
@pytest.mark.parametrize("amount", ["1e999999999", "-1e999999999", "sNaN", "NaN", "Infinity"])
async def test_what_is_no_amount_is_no_top_up_and_no_override(sark: Sark, unit: str, amount: str) -> None:
    await sark.limits.set(budget("key:shop", "1", unit=unit))
    with pytest.raises(MoneyError):
        await sark.limits.top_up("key:shop", Decimal(amount))
    with pytest.raises(MoneyError):
        await sark.limits.override("key:shop", Decimal(amount), for_s=60)


async def test_many_top_ups_at_once_from_several_processes_all_count(valkey_server: RedisHandle, tmp_path: Path) -> None:
    settings = settings_for(valkey_server.url, tmp_path, budget=None)
    async with Sark.open(settings) as one, Sark.open(settings) as other:
        await one.limits.set(budget("key:shop", "0", window="total"))
        await asyncio.gather(*((one if n % 2 else other).limits.top_up("key:shop", Decimal(1)) for n in range(30)))
        (status,) = await one.limits.status(DEFAULT_ROOT, ["key:shop"])
        assert status.amount == 30 * 10**9


async def test_a_top_up_whose_process_died_before_the_store_had_it_comes_by_itself(sark: Sark) -> None:
    await sark.limits.set(budget("key:shop", "1", window="total"))
    (status,) = await sark.limits.status(DEFAULT_ROOT, ["key:shop"])
    event = LimitEvent(
        event_id="died",
        kind="top_up",
        root=DEFAULT_ROOT,
        limit_id=status.limit.limit_id,
        scope="key:shop",
        counter=status.counter,
        unit="usd",
        amount=7 * 10**9,
        at_ms=sark.clock.now_ms(),
    )
    await sark.ledger.record_events([event])
    await sark.limits.grants.send_again()
    (status,) = await sark.limits.status(DEFAULT_ROOT, ["key:shop"])
    assert status.amount == 8 * 10**9


async def test_an_override_is_of_one_scope_and_ends(sark: Sark) -> None:
    await sark.limits.set(budget("user:*", "1"))
    until_ms = int(time.time() * 1000) + 3_600_000
    status = await sark.limits.override("user:al", Decimal(3), until_ms, actor="ann", reason="demo day")
    assert (status.amount, status.base_amount, status.override_until_ms) == (3 * 10**9, 3 * 10**9, until_ms)
    await spend(sark, "user:al", "2")
    with pytest.raises(RefusedError):
        await spend(sark, "user:bo", "2")
    status = await sark.limits.override("user:al", None, actor="ann", reason="over")
    assert (status.amount, status.override_until_ms) == (10**9, 0)
    with pytest.raises(RefusedError):
        await spend(sark, "user:al", "0.10")


async def test_what_cannot_be_topped_up_or_overridden_is_said_clearly(sark: Sark) -> None:
    await sark.limits.set(
        budget("user:*", "1"), budget("user:*", "1", window="day"), Limit(scope="user:*", unit="concurrency", amount=Decimal(3))
    )
    with pytest.raises(ConfigurationError, match="several limits match"):
        await sark.limits.top_up("user:al", Decimal(1), unit="usd")
    with pytest.raises(ConfigurationError, match="no balance"):
        await sark.limits.top_up("user:al", Decimal(1), unit="concurrency")
    with pytest.raises(ConfigurationError, match="no limit"):
        await sark.limits.top_up("team:x", Decimal(1))
    with pytest.raises(ConfigurationError, match="pattern"):
        await sark.limits.top_up("user:*", Decimal(1), window="day", unit="usd")
    with pytest.raises(ConfigurationError, match="in the future"):
        await sark.limits.override("user:al", Decimal(1), 5, window="day", unit="usd")
    with pytest.raises(MoneyError):
        await sark.limits.override("user:al", Decimal(-1), int(time.time() * 1000) + 60_000, window="day", unit="usd")
    assert len(await kinds(sark)) == 3


async def test_a_status_is_read_while_the_ledger_is_away(sark: Sark, monkeypatch: pytest.MonkeyPatch) -> None:
    await sark.limits.set(budget("key:shop", "1", window="total"))
    await sark.limits.top_up("key:shop", Decimal(2))

    async def away(*_: object) -> None:
        raise LedgerUnavailableError("away")

    monkeypatch.setattr(sark.ledger, "adjustments", away)
    (status,) = await sark.limits.status(DEFAULT_ROOT, ["key:shop"])
    assert status.amount == 3 * 10**9


async def test_every_change_of_limits_is_recorded_with_what_was_before(sark: Sark) -> None:
    await sark.limits.set(budget("user:al", "1"), actor="ann", reason="trial")
    await sark.limits.set(budget("user:al", "5", mode="shadow"), actor="bob", reason="paid")
    await sark.limits.drop(DEFAULT_ROOT, "user:al/usd/month@UTC", "user:nobody/usd/month@UTC", actor="cy", reason="left")
    assert await kinds(sark) == [
        ("set", "user:al", "ann", "trial"),
        ("set", "user:al", "bob", "paid"),
        ("delete", "user:al", "cy", "left"),
    ]
    second = (await sark.limits.history(EventFilter(kinds=("set",))))[0].event
    assert (second.amount, '"before":{"amount":"1"' in second.detail_json) == (5 * 10**9, True)


async def test_a_plan_says_what_an_import_would_change(sark: Sark) -> None:
    await sark.limits.set(budget("user:al", "1"), budget("user:bo", "1"), budget("user:cy", "1"))
    wanted = [budget("user:al", "1"), budget("user:bo", "2"), budget("user:di", "3")]
    changes = await sark.limits.plan(DEFAULT_ROOT, wanted, prune=True)
    assert [limit.scope for limit in changes.put] == ["user:bo", "user:di"]
    assert [limit.amount for limit in changes.replaced] == [1]
    assert [limit.scope for limit in changes.drop] == ["user:cy"]
    assert [limit.scope for limit in changes.unchanged] == ["user:al"]
    assert (await sark.limits.plan(DEFAULT_ROOT, wanted, prune=False)).drop == ()
    with pytest.raises(ConfigurationError, match="twice"):
        await sark.limits.plan(DEFAULT_ROOT, [budget("user:al", "1"), budget("user:al", "2")], prune=False)


async def test_a_limit_that_turns_from_shadow_to_enforcing_keeps_what_it_has_counted(sark: Sark) -> None:
    await sark.limits.set(budget("user:al", "1", mode="shadow"))
    await spend(sark, "user:al", "3")
    await sark.limits.set(budget("user:al", "4"))
    with pytest.raises(RefusedError):
        await spend(sark, "user:al", "2")
    await until(lambda: _drained(sark))
    assert [one.drift for one in await sark.drift.compare(DEFAULT_ROOT, await sark.limits.list())] == [0]


# --- after a loss ----------------------------------------------------------------------------------------------------


async def test_top_ups_overrides_rest_and_runs_survive_the_loss_of_the_store(sark: Sark) -> None:
    await sark.limits.set(
        budget("key:shop", "1", window="total"), budget("user:*", "2"), budget("team:ml", "9", window="day", rollover=Decimal(5))
    )
    await sark.limits.top_up("key:shop", Decimal(4))
    await sark.limits.override("user:al", Decimal(7), int(time.time() * 1000) + 3_600_000)
    await spend(sark, "user:al", "1", run="job", run_budget=Decimal(3))
    await until(lambda: _drained(sark))
    await _lose(sark)
    statuses = await sark.limits.status(DEFAULT_ROOT, ["key:shop", "user:al", "team:ml"])
    assert {s.scope: (s.amount // 10**9, s.spent // 10**9) for s in statuses} == {
        "key:shop": (5, 0),
        "user:al": (7, 1),
        "team:ml": (9, 0),
    }
    with pytest.raises(RefusedError):
        await spend(sark, "user:al", "2.50", run="job", run_budget=Decimal(3))
    await spend(sark, "user:al", "2", run="job", run_budget=Decimal(3))


async def test_what_was_granted_to_a_limit_that_was_dropped_and_made_again_is_gone(sark: Sark) -> None:
    await sark.limits.set(budget("key:shop", "1", window="total"))
    await sark.limits.top_up("key:shop", Decimal(4))
    await sark.limits.drop(DEFAULT_ROOT, "key:shop/usd/total")
    await sark.limits.set(budget("key:shop", "1", window="total"))
    await _lose(sark)
    (status,) = await sark.limits.status(DEFAULT_ROOT, ["key:shop"])
    assert status.amount == 10**9


async def _lose(sark: Sark) -> None:
    for shard in range(sark.store.shards):
        await sark.store.abandon(shard, (await sark.store.position(shard)).epoch)
    sark.tables.forget(DEFAULT_ROOT)
    with pytest.raises(StoreDataLostError):
        await sark.store.limits(DEFAULT_ROOT)
    await sark.recovery.rebuild()


async def _drained(sark: Sark) -> bool:
    return await _settled(sark) and await sark.store.backlog() == 0


async def _settled(sark: Sark) -> bool:
    return not await sark.store.holds(DEFAULT_ROOT)


async def test_the_registry_can_be_used_without_telling_anybody(sark: Sark) -> None:
    quiet = LimitRegistry(sark.store, sark.ledger, tables=sark.tables, recovery=sark.recovery)
    await quiet.set(budget("user:al", "1"))
    assert [limit.scope for limit in await quiet.list()] == ["user:al"]
    assert await quiet.roots() == (DEFAULT_ROOT,)
