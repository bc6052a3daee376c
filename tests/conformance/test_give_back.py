"""What was booked at once for a request that went no further is taken back, once, where it was counted."""

from __future__ import annotations

from sark_mw.reservation import Line, Need, Outcome, Reserve
from tests.conformance.books import ROOT, Books, budget, cap

WINDOW = Line(counter=f"{ROOT}|plugin:x:al/requests/rolling:60|rolling", unit="requests", amount=3, rolling_ms=60_000)


async def count(books: Books, name: str, held: int = 1) -> tuple[Reserve, Outcome, int]:
    table = await books.store.limits(ROOT)
    reserve = Reserve(
        reservation_id=name,
        root=ROOT,
        lines=(WINDOW,),
        needs=(Need(unit="requests", held=held, expected=held),),
        lease_ms=0,
        version=table.version,
        epoch=table.epoch,
    )
    reply = await books.store.reserve(reserve)
    return reserve, reply.outcome, reply.balances[0].spent


async def spent(books: Books) -> int:
    return (await books.store.balance(ROOT, [WINDOW])).balances[0].spent


async def test_what_is_given_back_can_be_taken_by_another(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    first, *_ = await count(books, "a", 2)
    assert (await count(books, "b"))[1:] == (Outcome.BOOKED, 3)
    assert (await count(books, "c"))[1:] == (Outcome.EXCEEDS_LIMIT, 3)
    assert await books.store.give_back(first) is True
    assert await spent(books) == 1
    assert (await count(books, "d", 2))[1:] == (Outcome.BOOKED, 3)


async def test_it_is_given_back_once_and_repeating_the_reserve_does_not_take_it_again(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    first, *_ = await count(books, "a")
    await count(books, "b")
    assert [await books.store.give_back(first) for _ in range(3)] == [True, False, False]
    assert await spent(books) == 1
    assert (await count(books, "a"))[1:] == (Outcome.RELEASED, 1)


async def test_only_what_was_booked_at_once_is_given_back(books: Books) -> None:
    await books.limit(budget("user:al", 1000), cap("user:al", "requests", 9))
    held = await books.request("held", "user:al", usd=100, requests=1)
    await books.reserve("held", "user:al", usd=100, requests=1)
    assert await books.store.give_back(held) is False
    await books.settle("held", usd=40, requests=1)
    assert await books.store.give_back(held) is False
    assert await books.count("user:al") == (40, 0)
    unknown, *_ = await count(books, "x", 9)
    assert await books.store.give_back(unknown) is False
    assert await books.booked() == 40


async def test_it_leaves_the_bucket_in_which_it_was_counted(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000))
    first, *_ = await count(books, "a")
    await books.clock.advance(30_000)
    await count(books, "b")
    assert await books.store.give_back(first) is True
    await books.clock.advance(35_000)
    assert await spent(books) == 1
    await books.clock.advance(30_000)
    assert await spent(books) == 0


async def test_what_has_left_the_window_is_not_taken_from_what_is_in_it(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000))
    first, *_ = await count(books, "a")
    await books.clock.advance(62_000)
    await count(books, "b")
    await books.store.give_back(first)
    assert await spent(books) == 1
