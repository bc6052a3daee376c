"""Windows: a new period starts at zero by itself, a reservation stays in the one it was made in, rolling windows roll."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from sark_mw.reservation import Line, Outcome
from sark_mw.window import period_of
from tests.conformance.books import MINUTE_MS, ROOT, Books, budget, cap

DAY_MS = 1440 * MINUTE_MS


async def _to(books: Books, at_ms: int) -> None:
    await books.clock.advance(at_ms - await books.now())


async def test_a_new_period_starts_at_zero_on_the_millisecond(still_books: Books) -> None:
    books = still_books
    await books.limit(budget("user:al", 1000, "day", timezone="Europe/Berlin"))
    await books.reserve("r", "user:al", lease_ms=DAY_MS, usd=1000)
    ends = books.asked["r"].lines[0].ends_ms
    await _to(books, ends - 1)
    assert (await books.reserve("early", "user:al", usd=1)).outcome is Outcome.EXCEEDS_LIMIT
    await books.clock.advance(1)
    assert (await books.reserve("new", "user:al", usd=1000)).outcome is Outcome.HELD


async def test_a_line_of_the_old_period_is_refused_from_its_end_on(still_books: Books) -> None:
    books = still_books
    await books.limit(budget("user:al", 1000, "minute"))
    question = await books.request("r", "user:al", usd=1)
    await _to(books, question.lines[0].ends_ms)
    reply = await books.send(question)
    assert (reply.outcome, reply.at_ms) == (Outcome.WRONG_PERIOD, question.lines[0].ends_ms)
    assert (await books.reserve("r", "user:al", usd=1)).outcome is Outcome.HELD


async def test_a_settle_after_the_period_changed_books_into_the_old_one(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000, "day"))
    await books.reserve("r", "user:al", lease_ms=DAY_MS, usd=900)
    old = books.asked["r"].lines
    await books.clock.advance(DAY_MS - 1000)
    await books.settle("r", usd=400)
    assert [(b.spent, b.held) for b in (await books.store.balance(ROOT, old)).balances] == [(400, 0)]
    assert old != await books.lines("user:al")
    assert await books.count("user:al") == (0, 0)


async def test_a_clock_that_steps_back_into_the_old_period_finds_its_spending(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000, "day"))
    await books.reserve("r", "user:al", usd=900)
    await books.settle("r", usd=900)
    books.clock.step(DAY_MS)
    assert (await books.reserve("r2", "user:al", usd=1000)).outcome is Outcome.HELD
    books.clock.step(-DAY_MS)
    assert await books.count("user:al") == (900, 0)
    assert (await books.reserve("r3", "user:al", usd=200)).outcome is Outcome.EXCEEDS_LIMIT


async def test_a_rolling_window_gives_back_what_left_it(moving_books: Books) -> None:
    books = moving_books
    await books.limit(cap("user:al", "requests", 10, "rolling:600"))
    for n in range(10):
        assert (await books.reserve(f"r{n}", "user:al", lease_ms=0, entry="{}", requests=1)).outcome is Outcome.BOOKED
        await books.clock.advance(MINUTE_MS)
    # Ten minutes after the first of them, with buckets of twelve seconds.
    await books.clock.advance(12_000)
    assert await books.count("user:al", "requests") == (9, 0)
    assert (await books.reserve("one", "user:al", lease_ms=0, entry="{}", requests=1)).outcome is Outcome.BOOKED
    assert (await books.reserve("two", "user:al", lease_ms=0, entry="{}", requests=1)).outcome is Outcome.EXCEEDS_LIMIT
    await books.clock.advance(20 * MINUTE_MS)
    assert await books.count("user:al", "requests") == (0, 0)


async def test_a_rolling_window_counts_from_the_reserve_not_from_the_settle(moving_books: Books) -> None:
    books = moving_books
    await books.limit(cap("user:al", "tokens", 100, "rolling:600"))
    await books.reserve("r", "user:al", lease_ms=60 * MINUTE_MS, tokens=80)
    await books.clock.advance(9 * MINUTE_MS)
    await books.settle("r", tokens=50)
    assert await books.count("user:al", "tokens") == (50, 0)
    await books.clock.advance(MINUTE_MS + 15_000)
    assert await books.count("user:al", "tokens") == (0, 0)


async def test_a_settle_after_its_window_rolled_by_only_frees_the_hold(moving_books: Books) -> None:
    books = moving_books
    await books.limit(cap("user:al", "tokens", 100, "rolling:600"), cap("user:al", "tokens", 1000, "total", mode="shadow"))
    await books.reserve("r", "user:al", lease_ms=60 * MINUTE_MS, tokens=80)
    await books.clock.advance(11 * MINUTE_MS)
    assert {b.held for b in (await books.snapshot("user:al")).balances} == {80}
    await books.settle("r", tokens=50)
    balances = (await books.snapshot("user:al")).balances
    assert {(b.line.rolling_ms, b.spent, b.held) for b in balances} == {(600_000, 0, 0), (0, 50, 0)}


async def test_a_correction_takes_out_of_the_bucket_that_was_estimated(moving_books: Books) -> None:
    books = moving_books
    await books.limit(cap("user:al", "tokens", 100, "rolling:600"))
    await books.reserve("r", "user:al", lease_ms=1000, tokens=80)
    await books.clock.advance(2 * MINUTE_MS)
    assert await books.count("user:al", "tokens") == (80, 0)
    await books.settle("r", tokens=10)
    assert await books.count("user:al", "tokens") == (10, 0)
    await books.clock.advance(9 * MINUTE_MS)
    assert await books.count("user:al", "tokens") == (0, 0)


async def test_a_rolling_window_survives_a_clock_that_was_far_ahead(moving_books: Books) -> None:
    books = moving_books
    await books.limit(cap("user:al", "requests", 2, "rolling:60"))
    books.clock.step(300 * MINUTE_MS)
    await books.reserve("r1", "user:al", lease_ms=0, entry="{}", requests=1)
    books.clock.step(-300 * MINUTE_MS)
    await books.reserve("r2", "user:al", lease_ms=0, entry="{}", requests=1)
    assert (await books.reserve("r3", "user:al", lease_ms=0, entry="{}", requests=1)).outcome is Outcome.EXCEEDS_LIMIT
    await books.clock.advance(2 * MINUTE_MS)
    assert await books.count("user:al", "requests") == (0, 0)


async def test_what_is_settled_after_the_clock_went_back_counts_in_a_rolling_window(moving_books: Books) -> None:
    books = moving_books
    await books.limit(cap("user:al", "tokens", 1000, "rolling:60"))
    await books.reserve("r1", "user:al", tokens=100)
    await books.reserve("r2", "user:al", tokens=100)
    await books.settle("r1", tokens=30)
    books.clock.step(-20 * MINUTE_MS)
    await books.settle("r2", tokens=40)
    assert await books.count("user:al", "tokens") == (70, 0)
    await books.clock.advance(2 * MINUTE_MS)
    assert await books.count("user:al", "tokens") == (0, 0)


@pytest.mark.parametrize("seconds", [1, 7, 60, 3600])
async def test_a_rolling_window_never_forgets_early_and_never_late_by_more_than_a_bucket(
    still_books: Books, seconds: int
) -> None:
    books = still_books
    await books.limit(cap("user:al", "requests", 1, f"rolling:{seconds}"))
    await books.clock.advance(777)
    booked = await books.reserve("r", "user:al", lease_ms=0, entry="{}", requests=1)
    (line,) = await books.lines("user:al")
    await _to(books, booked.at_ms + line.rolling_ms - line.bucket_ms)
    assert await books.count("user:al", "requests") == (1, 0)
    await _to(books, booked.at_ms + line.rolling_ms + line.bucket_ms)
    assert await books.count("user:al", "requests") == (0, 0)


async def test_counters_of_periods_long_gone_are_dropped_and_those_that_hold_are_not(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000, "minute"), budget("user:bo", 1000, "minute"), budget("org:a", 1000))
    await books.reserve("gone", "user:al", "org:a", usd=100)
    await books.settle("gone", usd=100)
    await books.reserve("held", "user:bo", "org:a", lease_ms=DAY_MS, usd=50)
    lines = (*books.asked["gone"].lines, *books.asked["held"].lines)

    async def counts() -> dict[str, tuple[int, int]]:
        return {b.line.scope: (b.spent, b.held) for b in (await books.store.balance(ROOT, lines)).balances}

    assert await counts() == {"user:al": (100, 0), "user:bo": (0, 50), "org:a": (100, 50)}
    for _ in range(4):
        # Regular sweeps: after a jump of the clock nothing is dropped.
        await books.clock.advance(30 * MINUTE_MS)
        await books.store.sweep()
    assert await counts() == {"user:al": (0, 0), "user:bo": (0, 50), "org:a": (100, 50)}
    await books.settle("held", usd=50)
    assert await counts() == {"user:al": (0, 0), "user:bo": (50, 0), "org:a": (150, 0)}
    for _ in range(4):
        await books.clock.advance(30 * MINUTE_MS)
        await books.store.sweep()
    assert await counts() == {"user:al": (0, 0), "user:bo": (0, 0), "org:a": (150, 0)}


async def test_a_jump_of_the_clock_drops_no_counter_at_once(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000, "day"))
    await books.reserve("r", "user:al", usd=100)
    await books.settle("r", usd=100)
    await books.store.sweep()
    books.clock.step(30 * DAY_MS)
    await books.store.sweep()
    books.clock.step(-30 * DAY_MS)
    assert await books.count("user:al") == (100, 0)


async def test_a_counter_that_was_only_booked_on_is_dropped_with_its_period_too(still_books: Books) -> None:
    books = still_books
    await books.limit(budget("user:al", 1000, "minute"), cap("user:al", "tokens", 1000, "minute"))
    await books.reserve("r", "user:al", usd=100)
    await books.settle("r", usd=100, tokens=7)
    lines = books.asked["r"].lines
    for _ in range(4):
        await books.clock.advance(30 * MINUTE_MS)
        await books.store.sweep()
    assert [(b.spent, b.held) for b in (await books.store.balance(ROOT, lines)).balances] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Pacific/Auckland", "Asia/Kathmandu"])
async def test_days_end_at_the_zones_own_midnight_whatever_its_clocks_do(still_books: Books, zone: str) -> None:
    books = still_books
    await books.limit(budget("user:al", 100, "day", timezone=zone))
    for turn in (datetime(2027, 3, 28, tzinfo=UTC), datetime(2027, 10, 31, tzinfo=UTC), datetime(2028, 4, 2, tzinfo=UTC)):
        await _to(books, int(turn.timestamp() * 1000))
        period = period_of("day", zone, int(turn.timestamp() * 1000))
        assert (await books.reserve(f"a{turn}".replace(" ", "T"), "user:al", lease_ms=0, usd=100)).outcome is Outcome.BOOKED
        await _to(books, period.ends_ms - 1)
        assert (await books.reserve(f"b{turn}".replace(" ", "T"), "user:al", lease_ms=0, usd=1)).outcome is Outcome.EXCEEDS_LIMIT
        await _to(books, period.ends_ms)
        assert (await books.reserve(f"c{turn}".replace(" ", "T"), "user:al", lease_ms=0, usd=100)).outcome is Outcome.BOOKED


async def test_a_late_settle_finds_its_period_after_the_counter_was_dropped(moving_books: Books) -> None:
    books = moving_books
    line = Line(counter=f"{ROOT}|user:al/usd/minute|gone", unit="usd", amount=1000, starts_ms=0, ends_ms=await books.now() + 500)
    question = replace(await books.request("r", usd=(100, 30), lease_ms=1000), lines=(line,))
    assert (await books.send(question)).outcome is Outcome.HELD
    await books.clock.advance(30 * MINUTE_MS)
    await books.store.sweep()
    for _ in range(3):
        await books.clock.advance(16 * MINUTE_MS)
        await books.store.sweep()
    assert (await books.store.balance(ROOT, (line,))).balances[0].spent == 0
    reply = await books.settle("r", usd=50)
    assert (reply.outcome, reply.late) == (Outcome.SETTLED, True)
    assert await books.booked() == 50
