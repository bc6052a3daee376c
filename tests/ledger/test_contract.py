"""What every ledger does, whatever database it is in."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest

from sark_mw.errors import ConfigurationError, LedgerError
from sark_mw.ledger.base import CostFilter, CountsRejected, Ledger
from sark_mw.ledger.open import open_ledger
from tests.ledger.books import DAY_MS, NOON_MS, entry

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)
EVERYTHING = CostFilter()


async def test_a_row_keeps_every_field_of_its_entry(ledger: Ledger, rows: Any) -> None:
    full = entry(
        1,
        part=3,
        kind="partial",
        cost_nanos=1_234_567_891,
        tokens=70,
        booked_input_tokens=50,
        booked_output_tokens=20,
        estimated=True,
        late=True,
        held_nanos=9,
        expected_nanos=8,
        actual_nanos=0,
        input_tokens=50,
        cache_read_tokens=7,
        cache_write_tokens=5,
        output_tokens=20,
        reasoning_tokens=4,
        status=200,
        stream=True,
        request_id="req-1",
        metadata_json='{"tier":"flex"}',
    )
    assert await ledger.append([full]) == 1
    (row,) = await rows("select * from cost_tracking")
    for name in ("reservation_id", "part", "kind", "root", "shard", "shard_seq", "epoch", "cost_nanos", "requests", "tokens"):
        assert row[name] == getattr(full, name), name
    for name in (
        "principal_id",
        "resource_id",
        "capability_id",
        "provider",
        "model",
        "held_nanos",
        "expected_nanos",
        "request_id",
    ):
        assert row[name] == getattr(full, name), name
    for name in ("actual_nanos", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"):
        assert row[name] == getattr(full, name), name
    assert (row["booked_input_tokens"], row["booked_output_tokens"], row["status"]) == (50, 20, 200)
    assert (bool(row["estimated"]), bool(row["late"]), bool(row["stream"])) == (True, True, True)
    scopes = row["scopes"] if isinstance(row["scopes"], list) else json.loads(row["scopes"])
    assert scopes == ["org:acme", "user:alice"]
    assert json.loads(row["metadata"]) == {"tier": "flex"}
    assert Decimal(row["cost_usd"]) == Decimal("1.234567891")
    assert str(row["reserved_at"]).replace("T", " ").startswith("2026-11-22 12:00:00.001")
    assert str(row["booked_at"]).replace("T", " ").startswith("2026-11-22 12:00:00.501")


async def test_an_entry_that_comes_twice_is_counted_once(ledger: Ledger) -> None:
    assert await ledger.append([entry(1), entry(2), entry(1)]) == 2
    assert await ledger.append([entry(2), entry(3)]) == 1
    total = await ledger.total(EVERYTHING)
    assert (total.rows, total.cost_nanos, total.requests, total.tokens) == (3, 3000, 3, 90)


async def test_a_row_once_written_is_never_changed(ledger: Ledger, rows: Any) -> None:
    await ledger.append([entry(1, cost_nanos=5)])
    assert await ledger.append([entry(1, cost_nanos=7, model="other")]) == 0
    assert await rows("select cost_nanos, model from cost_tracking") == [{"cost_nanos": 5, "model": "gpt-4o"}]


async def test_parts_of_one_reservation_are_rows_of_their_own(ledger: Ledger) -> None:
    assert await ledger.append([entry(1, part=part, shard_seq=part) for part in (1, 2, 3)]) == 3
    assert await ledger.recent(0, 0) == [("res-000001", 3)]


async def test_appending_nothing_is_nothing(ledger: Ledger) -> None:
    assert await ledger.append([]) == 0
    total = await ledger.total(EVERYTHING, group_by="model")
    assert (total.rows, total.cost_nanos, total.groups, total.cost) == (0, 0, (), Decimal(0))


async def test_a_correction_takes_back_what_was_estimated(ledger: Ledger) -> None:
    await ledger.append(
        [entry(1, kind="expire", cost_nanos=900, estimated=True), entry(1, part=2, cost_nanos=-400, requests=0, late=True)]
    )
    total = await ledger.total(CostFilter(principal_id="user:alice"))
    assert (total.cost_nanos, total.requests, total.cost) == (500, 1, Decimal("0.0000005"))


async def test_sums_beyond_int64_are_exact(ledger: Ledger) -> None:
    await ledger.append([entry(n, cost_nanos=INT64_MAX, tokens=INT64_MIN) for n in (1, 2, 3)])
    total = await ledger.total(EVERYTHING)
    assert (total.cost_nanos, total.tokens) == (3 * INT64_MAX, 3 * INT64_MIN)
    assert total.cost == Decimal(3 * INT64_MAX).scaleb(-9)


async def test_the_extremes_of_int64_and_their_dollars_are_kept(ledger: Ledger, rows: Any) -> None:
    await ledger.append([entry(1, cost_nanos=INT64_MAX), entry(2, cost_nanos=INT64_MIN), entry(3, cost_nanos=-1)])
    found = await rows("select cost_nanos, cost_usd from cost_tracking order by reservation_id")
    assert [row["cost_nanos"] for row in found] == [INT64_MAX, INT64_MIN, -1]
    dollars = [Decimal(row["cost_usd"]) for row in found]
    assert dollars == [Decimal("9223372036.854775807"), Decimal("-9223372036.854775808"), Decimal("-0.000000001")]


FILTERS = [
    (CostFilter(principal_id="user:bob"), {2, 5}),
    (CostFilter(resource_id="mcp"), {3}),
    (CostFilter(capability_id="embed"), {4}),
    (CostFilter(scope="team:ml"), {2, 6}),
    (CostFilter(scope="org:acme"), {1, 2, 3, 4, 5}),
    (CostFilter(scope="org:acm"), set()),
    (CostFilter(root="other"), {6}),
    (CostFilter(provider="anthropic"), {5}),
    (CostFilter(model="gpt-4o-mini"), {3}),
    (CostFilter(from_ms=NOON_MS + 3), {3, 4, 5, 6}),
    (CostFilter(until_ms=NOON_MS + 3), {1, 2}),
    (CostFilter(from_ms=NOON_MS + 2, until_ms=NOON_MS + 4), {2, 3}),
    (CostFilter(from_ms=-5, until_ms=10**18), {1, 2, 3, 4, 5, 6}),
    (CostFilter(shard=1), {4, 5}),
    (CostFilter(shard=0, max_shard_seq=3), {1, 2, 3}),
    (CostFilter(scope="org:acme", shard=0, max_shard_seq=2), {1, 2}),
    (CostFilter(scope="org:acme", shard=0, max_shard_seq=2, from_ms=NOON_MS + 2, until_ms=NOON_MS + 3), {2}),
    (CostFilter(principal_id="user:bob", scope="team:ml", model="gpt-4o"), {2}),
    (CostFilter(principal_id="user:al\0ice"), set()),
]


@pytest.mark.parametrize(("wanted", "numbers"), FILTERS, ids=range(len(FILTERS)))
async def test_a_total_counts_exactly_the_rows_of_its_filter(ledger: Ledger, wanted: CostFilter, numbers: set[int]) -> None:
    # powers of ten show in the sum which rows were counted
    await ledger.append(
        [
            entry(1, cost_nanos=10),
            entry(2, cost_nanos=100, principal_id="user:bob", scopes=("org:acme", "team:ml")),
            entry(3, cost_nanos=1000, resource_id="mcp", model="gpt-4o-mini"),
            entry(4, cost_nanos=10_000, capability_id="embed", shard=1),
            entry(5, cost_nanos=100_000, provider="anthropic", model="claude", principal_id="user:bob", shard=1),
            entry(6, cost_nanos=1_000_000, root="other", scopes=("team:ml",)),
        ]
    )
    total = await ledger.total(wanted)
    assert (total.cost_nanos, total.rows) == (sum(10**number for number in numbers), len(numbers))


async def test_a_total_is_split_by_group_with_the_dearest_first(ledger: Ledger) -> None:
    await ledger.append([entry(1), entry(2, model="o3", cost_nanos=9000), entry(3), entry(4, model=None, cost_nanos=1)])
    total = await ledger.total(CostFilter(root="acme"), group_by="model")
    assert total.groups == (("o3", 9000), ("gpt-4o", 2000), ("", 1))
    assert (total.cost_nanos, total.rows, total.requests) == (11_001, 4, 4)


async def test_only_known_columns_group(ledger: Ledger) -> None:
    with pytest.raises(ConfigurationError, match="cannot be grouped"):
        await ledger.total(EVERYTHING, group_by="1; drop table cost_tracking")


async def test_the_last_sequence_is_that_of_the_shard(ledger: Ledger) -> None:
    await ledger.append([entry(1, shard_seq=41), entry(2, shard_seq=7), entry(3, shard=5, shard_seq=1_000_007)])
    assert [await ledger.last_sequence(shard) for shard in (0, 5, 6)] == [41, 1_000_007, 0]


async def test_recent_reservations_are_those_booked_since(ledger: Ledger) -> None:
    late = NOON_MS + DAY_MS
    await ledger.append(
        [entry(1), entry(1, part=2, booked_ms=late), entry(2), entry(3, booked_ms=late), entry(4, shard=1, booked_ms=late)]
    )
    assert await ledger.recent(0, late) == [("res-000001", 2), ("res-000003", 1)]


async def test_a_reservation_is_known_once_any_of_its_entries_is_there(ledger: Ledger) -> None:
    await ledger.append([entry(1, kind="partial")])
    assert [await ledger.has(name) for name in ("res-000001", "res-000002", "")] == [True, False, False]


async def test_a_shard_is_complete_when_no_entry_is_missing_below_the_counter_s_sequence(ledger: Ledger) -> None:
    assert await ledger.complete_up_to(0, "e1", 0)  # nothing was ever booked
    assert not await ledger.complete_up_to(0, "e1", 1)
    await ledger.append([entry(number) for number in (1, 2, 3, 5)])
    assert [await ledger.complete_up_to(0, "e1", seq) for seq in (1, 3, 4, 5, 6)] == [True, True, False, False, False]
    await ledger.append([entry(4)])
    assert await ledger.complete_up_to(0, "e1", 5)
    # another life of the shard's data begins a million above
    await ledger.append([entry(n, shard_seq=1_000_000 + n, epoch="e2") for n in (6, 7)])
    assert await ledger.complete_up_to(0, "e2", 1_000_007)
    assert not await ledger.complete_up_to(0, "e2", 1_000_008)
    assert not await ledger.complete_up_to(0, "e3", 2_000_000)


async def test_reservations_are_remembered_as_a_store_must_that_lost_its_data(ledger: Ledger) -> None:
    late = NOON_MS + DAY_MS
    guessed: dict[str, Any] = {"kind": "expire", "cost_nanos": 900, "estimated": True, "booked_ms": late}
    await ledger.append(
        [
            entry(1, kind="settle", booked_ms=late),
            entry(2, kind="release", cost_nanos=0, requests=0, tokens=0, booked_ms=late),
            entry(3, kind="partial", cost_nanos=5, booked_ms=NOON_MS),
            entry(3, part=2, **guessed),
            entry(4, **guessed),
            entry(4, part=2, kind="settle", cost_nanos=-400, requests=0, tokens=0, late=True, booked_ms=late),
            entry(5, kind="partial", tokens=0, booked_input_tokens=7, booked_ms=late),
            entry(6),  # booked before
            entry(7, shard=1, booked_ms=late),
        ]
    )
    found = {one.reservation_id[-1]: one for one in await ledger.resolved(0, late)}
    assert {name: one.resolution for name, one in found.items()} == {
        "1": "settled",
        "2": "released",
        "3": "expired",
        "4": "settled",
        "5": "released",
    }
    assert found["1"].known == (("usd", 1000), ("requests", 1), ("tokens", 30))
    assert (found["2"].known, found["2"].estimated) == ((), ())
    assert found["3"].known == (("usd", 5), ("requests", 1), ("tokens", 30))
    assert found["3"].estimated == (("usd", 900), ("requests", 1), ("tokens", 30))
    assert (found["4"].known[0], found["4"].estimated, found["4"].entries, found["4"].last_part) == (("usd", 500), (), 2, 2)
    assert found["5"].known == (("usd", 1000), ("requests", 1), ("input_tokens", 7))
    assert {one.reserved_ms for one in found.values()} == {NOON_MS + number for number in (1, 2, 3, 4, 5)}


async def test_every_scope_of_a_shard_is_summed_in_one_pass_as_its_total_is(ledger: Ledger) -> None:
    await ledger.append(
        [
            entry(1, cost_nanos=INT64_MAX),
            entry(2, cost_nanos=INT64_MAX, scopes=("org:acme", "org:acme")),
            entry(3, root="other", scopes=("org:acme", "team:ml"), booked_output_tokens=4),
            entry(4, shard=1),
            entry(5, scopes=()),
        ]
    )
    found = await ledger.scope_totals(0, 0)
    assert [(one.root, one.scope, one.cost_nanos, one.booked_output_tokens) for one in found] == [
        ("acme", "org:acme", 2 * INT64_MAX, 0),
        ("acme", "user:alice", INT64_MAX, 0),
        ("other", "org:acme", 1000, 4),
        ("other", "team:ml", 1000, 4),
    ]
    for one in found:
        total = await ledger.total(CostFilter(root=one.root, scope=one.scope, shard=0))
        assert (one.cost_nanos, one.requests, one.tokens) == (total.cost_nanos, total.requests, total.tokens)
    assert [one.scope for one in await ledger.scope_totals(0, NOON_MS + 3, NOON_MS + 4)] == ["org:acme", "team:ml"]
    assert await ledger.scope_totals(0, NOON_MS + 4) == []


async def test_the_daily_view_sums_by_utc_day_principal_and_model(ledger: Ledger, rows: Any) -> None:
    midnight = NOON_MS + DAY_MS // 2
    await ledger.append(
        [entry(1, reserved_ms=midnight - 1), entry(2, reserved_ms=midnight), entry(3, reserved_ms=midnight), entry(4)]
    )
    await ledger.append([entry(5, principal_id="user:bob", cost_nanos=-3)])
    found = await rows("select * from cost_daily order by day, principal_id")
    assert [(str(row["day"])[:10], row["principal_id"], row["cost_nanos"], row["entries"]) for row in found] == [
        ("2026-11-22", "user:alice", 2000, 2),
        ("2026-11-22", "user:bob", -3, 1),
        ("2026-11-23", "user:alice", 2000, 2),
    ]


async def test_characters_that_no_database_takes_are_replaced(ledger: Ledger, rows: Any) -> None:
    bad = entry(1, principal_id="a\0b", model="m\ud800", scopes=("s:\0",), metadata_json='{"k\\u0000":"v\\ud800","n":NaN}')
    assert await ledger.append([bad]) == 1
    (row,) = await rows("select principal_id, model, metadata from cost_tracking")
    assert (row["principal_id"], row["model"]) == ("a\ufffdb", "m\ufffd")
    assert json.loads(row["metadata"]) == {"k\ufffd": "v\ufffd", "n": "nan"}
    # asked for by its own name, it is found
    assert (await ledger.total(CostFilter(principal_id="a\0b", scope="s:\0"))).rows == 1


async def test_a_name_too_long_for_an_index_is_shortened_and_its_cost_is_booked(ledger: Ledger) -> None:
    name = "".join(chr(0x4E00 + number % 20_000) for number in range(10_000))
    assert await ledger.append([entry(1, principal_id=name, scopes=(name,), model=name, request_id=name)]) == 1
    assert (await ledger.total(CostFilter(principal_id=name, scope=name, model=name))).cost_nanos == 1000


@pytest.mark.parametrize(
    "poison",
    [
        {"cost_nanos": 2**63},
        {"reserved_ms": 10**17},
        {"booked_ms": -1},
        {"cost_nanos": "much"},
        {"tokens": None},
        {"shard_seq": -(2**70)},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_row_that_never_fits_is_put_aside_whole_and_the_others_go_on(
    ledger: Ledger, rows: Any, poison: dict[str, object]
) -> None:
    batch = [entry(number, **(poison if number == 3 else {})) for number in range(1, 9)]
    assert await ledger.append(batch) == 7
    assert await ledger.append(batch) == 0  # read again after a crash
    (rejected,) = await rows("select reservation_id, reason, content from ledger_rejected")
    assert rejected["reservation_id"] == "res-000003"
    assert rejected["reason"]
    content = json.loads(rejected["content"])
    (name, value) = next(iter(poison.items()))
    assert content[name] == value
    assert content["principal_id"] == "user:alice"
    assert (await ledger.total(EVERYTHING)).rows == 7
    assert isinstance(ledger, CountsRejected)
    assert ledger.rejected_rows == 1


async def test_two_that_append_the_same_entries_at_once_count_them_once(ledger_url: str, ledger: Ledger) -> None:
    other = open_ledger(ledger_url)
    forwards = [entry(number) for number in range(1, 301)]
    calls = [one.append(batch) for one in (ledger, other) for batch in (forwards, forwards[::-1], forwards[100:])]
    new = await asyncio.gather(*calls)
    await other.aclose()
    assert sum(new) == 300
    assert (await ledger.total(EVERYTHING)).cost_nanos == 300_000


async def test_a_second_migration_finds_nothing_to_do(ledger: Ledger) -> None:
    assert await ledger.migrate() == []
    installed, newest = await ledger.schema_version()
    assert installed == newest >= 4


async def test_processes_that_migrate_at_once_migrate_once(ledger_url: str) -> None:
    ledgers = [open_ledger(ledger_url) for _ in range(4)]
    assert (await ledgers[0].schema_version())[0] == 0
    ran = await asyncio.gather(*(one.migrate() for one in ledgers))
    assert len([names for names in ran if names]) == 1
    assert await ledgers[0].append([entry(1)]) == 1
    assert (await ledgers[3].total(EVERYTHING)).rows == 1
    await asyncio.gather(*(one.aclose() for one in ledgers))


async def test_a_ledger_without_its_schema_says_what_to_run(ledger_url: str) -> None:
    bare = open_ledger(ledger_url)
    with pytest.raises(LedgerError, match="sark-mw migrate"):
        await bare.append([entry(1)])
    await bare.aclose()


async def test_a_closed_ledger_says_so_and_may_be_closed_twice(ledger_url: str) -> None:
    closed = open_ledger(ledger_url)
    await closed.migrate()
    await closed.aclose()
    await closed.aclose()
    with pytest.raises(LedgerError, match="closed"):
        await closed.total(EVERYTHING)
