"""The fence: what the ledger takes after it is of the new epoch, and what it took before is in the sums."""

from __future__ import annotations

import asyncio

from sark_mw.ledger.base import EpochQuery, Ledger
from sark_mw.ledger.open import open_ledger
from tests.ledger.books import NOON_MS, entry

QUERY = EpochQuery(intervals=((0, None), (NOON_MS + 2, NOON_MS + 4)), resolved_since_ms=0, most_resolved=2)


async def test_without_a_fence_every_epoch_is_taken(ledger: Ledger) -> None:
    done = await ledger.append_fenced([entry(1), entry(2, epoch="e2")])
    assert (done.new, done.refused) == (2, ())
    assert await ledger.fence(0) is None


async def test_a_fence_tells_what_there_is_and_keeps_other_epochs_out(ledger: Ledger) -> None:
    await ledger.append_fenced([entry(number) for number in range(1, 5)])
    books = await ledger.begin_epoch(0, "e2", QUERY)
    assert [sum(total.cost_nanos for total in totals) for totals in books.totals.values()] == [8000, 4000]
    assert {total.scope for total in books.totals[0, None]} == {"org:acme", "user:alice"}
    assert [total.amount("usd") for total in books.totals[0, None]] == [4000, 4000]
    assert sorted(one.reservation_id for one in books.resolved) == ["res-000003", "res-000004"]
    assert await ledger.fence(0) == books.fence
    assert books.fence.base_seq == 1_000_004
    late, known, new = entry(5), entry(4), entry(6, epoch="e2", shard_seq=1_000_005)
    elsewhere = entry(7, shard=1)
    done = await ledger.append_fenced([late, known, new, elsewhere])
    assert (done.new, done.refused, done.forked) == (2, (late,), frozenset())
    assert await ledger.append([late]) == 1  # past the fence, by who knows why


async def test_the_fence_is_moved_only_from_where_it_was_found(ledger: Ledger) -> None:
    await ledger.begin_epoch(0, "e2", QUERY)
    assert not await ledger.adopt_epoch(0, "e1", "e9")
    assert await ledger.adopt_epoch(0, "e2", "e3")
    assert (await ledger.append_fenced([entry(1, epoch="e3")])).new == 1


async def test_an_epoch_that_lived_after_the_fence_is_told(ledger: Ledger) -> None:
    await ledger.append_fenced([entry(1)])
    fence = (await ledger.begin_epoch(0, "e2", QUERY)).fence
    await ledger.append_fenced([entry(2, epoch="e2", shard_seq=fence.base_seq + 1)])
    assert not await ledger.is_overtaken(fence)
    await ledger.begin_epoch(0, "e3", QUERY)
    await ledger.append_fenced([entry(3, epoch="e3", shard_seq=fence.base_seq + 1)])
    assert await ledger.is_overtaken(fence)


async def test_a_number_that_comes_twice_in_an_epoch_is_told_and_both_are_kept(ledger: Ledger) -> None:
    await ledger.append_fenced([entry(1), entry(2)])
    done = await ledger.append_fenced([entry(2), entry(3, shard_seq=2)])
    assert (done.new, done.forked) == (1, frozenset({(0, "e1")}))
    assert (await ledger.append_fenced([entry(4)])).forked == frozenset()


async def test_a_new_epoch_is_complete_from_its_first_entry_on(ledger: Ledger) -> None:
    await ledger.append_fenced([entry(1)])
    base = (await ledger.begin_epoch(0, "e2", QUERY)).fence.base_seq
    assert await ledger.complete_up_to(0, "e2", base)
    assert not await ledger.complete_up_to(0, "e2", base + 1)
    await ledger.append_fenced([entry(3, epoch="e2", shard_seq=base + 2)])
    assert not await ledger.complete_up_to(0, "e2", base + 2)
    await ledger.append_fenced([entry(2, epoch="e2", shard_seq=base + 1)])
    assert await ledger.complete_up_to(0, "e2", base + 2)
    assert await ledger.last_sequence(0, "e1") == 1
    assert await ledger.last_sequence(0, "e2") == base + 2


async def test_of_appends_that_race_the_fence_each_is_in_its_sums_or_refused(ledger: Ledger, ledger_url: str) -> None:
    other = open_ledger(ledger_url, deadline_s=30)
    appends = [asyncio.ensure_future(ledger.append_fenced([entry(n * 10 + i) for i in range(10)])) for n in range(1, 30)]
    await asyncio.wait(appends, return_when=asyncio.FIRST_COMPLETED)
    books = await other.begin_epoch(0, "e2", QUERY)
    done = await asyncio.gather(*appends)
    await other.aclose()
    summed = sum(total.requests for total in books.totals[0, None] if total.scope == "org:acme")
    assert summed == sum(one.new for one in done)
    assert summed + sum(len(one.refused) for one in done) == 290
