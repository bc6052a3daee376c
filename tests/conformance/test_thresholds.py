"""Thresholds: each fires once per period, in the call that crosses it, whatever happens at the same time."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from sark_mw.reservation import Outcome
from sark_mw.store.base import Grant
from tests.conformance.books import ROOT, Books, budget, cap

DAY_MS = 86_400_000


async def percents(books: Books) -> list[int]:
    return [event["percent"] for event in await books.events("threshold")]


async def spend(books: Books, name: str, amount: int, scope: str = "team:ml") -> None:
    await books.reserve(name, scope, usd=amount)
    await books.settle(name, usd=amount)


async def test_a_threshold_fires_when_it_is_reached_and_not_before(books: Books) -> None:
    await books.limit(budget("team:ml", 1000, thresholds=(50, 80)))
    await spend(books, "a", 499)
    assert await percents(books) == []
    await spend(books, "b", 1)
    assert await percents(books) == [50]
    (event,) = await books.events("threshold")
    assert (event["spent"], event["amount"]) == ("500", "1000")


async def test_it_fires_once_and_each_by_itself(books: Books) -> None:
    await books.limit(budget("team:ml", 1000, thresholds=(50, 80, 95)))
    for n in range(10):
        await spend(books, f"r{n}", 100)
    assert await percents(books) == [50, 80, 95]
    ids = [event["id"] for event in await books.events("threshold")]
    assert len(set(ids)) == 3


async def test_one_booking_may_pass_several(books: Books) -> None:
    await books.limit(budget("team:ml", 1000, thresholds=(50, 80, 120)))
    await spend(books, "a", 900)
    assert await percents(books) == [50, 80]


async def test_what_is_held_fires_nothing(books: Books) -> None:
    await books.limit(budget("team:ml", 1000, thresholds=(50,)))
    await books.reserve("a", "team:ml", usd=900)
    assert await percents(books) == []


async def test_a_soft_limit_refuses_nothing_and_reports_no_shadow(books: Books) -> None:
    await books.limit(budget("team:ml", 1000, mode="soft", thresholds=(100, 200)))
    reply = await books.reserve("a", "team:ml", usd=2500)
    assert (reply.outcome, reply.shadowed) == (Outcome.HELD, ())
    await books.settle("a", usd=2500)
    assert await percents(books) == [100, 200]


async def test_an_expiry_fires_too(books: Books) -> None:
    await books.limit(budget("team:ml", 1000, thresholds=(50,)))
    await books.reserve("a", "team:ml", lease_ms=5, usd=(900, 600))
    await books.clock.advance(20)
    await books.store.sweep()
    assert await percents(books) == [50]


async def test_a_booking_without_a_lease_fires_too(books: Books) -> None:
    await books.limit(cap("team:ml", "requests", 2, thresholds=(50, 100)))
    for n in range(2):
        await books.reserve(f"r{n}", "team:ml", lease_ms=0, requests=1)
    assert await percents(books) == [50, 100]


async def test_many_at_once_fire_each_threshold_once(books: Books) -> None:
    await books.limit(budget("team:ml", 1000, thresholds=(25, 50, 75, 100)))
    for n in range(20):
        await books.reserve(f"r{n}", "team:ml", usd=50)
    await asyncio.gather(*(books.settle(f"r{n}", usd=50) for n in range(20)))
    assert sorted(await percents(books)) == [25, 50, 75, 100]


async def test_the_next_period_fires_anew(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("team:ml", 1000, "day", thresholds=(50,)))
    await spend(books, "a", 600)
    await books.clock.advance(DAY_MS)
    await spend(books, "b", 600)
    assert await percents(books) == [50, 50]
    first, second = await books.events("threshold")
    assert first["id"] != second["id"]


async def test_percents_are_of_the_amount_in_effect(books: Books) -> None:
    await books.limit(budget("team:ml", 1000, thresholds=(50,)))
    (line,) = await books.lines("team:ml")
    await books.store.adjust([Grant(root=ROOT, counter=line.counter, amount=1000, count=1)])
    await spend(books, "a", 900)
    assert await percents(books) == []
    await spend(books, "b", 100)
    assert await percents(books) == [50]


async def test_a_rolling_window_fires_again_after_it_fell(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("team:ml", 1000, "rolling:3600", thresholds=(50,)))
    await spend(books, "a", 600)
    assert await percents(books) == [50]
    await books.clock.advance(4_000_000)
    await spend(books, "b", 100)
    await spend(books, "c", 500)
    assert await percents(books) == [50, 50]
    first, second = await books.events("threshold")
    assert first["id"] != second["id"]


async def test_events_have_no_number_in_the_ledger(books: Books) -> None:
    await books.limit(budget("team:ml", 1000, thresholds=(50,)))
    await spend(books, "a", 600)
    await spend(books, "b", 100)
    numbers = {entry.kind: entry.shard_seq for entry in await books.ledger()}
    assert numbers["threshold"] == 0
    snapshot = await books.snapshot("team:ml")
    assert snapshot.seq == 2


async def test_what_was_carried_over_counts_before_it_is_final(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("team:ml", 100, "day", thresholds=(50, 80), rollover=Decimal(500).scaleb(-9)))
    await spend(books, "a", 0)
    await books.clock.advance(DAY_MS)
    await spend(books, "b", 80)
    assert await percents(books) == []
    await spend(books, "c", 20)
    (event,) = await books.events("threshold")
    assert (event["percent"], event["spent"], event["amount"]) == (50, "100", "200")
