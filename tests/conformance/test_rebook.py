"""After a loss: entries of lost data booked relative to what is known, holds with parts held again, data that are given up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sark_mw.errors import StoreDataLostError
from sark_mw.reservation import Outcome, Resolution, Settle
from sark_mw.store.base import RestoredCounter, RestoredReservation
from tests.conformance.books import ROOT, Books, budget


async def _rebuilt(books: Books, spent: int, *resolved: RestoredReservation) -> None:
    """Hold 600 of 1,000 under the name r, lose it, and rebuild."""
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=(600, 200))
    assert books.table
    await books.lose_data()
    counters = [RestoredCounter(line=books.asked["r"].lines[0], spent=spent)]
    await books.store.restore(books.store.shard_of(ROOT), books.table.limits, counters, 0, resolved)


def _added(books: Books, part: int, usd: int, kind: Resolution = Resolution.SETTLE) -> Settle:
    asked = books.asked["r"]
    return Settle(
        reservation_id="r",
        root=ROOT,
        lines=asked.lines,
        amounts=(("usd", usd),),
        part=part,
        kind=kind,
        made_ms=books.made_ms["r"],
        entry=asked.entry,
        relative=True,
    )


def _known(books: Books, resolution: str, entries: int, known: int, estimated: int = 0) -> RestoredReservation:
    return RestoredReservation(
        reservation_id="r",
        resolution=resolution,
        entries=entries,
        made_ms=books.made_ms["r"],
        known=(("usd", known),),
        estimated=(("usd", estimated),) if estimated else (),
    )


async def test_an_entry_of_lost_data_is_added_to_nothing_and_once(books: Books) -> None:
    await _rebuilt(books, 0)
    assert (await books.store.settle(_added(books, 1, 300))).late
    assert (await books.store.settle(_added(books, 1, 300))).repeated
    assert (await books.settle("r", usd=300)).repeated
    assert await books.count("user:al") == (300, 0)
    assert await books.booked() == 300


async def test_a_total_that_came_first_covers_the_part_that_was_lost(books: Books) -> None:
    await _rebuilt(books, 0)
    await books.settle("r", part=2, usd=450)
    assert (await books.store.settle(_added(books, 1, 300, Resolution.PARTIAL))).repeated
    assert await books.count("user:al") == (450, 0)


async def test_a_total_that_comes_later_takes_the_added_part_in(books: Books) -> None:
    await _rebuilt(books, 0)
    await books.store.settle(_added(books, 1, 300, Resolution.PARTIAL))
    await books.settle("r", part=2, usd=450)
    assert await books.count("user:al") == (450, 0)
    assert await books.booked() == 450


async def test_what_is_added_to_an_expiry_stands_beside_its_guess(still_books: Books) -> None:
    books = still_books
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=(600, 200), lease_ms=1000)
    await books.clock.advance(1001)
    assert await books.count("user:al") == (200, 0)
    await books.store.settle(_added(books, 2, -150))
    assert await books.count("user:al") == (50, 0)
    assert await books.booked() == 50


async def test_nothing_is_taken_off_that_was_never_booked(books: Books) -> None:
    await _rebuilt(books, 0)
    await books.store.settle(_added(books, 2, -150))
    assert await books.count("user:al") == (0, 0)


async def test_a_hold_of_which_parts_are_in_the_ledger_is_held_again_less_those(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=(600, 200))
    assert books.table
    await books.lose_data()
    counters = [RestoredCounter(line=books.asked["r"].lines[0], spent=250)]
    shard = books.store.shard_of(ROOT)
    await books.store.restore(shard, books.table.limits, counters, 0, [_known(books, "held", 2, 250)])
    again = replace(await books.request("r", "user:al", usd=(600, 200)), made_ms=books.made_ms["r"])
    reply = await books.store.reserve(again)
    assert (reply.outcome, reply.repeated) == (Outcome.HELD, False)
    assert (await books.store.reserve(again)).repeated
    assert await books.count("user:al") == (250, 350)
    assert (await books.partial("r", 2, usd=250)).repeated
    await books.partial("r", 3, usd=300)
    assert await books.count("user:al") == (300, 300)
    await books.settle("r", part=4, usd=320)
    assert await books.count("user:al") == (320, 0)
    assert [entry.part for entry in await books.ledger()] == [3, 4]


async def test_a_part_that_overtakes_its_hold_after_a_loss_does_not_keep_it_out(books: Books) -> None:
    await _rebuilt(books, 0)
    await books.partial("r", 1, usd=100)
    again = replace(await books.request("r", "user:al", usd=(600, 200)), made_ms=books.made_ms["r"])
    assert (await books.store.reserve(again)).outcome is Outcome.HELD
    assert await books.count("user:al") == (100, 500)
    await books.release("r", part=2)
    assert await books.count("user:al") == (100, 0)


async def test_a_reservation_that_ended_is_not_held_again(books: Books) -> None:
    await _rebuilt(books, 0)
    await books.release("r")
    again = replace(await books.request("r", "user:al", usd=(600, 200)), made_ms=books.made_ms["r"])
    assert (await books.store.reserve(again)).outcome is Outcome.RELEASED
    assert await books.count("user:al") == (0, 0)


async def test_data_that_are_given_up_decide_nothing_and_what_they_owe_the_ledger_stays(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=600)
    await books.settle("r", usd=300)
    shard = books.store.shard_of(ROOT)
    position = await books.store.position(shard)
    assert position.seq == 1
    assert await books.store.abandon(shard, "another") == position.epoch
    assert await books.count("user:al") == (300, 0)
    assert await books.store.abandon(shard, position.epoch) == ""
    assert await books.store.abandon(shard, position.epoch) == ""
    lost = await books.store.position(shard)
    assert (lost.epoch, lost.seq) == ("", 0)
    assert lost.at_ms >= position.at_ms
    with pytest.raises(StoreDataLostError):
        await books.store.limits(ROOT)
    assert await books.store.restore(shard, epoch="mine") == "mine"
    assert await books.store.restore(shard, epoch="yours") == "mine"
    assert await books.booked() == 300


async def test_only_the_very_entry_is_dropped_from_an_outbox(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=600)
    await books.settle("r", usd=300)
    (entry,) = await books.store.read("books", 10)
    await books.store.discard([replace(entry, epoch="lost")])
    assert await books.store.backlog() == 1
    await books.store.discard([entry])
    assert await books.store.backlog() == 0
