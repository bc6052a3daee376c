"""Idempotency keys: while a reservation with the key is held or settled, no other is made."""

from __future__ import annotations

import asyncio

from sark_mw.reservation import Outcome
from tests.conformance.books import Books, budget

KEY, OTHER = ("a1" * 16, "b2" * 16), ("a1" * 16, "c3" * 16)


async def test_a_second_reserve_with_the_key_of_one_in_flight_holds_nothing(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    await books.reserve("first", "user:al", usd=30, key=KEY)
    reply = await books.reserve("second", "user:al", usd=30, key=KEY)
    assert (reply.outcome, reply.reservation_id, reply.admitted) == (Outcome.IN_FLIGHT, "first", False)
    assert await books.count("user:al") == (0, 30)


async def test_after_the_settle_it_is_done(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    await books.reserve("first", "user:al", usd=30, key=KEY)
    await books.settle("first", usd=10)
    reply = await books.reserve("second", "user:al", usd=30, key=KEY)
    assert (reply.outcome, reply.reservation_id) == (Outcome.ALREADY_DONE, "first")
    assert await books.count("user:al") == (10, 0)


async def test_the_key_with_another_request_is_told_so(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    await books.reserve("first", "user:al", usd=30, key=KEY)
    assert (await books.reserve("second", "user:al", usd=30, key=OTHER)).outcome is Outcome.KEY_REUSED
    await books.settle("first", usd=10)
    assert (await books.reserve("third", "user:al", usd=30, key=OTHER)).outcome is Outcome.KEY_REUSED


async def test_after_a_release_or_an_expiry_the_key_may_be_used_again(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    await books.reserve("first", "user:al", usd=30, key=KEY)
    await books.release("first")
    assert (await books.reserve("second", "user:al", lease_ms=5, usd=(30, 7), key=KEY)).outcome is Outcome.HELD
    await books.clock.advance(20)
    await books.store.sweep()
    assert (await books.reserve("third", "user:al", usd=30, key=KEY)).outcome is Outcome.HELD
    assert await books.count("user:al") == (7, 30)


async def test_a_refused_reserve_leaves_no_key(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    assert (await books.reserve("first", "user:al", usd=101, key=KEY)).outcome is Outcome.EXCEEDS_LIMIT
    await books.limit(budget("user:al", 200))
    assert (await books.reserve("second", "user:al", usd=101, key=OTHER)).outcome is Outcome.HELD


async def test_our_own_retry_is_no_second_request(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    asked = await books.request("first", "user:al", usd=30, key=KEY)
    await books.send(asked)
    again = await books.send(asked)
    assert (again.outcome, again.repeated) == (Outcome.HELD, True)


async def test_of_many_at_once_one_is_held(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    asked = [await books.request(f"r{n}", "user:al", usd=30, key=KEY) for n in range(10)]
    replies = await asyncio.gather(*(books.store.reserve(each) for each in asked))
    assert sorted(reply.outcome for reply in replies) == [Outcome.HELD, *[Outcome.IN_FLIGHT] * 9]
    assert await books.count("user:al") == (0, 30)


async def test_a_key_is_remembered_as_long_as_its_reservation(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000))
    await books.reserve("first", "user:al", usd=30, key=KEY)
    await books.settle("first", usd=30)
    await books.clock.advance(3_000_000)
    assert (await books.reserve("second", "user:al", usd=30, key=KEY)).outcome is Outcome.ALREADY_DONE
    for _ in range(3):
        await books.clock.advance(3_700_000)
        await books.store.sweep()
    assert (await books.reserve("third", "user:al", usd=30, key=KEY)).outcome is Outcome.HELD


async def test_a_reservation_named_like_a_key_is_its_own(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    await books.reserve("key:" + KEY[0], "user:al", usd=1)
    await books.settle("key:" + KEY[0], usd=1)
    assert (await books.reserve("first", "user:al", usd=30, key=KEY)).outcome is Outcome.HELD
