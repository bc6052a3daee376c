"""What an administrator does by hand: look at holds, release one, repair a counter, change limits against others."""

from __future__ import annotations

import json

from sark_mw.reservation import Outcome, Resolution, Settle
from tests.conformance.books import ROOT, Books, budget, cap


async def test_holds_are_listed_with_what_they_hold(books: Books) -> None:
    await books.limit(budget("user:al", 1000), cap("user:al", "requests", 9))
    await books.reserve("a", "user:al", lease_ms=500_000, usd=(300, 100), requests=1, entry='{"p":"user:al"}')
    await books.reserve("b", "user:al", lease_ms=400_000, usd=20)
    await books.partial("a", 1, usd=50)
    first, second = await books.store.holds(ROOT)
    assert (first.reservation_id, second.reservation_id) == ("b", "a")
    assert (second.held, second.known) == ({"usd": 250, "requests": 1}, {"usd": 50, "requests": 0})
    assert (second.root, second.last_part, json.loads(second.entry_json)) == (ROOT, 1, {"p": "user:al"})
    assert 0 < second.ends_ms - second.made_ms <= 501_000
    assert len(second.counters) == 2
    assert [each.reservation_id for each in await books.store.holds(ROOT, 1)] == ["b"]
    assert await books.store.holds("other") == []


async def test_a_hold_released_by_hand_is_free_and_its_holders_settle_is_still_booked(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("a", "user:al", usd=300)
    await books.partial("a", 1, usd=50)
    by_hand = Settle(reservation_id="a", root=ROOT, lines=(), amounts=(), part=0, kind=Resolution.RELEASE)
    assert (await books.store.settle(by_hand)).outcome is Outcome.RELEASED
    assert await books.count("user:al") == (50, 0)
    assert (await books.store.settle(by_hand)).repeated
    reply = await books.settle("a", part=2, usd=120)
    assert (reply.outcome, reply.late) == (Outcome.SETTLED, True)
    assert await books.count("user:al") == (120, 0)
    assert await books.booked() == 120


async def test_a_repair_is_applied_once_for_each_time_it_was_measured(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("a", "user:al", usd=300)
    await books.settle("a", usd=300)
    seen = await books.snapshot("user:al")
    counter = seen.balances[0].line
    assert await books.store.repair(ROOT, seen.epoch, seen.seq, counter, -40) is Outcome.REPAIRED
    assert await books.store.repair(ROOT, seen.epoch, seen.seq, counter, -40) is Outcome.STALE
    assert await books.store.repair(ROOT, "another", seen.seq + 5, counter, -40) is Outcome.STALE
    assert await books.count("user:al") == (260, 0)
    await books.reserve("b", "user:al", usd=10)
    await books.settle("b", usd=10)
    later = await books.snapshot("user:al")
    assert await books.store.repair(ROOT, later.epoch, later.seq, counter, 40) is Outcome.REPAIRED
    assert await books.count("user:al") == (310, 0)


async def test_counters_are_listed_by_root(books: Books) -> None:
    await books.limit(budget("user:*", 1000))
    for n in range(30):
        await books.reserve(f"r{n}", f"user:{n}", usd=n + 1)
        await books.settle(f"r{n}", usd=n + 1)
    found = {name.split("/")[0]: spent async for name, spent in books.store.counters(ROOT)}
    assert found == {f"{ROOT}|user:{n}": n + 1 for n in range(30)}
    assert [each async for each in books.store.counters("acm")] == []


async def test_a_change_that_was_checked_against_another_table_changes_nothing(books: Books) -> None:
    await books.limit(budget("org:a", 100))
    table = await books.store.limits(ROOT)
    await books.limit(budget("org:b", 100))
    assert await books.store.change_limits(table, [budget("org:a", 900)], []) is None
    now = await books.store.limits(ROOT)
    assert {limit.scope: limit.amount_units for limit in now.limits} == {"org:a": 100, "org:b": 100}
    after = await books.store.change_limits(now, [budget("org:a", 900)], ["org:b/usd/total"])
    assert after is not None
    assert {limit.scope: limit.amount_units for limit in after.limits} == {"org:a": 900}
