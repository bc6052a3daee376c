"""A store that lost its data is rebuilt from the ledger: counters, limits, what was resolved, and never an entry in one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sark_mw._memory_store import ManualClock
from sark_mw.errors import LedgerUnavailableError, StoreDataLostError
from sark_mw.ledger.open import open_ledger
from sark_mw.limit import Limit
from sark_mw.reservation import Outcome, Resolution
from sark_mw.store.connect import open_store
from tests.conformance.clocks import fakeredis_time
from tests.enforcement.rebuilding import ROOT, Gate, Process, Reserved, limit

LIMITS = (
    limit("org:acme", 100_000),
    limit("user:*", 50_000, window="day"),
    limit("user:al", 20_000, window="day"),
    limit("user:*", 1_000, unit="requests", window="hour"),
    limit("user:a*", 70_000, window="rolling:600"),
)
USERS = ("user:al", "user:an", "user:bo")
SECOND = 1000


class Shop:
    """Two processes, one fakeredis, one SQLite file, one clock."""

    def __init__(self, clock: ManualClock, first: Process, second: Process) -> None:
        self.clock = clock
        self.first = first
        self.second = second

    async def lose(self) -> None:
        """Restart Redis empty."""
        await self.first.store._commands.client.flushall()

    async def lose_all_but_the_outbox(self) -> None:
        """Lose what is no stream."""
        client = self.first.store._commands.client
        for shard in range(self.first.store.shards):
            keys = self.first.store.keys_of(shard)
            await client.delete(*(key for key in keys.all if key != keys.outbox))

    async def advance(self, ms: int) -> None:
        """Let time pass."""
        self.clock.advance(ms)

    async def settled(self) -> None:
        """Flush everything, of both."""
        for process in (self.first, self.second, self.first):
            await process.flush()


@asynccontextmanager
async def open_shop(directory: Path) -> AsyncIterator[Shop]:
    """Begin with the limits above, set two milliseconds ago."""
    async with AsyncExitStack() as stack:
        clock = ManualClock(1_792_000_000_123)
        stack.enter_context(fakeredis_time(clock))
        name = uuid4().hex

        async def process(number: int) -> Process:
            store = await open_store(f"memory://{name}", shards=2, deadline_s=60.0)
            stack.push_async_callback(store.aclose)
            ledger = open_ledger(f"sqlite:///{directory / 'ledger.db'}", deadline_s=30.0)
            stack.push_async_callback(ledger.aclose)
            await ledger.migrate()
            return Process(f"p{number}", store, Gate(ledger))

        shop = Shop(clock, await process(1), await process(2))
        await shop.first.recovery.rebuild()
        table = await shop.first.store.set_limits(ROOT, put=LIMITS)
        await shop.first.ledger.save_limits(table.limits, ())
        clock.advance(2)
        yield shop


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path) as shop:
        yield shop


async def spend(process: Process, name: str, user: str, cost: int) -> Reserved:
    """Reserve and settle."""
    reserved, reply = await process.hold(name, user, "org:acme", usd=max(cost, 1))
    assert reply.outcome is Outcome.HELD
    await process.state(reserved, cost)
    return reserved


async def test_counters_of_exact_and_pattern_limits_come_back_once_each(shop: Shop) -> None:
    for number, user in enumerate(USERS * 2):
        await spend(shop.first, f"r{number}", user, 100 + number)
    await shop.settled()
    before = [await shop.first.count(user) for user in ("user:bo", "org:acme")]
    exact = await shop.first.tables.layout(ROOT, ("user:al",))
    spent = {b.line.counter: b.spent for b in (await shop.first.store.balance(ROOT, exact.lines)).balances}
    await shop.lose()
    assert await shop.second.recovery.rebuild() == 2
    assert [await shop.second.count(user) for user in ("user:bo", "org:acme")] == before
    again = await shop.second.tables.layout(ROOT, ("user:al",))
    assert {b.line.counter: b.spent for b in (await shop.second.store.balance(ROOT, again.lines)).balances} == spent
    # The day by the exact limit and, counting only, by the pattern in whose place it stands; the hour and the rolling window.
    assert len(spent) == 4
    assert await shop.second.books(*USERS, "org:acme") == []


async def test_a_rebuilt_budget_refuses_what_the_lost_one_would_have(shop: Shop) -> None:
    await spend(shop.first, "r", "user:al", 19_900)
    await shop.first.flush()
    await shop.lose()
    assert (await shop.second.reserve("over", "user:al", "org:acme", usd=101)).outcome is Outcome.EXCEEDS_LIMIT
    assert (await shop.second.reserve("just", "user:al", "org:acme", usd=100)).outcome is Outcome.HELD


async def test_what_was_spent_before_the_period_or_before_the_limit_is_not_counted(shop: Shop) -> None:
    await spend(shop.first, "old", "user:bo", 700)
    await shop.advance(86_400_000)
    table = await shop.first.store.set_limits(ROOT, put=[limit("org:acme", 5_000, window="month")])
    await shop.first.ledger.save_limits(table.limits, ())
    shop.first.tables.forget(ROOT)
    await shop.advance(2)
    await spend(shop.first, "new", "user:bo", 30)
    await shop.settled()
    await shop.lose()
    await shop.second.recovery.rebuild()
    layout = await shop.second.tables.layout(ROOT, ("user:bo", "org:acme"))
    snapshot = await shop.second.store.balance(ROOT, layout.lines)
    spent = {b.line.counter.split("|")[1]: b.spent for b in snapshot.balances if b.line.unit == "usd"}
    assert spent == {"user:bo/usd/day@UTC<user:*": 30, "org:acme/usd/total": 730, "org:acme/usd/month@UTC": 30}


async def test_a_rolling_window_comes_back_with_what_lies_in_it(shop: Shop) -> None:
    await spend(shop.first, "early", "user:an", 500)
    await shop.advance(601 * SECOND)
    await spend(shop.first, "late", "user:an", 40)
    await shop.settled()
    await shop.lose()
    await shop.second.recovery.rebuild()
    layout = await shop.second.tables.layout(ROOT, ("user:an",))
    rolling = [b.spent for b in (await shop.second.store.balance(ROOT, layout.lines)).balances if b.line.rolling_ms]
    assert rolling == [40]


async def test_an_entry_in_the_hands_of_a_flusher_when_the_data_go_is_booked_into_the_new_ones(shop: Shop) -> None:
    await spend(shop.first, "r", "user:al", 300)
    await shop.first.take()
    await shop.lose()
    await shop.second.recovery.rebuild()
    assert await shop.second.count("org:acme") == (0, 0)
    await shop.settled()
    assert await shop.second.count("org:acme") == (300, 0)
    assert await shop.second.booked("org:acme") == 300
    assert await shop.second.books(*USERS, "org:acme") == []


async def test_of_a_settle_that_is_repeated_and_an_entry_in_hand_only_one_counts(shop: Shop) -> None:
    reserved, _ = await shop.first.hold("r", "user:al", "org:acme", usd=500)
    await shop.first.state(reserved, 300)
    await shop.first.take()
    await shop.lose()
    reply = await shop.second.send(shop.second.statement(reserved, Resolution.SETTLE))  # its answer was lost
    assert reply.outcome is Outcome.SETTLED
    await shop.settled()
    assert await shop.first.count("org:acme") == (300, 0)
    assert await shop.first.booked("org:acme") == 300


@pytest.mark.parametrize("rebooked_first", [True, False])
async def test_a_stream_whose_part_was_in_hand_costs_in_the_end_what_its_caller_says(shop: Shop, rebooked_first: bool) -> None:
    reserved, _ = await shop.first.hold("r", "user:al", "org:acme", usd=500)
    await shop.first.state(reserved, 120, Resolution.PARTIAL)
    await shop.first.take()
    await shop.lose()
    await shop.second.recovery.rebuild()
    if rebooked_first:
        await shop.settled()
        assert await shop.first.count("org:acme") == (120, 0)
    await shop.first.state(reserved, 310)
    await shop.settled()
    assert await shop.first.count("org:acme") == (310, 0)
    assert await shop.first.booked("org:acme") == 310
    assert await shop.first.books(*USERS, "org:acme") == []


@pytest.mark.parametrize("settled_late", [True, False])
async def test_an_expiry_in_hand_is_booked_and_corrected_by_a_late_settle(shop: Shop, settled_late: bool) -> None:
    reserved, _ = await shop.first.hold("r", "user:al", "org:acme", usd=500, lease_ms=10 * SECOND)
    await shop.advance(11 * SECOND)
    assert await shop.first.store.sweep() == 1
    await shop.first.take()
    await shop.lose()
    await shop.second.recovery.rebuild()
    await shop.settled()
    assert await shop.first.count("org:acme") == (250, 0)
    if settled_late:
        await shop.first.state(reserved, 40)
        await shop.settled()
    assert await shop.first.count("org:acme") == (40 if settled_late else 250, 0)
    assert await shop.first.books(*USERS, "org:acme") == []


async def test_a_correction_in_hand_takes_off_what_the_expiry_guessed(shop: Shop) -> None:
    reserved, _ = await shop.first.hold("r", "user:al", "org:acme", usd=500, lease_ms=10 * SECOND)
    await shop.advance(11 * SECOND)
    await shop.first.store.sweep()
    await shop.first.flush()
    await shop.first.state(reserved, 40)
    await shop.first.take()
    await shop.lose()
    await shop.second.recovery.rebuild()
    assert await shop.first.count("org:acme") == (250, 0)
    await shop.settled()
    assert await shop.first.count("org:acme") == (40, 0)
    assert await shop.first.booked("org:acme") == 40


async def test_a_release_in_hand_reaches_the_ledger_and_takes_nobodys_place(shop: Shop) -> None:
    reserved, _ = await shop.first.hold("r", "user:al", "org:acme", usd=500)
    await shop.first.state(reserved, 0, Resolution.RELEASE)
    await shop.first.take()
    await shop.lose()
    await shop.second.recovery.rebuild()
    await shop.settled()
    reserved.parts = 0
    await shop.first.state(reserved, 70)  # the caller changed its mind: it did cost something
    await shop.settled()
    assert await shop.first.booked("org:acme") == 70
    assert await shop.first.books(*USERS, "org:acme") == []


async def test_an_entry_older_than_the_store_remembers_goes_past_the_fence_and_is_marked(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await spend(shop.first, "before", "user:al", 1)
    await shop.settled()
    await spend(shop.first, "r", "user:al", 300)
    await shop.first.take()
    await shop.lose()
    await shop.second.recovery.rebuild()
    await shop.advance(3_600_001)
    await shop.settled()
    assert await shop.first.booked("org:acme") == 301
    assert await shop.first.count("org:acme") == (1, 0)
    assert "could not be booked again" in caplog.text
    assert [drift[1:] for drift in await shop.first.books("org:acme")] == [(1, 301)]


async def test_what_survived_in_the_outbox_is_in_the_sums(shop: Shop) -> None:
    await spend(shop.first, "r", "user:al", 300)
    await shop.lose_all_but_the_outbox()
    await shop.second.recovery.rebuild()
    assert await shop.second.count("org:acme") == (300, 0)
    await shop.settled()
    assert await shop.second.booked("org:acme") == 300
    assert await shop.second.books(*USERS, "org:acme") == []


async def test_what_another_flusher_had_taken_from_a_surviving_outbox_is_booked_again_by_whoever_has_it(shop: Shop) -> None:
    await spend(shop.first, "r", "user:al", 300)
    await shop.first.take()
    await shop.lose_all_but_the_outbox()
    await shop.second.recovery.rebuild()
    assert await shop.second.count("org:acme") == (0, 0)
    await shop.settled()
    assert await shop.second.count("org:acme") == (300, 0)
    assert await shop.second.booked("org:acme") == 300


async def test_two_processes_that_rebuild_at_once_agree_and_the_fence_names_what_is_in_force(shop: Shop) -> None:
    await spend(shop.first, "r", "user:al", 300)
    await shop.settled()
    await shop.lose()
    await asyncio.gather(*(process.recovery.rebuild() for process in (shop.first, shop.second) * 2))
    for shard in range(2):
        fence = await shop.first.ledger.fence(shard)
        assert fence.epoch == (await shop.first.store.position(shard)).epoch
    await spend(shop.second, "again", "user:al", 40)
    await shop.settled()
    assert await shop.first.count("org:acme") == (340, 0)
    assert await shop.first.books(*USERS, "org:acme") == []


async def test_a_fence_of_a_process_that_died_before_it_restored_is_mended_by_the_next_flusher(shop: Shop) -> None:
    await spend(shop.first, "r", "user:al", 300)
    await shop.settled()
    shard = shop.first.store.shard_of(ROOT)
    found = await shop.first.ledger.fence(shard)
    assert await shop.first.ledger.adopt_epoch(shard, found.epoch, "of-the-dead")
    await spend(shop.first, "s", "user:al", 50)
    await shop.settled()
    assert (await shop.first.ledger.fence(shard)).epoch == found.epoch
    assert await shop.first.booked("org:acme") == 350
    assert await shop.first.books(*USERS, "org:acme") == []


async def test_a_process_that_stood_still_between_sums_and_restore_begins_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await spend(shop.first, "r", "user:al", 300)
    await shop.settled()
    await shop.lose()
    restore = shop.first.store.restore

    async def late(*args: object, **named: object) -> str:
        monkeypatch.undo()
        # Meanwhile another process rebuilds, admits, flushes; and the data are lost once more.
        await spend(shop.second, "meanwhile", "user:al", 80)
        await shop.second.flush()
        await shop.lose()
        return await restore(*args, **named)  # type: ignore[arg-type]

    if shop.first.store.shard_of(ROOT) != 0:
        await shop.first.recovery._begin(0, ())
    monkeypatch.setattr(shop.first.store, "restore", late)
    await shop.first.recovery.rebuild()
    await shop.settled()
    assert await shop.first.count("org:acme") == (380, 0)
    assert await shop.first.books(*USERS, "org:acme") == []


async def test_data_older_than_the_ledger_are_given_up_and_rebuilt(shop: Shop) -> None:
    await spend(shop.first, "r", "user:al", 300)
    await shop.settled()
    client, keys = shop.first.store._commands.client, shop.first.store.keys_of(shop.first.store.shard_of(ROOT))
    replica = {key: await client.dump(key) for key in keys.all if await client.exists(key)}
    await spend(shop.first, "s", "user:al", 50)
    await shop.settled()
    await client.flushall()  # the master is gone; its replica had not heard of `s`
    for key, value in replica.items():
        await client.restore(key, 0, value)
    for shard in range(2):
        await shop.second.recovery._begin(shard, ())  # the other shards are none of this test's
    assert await shop.second.count("org:acme") == (300, 0)
    await shop.second.recovery.watch()
    assert await shop.second.count("org:acme") == (350, 0)
    await spend(shop.second, "t", "user:al", 5)
    await shop.settled()
    assert await shop.second.books(*USERS, "org:acme") == []


async def test_data_that_went_back_and_grew_again_are_found_by_the_number_that_comes_twice(shop: Shop) -> None:
    await spend(shop.first, "r", "user:al", 300)
    await shop.settled()
    client, keys = shop.first.store._commands.client, shop.first.store.keys_of(shop.first.store.shard_of(ROOT))
    replica = {key: await client.dump(key) for key in keys.all if await client.exists(key)}
    await spend(shop.first, "s", "user:al", 50)
    await shop.settled()
    await client.flushall()
    for key, value in replica.items():
        await client.restore(key, 0, value)
    for number in range(3):
        await spend(shop.second, f"t{number}", "user:al", 7)
    await shop.second.flusher.flush_once()
    await shop.second.recovery.watch()
    await shop.settled()
    assert await shop.second.count("org:acme") == (371, 0)
    assert await shop.second.books(*USERS, "org:acme") == []


async def test_without_the_ledger_nothing_is_admitted_after_a_loss(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.lose()

    async def away(*args: object) -> None:
        raise LedgerUnavailableError("away")

    monkeypatch.setattr(shop.first.ledger.ledger, "begin_epoch", away)
    with pytest.raises(StoreDataLostError, match="away"):
        await shop.first.recovery.ensure()
    with pytest.raises(LedgerUnavailableError):
        await shop.first.reserve("r", "user:al", "org:acme")
    assert await shop.first.store.lost_shards() == [0, 1]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("spend"), st.integers(0, 2), st.integers(1, 900)),
        st.tuples(st.just("open"), st.integers(0, 2), st.integers(1, 900)),
        st.tuples(st.just("grow"), st.integers(0, 9), st.integers(0, 300)),
        st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 300)),
        st.tuples(st.just("again"), st.integers(0, 9), st.just(0)),
        st.tuples(st.sampled_from(["take", "flush", "rebuild"]), st.integers(0, 1), st.just(0)),
        st.tuples(st.sampled_from(["lose", "lose_part", "rebuild_both", "wait"]), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=OPERATIONS)
def test_whenever_the_data_are_lost_the_ledger_is_the_counters_and_no_cost_counts_twice(
    operations: list[tuple[str, int, int]],
) -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            async with open_shop(Path(directory)) as shop:
                await _drive(shop, operations)

    asyncio.run(run())


async def _drive(shop: Shop, operations: list[tuple[str, int, int]]) -> None:
    made: list[Reserved] = []
    both = (shop.first, shop.second)
    for number, (what, which, amount) in enumerate(operations):
        process = both[number % 2]
        if what in ("spend", "open"):
            reserved, reply = await process.hold(f"r{number}", USERS[which], "org:acme", usd=1_000, lease_ms=3_600_000)
            if reply.admitted:
                made.append(reserved)
                if what == "spend":
                    await process.state(reserved, amount)
        elif what in ("grow", "settle") and made:
            reserved = made[which % len(made)]
            if not reserved.ended:
                await process.state(reserved, reserved.cost + amount, Resolution.PARTIAL if what == "grow" else Resolution.SETTLE)
        elif what == "again" and made:
            reserved = made[which % len(made)]
            if reserved.parts:
                await process.send(process.statement(reserved, Resolution.SETTLE if reserved.ended else Resolution.PARTIAL))
        else:
            await _disturb(shop, what, both[which % 2])
    await shop.first.recovery.rebuild()
    await shop.settled()
    assert await shop.first.books(*USERS, "org:acme") == []
    for user in USERS:
        told = sum(reserved.cost for reserved in made if reserved.request.entry.count(f'"{user}"'))
        assert await shop.first.booked(user) <= told


async def _disturb(shop: Shop, what: str, process: Process) -> None:
    acts: dict[str, Callable[[], Awaitable[object]]] = {
        "take": process.take,
        "flush": process.flush,
        "rebuild": process.recovery.rebuild,
        "lose": shop.lose,
        "lose_part": shop.lose_all_but_the_outbox,
        "rebuild_both": lambda: asyncio.gather(shop.first.recovery.rebuild(), shop.second.recovery.rebuild()),
        "wait": lambda: shop.advance(61 * SECOND),
    }
    try:
        await acts.get(what, lambda: asyncio.sleep(0))()
    except StoreDataLostError:
        return


async def _allowed(process: Process, *scopes: str) -> dict[str, int]:
    await process.tables.reload(ROOT)
    layout = await process.tables.layout(ROOT, scopes)
    return {b.line.scope: b.line.amount for b in (await process.store.balance(ROOT, layout.lines)).balances if b.line.carry_cap}


async def _put(shop: Shop, *limits: Limit) -> None:
    table = await shop.first.store.set_limits(ROOT, put=limits)
    await shop.first.ledger.save_limits(table.limits, ())
    shop.first.tables.forget(ROOT)
    await shop.advance(2)


async def test_what_was_carried_over_is_the_same_after_a_loss(shop: Shop) -> None:
    rule = {"unit": "usd", "amount": Decimal(1000).scaleb(-9), "window": "day", "root": ROOT}
    cap = Decimal(1500).scaleb(-9)
    await _put(shop, *(Limit(scope=scope, rollover=cap, **rule) for scope in ("team:a", "end_user:*")))  # type: ignore[arg-type]
    for day, spent in enumerate((300, 100, 950)):
        for scope in ("team:a", "end_user:x"):
            name = f"{scope}-{day}"
            reserved, _ = await shop.first.hold(name, scope, usd=spent)
            await shop.first.state(reserved, spent)
        await shop.advance(86_400_000)
    await shop.settled()
    before = await _allowed(shop.first, "team:a", "end_user:x")
    assert before == {"team:a": 2500, "end_user:x": 2500}
    await shop.lose()
    await shop.second.recovery.rebuild()
    assert await _allowed(shop.second, "team:a", "end_user:x") == before


async def test_a_late_cost_of_yesterday_still_takes_from_what_was_carried_after_a_loss(shop: Shop) -> None:
    amount, cap = Decimal(1000).scaleb(-9), Decimal(1500).scaleb(-9)
    await _put(shop, Limit(scope="team:a", amount=amount, window="day", root=ROOT, rollover=cap))
    await shop.advance(86_400_000 - shop.clock() % 86_400_000 - 60_000)
    late, _ = await shop.first.hold("late", "team:a", usd=400)
    await shop.advance(120_000)
    await shop.settled()
    await shop.lose()
    await shop.second.recovery.rebuild()
    assert await _allowed(shop.second, "team:a") == {"team:a": 2000}
    await shop.second.send(shop.first.statement(replace(late, cost=400, parts=1, ended=True), Resolution.SETTLE))
    assert await _allowed(shop.second, "team:a") == {"team:a": 1600}
