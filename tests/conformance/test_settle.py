"""Settle, partial settle and release: what is booked leaves the hold, once, however often it is said."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sark_mw.money import MAX_HOLD, MAX_LIMIT_NANOS
from sark_mw.reservation import UNLIMITED, Line, Outcome, Resolution, Settle
from sark_mw.store.base import RestoredCounter
from tests.conformance.books import ROOT, Books, budget, cap


async def test_a_settle_books_the_cost_and_gives_back_the_rest_on_every_line(books: Books) -> None:
    await books.limit(
        budget("user:al", 1000, "day"), budget("org:a", 1000, "month"), cap("user:al", "tokens", 50, "rolling:3600")
    )
    await books.reserve("r", "user:al", "org:a", usd=900, tokens=40)
    reply = await books.settle("r", usd=300, tokens=10)
    assert (reply.outcome, reply.repeated, reply.late, reply.overrun) == (Outcome.SETTLED, False, False, ())
    balances = (await books.snapshot("user:al", "org:a")).balances
    assert {(b.line.scope, b.line.unit, b.spent, b.held) for b in balances} == {
        ("user:al", "usd", 300, 0),
        ("org:a", "usd", 300, 0),
        ("user:al", "tokens", 10, 0),
    }


async def test_a_release_gives_all_back_and_books_nothing(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    assert (await books.release("r")).outcome is Outcome.RELEASED
    assert await books.count("user:al") == (0, 0)
    (entry,) = await books.ledger()
    assert (entry.kind, entry.booked, entry.part) == ("release", (), 1)


@pytest.mark.parametrize(("kind", "outcome"), [(Resolution.SETTLE, Outcome.SETTLED), (Resolution.RELEASE, Outcome.RELEASED)])
async def test_a_repeated_resolution_changes_nothing_and_answers_as_the_first_did(
    books: Books, kind: Resolution, outcome: Outcome
) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    said = books.settlement("r", kind, **({"usd": 300} if kind is Resolution.SETTLE else {}))
    assert (await books.store.settle(said)).repeated is False
    before, entries = await books.count("user:al"), len(await books.ledger())
    for _ in range(3):
        again = await books.store.settle(said)
        assert (again.outcome, again.repeated, again.late) == (outcome, True, False)
    assert await books.count("user:al") == before
    assert len(await books.ledger()) == entries


async def test_the_same_settle_twice_in_one_turn_is_booked_once(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    said = books.settlement("r", usd=300)
    replies = await asyncio.gather(books.store.settle(said), books.store.settle(said))
    assert [(reply.outcome, reply.repeated) for reply in replies] == [(Outcome.SETTLED, False), (Outcome.SETTLED, True)]
    assert await books.count("user:al") == (300, 0)


async def test_a_settle_after_a_settle_changes_nothing_whatever_it_says(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    await books.settle("r", usd=300)
    for said in (
        books.settlement("r", part=2, usd=800),
        books.settlement("r", Resolution.PARTIAL, part=3, usd=800),
        books.settlement("r", Resolution.RELEASE, part=4),
    ):
        assert (await books.store.settle(said)).repeated
    assert await books.count("user:al") == (300, 0)


async def test_partial_settles_state_the_cost_so_far_and_move_it_out_of_the_hold(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    assert (await books.partial("r", 1, usd=100)).outcome is Outcome.HELD
    assert await books.count("user:al") == (100, 800)
    await books.partial("r", 2, usd=350)
    assert await books.count("user:al") == (350, 550)
    assert (await books.settle("r", part=3, usd=400)).outcome is Outcome.SETTLED
    assert await books.count("user:al") == (400, 0)
    assert [(entry.part, entry.kind, dict(entry.booked)) for entry in await books.ledger()] == [
        (1, "partial", {"usd": 100}),
        (2, "partial", {"usd": 250}),
        (3, "settle", {"usd": 50}),
    ]


async def test_a_partial_settle_that_was_overtaken_changes_nothing_and_nothing_is_lost(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    await books.partial("r", 2, usd=350)
    for part in (1, 2):
        late = await books.partial("r", part, usd=100)
        assert (late.outcome, late.repeated) == (Outcome.HELD, True)
    assert await books.count("user:al") == (350, 550)
    await books.settle("r", part=3, usd=350)
    again = await books.partial("r", 1, usd=100)
    assert (again.outcome, again.repeated) == (Outcome.HELD, True)
    assert await books.count("user:al") == (350, 0)


async def test_a_release_after_partial_settles_keeps_what_they_booked(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    await books.partial("r", 1, usd=100)
    await books.release("r", part=2)
    assert await books.count("user:al") == (100, 0)


async def test_a_settle_above_its_hold_is_booked_in_full_and_reports_the_overrun(books: Books) -> None:
    await books.limit(budget("user:al", 1000), cap("user:al", "tokens", 10))
    await books.reserve("r", "user:al", usd=900, tokens=5)
    reply = await books.settle("r", usd=1200, tokens=5)
    assert (reply.outcome, reply.overrun) == (Outcome.SETTLED, (("usd", 300),))
    assert await books.count("user:al") == (1200, 0)
    assert (await books.snapshot("user:al")).balances[0].remaining == -200
    assert (await books.reserve("r2", "user:al", usd=1)).outcome is Outcome.EXCEEDS_LIMIT


async def test_the_overrun_of_partial_settles_is_reported_where_it_happens(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=100)
    assert (await books.partial("r", 1, usd=80)).overrun == ()
    assert (await books.partial("r", 2, usd=130)).overrun == (("usd", 30),)
    assert (await books.settle("r", part=3, usd=135)).overrun == (("usd", 5),)
    assert await books.count("user:al") == (135, 0)


async def test_a_unit_that_was_never_held_is_booked_when_it_is_settled(books: Books) -> None:
    await books.limit(budget("user:al", 1000), cap("user:al", "tokens", 10))
    await books.reserve("r", "user:al", usd=100)
    reply = await books.settle("r", usd=50, tokens=7)
    assert reply.overrun == (("tokens", 7),)
    assert await books.count("user:al", "tokens") == (7, 0)


async def test_a_final_settle_below_its_parts_books_the_difference_back(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    await books.partial("r", 1, usd=500)
    await books.settle("r", part=2, usd=300)
    assert await books.count("user:al") == (300, 0)
    assert [dict(entry.booked) for entry in await books.ledger()] == [{"usd": 500}, {"usd": -200}]


async def test_a_settle_of_nothing_books_nothing_and_is_in_the_ledger(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    await books.settle("r", usd=0)
    assert await books.count("user:al") == (0, 0)
    (entry,) = await books.ledger()
    assert (entry.kind, entry.booked) == ("settle", ())


async def test_a_settle_after_a_release_is_still_booked(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900)
    await books.release("r")
    reply = await books.settle("r", part=2, usd=300)
    assert (reply.outcome, reply.late, reply.repeated) == (Outcome.SETTLED, True, False)
    assert await books.count("user:al") == (300, 0)
    assert (await books.settle("r", part=2, usd=300)).repeated
    assert [(entry.part, entry.late) for entry in await books.ledger()] == [(1, False), (2, True)]


async def test_a_settle_of_an_unknown_reservation_is_booked_once_in_its_own_period(books: Books) -> None:
    await books.limit(budget("user:al", 1000, "day"))
    question = await books.request("r", "user:al", usd=900)
    made = await books.now()
    said = Settle(reservation_id="r", root=ROOT, lines=question.lines, amounts=(("usd", 300),), made_ms=made)
    reply = await books.store.settle(said)
    assert (reply.outcome, reply.late, reply.repeated) == (Outcome.SETTLED, True, False)
    assert (await books.store.settle(said)).repeated
    assert await books.count("user:al") == (300, 0)
    (entry,) = await books.ledger()
    assert (entry.reserved_ms, entry.late, entry.part) == (made, True, 1)


async def test_parts_of_an_unknown_reservation_add_up_to_its_cost(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    question = await books.request("r", "user:al", usd=900)
    made = await books.now()
    said = Settle(
        reservation_id="r",
        root=ROOT,
        lines=question.lines,
        amounts=(("usd", 300),),
        made_ms=made,
        part=3,
        kind=Resolution.PARTIAL,
    )
    assert (await books.store.settle(said)).outcome is Outcome.HELD
    assert (await books.store.settle(said)).repeated
    final = replace(said, part=4, kind=Resolution.SETTLE, amounts=(("usd", 450),))
    assert (await books.store.settle(final)).outcome is Outcome.SETTLED
    assert await books.count("user:al") == (450, 0)
    assert [(entry.part, dict(entry.booked)) for entry in await books.ledger()] == [(3, {"usd": 300}), (4, {"usd": 150})]


@pytest.mark.parametrize("made_ms", [0, 1])
async def test_a_settle_of_an_unknown_reservation_too_old_for_the_store_is_forgotten(books: Books, made_ms: int) -> None:
    await books.limit(budget("user:al", 1000))
    question = await books.request("r", "user:al", usd=900)
    said = Settle(reservation_id="r", root=ROOT, lines=question.lines, amounts=(("usd", 300),), made_ms=made_ms)
    reply = await books.store.settle(said)
    assert (reply.outcome, reply.repeated) == (Outcome.FORGOTTEN, False)
    assert await books.count("user:al") == (0, 0)
    assert await books.ledger() == []


async def test_a_release_that_overtakes_its_reserve_ends_the_reservation_before_it_holds(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    question = await books.request("r", "user:al", usd=900)
    gone = Settle(reservation_id="r", root=ROOT, lines=question.lines, amounts=(), kind=Resolution.RELEASE)
    assert (await books.store.settle(gone)).outcome is Outcome.RELEASED
    reply = await books.send(question)
    assert (reply.outcome, reply.repeated, reply.admitted) == (Outcome.RELEASED, True, False)
    assert await books.count("user:al") == (0, 0)
    assert await books.ledger() == []


async def test_settles_of_one_turn_are_each_answered(books: Books) -> None:
    await books.limit(budget("user:al", 100_000), budget("user:bo", 100_000))
    for n in range(10):
        await books.reserve(f"r{n}", f"user:{('al', 'bo')[n % 2]}", usd=100)
    replies = await asyncio.gather(*(books.settle(f"r{n}", usd=90 + n) for n in range(10)))
    assert [reply.reservation_id for reply in replies] == [f"r{n}" for n in range(10)]
    assert {reply.outcome for reply in replies} == {Outcome.SETTLED}
    assert await books.count("user:al") == (90 + 92 + 94 + 96 + 98, 0)
    assert await books.count("user:bo") == (91 + 93 + 95 + 97 + 99, 0)


async def test_shadow_limits_and_unlimited_lines_are_settled_too(books: Books) -> None:
    await books.limit(budget("user:al", 10, mode="shadow"))
    question = await books.request("r", "user:al", usd=100)
    unlimited = Line(counter=f"{ROOT}|org:a/usd/total|total", unit="usd", amount=UNLIMITED)
    question = replace(question, lines=(*question.lines, unlimited))
    assert (await books.send(question)).shadowed == (0,)
    await books.settle("r", usd=60)
    balances = (await books.store.balance(ROOT, question.lines)).balances
    assert [(b.spent, b.held) for b in balances] == [(60, 0), (60, 0)]


async def test_a_booking_past_the_largest_total_is_out_of_range_and_changes_nothing(books: Books) -> None:
    await books.limit(budget("user:al", MAX_LIMIT_NANOS))
    (line,) = await books.lines("user:al")
    (limit,) = (await books.store.limits(ROOT)).limits
    await books.lose_data()
    room = 1 << 20  # wide enough for a double to see it at 9.2e18
    counter = RestoredCounter(line=line, spent=MAX_LIMIT_NANOS - room)
    await books.store.restore(books.store.shard_of(ROOT), [limit], [counter])
    assert (await books.reserve("r", "user:al", usd=room // 2)).outcome is Outcome.HELD
    over = await books.settle("r", usd=MAX_HOLD)
    assert (over.outcome, over.repeated) == (Outcome.OUT_OF_RANGE, False)
    assert await books.count("user:al") == (MAX_LIMIT_NANOS - room, room // 2)
    assert await books.ledger() == []
    assert (await books.settle("r", usd=room // 2 + 1)).outcome is Outcome.SETTLED
    assert await books.count("user:al") == (MAX_LIMIT_NANOS - room + room // 2 + 1, 0)
