"""Top-ups and overrides: sums with a count, in force at once, and gone with their period."""

from __future__ import annotations

import asyncio

from sark_mw.reservation import Outcome, base_of
from sark_mw.store.base import Grant
from tests.conformance.books import ROOT, Books, budget, cap

DAY_MS = 86_400_000


async def top_up(books: Books, scope: str, amount: int, count: int = 1) -> None:
    (line,) = await books.lines(scope)
    await books.store.adjust([Grant(root=ROOT, counter=line.counter, amount=amount, count=count, keep_until_ms=line.ends_ms)])


async def override(books: Books, scope: str, amount: int, until_ms: int, count: int = 1) -> None:
    (line,) = await books.lines(scope)
    await books.store.adjust([Grant(root=ROOT, counter=base_of(line.counter), amount=amount, count=count, until_ms=until_ms)])


async def test_a_topped_up_balance_lets_more_pass_and_answers_with_what_is_in_effect(books: Books) -> None:
    await books.limit(budget("key:*", 100))
    assert (await books.reserve("a", "key:x", usd=120)).outcome is Outcome.EXCEEDS_LIMIT
    await top_up(books, "key:x", 50)
    reply = await books.reserve("b", "key:x", usd=120)
    assert (reply.outcome, reply.balances[0].line.amount, reply.balances[0].remaining) == (Outcome.HELD, 150, 30)
    refused = await books.reserve("c", "key:x", usd=31)
    assert (refused.outcome, refused.balances[0].remaining) == (Outcome.EXCEEDS_LIMIT, 30)
    assert await books.allowed("key:x") == 150


async def test_a_top_up_is_its_scopes_alone(books: Books) -> None:
    await books.limit(budget("key:*", 100))
    await top_up(books, "key:x", 50)
    assert await books.allowed("key:y") == 100


async def test_a_sum_of_fewer_top_ups_never_replaces_one_of_more(books: Books) -> None:
    await books.limit(budget("key:x", 100))
    await top_up(books, "key:x", 30, count=2)
    await top_up(books, "key:x", 10, count=1)
    await top_up(books, "key:x", 99, count=2)
    assert await books.allowed("key:x") == 130


async def test_what_is_taken_back_leaves_no_less_than_nothing(books: Books) -> None:
    await books.limit(budget("key:x", 100))
    await top_up(books, "key:x", -150)
    assert await books.allowed("key:x") == 0
    assert (await books.reserve("a", "key:x", usd=1)).outcome is Outcome.EXCEEDS_LIMIT


async def test_a_top_up_is_of_its_period(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("key:x", 100, "day"))
    await top_up(books, "key:x", 50)
    assert await books.allowed("key:x") == 150
    await books.clock.advance(DAY_MS)
    assert await books.allowed("key:x") == 100


async def test_an_override_stands_in_the_place_of_the_amount_until_it_ends(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:*", 100))
    await override(books, "user:al", 500, await books.now() + 60_000)
    assert (await books.allowed("user:al"), await books.allowed("user:bo")) == (500, 100)
    assert (await books.reserve("a", "user:al", usd=300)).outcome is Outcome.HELD
    await books.clock.advance(61_000)
    assert await books.allowed("user:al") == 100
    assert (await books.reserve("b", "user:al", usd=1)).outcome is Outcome.EXCEEDS_LIMIT


async def test_an_override_may_be_ended_and_may_be_lower(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    await override(books, "user:al", 10, await books.now() + 60_000)
    assert (await books.reserve("a", "user:al", usd=11)).outcome is Outcome.EXCEEDS_LIMIT
    await override(books, "user:al", 10, 1, count=2)
    assert (await books.reserve("b", "user:al", usd=11)).outcome is Outcome.HELD


async def test_an_override_holds_over_periods(moving_books: Books) -> None:
    books = moving_books
    await books.limit(cap("user:al", "requests", 1, "day"))
    await override(books, "user:al", 3, await books.now() + 3 * DAY_MS)
    await books.clock.advance(DAY_MS)
    assert await books.allowed("user:al", "requests") == 3


async def test_a_refused_need_burns_nothing_of_a_topped_up_limit(books: Books) -> None:
    await books.limit(budget("key:x", 100), cap("key:x", "requests", 5))
    line = next(line for line in await books.lines("key:x") if line.unit == "usd")
    await books.store.adjust([Grant(root=ROOT, counter=line.counter, amount=50, count=1)])
    await books.reserve("a", "key:x", usd=151, requests=1)
    assert (await books.count("key:x"), await books.count("key:x", "requests")) == ((0, 0), (0, 0))


async def test_reserves_of_one_group_share_what_was_topped_up(books: Books) -> None:
    await books.limit(budget("key:x", 100))
    await top_up(books, "key:x", 50)
    asked = [await books.request(f"r{n}", "key:x", usd=40) for n in range(8)]
    replies = await asyncio.gather(*(books.store.reserve(each) for each in asked))
    assert [reply.outcome for reply in replies].count(Outcome.HELD) == 3
    assert await books.count("key:x") == (0, 120)


async def test_grants_come_back_with_a_restored_shard(books: Books) -> None:
    await books.limit(budget("key:x", 100))
    (line,) = await books.lines("key:x")
    table = await books.store.limits(ROOT)
    grants = [(line.counter, "50 3"), (f"{base_of(line.counter)}|override", f"70 {await books.now() + 60_000} 1")]
    shard = books.store.shard_of(ROOT)
    await books.store.abandon(shard, table.epoch)
    await books.store.restore(shard, limits=table.limits, grants=grants)
    assert await books.allowed("key:x") == 120
    await top_up(books, "key:x", 9, count=3)
    assert await books.allowed("key:x") == 120
