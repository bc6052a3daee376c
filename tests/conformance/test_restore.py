"""Begin and loss: nothing is admitted before a shard is begun or rebuilt, and the first to rebuild it wins."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sark_mw.errors import StoreDataLostError
from sark_mw.limit import Limit
from sark_mw.reservation import Line, Outcome, Reserve
from sark_mw.store.base import RestoredCounter, RestoredReservation
from tests.conformance.books import MINUTE_MS, ROOT, Books, budget, cap


async def _rebuild(books: Books, spent: int = 0, last_seq: int = 0, *resolved: RestoredReservation) -> None:
    """Rebuild with the limits and lines that were there before `lose_data`, as the ledger would know them."""
    assert books.table
    lines = await _lines_before(books)
    counters = [RestoredCounter(line=line, spent=spent) for line in lines]
    await books.store.restore(books.store.shard_of(ROOT), books.table.limits, counters, last_seq, resolved)


async def _lines_before(books: Books) -> tuple[Line, ...]:
    return next(iter(books.asked.values())).lines


async def _with_a_hold(books: Books, *limits: Limit) -> Reserve:
    await books.limit(*(limits or (budget("user:al", 1000),)))
    await books.reserve("r", "user:al", usd=(600, 200))
    return books.asked["r"]


async def test_a_store_that_lost_its_data_refuses_to_decide_anything(books: Books) -> None:
    asked = await _with_a_hold(books)
    await books.lose_data()
    shard = books.store.shard_of(ROOT)
    assert shard in await books.store.lost_shards()
    for call in (
        books.store.reserve(asked),
        books.settle("r", usd=1),
        books.extend("r", MINUTE_MS),
        books.store.balance(ROOT, asked.lines),
        books.store.limits(ROOT),
        books.store.set_limits(ROOT, put=[budget("user:al", 5)]),
    ):
        with pytest.raises(StoreDataLostError):
            await call
    assert await books.store.sweep() == 0
    await books.store.restore(shard)
    assert shard not in await books.store.lost_shards()
    assert (await books.store.limits(ROOT)).limits == ()


async def test_a_rebuilt_store_knows_limits_and_spending_and_goes_on_counting(books: Books) -> None:
    await _with_a_hold(books)
    assert books.table
    await books.lose_data()
    await _rebuild(books, spent=700, last_seq=1_000_041)
    assert (await books.store.limits(ROOT)).limits == books.table.limits
    assert await books.count("user:al") == (700, 0)
    assert (await books.reserve("r2", "user:al", usd=301)).outcome is Outcome.EXCEEDS_LIMIT
    assert (await books.reserve("r2", "user:al", usd=300)).outcome is Outcome.HELD
    await books.settle("r2", usd=5)
    (entry,) = await books.ledger()
    assert entry.shard_seq == 1_000_042
    assert (await books.snapshot("user:al")).seq == 1_000_042


async def test_the_first_to_rebuild_wins_and_all_learn_its_epoch(books: Books) -> None:
    await _with_a_hold(books)
    await books.lose_data()
    lines, shard = await _lines_before(books), books.store.shard_of(ROOT)
    assert books.table
    stores = [books.store, await books.open(), await books.open()]
    epochs = await asyncio.gather(
        *(
            store.restore(shard, books.table.limits, [RestoredCounter(line=lines[0], spent=100 * (n + 1))], n)
            for n, store in enumerate(stores)
        )
    )
    assert len(set(epochs)) == 1
    assert (await books.store.limits(ROOT)).epoch == epochs[0]
    spent, _ = await books.count("user:al")
    assert spent in (100, 200, 300)


async def test_a_reserve_made_before_the_loss_is_stale_after_it(books: Books) -> None:
    asked = await _with_a_hold(books)
    await books.lose_data()
    await _rebuild(books)
    assert (await books.store.reserve(asked)).outcome is Outcome.STALE_LIMITS


async def test_a_hold_that_was_lost_is_held_again_with_its_own_time_whatever_the_limits_say(books: Books) -> None:
    await _with_a_hold(books)
    await books.lose_data()
    await _rebuild(books, spent=900)
    request = await books.request("r", "user:al", usd=(600, 200))
    made = books.made_ms["r"]
    again = replace(request, made_ms=made)
    reply = await books.store.reserve(again)
    assert (reply.outcome, reply.made_ms, reply.repeated) == (Outcome.HELD, made, False)
    repeated = await books.store.reserve(again)
    assert (repeated.outcome, repeated.made_ms, repeated.repeated) == (Outcome.HELD, made, True)
    assert await books.count("user:al") == (900, 600)
    await books.settle("r", usd=100)
    assert await books.count("user:al") == (1000, 0)
    (entry,) = await books.ledger()
    assert entry.reserved_ms == made


async def test_a_settle_whose_hold_was_lost_is_booked_in_full_and_once(books: Books) -> None:
    await _with_a_hold(books)
    await books.lose_data()
    await _rebuild(books, spent=100)
    reply = await books.settle("r", usd=300)
    assert (reply.outcome, reply.late) == (Outcome.SETTLED, True)
    assert (await books.settle("r", usd=300)).repeated
    assert await books.count("user:al") == (400, 0)
    assert await books.booked() == 300


async def test_a_settle_that_reached_the_ledger_before_the_loss_is_not_booked_again(books: Books) -> None:
    await _with_a_hold(books)
    await books.lose_data()
    settled = RestoredReservation(
        reservation_id="r", resolution="settled", entries=1, made_ms=books.made_ms["r"], known=(("usd", 300),)
    )
    await _rebuild(books, 300, 0, settled)
    reply = await books.settle("r", usd=300)
    assert (reply.outcome, reply.repeated) == (Outcome.SETTLED, True)
    assert await books.count("user:al") == (300, 0)


async def test_of_a_reservation_whose_parts_reached_the_ledger_only_the_rest_is_booked(books: Books) -> None:
    await _with_a_hold(books)
    await books.lose_data()
    parts = RestoredReservation(
        reservation_id="r", resolution="released", entries=2, made_ms=books.made_ms["r"], known=(("usd", 250),)
    )
    await _rebuild(books, 250, 0, parts)
    assert (await books.partial("r", 2, usd=250)).repeated
    reply = await books.settle("r", part=3, usd=300)
    assert (reply.outcome, reply.late) == (Outcome.SETTLED, True)
    assert await books.count("user:al") == (300, 0)
    (entry,) = await books.ledger()
    assert (entry.part, dict(entry.booked)) == (3, {"usd": 50})


async def test_an_expiry_that_reached_the_ledger_before_the_loss_is_still_corrected(books: Books) -> None:
    await _with_a_hold(books)
    await books.lose_data()
    expired = RestoredReservation(
        reservation_id="r",
        resolution="expired",
        entries=1,
        made_ms=books.made_ms["r"],
        known=(("usd", 0),),
        estimated=(("usd", 200),),
    )
    await _rebuild(books, 200, 0, expired)
    reply = await books.settle("r", usd=350)
    assert (reply.outcome, reply.late, reply.repeated) == (Outcome.SETTLED, True, False)
    assert await books.count("user:al") == (350, 0)
    (entry,) = await books.ledger()
    assert (entry.part, dict(entry.booked)) == (2, {"usd": 150})


async def test_a_rebuilt_rolling_window_leaves_a_window_from_now(moving_books: Books) -> None:
    books = moving_books
    await books.limit(cap("user:al", "tokens", 1000, "rolling:600"))
    await books.reserve("r", "user:al", tokens=600)
    await books.lose_data()
    await _rebuild(books, spent=700)
    assert await books.count("user:al", "tokens") == (700, 0)
    await books.clock.advance(9 * MINUTE_MS)
    assert await books.count("user:al", "tokens") == (700, 0)
    await books.clock.advance(2 * MINUTE_MS)
    assert await books.count("user:al", "tokens") == (0, 0)


async def test_a_loss_of_one_shard_leaves_the_others_alone(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    assert await books.store.lost_shards() == []
    await books.lose_data()
    assert await books.store.lost_shards() == [0, 1, 2, 3]
    await books.store.restore(2)
    assert await books.store.lost_shards() == [0, 1, 3]
