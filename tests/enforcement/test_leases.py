"""Leased mode: what is granted while the store is out of reach was held before, and is booked once, in full."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sark_mw.enforcement.admission import Admission
from sark_mw.ledger.entries import parse_entry
from sark_mw.limit import Limit, Unit
from sark_mw.store.base import OutboxEntry
from tests.enforcement.leasing import ALICE, LEASE_MS, ROOT, TEAM, Process, Shop, budget, cap, cost, rest

DAY_MS = 86_400_000


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    await shop.store.begin()
    yield shop
    shop.store.assert_invariants()


def of_requests(shop: Shop) -> list[OutboxEntry]:
    """List the ledger's entries that name a request."""
    return [entry for entry in shop.store.ledger if parse_entry(entry.entry_json)[0].request_id]


async def book(admissions: list[Admission], nanos: int) -> None:
    for ended in [admission.settle(cost(nanos)) for admission in admissions]:
        await ended


async def test_a_lease_is_a_hold_that_is_made_beside_the_request(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    process.pool.touch(ROOT, (TEAM,))
    assert await shop.count(TEAM) == (0, 0)
    await rest()
    assert await shop.count(TEAM) == (0, 1_000)
    await process.close()


async def test_without_the_store_no_more_is_granted_than_was_leased(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    process.connection.cut = True
    granted = process.grant_all(30, TEAM)
    assert len(granted) == 33
    assert process.grant(11, TEAM) is None
    assert process.grant(10, TEAM) is not None
    assert process.grant(0, "user:nobody") is None


async def test_every_unit_has_its_own_ceiling(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process(requests=7)
    await process.lease(TEAM)
    process.connection.cut = True
    assert len(process.grant_all(1, TEAM)) == 7


async def test_what_a_request_did_not_need_is_granted_again_and_what_it_cost_never(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    process.connection.cut = True
    first, second = process.grant(600, TEAM), process.grant(400, TEAM)
    assert first and second
    first.settle(cost(100))
    second.release()
    assert process.grant(901, TEAM) is None
    assert process.grant(900, TEAM) is not None
    process.connection.cut = False
    await process.close()


async def test_a_concurrency_slot_comes_back_with_the_end_of_the_request(shop: Shop) -> None:
    await shop.limit(cap(2, Unit.CONCURRENCY))
    process = shop.process()
    await process.lease(TEAM)
    assert await shop.count(TEAM, unit=Unit.CONCURRENCY) == (0, 2)
    process.connection.cut = True
    first, second = process.grant_all(1, TEAM)
    first.settle(cost(1))
    assert len(process.grant_all(1, TEAM)) == 1
    second.settle(cost(1))


async def test_after_the_outage_every_request_has_its_entry_and_the_books_balance(shop: Shop) -> None:
    await shop.limit(budget(5_000), cap(50, Unit.REQUESTS))
    process = shop.process()
    await process.lease(TEAM)
    process.connection.cut = True
    granted = process.grant_all(100, TEAM)
    ended = [admission.settle(cost(10 + n)) for n, admission in enumerate(granted)]
    await rest()
    assert of_requests(shop) == []
    process.connection.cut = False
    for each in ended:
        await each
    entries = of_requests(shop)
    assert [parse_entry(entry.entry_json)[0].request_id for entry in entries] == [f"request-{n}" for n in range(1, 11)]
    assert [dict(entry.booked) for entry in entries] == [{"usd": 10 + n, "requests": 1} for n in range(10)]
    assert await shop.count(TEAM) == (145, 855)
    await process.close()
    assert await shop.count(TEAM) == (145, 0)
    assert await shop.count(TEAM, unit=Unit.REQUESTS) == (10, 0)


async def test_a_part_whose_answer_was_lost_is_booked_once_and_none_overtakes_it(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    granted = [process.grant(100, TEAM) for _ in range(4)]
    process.connection.answers_to_lose = 2
    await book([admission for admission in granted if admission], 70)
    assert [settle.part for settle in process.connection.settles] == [1, 1, 1, 2, 3, 4]
    assert [dict(entry.booked)["usd"] for entry in of_requests(shop)] == [70, 70, 70, 70]
    assert await shop.count(TEAM) == (280, 720)
    await process.close()


async def test_a_cost_above_its_ceiling_is_booked_in_full_and_never_granted_again(shop: Shop) -> None:
    await shop.limit(budget(1_000))
    process = shop.process()
    await process.lease(TEAM)
    process.connection.cut = True
    dear, fair = process.grant(500, TEAM), process.grant(500, TEAM)
    assert dear and fair
    ended = [dear.settle(cost(800)), fair.settle(cost(500))]
    assert process.grant(1, TEAM) is None
    process.connection.cut = False
    replies = [await each for each in ended]
    assert sum(dict(reply.overrun).get("usd", 0) for reply in replies if reply) == 300
    await process.close()
    assert await shop.count(TEAM) == (1_300, 0)


async def test_progress_of_a_stream_is_booked_once_and_a_correction_downwards_is_free_again(shop: Shop) -> None:
    await shop.limit(budget(1_000))
    process = shop.process()
    await process.lease(TEAM)
    stream = process.grant(600, TEAM)
    assert stream
    stream.report(cost(300))
    progress = stream.book_progress()
    assert progress
    await progress
    assert process.grant(401, TEAM) is None
    beside = process.grant(400, TEAM)
    assert beside
    await beside.release()
    await stream.settle(cost(250))
    assert await shop.count(TEAM) == (250, 750)
    assert process.grant(751, TEAM) is None
    last = process.grant(750, TEAM)
    assert last
    await last.release()
    await process.close()
    assert await shop.count(TEAM) == (250, 0)


async def test_a_lease_that_may_have_expired_at_the_server_grants_nothing(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    process.connection.cut = True
    shop.clock.advance(LEASE_MS * 19 // 20 - 1)
    assert process.grant(1, TEAM) is not None
    shop.clock.advance(1)
    assert process.grant(1, TEAM) is None
    assert await shop.store.sweep() == 0, "the hold outlives the last grant"


async def test_an_extension_counts_from_when_it_was_sent_and_only_when_it_was_answered(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    shop.clock.advance(30_000)
    await process.pool.renew()
    process.connection.answers_to_lose = 1
    shop.clock.advance(20_000)
    await process.pool.renew()
    process.connection.cut = True
    shop.clock.advance(LEASE_MS * 19 // 20 - 20_001)
    assert process.grant(1, TEAM) is not None
    shop.clock.advance(1)
    assert process.grant(1, TEAM) is None


async def test_what_a_lease_granted_before_it_expired_is_booked_late_and_in_full(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    process.connection.cut = True
    granted = process.grant_all(100, TEAM)
    ended = [admission.settle(cost(60)) for admission in granted]
    shop.clock.advance(LEASE_MS + 1)
    assert await shop.store.sweep() == 1
    assert await shop.count(TEAM) == (0, 0)
    process.connection.cut = False
    for each in ended:
        await each
    assert await shop.count(TEAM) == (600, 0)
    assert len(of_requests(shop)) == 10
    await process.pool.renew()
    assert process.grant(1, TEAM) is not None, "a new lease took the place of the expired one"
    await rest()


async def test_two_processes_and_the_store_together_never_grant_more_than_the_budget(shop: Shop) -> None:
    await shop.limit(budget(1_500))
    one, two, three = shop.process("one"), shop.process("two"), shop.process("three")
    for process in (one, two, three):
        await process.lease(TEAM)
    assert await shop.count(TEAM) == (0, 1_500)
    one.connection.cut = two.connection.cut = True
    granted = one.grant_all(70, TEAM) + two.grant_all(70, TEAM)
    assert len(granted) == 1_000 // 70 + 500 // 70
    assert three.grant_all(70, TEAM) == []
    ended = [admission.settle(cost(70)) for admission in granted]
    one.connection.cut = two.connection.cut = False
    for each in ended:
        await each
    for process in (one, two, three):
        await process.close()
    assert await shop.count(TEAM) == (70 * len(granted), 0)


async def test_an_ended_period_ends_the_lease_and_the_next_request_makes_one_in_the_new(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    midnight = shop.clock() // DAY_MS * DAY_MS + DAY_MS
    shop.clock.advance(midnight - shop.clock() - 1_000)
    await process.lease(TEAM)
    running = process.grant(100, TEAM)
    shop.clock.advance(1_000)
    assert process.grant(1, TEAM) is None
    await process.lease(TEAM)
    assert process.grant(1, TEAM) is not None
    assert running
    await running.settle(cost(40))
    assert [entry.reserved_ms < midnight for entry in of_requests(shop)] == [True]
    assert await shop.count(TEAM) == (0, 1_000)


async def test_a_lease_on_a_rolling_window_ends_when_half_the_window_has_gone(shop: Shop) -> None:
    await shop.limit(budget(5_000, window="rolling:60"))
    process = shop.process()
    await process.lease(TEAM)
    shop.clock.advance(29_999)
    assert process.grant(1, TEAM) is not None
    shop.clock.advance(1)
    assert process.grant(1, TEAM) is None


async def test_a_limit_added_since_ends_a_lease_that_does_not_hold_on_it(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM, ALICE)
    await shop.limit(budget(300, scope=ALICE))
    await process.tables.reload(ROOT)
    assert process.grant(1, TEAM, ALICE) is None
    await process.pool.renew()
    assert len(process.grant_all(100, TEAM, ALICE)) == 3
    await rest()
    assert await shop.count(TEAM) == (0, 300)


async def test_a_store_that_lost_the_lease_is_not_spent_from_and_not_booked_twice(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    first = process.grant(100, TEAM)
    assert first
    await first.settle(cost(60))
    table = await shop.store.limits(ROOT)
    shop.store.lose_data()
    for shard in await shop.store.lost_shards():
        await shop.store.restore(shard, limits=[limit for limit in table.limits if shop.store.shard_of(limit.root) == shard])
    await process.pool.renew()
    await rest()
    assert await shop.count(TEAM) == (0, 1_000), "giving the lost lease back books nothing anew"
    second = process.grant(100, TEAM)
    assert second
    assert second.reservation_id != first.reservation_id


async def test_a_used_up_lease_is_replaced_and_one_little_used_is_kept(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    await book([a for a in (process.grant(499, TEAM),) if a], 499)
    await process.pool.renew()
    assert process.grant(502, TEAM) is None
    await book([a for a in (process.grant(2, TEAM),) if a], 2)
    await process.pool.renew()
    await rest()
    assert await shop.count(TEAM) == (501, 1_000)


async def test_the_leases_of_a_process_take_a_share_of_a_limit_and_divide_it_evenly(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process(share=10)
    users = [f"user:{n}" for n in range(20)]
    for user in users:
        await process.lease(TEAM, user)
    assert await shop.count(TEAM) == (0, 500)
    for _ in range(6):
        await process.pool.renew()
        await rest()
        assert (await shop.count(TEAM))[1] <= 500
    granted = {user: sum(1 for _ in process.grant_all(1, TEAM, user)) for user in users}
    assert min(granted.values()) >= 12, granted
    assert sum(granted.values()) <= 500


async def test_a_lease_shrinks_with_what_its_limits_have_left(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process, other = shop.process(share=10), shop.process("other", usd_nanos=4_500)
    await process.lease(TEAM)
    await other.lease(TEAM)
    await book([a for a in (other.grant(4_500, TEAM),) if a], 4_400)
    await other.close()
    assert await shop.count(TEAM) == (4_400, 500)
    await process.pool.renew()
    await process.pool.renew()
    await rest()
    await process.pool.renew()
    spent, held = await shop.count(TEAM)
    assert spent == 4_400
    assert 30 <= held <= 60, "a tenth of the 600 that are left"


async def test_limits_that_can_spare_nothing_are_left_alone(shop: Shop) -> None:
    await shop.limit(budget(5_000), cap(5, Unit.CONCURRENCY))
    process = shop.process(share=10)
    await process.lease(TEAM)
    assert await shop.count(TEAM) == (0, 0)
    assert process.grant(1, TEAM) is None


async def test_a_hold_whose_answer_was_lost_is_given_back(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    process.connection.answers_to_lose = 1
    await process.lease(TEAM)
    assert process.grant(1, TEAM) is None
    await process.settler.drain(10)
    assert await shop.count(TEAM) == (0, 0)
    await process.pool.renew()
    assert await shop.count(TEAM) == (0, 1_000)


async def test_idle_leases_are_given_back_and_there_are_never_more_than_a_thousand(shop: Shop) -> None:
    await shop.limit(budget(10_000_000, scope="user:*"))
    process = shop.process()
    for n in range(1_010):
        process.pool.touch(ROOT, (f"user:{n}",))
    for _ in range(10):
        await rest()
    assert sum([(await shop.count(f"user:{n}"))[1] for n in range(1_010)]) == 1_000 * 1_000
    assert (await shop.count("user:9"), await shop.count("user:10")) == ((0, 0), (0, 1_000))
    shop.clock.advance(LEASE_MS)
    await process.pool.renew()
    process.pool.touch(ROOT, ("user:1000",))
    shop.clock.advance(LEASE_MS + 1)
    await process.pool.renew()
    for _ in range(10):
        await rest()
    assert sum([(await shop.count(f"user:{n}"))[1] for n in range(1_010)]) == 1_000


async def test_closing_gives_everything_back_and_a_running_request_is_booked_when_it_ends(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    await process.lease(TEAM, ALICE)
    running = process.grant(100, TEAM)
    assert running
    await process.close()
    assert await shop.count(TEAM) == (0, 1_000)
    assert process.grant(1, TEAM, ALICE) is None
    await running.settle(cost(70))
    await process.settler.drain(10)
    assert await shop.count(TEAM) == (70, 0)
    assert set(process.gauge.sums.values()) == {0}


async def test_a_process_that_ends_during_the_outage_leaves_everything_in_its_journal_in_order(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    process.connection.cut = True
    for admission in process.grant_all(100, TEAM):
        admission.settle(cost(25))
    await process.pool.aclose()
    await process.settler.drain(0)
    left = process.journal.entries()
    assert [settle.part for settle in left] == [*range(1, 12)]
    for settle in left:
        await shop.store.settle(settle)
    assert [dict(entry.booked)["usd"] for entry in of_requests(shop)] == [25] * 10
    assert await shop.count(TEAM) == (250, 0)


async def test_parts_that_wait_behind_a_request_still_running_are_kept_too(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = shop.process()
    await process.lease(TEAM)
    process.connection.cut = True
    _running, *others = process.grant_all(100, TEAM)
    for admission in others:
        admission.settle(cost(25))
    await process.pool.aclose()
    await process.settler.drain(0)
    for settle in process.journal.entries():
        await shop.store.settle(settle)
    assert [dict(entry.booked)["usd"] for entry in of_requests(shop)] == [25] * 9
    assert await shop.count(TEAM) == (225, 775)


async def test_without_options_nothing_is_held_and_nothing_granted(shop: Shop) -> None:
    await shop.limit(budget(5_000))
    process = Process(shop, "off", None)
    await process.lease(TEAM)
    await process.pool.renew()
    assert process.grant(0, TEAM) is None
    assert await shop.count(TEAM) == (0, 0)
    await process.pool.aclose()


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_the_budget_holds_and_every_request_is_booked_once(shop: Shop, seed: int) -> None:
    chance = random.Random(seed)
    limits: tuple[Limit, ...] = (budget(3_000), budget(1_200, scope=ALICE), cap(60, Unit.REQUESTS))
    await shop.limit(*limits)
    processes = [shop.process(f"p{n}", share=chance.choice((1, 2, 4))) for n in range(3)]
    running: list[Admission] = []
    ended = []
    total = 0
    for _ in range(150):
        process = chance.choice(processes)
        scopes = chance.choice(((TEAM,), (TEAM, ALICE)))
        step = chance.random()
        if step < 0.1:
            process.connection.cut = not process.connection.cut
        elif step < 0.15:
            process.connection.answers_to_lose = 1
        elif step < 0.3:
            await process.lease(*scopes)
        elif step < 0.35:
            shop.clock.advance(100)
            await process.pool.renew()
        elif step < 0.75 or not running:
            admission = process.grant(chance.randint(1, 150), *scopes)
            running += [admission] if admission else []
        else:
            admission = running.pop(chance.randrange(len(running)))
            if chance.random() < 0.2:
                ended.append(admission.release())
            else:
                nanos = chance.randint(0, admission.needs[0].held)
                total += nanos
                ended.append(admission.settle(cost(nanos)))
        spent, held = await shop.count(TEAM)
        assert spent + held <= 3_000
    for process in processes:
        process.connection.cut = False
    ended += [admission.settle(cost(1)) for admission in running]
    total += len(running)
    for each in ended:
        await each
    for process in processes:
        await process.close()
        assert set(process.gauge.sums.values()) <= {0}
    assert await shop.count(TEAM) == (total, 0)
    assert len(of_requests(shop)) == len(ended)
