"""Leases: a hold whose process died goes by itself, is booked by the estimate, and the truth may still come."""

from __future__ import annotations

import asyncio

import pytest

from sark_mw.reservation import Outcome, Resolution
from tests.conformance.books import MINUTE_MS, ROOT, Books, anew, budget, cap

LEASE_MS = 40


async def _expired(books: Books, *, partial: int | None = None, held: int = 900, expected: int = 300) -> None:
    await books.limit(budget("user:al", 1000), cap("user:al", "concurrency", 1))
    await books.reserve("r", "user:al", lease_ms=LEASE_MS, usd=(held, expected), concurrency=(1, 0))
    if partial is not None:
        await books.partial("r", 1, usd=partial)
    await books.clock.advance(LEASE_MS + 1)


async def test_an_expired_hold_is_booked_at_what_was_expected_and_flagged(books: Books) -> None:
    await _expired(books)
    assert await books.count("user:al") == (300, 0)
    assert await books.count("user:al", "concurrency") == (0, 0)
    (entry,) = await books.ledger()
    assert (entry.kind, entry.estimated, entry.late, entry.part, dict(entry.booked)) == ("expire", True, False, 1, {"usd": 300})
    assert (entry.reserved_ms, entry.entry_json) == (books.made_ms["r"], '{"a":1}')


@pytest.mark.parametrize(("partial", "extra"), [(100, 200), (300, 0), (500, 0)])
async def test_an_expired_hold_is_booked_at_the_larger_of_known_and_expected(books: Books, partial: int, extra: int) -> None:
    await _expired(books, partial=partial)
    assert await books.count("user:al") == (partial + extra, 0)
    *_, entry = await books.ledger()
    assert (entry.kind, entry.part, dict(entry.booked).get("usd", 0)) == ("expire", 2, extra)


async def test_dead_holds_refuse_nobody(books: Books) -> None:
    await _expired(books, expected=0)
    assert (await books.reserve("r2", "user:al", usd=1000, concurrency=(1, 0))).outcome is Outcome.HELD


async def test_more_dead_holds_than_one_call_sweeps_refuse_nobody(books: Books) -> None:
    await books.limit(budget("user:al", 150))
    question = await books.request("r", "user:al", lease_ms=LEASE_MS, usd=(1, 0))
    replies = await asyncio.gather(*(books.store.reserve(anew(question, f"r{n}")) for n in range(150)))
    assert all(reply.admitted for reply in replies)
    await books.clock.advance(LEASE_MS + 1)
    assert (await books.reserve("big", "user:al", usd=150)).outcome is Outcome.HELD
    assert len(await books.ledger()) == 150


async def test_a_sweep_expires_everything_and_counts_it(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    lease_ms = 400  # none may end before the first sweep, on a busy machine either
    for n in range(3):
        await books.reserve(f"r{n}", "user:al", lease_ms=lease_ms, usd=(10, 5))
    await books.reserve("long", "user:al", usd=(10, 5))
    assert await books.store.sweep() == 0
    await books.clock.advance(lease_ms + 1)
    assert await books.store.sweep(books.store.shard_of(ROOT)) == 3
    assert await books.store.sweep() == 0
    assert await books.count("user:al") == (15, 10)


@pytest.mark.parametrize("cost", [0, 200, 300, 350, 950])
async def test_a_settle_after_expiry_corrects_the_estimate_to_the_truth(books: Books, cost: int) -> None:
    await _expired(books)
    await books.store.sweep()
    reply = await books.settle("r", usd=cost)
    assert (reply.outcome, reply.late, reply.repeated) == (Outcome.SETTLED, True, False)
    assert await books.count("user:al") == (cost, 0)
    again = await books.settle("r", usd=cost)
    assert (again.outcome, again.repeated) == (Outcome.SETTLED, True)
    assert await books.count("user:al") == (cost, 0)
    assert [dict(entry.booked).get("usd", 0) for entry in await books.ledger()] == [300, cost - 300]
    assert [(entry.part, entry.late) for entry in await books.ledger()] == [(1, False), (2, True)]


async def test_a_settle_that_comes_before_the_sweep_wins_over_the_expiry(books: Books) -> None:
    await _expired(books)
    reply = await books.settle("r", usd=200)
    assert (reply.outcome, reply.late) == (Outcome.SETTLED, False)
    assert [(entry.kind, entry.estimated) for entry in await books.ledger()] == [("settle", False)]
    assert await books.count("user:al") == (200, 0)


async def test_an_extend_that_comes_before_the_sweep_keeps_the_hold(books: Books) -> None:
    await _expired(books)
    assert (await books.extend("r", MINUTE_MS)).outcome is Outcome.EXTENDED
    assert await books.count("user:al") == (0, 900)


async def test_a_release_after_expiry_without_amounts_leaves_only_what_is_known(books: Books) -> None:
    await _expired(books, partial=100)
    await books.store.sweep()
    reply = await books.release("r", part=2)
    assert (reply.outcome, reply.late) == (Outcome.RELEASED, True)
    assert await books.count("user:al") == (100, 0)
    assert await books.booked() == 100


async def test_late_parts_after_expiry_add_up_to_the_truth(books: Books) -> None:
    await _expired(books, partial=100)
    await books.store.sweep()
    late = await books.partial("r", 2, usd=150)
    assert (late.outcome, late.late) == (Outcome.HELD, True)
    assert await books.count("user:al") == (150, 0)
    assert (await books.partial("r", 1, usd=100)).repeated
    await books.settle("r", part=3, usd=400)
    assert await books.count("user:al") == (400, 0)
    assert await books.booked() == 400
    assert [entry.part for entry in await books.ledger()] == [1, 2, 3, 4]


async def test_a_late_settle_goes_to_the_reservations_own_lines_whatever_the_call_says(books: Books) -> None:
    await books.limit(budget("user:al", 1000), budget("user:bo", 1000))
    await books.reserve("r", "user:al", lease_ms=LEASE_MS, usd=(900, 300))
    await books.reserve("other", "user:bo", usd=1)
    await books.clock.advance(LEASE_MS + 1)
    await books.store.sweep()
    books.asked["r"] = books.asked["other"]
    await books.settle("r", usd=500, made_ms=books.made_ms["r"] + 5)
    assert await books.count("user:al") == (500, 0)
    assert await books.count("user:bo") == (0, 1)
    *_, entry = await books.ledger()
    assert entry.reserved_ms == books.made_ms["r"]


async def test_an_extended_lease_lives_from_now(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", lease_ms=LEASE_MS, usd=900)
    reply = await books.extend("r", MINUTE_MS)
    assert reply.outcome is Outcome.EXTENDED
    await books.clock.advance(LEASE_MS + 1)
    assert await books.count("user:al") == (0, 900)


async def test_an_extend_tells_how_a_reservation_ended(books: Books) -> None:
    await books.limit(budget("user:al", 10_000))
    for name in ("settled", "released", "expired"):
        await books.reserve(name, "user:al", lease_ms=LEASE_MS, usd=10)
    await books.settle("settled", usd=1)
    await books.release("released")
    await books.clock.advance(LEASE_MS + 1)
    await books.store.sweep()
    for name in ("settled", "released", "expired"):
        assert (await books.extend(name, MINUTE_MS)).outcome == name
    assert (await books.extend("never", MINUTE_MS)).outcome is Outcome.FORGOTTEN
    assert await books.count("user:al") == (11, 0)


async def test_a_reserve_repeated_after_expiry_is_told_so(books: Books) -> None:
    await _expired(books)
    again = await books.send(books.asked["r"])
    assert (again.outcome, again.repeated, again.admitted) == (Outcome.EXPIRED, True, False)


async def test_a_hold_lives_to_the_last_millisecond_of_its_lease(still_books: Books) -> None:
    books = still_books
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", lease_ms=1000, usd=(900, 300))
    await books.clock.advance(1000)
    assert await books.count("user:al") == (0, 900)
    await books.clock.advance(1)
    assert await books.count("user:al") == (300, 0)


async def test_holds_expire_in_the_order_of_their_leases(still_books: Books) -> None:
    books = still_books
    await books.limit(budget("user:al", 1000))
    for name, lease_ms in (("c", 30), ("b", 20), ("a", 20), ("d", 10)):
        await books.reserve(name, "user:al", lease_ms=lease_ms, usd=1)
    await books.clock.advance(31)
    await books.store.sweep()
    assert [entry.reservation_id for entry in await books.ledger()] == ["d", "a", "b", "c"]


async def test_a_resolution_is_remembered_for_a_retention_at_least_and_then_forgotten(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    await books.settle("r", usd=300)
    await books.clock.advance(58 * MINUTE_MS)
    assert (await books.settle("r", usd=300)).repeated
    for _ in range(3):
        await books.clock.advance(61 * MINUTE_MS)
        await books.store.sweep()
    reply = await books.settle("r", part=2, usd=300)
    assert (reply.outcome, reply.repeated) == (Outcome.FORGOTTEN, False)
    assert await books.count("user:al") == (300, 0)


async def test_a_clock_that_steps_back_forgets_no_resolution_and_no_hold(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000))
    await books.reserve("r1", "user:al", usd=100)
    await books.reserve("r2", "user:al", usd=50)
    await books.settle("r1", usd=70)
    books.clock.step(-120 * MINUTE_MS)
    assert (await books.settle("r1", usd=70)).repeated
    assert await books.count("user:al") == (70, 50)
    assert (await books.settle("r2", usd=40)).outcome is Outcome.SETTLED
    books.clock.step(120 * MINUTE_MS)
    assert await books.count("user:al") == (110, 0)
    assert (await books.settle("r1", usd=70)).repeated


async def test_a_clock_that_steps_ahead_ends_leases_and_late_settles_put_it_right(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000, "day"))
    await books.reserve("r", "user:al", lease_ms=10 * MINUTE_MS, usd=(900, 300))
    lines = books.asked["r"].lines
    books.clock.step(30 * MINUTE_MS)
    assert [(b.spent, b.held) for b in (await books.store.balance(ROOT, lines)).balances] == [(300, 0)]
    assert (await books.settle("r", usd=410)).late
    books.clock.step(-30 * MINUTE_MS)
    assert [(b.spent, b.held) for b in (await books.store.balance(ROOT, lines)).balances] == [(410, 0)]


async def test_leases_made_while_the_clock_was_years_ahead_do_not_hold_forever(moving_books: Books) -> None:
    books = moving_books
    await books.limit(budget("user:al", 1000))
    books.clock.step(400 * 24 * 60 * MINUTE_MS)
    await books.reserve("r", "user:al", usd=(900, 300))
    books.clock.step(-400 * 24 * 60 * MINUTE_MS)
    assert await books.count("user:al") == (300, 0)


async def test_a_release_wins_over_a_partial_that_is_still_on_its_way(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    await books.release("r", part=2)
    late = await books.store.settle(books.settlement("r", Resolution.PARTIAL, part=1, usd=100))
    assert late.repeated
    assert await books.count("user:al") == (0, 0)
