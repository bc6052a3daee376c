"""The outbox: one entry per resolution, numbered without gaps; ledger and counters agree at every instant."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sark_mw.reservation import Resolution, lines_for
from tests.conformance.books import ROOT, Books, budget, cap


async def test_an_entry_says_all_that_the_ledger_needs(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=900, requests=1)
    reply = await books.settle("r", usd=300, requests=1)
    (entry,) = await books.store.read("c", 10)
    shard = books.store.shard_of(ROOT)
    assert (entry.reservation_id, entry.part, entry.kind, entry.root) == ("r", 1, "settle", ROOT)
    assert (entry.reserved_ms, entry.booked_ms) == (books.made_ms["r"], reply.at_ms)
    assert (entry.shard, entry.shard_seq, entry.epoch) == (shard, 1, (await books.store.limits(ROOT)).epoch)
    assert dict(entry.booked) == {"usd": 300, "requests": 1}
    assert (entry.estimated, entry.late, entry.entry_json) == (False, False, '{"settled":"r"}')


async def test_entries_are_numbered_without_gaps_in_the_order_of_their_booking(books: Books) -> None:
    await books.limit(budget("user:al", 100_000))
    for n in range(12):
        await books.reserve(f"r{n}", "user:al", usd=100)
    await asyncio.gather(*(books.settle(f"r{n}", usd=n) for n in range(6)))
    await books.partial("r6", 1, usd=6)
    await books.release("r6", part=2)
    await books.settle("r0", usd=0)
    await asyncio.gather(*(books.release(f"r{n}") for n in range(7, 12)))
    entries = await books.ledger()
    assert [entry.shard_seq for entry in entries] == list(range(1, 14))
    assert [entry.reservation_id for entry in entries] == [f"r{n}" for n in (0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11)]


async def test_the_ledger_up_to_the_snapshots_sequence_is_the_counter_at_every_instant(books: Books) -> None:
    await books.limit(budget("user:al", 10**9, "day"), budget("user:*", 10**9, "month"), cap("user:al", "requests", 10**6))
    scopes = ("user:al", "user:bo")
    table = await books.store.limits(ROOT)
    lines = lines_for(table.limits, scopes, table.at_ms)
    snapshots = []

    async def watch() -> None:
        for _ in range(15):
            snapshots.append(await books.store.balance(ROOT, lines))
            await asyncio.sleep(0)

    async def work(n: int) -> None:
        name, scope = f"r{n}", scopes[n % 2]
        await books.reserve(name, scope, usd=1000, requests=1)
        if n % 3 == 0:
            await books.partial(name, 1, usd=400)
        if n % 5 == 0:
            await books.release(name, part=2)
        else:
            await books.settle(name, part=2, usd=700 + n, requests=1)

    await asyncio.gather(watch(), *(work(n) for n in range(40)))
    snapshots.append(await books.store.balance(ROOT, lines))
    scope_of = {f"r{n}": scopes[n % 2] for n in range(40)}
    entries = await books.ledger()
    for snapshot in snapshots:
        for balance in snapshot.balances:
            known = [e for e in entries if e.shard_seq <= snapshot.seq and scope_of[e.reservation_id] == balance.line.scope]
            assert balance.spent == sum(dict(entry.booked).get(balance.line.unit, 0) for entry in known)
    assert len({snapshot.seq for snapshot in snapshots}) > 1


async def test_an_entry_stays_until_it_is_acknowledged_and_is_read_as_new_once(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    for name in ("r1", "r2", "r3"):
        await books.reserve(name, "user:al", usd=10)
        await books.settle(name, usd=1)
    assert await books.store.backlog() == 3
    first = await books.store.read("one", 2)
    second = await books.store.read("two", 2)
    assert [[entry.reservation_id for entry in part] for part in (first, second)] == [["r1", "r2"], ["r3"]]
    assert await books.store.read("one", 2) == []
    assert await books.store.backlog() == 3
    await books.store.acknowledge(first)
    assert await books.store.backlog() == 1
    await books.store.acknowledge(first)
    await books.store.acknowledge(second)
    assert await books.store.backlog() == 0


async def test_what_a_dead_flusher_had_taken_is_reclaimed_by_another(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=10)
    await books.settle("r", usd=1)
    taken = await books.store.read("dead", 10)
    assert await books.store.reclaim("alive", 60_000, 10) == []
    await books.clock.advance(20)
    assert await books.store.reclaim("alive", 10, 10) == taken
    await books.store.acknowledge(taken)
    assert await books.store.reclaim("alive", 0, 10) == []


async def test_a_flusher_that_comes_back_finds_what_it_had_taken(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=10)
    await books.settle("r", usd=1)
    taken = await books.store.read("one", 10)
    assert await books.store.reclaim("one", 60_000, 10) == taken


async def test_an_empty_outbox_reads_as_nothing(books: Books) -> None:
    assert await books.store.read("c", 10) == []
    assert await books.store.reclaim("c", 0, 10) == []
    assert await books.store.backlog() == 0
    await books.store.acknowledge([])


async def test_entries_of_all_shards_are_read(books: Books) -> None:
    roots = [f"root{n}" for n in range(12)]
    for root in roots:
        table = await books.store.set_limits(root, put=[budget("user:al", 1000)])
        await books.clock.advance(2)
        request = await books.request("x", usd=10)
        lines = lines_for(table.limits, ["user:al"], table.at_ms)
        asked = replace(
            request, reservation_id=f"r-{root}", root=root, lines=lines, version=table.version, epoch=table.epoch, lease_ms=0
        )
        await books.send(asked)
    entries = await books.ledger()
    assert {entry.root for entry in entries} == set(roots)
    assert {entry.shard for entry in entries} == {books.store.shard_of(root) for root in roots}
    for shard in range(4):
        own = [entry.shard_seq for entry in entries if entry.shard == shard]
        assert own == list(range(1, len(own) + 1))


@pytest.mark.parametrize(
    "text", ['{"a":"\\n|{} é 日本 \\u0000"}', '{"k":"' + "x" * 20_000 + '"}', "{}", '{"s":"\\\\"}', '{"a":"b\rc\td"}']
)
async def test_the_callers_entry_comes_back_byte_for_byte(books: Books, text: str) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("settled", "user:al", usd=10)
    await books.store.settle(replace(books.settlement("settled", usd=1), entry=text))
    await books.reserve("expired", "user:al", lease_ms=20, entry=text, usd=10)
    await books.partial("expired", 1, usd=1)
    await books.clock.advance(21)
    await books.store.sweep()
    entries = await books.ledger()
    assert [entry.entry_json for entry in entries if entry.kind in ("settle", "expire")] == [text, text]


async def test_an_estimated_settle_is_flagged(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=10)
    await books.store.settle(replace(books.settlement("r", Resolution.SETTLE, usd=5), estimated=True))
    (entry,) = await books.ledger()
    assert (entry.estimated, entry.kind) == (True, "settle")
