"""From the outbox to the ledger: each entry once, in order, whatever dies in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from sark_mw.errors import LedgerUnavailableError, StoreUnavailableError
from sark_mw.ledger.base import CostFilter, EpochQuery, Ledger
from sark_mw.ledger.entries import CallerEntry
from sark_mw.ledger.events import EventFilter
from sark_mw.ledger.flusher import Flusher
from sark_mw.ledger.open import open_ledger
from sark_mw.store.base import Outbox, OutboxEntry
from tests.ledger.books import NOON_MS, ListOutbox
from tests.servers.postgres import PostgresServer

EVERYTHING = CostFilter()


@dataclass
class Heard:
    """Remembers what a flusher tells, and lets a test wait for it."""

    rows: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    backlogs: list[tuple[int, float]] = field(default_factory=list)
    expiries: list[tuple[str, str | None, str, int]] = field(default_factory=list)
    limit_events: list[tuple[str, ...]] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def ledger_flushed(self, rows: int, seconds: float) -> None:
        assert seconds >= 0
        self._hear(self.rows, rows)

    def ledger_failed(self, reason: str) -> None:
        self._hear(self.failures, reason)

    def backlog_measured(self, entries: int, oldest_seconds: float) -> None:
        self._hear(self.backlogs, (entries, oldest_seconds))

    def expiry_booked(self, provider: str, model: str | None, unit: str, amount: int) -> None:
        self._hear(self.expiries, (provider, model, unit, amount))

    def limit_event(self, kind: str, unit: str, scope: str, limit_id: str, root: str, detail: str) -> None:
        self._hear(self.limit_events, (kind, unit, scope, limit_id, root, detail))

    def _hear(self, heard: list[Any], fact: object) -> None:
        heard.append(fact)
        self.tasks.append(asyncio.get_running_loop().create_task(self._notify()))

    async def _notify(self) -> None:
        async with self.news:
            self.news.notify_all()

    async def until(self, reached: Any) -> None:
        """Wait until `reached()`; a minute is for broken code, not for slow machines."""
        async with self.news:
            await asyncio.wait_for(self.news.wait_for(reached), 60)


class ForgetfulOutbox(ListOutbox):
    """An outbox whose server goes away just when an acknowledgement comes."""

    async def acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        self.down = True
        raise StoreUnavailableError("gone before the acknowledgement")


def revive(outbox: ForgetfulOutbox) -> ListOutbox:
    """Give back the same stream on a server that works, some time later."""
    return ListOutbox(waiting=outbox.waiting, pending=outbox.pending, now_ms=outbox.now_ms, numbers=outbox.numbers)


async def test_entries_go_from_the_outbox_into_the_ledger_in_order(ledger: Ledger, rows: Any) -> None:
    outbox = ListOutbox()
    assert isinstance(outbox, Outbox)
    outbox.add(1250)
    flusher = Flusher(outbox, ledger)
    assert [await flusher.flush_once() for _ in range(4)] == [500, 500, 250, 0]
    assert await outbox.backlog() == 0
    assert [number for batch in outbox.reads for number in batch] == list(range(1, 1251))
    total = await ledger.total(CostFilter(scope="user:alice", shard=0, max_shard_seq=1250))
    assert (total.cost_nanos, total.requests, total.rows) == (1_250_000, 1250, 1250)
    (row,) = await rows("select principal_id, provider, model from cost_tracking where shard_seq = 1")
    assert row == {"principal_id": "user:alice", "provider": "openai", "model": "gpt-4o"}
    assert (flusher.report.flushed, flusher.report.new_rows, flusher.report.batches) == (1250, 1250, 3)


async def test_dying_between_commit_and_acknowledgement_counts_nothing_twice(ledger: Ledger) -> None:
    outbox = ForgetfulOutbox()
    outbox.add(20)
    with pytest.raises(StoreUnavailableError):
        await Flusher(outbox, ledger, consumer="one").flush_once()
    assert (await ledger.total(EVERYTHING)).rows == 20
    again = revive(outbox)
    again.add(5)
    successor = Flusher(again, ledger, consumer="one")
    assert [await successor.flush_once() for _ in range(3)] == [20, 5, 0]
    assert (await ledger.total(EVERYTHING)).cost_nanos == 25_000
    assert await again.backlog() == 0
    assert (successor.report.flushed, successor.report.new_rows) == (25, 5)


async def test_the_same_process_acknowledges_what_it_had_committed_before(ledger: Ledger) -> None:
    outbox = ListOutbox()
    outbox.add(3)
    flusher = Flusher(outbox, ledger)
    acknowledge, outbox.acknowledge = outbox.acknowledge, ForgetfulOutbox().acknowledge  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError):
        await flusher.flush_once()
    outbox.acknowledge = acknowledge  # type: ignore[method-assign]
    outbox.add(3)
    assert [await flusher.flush_once() for _ in range(3)] == [3, 3, 0]
    assert (await ledger.total(EVERYTHING)).rows == 6
    assert await outbox.backlog() == 0


async def test_what_a_dead_flusher_had_taken_is_taken_over_once_it_is_idle(ledger: Ledger) -> None:
    outbox = ListOutbox()
    outbox.add(7)
    await outbox.read("the dead", 7)
    outbox.add(2)
    heir = Flusher(outbox, ledger, consumer="the heir", reclaim_idle_s=60)
    outbox.now_ms = 59_999
    assert await heir.flush_once() == 2
    assert await outbox.backlog() == 7
    outbox.now_ms = 60_000
    assert (await Flusher(outbox, ledger, consumer="the next").flush_once()) == 7
    assert (await ledger.total(EVERYTHING)).rows == 9


async def test_two_flushers_share_an_outbox(ledger_url: str, ledger: Ledger) -> None:
    outbox = ListOutbox()
    outbox.add(900)
    await outbox.read("someone slow", 100)  # still alive: both will write these
    slow = [one for _, _, one in outbox.pending.values()]
    outbox.now_ms = 60_000
    other = open_ledger(ledger_url)
    pair = [Flusher(outbox, one, consumer=name, batch=50) for name, one in (("a", ledger), ("b", other))]
    reports = await asyncio.gather(*(one.drain(30) for one in pair), Flusher(ListOutbox(slow), other).drain(30))
    await other.aclose()
    total = await ledger.total(EVERYTHING)
    assert (total.rows, total.cost_nanos) == (900, 900_000)
    assert sum(report.new_rows for report in reports) == 900
    assert await outbox.backlog() == 0


async def test_a_malformed_entry_is_booked_and_a_poisoned_one_does_not_block_the_stream(ledger: Ledger, rows: Any) -> None:
    outbox = ListOutbox()
    outbox.add(1, entry_json="{broken")
    outbox.add(1, booked=(("usd", 2**70),))
    outbox.add(1, entry_json=CallerEntry(principal_id="nul\0nul").to_json())
    outbox.add(3)
    flusher = Flusher(outbox, ledger)
    report = await flusher.drain(30)
    assert (report.flushed, report.new_rows, report.rejected, report.backlog) == (6, 5, 1, 0)
    found = await rows("select shard_seq, principal_id, cost_nanos, metadata from cost_tracking order by shard_seq")
    assert [row["shard_seq"] for row in found] == [1, 3, 4, 5, 6]
    assert json.loads(found[0]["metadata"]) == {"malformed": True}
    assert (found[0]["cost_nanos"], found[1]["principal_id"]) == (1000, "nul\ufffdnul")
    (rejected,) = await rows("select content from ledger_rejected")
    assert json.loads(rejected["content"])["cost_nanos"] == 2**70


class SurgingOutbox(ListOutbox):
    """An outbox that gives more than was asked for, as one of many shards does."""

    async def read(self, consumer: str, count: int) -> list[OutboxEntry]:
        return await super().read(consumer, 16 * count)


async def test_what_many_shards_give_at_once_reaches_the_database_batch_by_batch(ledger: Ledger) -> None:
    outbox, heard = SurgingOutbox(), Heard()
    outbox.add(90)
    flusher = Flusher(outbox, ledger, batch=10, events=heard)
    assert await flusher.flush_once() == 90
    assert heard.rows == [10] * 9
    assert await outbox.backlog() == 0
    await asyncio.gather(*heard.tasks)


async def test_run_moves_what_comes_while_it_runs_and_ends_when_told(ledger: Ledger) -> None:
    outbox, heard = ListOutbox(), Heard()
    flusher = Flusher(outbox, ledger, interval_s=0.01, batch=10, events=heard)
    running = asyncio.create_task(flusher.run())
    outbox.add(25)
    await heard.until(lambda: sum(heard.rows) == 25)
    outbox.add(5)
    await heard.until(lambda: sum(heard.rows) == 30)
    await heard.until(lambda: heard.backlogs and heard.backlogs[-1] == (0, 0.0))
    flusher.stop()
    await running
    assert heard.failures == []
    assert (await ledger.total(EVERYTHING)).rows == 30


async def test_draining_ends_the_run_and_leaves_nothing(ledger: Ledger) -> None:
    outbox = ListOutbox()
    flusher = Flusher(outbox, ledger, interval_s=3600, batch=10)
    running = asyncio.create_task(flusher.run())
    await asyncio.sleep(0)
    outbox.add(35)
    report = await flusher.drain(30)
    await running
    assert (report.flushed, report.backlog, report.last_error) == (35, 0, None)


async def test_expired_holds_are_told_when_they_are_booked_and_only_then(ledger: Ledger) -> None:
    outbox, heard = ListOutbox(), Heard()
    outbox.add(2)
    outbox.add(1, kind="expire", booked=(("usd", 70), ("requests", 1), ("tokens", 0)), estimated=True)
    entries = list(outbox.waiting)
    await Flusher(outbox, ledger, events=heard).flush_once()
    await Flusher(ListOutbox(entries), ledger, events=heard).flush_once()
    assert heard.expiries == [("openai", "gpt-4o", "usd", 70), ("openai", "gpt-4o", "requests", 1)]
    assert heard.rows == [3, 0]
    await asyncio.gather(*heard.tasks)


async def test_a_store_that_is_away_is_waited_for(ledger: Ledger) -> None:
    outbox, heard = ListOutbox(down=True), Heard()
    outbox.add(4)
    flusher = Flusher(outbox, ledger, interval_s=0.01, max_backoff_s=0.02, events=heard)
    running = asyncio.create_task(flusher.run())
    await heard.until(lambda: len(heard.failures) >= 3)
    assert flusher.report.failures >= 3
    assert flusher.report.last_error == "StoreUnavailableError: the outbox is down"
    assert flusher.report.backlog is None
    outbox.down = False
    await heard.until(lambda: sum(heard.rows) == 4)
    assert (flusher.report.failures, flusher.report.last_error) == (0, None)
    flusher.stop()
    await running


@pytest.fixture
async def postgres_ledger(postgres_url: str) -> Any:
    opened = open_ledger(postgres_url, deadline_s=0.5)
    await opened.migrate()
    yield opened
    await opened.aclose()


@pytest.mark.parametrize("fault", ["stop", "kill", "pause"])
async def test_a_database_that_goes_away_mid_traffic_loses_and_doubles_nothing(
    postgres_server: PostgresServer, postgres_ledger: Ledger, fault: str
) -> None:
    outbox, heard = ListOutbox(), Heard()
    flusher = Flusher(
        outbox, postgres_ledger, interval_s=0.01, max_backoff_s=0.05, batch=20, events=heard, clock=lambda: NOON_MS / 1000 + 60
    )
    running = asyncio.create_task(flusher.run())
    outbox.add(200)
    await heard.until(lambda: len(heard.rows) >= 2)  # in the middle of it
    await asyncio.to_thread(getattr(postgres_server, fault))
    outbox.add(200)
    failed = len(heard.failures)
    await heard.until(lambda: len(heard.failures) >= failed + 3)
    report = flusher.report
    assert report.last_error is not None
    assert "LedgerUnavailableError" in report.last_error
    assert 0 < report.lag_ms <= 60_000
    await heard.until(lambda: heard.backlogs and heard.backlogs[-1][0] == len(outbox.waiting) + len(outbox.pending) > 0)
    await asyncio.to_thread(postgres_server.recover)
    outbox.add(100)
    await heard.until(lambda: not outbox.waiting and not outbox.pending)
    flusher.stop()
    await running
    total = await postgres_ledger.total(EVERYTHING)
    assert (total.rows, total.cost_nanos) == (500, 500_000)
    assert [number for batch in outbox.reads for number in batch] == list(range(1, 501))


async def test_draining_without_a_database_ends_at_its_deadline_and_keeps_the_entries(
    postgres_server: PostgresServer, postgres_ledger: Ledger
) -> None:
    outbox = ListOutbox()
    outbox.add(30)
    await asyncio.to_thread(postgres_server.stop)
    report = await Flusher(outbox, postgres_ledger, consumer="first", interval_s=0.01).drain(0.3)
    assert (report.flushed, report.backlog) == (0, 30)
    assert report.last_error
    await asyncio.to_thread(postgres_server.recover)
    report = await Flusher(outbox, postgres_ledger, consumer="first").drain(30)
    assert (report.flushed, report.backlog, report.last_error) == (30, 0, None)
    assert (await postgres_ledger.total(EVERYTHING)).rows == 30


async def test_an_append_that_is_given_up_leaves_the_ledger_usable(
    postgres_server: PostgresServer, postgres_ledger: Ledger
) -> None:
    outbox = ListOutbox()
    outbox.add(10)
    flusher = Flusher(outbox, postgres_ledger)
    await postgres_ledger.total(EVERYTHING)
    await asyncio.to_thread(postgres_server.pause)
    attempt = asyncio.create_task(flusher.flush_once())
    while not outbox.pending:
        await asyncio.sleep(0)
    attempt.cancel()
    with pytest.raises((asyncio.CancelledError, LedgerUnavailableError)):
        await attempt
    await asyncio.to_thread(postgres_server.resume)
    assert await flusher.flush_once() == 10
    assert (await postgres_ledger.total(EVERYTHING)).rows == 10


def fired(number: int) -> dict[str, Any]:
    said = {"counter": f"acme|user:{number}/usd/day@UTC|2026-11-22|5", "percent": 80, "spent": "8", "amount": "10"}
    return {"kind": "threshold", "reservation_id": f"t-{number}", "shard_seq": 0, "booked": (), "entry_json": json.dumps(said)}


@dataclass
class NoKeeper:
    """Somebody who keeps a fence, and should hear nothing here."""

    heard: list[object] = field(default_factory=list)

    async def rebook(self, records: Sequence[OutboxEntry]) -> Sequence[OutboxEntry]:
        self.heard.append(records)
        return []

    def suspect(self, shard: int, epoch: str) -> None:
        self.heard.append((shard, epoch))


@pytest.mark.parametrize("fenced", [False, True])
async def test_events_of_limits_go_past_the_entries_and_their_fence_into_a_table_of_their_own(
    ledger: Ledger, fenced: bool
) -> None:
    outbox, heard, keeper = ListOutbox(), Heard(), NoKeeper()
    await ledger.begin_epoch(0, "e1", EpochQuery(intervals=(), resolved_since_ms=0, most_resolved=0))
    outbox.add(2)
    outbox.add(1, **fired(1))
    outbox.add(1)
    outbox.add(1, **fired(2) | {"epoch": "an older life"})
    outbox.add(1, kind="rollover", reservation_id="r-1", shard_seq=0, booked=(), entry_json="{broken")
    flusher = Flusher(outbox, ledger, events=heard, keeper=keeper if fenced else None)
    assert await flusher.flush_once() == 6
    assert await outbox.backlog() == 0
    assert (await ledger.total(EVERYTHING)).rows == 3
    assert await ledger.last_sequence(0) == 4
    found = [(each.event.event_id, each.event.kind, each.event.scope) for each in await ledger.events(EventFilter())]
    assert found == [("r-1", "rollover", ""), ("t-2", "threshold", "user:2"), ("t-1", "threshold", "user:1")]
    assert [told[:5] for told in heard.limit_events] == [
        ("threshold", "usd", "user:1", "user:1/usd/day@UTC", "acme"),
        ("threshold", "usd", "user:2", "user:2/usd/day@UTC", "acme"),
        ("rollover", "", "", "", "acme"),
    ]
    assert json.loads(heard.limit_events[0][5])["percent"] == 80
    assert (heard.rows, keeper.heard) == ([3], [])
    assert (flusher.report.flushed, flusher.report.new_rows, flusher.report.new_events) == (6, 3, 3)
    await asyncio.gather(*heard.tasks)


async def test_an_event_that_comes_again_after_a_crash_is_told_once(ledger: Ledger) -> None:
    outbox, heard = ForgetfulOutbox(), Heard()
    outbox.add(1, **fired(1))
    with pytest.raises(StoreUnavailableError):
        await Flusher(outbox, ledger, consumer="one", events=heard).flush_once()
    again = revive(outbox)
    again.add(1, **fired(2))
    report = await Flusher(again, ledger, consumer="one", events=heard).drain(30)
    assert (report.flushed, report.new_events, report.backlog) == (2, 1, 0)
    assert [told[2] for told in heard.limit_events] == ["user:1", "user:2"]
    assert len(await ledger.events(EventFilter())) == 2
    await asyncio.gather(*heard.tasks)


async def test_a_poisoned_event_does_not_block_the_stream(ledger: Ledger) -> None:
    outbox = ListOutbox()
    said = {"counter": "\ud800|\0" * 3000, "amount": str(10**400), "limit_id": "字" * 4000, "scope": "字" * 4000}
    outbox.add(1, **fired(1) | {"entry_json": json.dumps(said), "booked_ms": 2**70, "reservation_id": "字" * 4000})
    outbox.add(1)
    report = await Flusher(outbox, ledger).drain(30)
    assert (report.flushed, report.new_rows, report.new_events, report.backlog) == (2, 1, 1, 0)
