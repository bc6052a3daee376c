"""What every ledger keeps of what happened to limits: once, newest first, claimed by one, and summed exactly."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from sark_mw.errors import LedgerError, MoneyError
from sark_mw.ledger.base import CostFilter, Ledger
from sark_mw.ledger.events import CLAIMED_FOR_MS, Adjustment, EventFilter, EventKind, LimitEvent
from sark_mw.ledger.open import open_ledger
from sark_mw.testing import RecordingLedger
from tests.ledger.books import DAY_MS, NOON_MS, entry, limit_event
from tests.ledger.conftest import run_sql

INT64_MAX = 2**63 - 1
ALL = EventFilter()
KINDS = ("threshold",)

CLAIM_IN_A_PROCESS = """
import asyncio, json, sys
from sark_mw.ledger.open import open_ledger
from tests.ledger.conftest import run_sql
from tests.ledger.books import NOON_MS

async def main():
    ledger, claimed = open_ledger(sys.argv[1]), []
    while events := await ledger.claim_events(["threshold"], NOON_MS + 1000, 60_000, 7):
        claimed += [each.seq for each in events]
        await ledger.delivered([each.seq for each in events][::2])
    print(json.dumps(claimed))
    await ledger.aclose()

asyncio.run(main())
"""


def names(events: Any) -> list[str]:
    return [each.event.event_id for each in events]


async def test_an_event_comes_back_with_every_field(ledger: Ledger, rows: Any) -> None:
    full = LimitEvent(
        event_id="top-up-1",
        kind=EventKind.TOP_UP,
        root="acme",
        limit_id="team:ml/usd/month@Europe/Berlin",
        scope="team:ml",
        counter="acme|team:ml/usd/month@Europe/Berlin|2026-11|5",
        unit="usd",
        amount=-INT64_MAX - 1,
        until_ms=NOON_MS + DAY_MS,
        at_ms=NOON_MS,
        actor="admin:eve",
        reason="the quarter’s training",
        detail_json='{"ticket":"OPS-1","größe":1}',
    )
    assert await ledger.record_events([full]) == 1
    (found,) = await ledger.events(ALL)
    assert (found.event, found.delivered, found.attempts, found.done) == (full, False, 0, ())
    (row,) = await rows("select at, detail from limit_events")
    assert str(row["at"]).replace("T", " ").startswith("2026-11-22 12:00:00")
    assert json.loads(row["detail"])["ticket"] == "OPS-1"


async def test_what_an_event_does_not_say_stays_unsaid(ledger: Ledger) -> None:
    bare = LimitEvent(event_id="1", kind="set", root="acme")
    await ledger.record_events([bare])
    assert [each.event for each in await ledger.events(ALL)] == [bare]


async def test_an_event_is_recorded_once_whoever_brings_it_and_however_often(ledger_url: str, ledger: Ledger) -> None:
    first, other, third = limit_event(1), limit_event(2), limit_event(3)
    assert await ledger.record_events([first, other, first]) == 2
    assert await ledger.record_new([replace(other, amount=5), third]) == [third]
    assert await ledger.record_events([]) == 0
    assert [each.event for each in await ledger.events(ALL)] == [third, other, first]
    twin = open_ledger(ledger_url)
    batch = [limit_event(number) for number in range(10, 110)]
    new = await asyncio.gather(*(one.record_events(events) for one in (ledger, twin) for events in (batch, batch[::-1])))
    await twin.aclose()
    assert sum(new) == 100


async def test_two_long_ids_that_only_differ_at_their_ends_are_two_events(ledger: Ledger) -> None:
    long = "".join(chr(0x4E00 + number) for number in range(1500))
    assert await ledger.record_events([limit_event(1, event_id=long + end, counter=long, scope=long) for end in "ab"]) == 2
    assert await ledger.record_events([limit_event(1, event_id=long + "a")]) == 0
    assert len(await ledger.events(EventFilter(scope=long))) == 2
    assert {each.event.counter for each in await ledger.events(ALL)} == {long}


async def test_characters_that_no_database_takes_are_replaced_in_events(ledger: Ledger) -> None:
    bad = limit_event(1, reason="a\0b", actor="\ud800", scope="s:\0", detail_json='{"k\\u0000":NaN}')
    assert await ledger.record_events([bad]) == 1
    (found,) = await ledger.events(EventFilter(scope="s:\0"))
    assert (found.event.reason, found.event.actor, json.loads(found.event.detail_json)) == (
        "a\ufffdb",
        "\ufffd",
        {"k\ufffd": "nan"},
    )


async def test_an_amount_beyond_int64_is_refused_before_anything_is_written(ledger: Ledger) -> None:
    with pytest.raises(MoneyError):
        await ledger.record_events([limit_event(1), limit_event(2, amount=2**63)])
    assert await ledger.events(ALL) == []


FILTERS = [
    (ALL, [4, 3, 2, 1]),
    (EventFilter(root="acme"), [4, 2, 1]),
    (EventFilter(limit_id="team:ml/usd/day@UTC"), [2]),
    (EventFilter(scope="team:ml", root="acme"), [2]),
    (EventFilter(kinds=("rollover", "set")), [4, 3]),
    (EventFilter(since_ms=NOON_MS + 3), [4, 3]),
    (EventFilter(since_ms=-(2**70), before_seq=2**70), [4, 3, 2, 1]),
    (EventFilter(actor="admin:eve", root="acme"), [4]),
    (EventFilter(actor="nobody"), []),
    (EventFilter(kinds=("no such",)), []),
]


@pytest.mark.parametrize(("query", "numbers"), FILTERS, ids=range(len(FILTERS)))
async def test_events_are_listed_by_what_is_asked_the_newest_first(
    ledger: Ledger, query: EventFilter, numbers: list[int]
) -> None:
    await ledger.record_events(
        [
            limit_event(1),
            limit_event(2, scope="team:ml", limit_id="team:ml/usd/day@UTC"),
            limit_event(3, root="other", kind="rollover"),
            limit_event(4, kind="set", actor="admin:eve"),
        ]
    )
    assert names(await ledger.events(query)) == [f"event-{number:06d}" for number in numbers]


async def test_older_events_are_read_page_by_page(ledger: Ledger) -> None:
    await ledger.record_events([limit_event(number) for number in range(1, 8)])
    page, seen = await ledger.events(ALL, most=3), []
    while page:
        seen += names(page)
        page = await ledger.events(EventFilter(before_seq=page[-1].seq), most=3)
    assert seen == [f"event-{number:06d}" for number in range(7, 0, -1)]


async def test_events_are_no_entries_of_the_ledger(ledger: Ledger) -> None:
    await ledger.append([entry(1), entry(2)])
    await ledger.record_events([limit_event(1)])
    assert (await ledger.total(CostFilter())).rows == 2
    assert [await ledger.last_sequence(0), await ledger.complete_up_to(0, "e1", 2), await ledger.has("event-000001")] == [
        2,
        True,
        False,
    ]
    assert [one.reservation_id for one in await ledger.resolved(0, 0)] == ["res-000001", "res-000002"]


DAY, NEXT_DAY, BASE = "acme|user:a/usd/day@UTC|2026-11-22|1", "acme|user:a/usd/day@UTC|2026-11-23|1", "acme|user:a/usd/day@UTC|1"


def adjusted(number: int, kind: str, counter: str, amount: int | None, **changes: object) -> LimitEvent:
    return limit_event(number, kind=kind, counter=counter, amount=amount, **changes)


async def test_top_ups_are_summed_exactly_and_the_newest_override_counts(ledger: Ledger) -> None:
    assert await ledger.adjustments() == []
    await ledger.record_events(
        [
            adjusted(1, "top_up", DAY, INT64_MAX),
            adjusted(2, "top_up", DAY, INT64_MAX),
            adjusted(3, "top_up", DAY, -3),
            adjusted(4, "top_up", NEXT_DAY, -7),
            adjusted(5, "override", BASE, 900, until_ms=NOON_MS + 2),
            adjusted(6, "override", BASE, 800, until_ms=NOON_MS + 1, at_ms=NOON_MS - DAY_MS),
            adjusted(7, "threshold", DAY, 5),
            adjusted(8, "top_up", "other|x/usd/day@UTC|2026-11-22|1", 4, root="other"),
        ]
    )
    await ledger.record_events([adjusted(1, "top_up", DAY, INT64_MAX)])  # repeated: counts once
    day = Adjustment(counter=DAY, kind="top_up", amount=2 * INT64_MAX - 3, count=3)
    next_day = Adjustment(counter=NEXT_DAY, kind="top_up", amount=-7, count=1)
    override = Adjustment(counter=BASE, kind="override", amount=800, count=2, until_ms=NOON_MS + 1)
    assert await ledger.adjustments("acme") == [override, day, next_day]
    assert len(await ledger.adjustments()) == 4
    assert await ledger.adjustments(counters=[DAY, "nothing"]) == [day]
    assert await ledger.adjustments("other", [DAY]) == []
    # An override that was ended is none, and counts all the same.
    await ledger.record_events([adjusted(9, "override", BASE, None, until_ms=NOON_MS)])
    assert await ledger.adjustments(counters=[BASE]) == [Adjustment(counter=BASE, kind="override", amount=0, count=3)]


async def test_an_event_is_claimed_once_until_its_next_attempt_is_due(ledger: Ledger) -> None:
    await ledger.record_events([limit_event(1), limit_event(2, kind="rollover"), limit_event(3), limit_event(4)])
    now = NOON_MS + 10
    claimed = await ledger.claim_events(KINDS, now, 1000, 2)
    assert names(claimed) == ["event-000001", "event-000003"] and [each.attempts for each in claimed] == [1, 1]
    assert names(await ledger.claim_events(KINDS, now, 1000, 5)) == ["event-000004"]
    assert await ledger.claim_events(KINDS, now + 999, 1000, 5) == []
    await ledger.delivered([claimed[0].seq])
    await ledger.postpone(claimed[1].seq, now + 5000, ("one", "two"))
    assert names(await ledger.claim_events(KINDS, now + 1000, 10_000, 5)) == ["event-000004"]
    (late,) = await ledger.claim_events(KINDS, now + 5000, 1000, 5)
    assert (late.event.event_id, late.attempts, late.done) == ("event-000003", 2, ("one", "two"))
    await ledger.postpone(late.seq, now + 6000, ("one",), tried=False)
    (late,) = await ledger.claim_events(KINDS, now + 6000, 100_000, 1)
    assert (late.event.event_id, late.attempts, late.done) == ("event-000003", 2, ("one",))
    by_id = {each.event.event_id: each.delivered for each in await ledger.events(ALL)}
    assert by_id == {"event-000001": True, "event-000002": False, "event-000003": False, "event-000004": False}


async def test_events_of_long_ago_are_given_up(ledger: Ledger) -> None:
    await ledger.record_events([limit_event(1, at_ms=NOON_MS), limit_event(2, at_ms=NOON_MS + 1)])
    assert names(await ledger.claim_events(KINDS, NOON_MS + 1 + CLAIMED_FOR_MS, 1000, 5)) == ["event-000002"]


async def test_processes_that_claim_at_once_share_the_events(ledger_url: str, ledger: Ledger) -> None:
    await ledger.record_events([limit_event(number) for number in range(1, 101)])
    command = [sys.executable, "-W", "error", "-c", CLAIM_IN_A_PROCESS, ledger_url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    claimed = [seq for process in processes for seq in json.loads(process.communicate()[0])]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(claimed) == 100 == len(set(claimed))


async def test_tasks_that_claim_at_once_share_the_events(ledger_url: str, ledger: Ledger) -> None:
    await ledger.record_events([limit_event(number) for number in range(1, 61)])
    other = open_ledger(ledger_url)
    claimed = await asyncio.gather(*(one.claim_events(KINDS, NOON_MS + 100, 1000, 10) for one in (ledger, other) * 4))
    await other.aclose()
    found = [each.seq for events in claimed for each in events]
    # Who comes second may find the first ones locked and be given fewer than it asked for: they are there the next time.
    rest = await ledger.claim_events(KINDS, NOON_MS + 100, 1000, 100)
    assert sorted(found + [each.seq for each in rest]) == sorted({each.seq for each in await ledger.events(ALL)})


async def test_a_database_without_the_table_of_events_says_what_to_run(ledger_url: str) -> None:
    bare = open_ledger(ledger_url)
    with pytest.raises(LedgerError, match="sark-mw migrate"):
        await bare.record_events([limit_event(1)])
    await bare.aclose()


async def test_the_recording_ledger_shows_events_in_the_order_in_which_they_first_came() -> None:
    ledger = RecordingLedger()
    await ledger.migrate()
    first, second = limit_event(1), limit_event(2)
    assert await ledger.record_events([second, first]) == 2
    assert await ledger.record_new([first, second]) == []
    assert ledger.limit_events == [second, first]
    await ledger.aclose()


async def test_policy_events_are_read_on_from_any_of_them(ledger: Ledger, rows: Any) -> None:
    kinds = [EventKind.RULE, EventKind.THRESHOLD, EventKind.PLUGIN, EventKind.SET, EventKind.RULE]
    for number, kind in enumerate(kinds):
        await ledger.record_new([limit_event(number, event_id=f"e{number}", kind=kind)])
    found = await ledger.policy_events(0)
    assert names(found) == ["e0", "e2", "e4"]
    assert names(await ledger.policy_events(found[1].seq)) == ["e2", "e4"]
    assert names(await ledger.policy_events(found[1].seq, 1)) == ["e2"]
    assert await ledger.policy_events(found[2].seq + 1) == []


async def test_policy_events_are_found_among_millions_by_their_index(ledger_url: str, ledger: Ledger) -> None:
    where = "kind in ('plugin', 'rule') and seq >= 0 order by seq limit 1000"
    explain = "explain query plan" if ledger_url.startswith("sqlite") else "explain"
    if explain == "explain":
        await run_sql(
            ledger_url,
            "insert into limit_events (event_id, kind, root, limit_id, scope, counter, unit, at_ms, actor, reason, detail) "
            "select n::text, 'threshold', '', '', '', '', '', 0, '', '', '{}' from generate_series(1, 20000) n",
        )
        await run_sql(ledger_url, "analyze limit_events")
    plan = await run_sql(ledger_url, f"{explain} select seq from limit_events where {where}")
    assert "limit_events_policy_idx" in str(plan)
