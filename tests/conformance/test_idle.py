"""Idle windows: the budget of a run or a conversation, which begins anew once nobody has used it for so long."""

from __future__ import annotations

from sark_mw.reservation import Outcome
from tests.conformance.books import Books, budget


async def test_it_counts_as_long_as_it_is_used(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("run:*", 100, "idle:600"))
    for n in range(4):
        await books.reserve(f"r{n}", "run:x", usd=25)
        await books.settle(f"r{n}", usd=25)
        await books.clock.advance(500_000)
        await books.store.sweep()
    assert (await books.reserve("more", "run:x", usd=1)).outcome is Outcome.EXCEEDS_LIMIT


async def test_it_begins_anew_after_nobody_used_it(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("run:*", 100, "idle:600"))
    await books.reserve("a", "run:x", usd=100)
    await books.settle("a", usd=100)
    await books.store.sweep()
    await books.clock.advance(601_000)
    await books.store.sweep()
    assert (await books.reserve("b", "run:x", usd=100)).outcome is Outcome.HELD


async def test_a_hold_keeps_it_alive(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("run:*", 100, "idle:600"))
    await books.reserve("a", "run:x", usd=60)
    await books.settle("a", usd=60)
    await books.reserve("long", "run:x", lease_ms=3_000_000, usd=30)
    for _ in range(4):
        await books.clock.advance(500_000)
        await books.store.sweep()
    assert (await books.reserve("b", "run:x", usd=11)).outcome is Outcome.EXCEEDS_LIMIT
    assert await books.count("run:x") == (60, 30)


async def test_each_has_its_own(books: Books) -> None:
    await books.limit(budget("run:*", 100, "idle:600"))
    await books.reserve("a", "run:x", usd=100)
    assert (await books.reserve("b", "run:y", usd=100)).outcome is Outcome.HELD


async def test_it_begins_anew_though_no_sweep_came_by(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("run:*", 100, "idle:600"))
    await books.reserve("a", "run:x", usd=100)
    await books.settle("a", usd=100)
    await books.clock.advance(601_000)
    assert (await books.snapshot("run:x")).balances[0].spent == 0
    assert (await books.reserve("b", "run:x", usd=100)).outcome is Outcome.HELD


async def test_a_correction_that_comes_after_it_was_forgotten_leaves_no_less_than_nothing(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("run:*", 100, "idle:600"))
    await books.reserve("a", "run:x", lease_ms=1000, usd=(100, 100))
    await books.clock.advance(2_000)
    await books.store.sweep()
    await books.clock.advance(601_000)
    await books.store.sweep()
    await books.settle("a", usd=1)
    assert await books.count("run:x") == (0, 0)
    assert (await books.reserve("b", "run:x", usd=101)).outcome is Outcome.EXCEEDS_LIMIT


async def test_one_clean_up_forgets_all_that_are_due(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("run:*", 100, "idle:600"))
    for n in range(150):
        await books.reserve(f"r{n}", f"run:{n}", usd=1)
        await books.settle(f"r{n}", usd=1)
    await books.store.sweep()
    await books.clock.advance(601_000)
    await books.store.sweep()
    assert [name async for name, _ in books.store.counters("acme")] == []
