"""Rollover: what was not spent comes along into the next period, up to a cap, and never twice."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from sark_mw.limit import Limit
from sark_mw.reservation import Outcome, Settle
from sark_mw.store.base import Grant
from tests.conformance.books import ROOT, Books, budget

DAY_MS = 86_400_000


def daily(cap: str, scope: str = "user:al", nanos: int = 100) -> list[Limit]:
    return [budget(scope, nanos, "day", rollover=Decimal(cap).scaleb(-9))]


async def spend(books: Books, name: str, amount: int, scope: str = "user:al") -> Outcome:
    reply = await books.reserve(name, scope, usd=amount)
    if reply.admitted:
        await books.settle(name, usd=amount)
    return reply.outcome


async def test_the_rest_comes_along(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 70)
    await books.clock.advance(DAY_MS)
    assert await books.allowed("user:al") == 130
    assert await spend(books, "b", 131) is Outcome.EXCEEDS_LIMIT
    assert await spend(books, "c", 130) is Outcome.HELD
    await books.clock.advance(DAY_MS)
    assert await books.allowed("user:al") == 100


async def test_no_more_than_the_cap_comes_along(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("25"))
    await spend(books, "a", 10)
    await books.clock.advance(DAY_MS)
    assert await books.allowed("user:al") == 125


async def test_nothing_comes_along_into_the_first_period(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    assert await books.allowed("user:al") == 100
    await spend(books, "a", 1)
    assert await books.allowed("user:al") == 100


async def test_days_without_any_request_add_up_to_the_cap(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("250"))
    await spend(books, "a", 90)
    await books.clock.advance(2 * DAY_MS)
    assert await books.allowed("user:al") == 100 + 10 + 100
    await spend(books, "b", 0)
    await books.clock.advance(3 * DAY_MS)
    assert await books.allowed("user:al") == 350


async def test_what_is_still_held_is_not_carried_until_it_is_given_back(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await books.reserve("long", "user:al", lease_ms=DAY_MS, usd=80)
    await books.clock.advance(DAY_MS)
    assert (await books.reserve("b", "user:al", usd=121)).outcome is Outcome.EXCEEDS_LIMIT
    await books.release("long")
    assert await books.allowed("user:al") == 200
    assert (await books.reserve("c", "user:al", usd=200)).outcome is Outcome.HELD


async def test_a_late_correction_of_yesterday_takes_from_what_was_carried(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await books.reserve("late", "user:al", lease_ms=1_000, usd=(100, 10))
    await books.clock.advance(DAY_MS)
    await books.store.sweep()
    assert await books.allowed("user:al") == 190
    await books.settle("late", usd=100, made_ms=0)
    assert await books.allowed("user:al") == 100


async def test_what_was_carried_stands_once_yesterdays_counter_is_gone(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 70)
    await books.clock.advance(DAY_MS)
    await spend(books, "b", 1)
    for _ in range(6):
        await books.clock.advance(3_000_000)
        await books.store.sweep()
    assert await books.allowed("user:al") == 130
    (event,) = await books.events("rollover")
    assert event["amount"] == "30"


async def test_the_rest_is_kept_when_the_counter_goes_before_anybody_asks(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 70)
    (line,) = await books.lines("user:al")
    while await books.now() < line.ends_ms + 10_000_000:
        await books.clock.advance(3_000_000)
        await books.store.sweep()
    assert await books.allowed("user:al") == 130
    await spend(books, "b", 5)
    assert await books.allowed("user:al") == 130
    assert [event["amount"] for event in await books.events("rollover")] == ["30"]


async def test_what_was_topped_up_and_carried_before_is_carried_on(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 70)
    await books.clock.advance(DAY_MS)
    await spend(books, "b", 0)
    (line,) = await books.lines("user:al")
    await books.store.adjust([Grant(root=ROOT, counter=line.counter, amount=20, count=1, keep_until_ms=line.ends_ms)])
    assert await books.allowed("user:al") == 150
    await spend(books, "c", 50)
    await books.clock.advance(DAY_MS)
    assert await books.allowed("user:al") == 200


async def test_each_member_carries_its_own_rest(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000", scope="user:*"))
    await spend(books, "a", 70, "user:al")
    await spend(books, "b", 20, "user:bo")
    await books.clock.advance(DAY_MS)
    assert (await books.allowed("user:al"), await books.allowed("user:bo"), await books.allowed("user:new")) == (130, 180, 100)


async def test_a_line_of_tomorrow_does_not_turn_the_period_today(still_books: Books) -> None:
    books = still_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 10)
    asked = await books.request("ahead", "user:al", usd=1)
    (line,) = asked.lines
    assert line.limit is not None
    tomorrow = line.limit.period(line.ends_ms)
    ahead = replace(
        line,
        counter=line.limit.counter("user:al", tomorrow),
        starts_ms=tomorrow.starts_ms,
        ends_ms=tomorrow.ends_ms,
        ordinal=tomorrow.ordinal,
    )
    assert (await books.send(replace(asked, lines=(ahead,)))).outcome is Outcome.WRONG_PERIOD
    await spend(books, "b", 90)
    await books.clock.advance(DAY_MS)
    assert await books.allowed("user:al") == 100


async def test_a_clock_that_goes_back_and_on_carries_nothing_twice(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 10)
    await books.clock.advance(DAY_MS)
    await spend(books, "b", 1)
    books.clock.step(-DAY_MS)
    await spend(books, "c", 90)
    books.clock.step(DAY_MS)
    assert await books.allowed("user:al") == 100


async def test_a_clock_that_goes_back_over_a_final_carry_does_not_give_it_again(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 10)
    await books.clock.advance(DAY_MS)
    assert await spend(books, "b", 190) is Outcome.HELD
    await books.clock.advance(DAY_MS)
    assert await spend(books, "c", 1) is Outcome.HELD
    books.clock.step(-2 * DAY_MS)
    assert await spend(books, "d", 1) is Outcome.EXCEEDS_LIMIT
    books.clock.step(2 * DAY_MS)
    assert await spend(books, "e", 99) is Outcome.HELD


async def test_periods_without_rollover_are_not_carried_when_it_is_switched_on_again(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 10)
    await books.clock.advance(DAY_MS)
    await books.limit(*daily("0"))
    for day in range(3):
        await spend(books, f"full{day}", 100)
        await books.clock.advance(DAY_MS)
    await books.limit(*daily("1000"))
    assert await books.allowed("user:al") == 100
    await spend(books, "b", 40)
    await books.clock.advance(DAY_MS)
    assert await books.allowed("user:al") == 160


async def test_changing_the_cap_or_the_amount_breaks_no_rollover(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 10)
    await books.clock.advance(DAY_MS)
    await books.limit(*daily("50", nanos=200))
    assert await books.allowed("user:al") == 250


async def test_what_is_booked_in_a_period_in_which_nobody_reserved_is_not_carried(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 100)
    await books.clock.advance(DAY_MS)
    # As a journal books what passed while the store was away: by its lines and time, without a reserve.
    lines = await books.lines("user:al")
    await books.store.settle(
        Settle(reservation_id="blind", root=ROOT, lines=lines, amounts=(("usd", 70),), made_ms=await books.now())
    )
    await books.clock.advance(DAY_MS)
    assert await books.allowed("user:al") == 130


async def test_so_is_what_is_booked_into_it_later(moving_books: Books) -> None:
    books = moving_books
    await books.limit(*daily("1000"))
    await spend(books, "a", 100)
    (line,) = await books.lines("user:al")
    await books.clock.advance(line.ends_ms + DAY_MS - 1_800_000 - await books.now())
    lines, made_ms = await books.lines("user:al"), await books.now()
    await books.clock.advance(2_400_000)
    await spend(books, "b", 0)
    assert await books.allowed("user:al") == 200
    await books.store.settle(Settle(reservation_id="blind", root=ROOT, lines=lines, amounts=(("usd", 70),), made_ms=made_ms))
    assert await books.allowed("user:al") == 130
