"""Laying out what a request touches, and the words that may travel to a store."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sark_mw.limit import ROLLING_BUCKETS, Limit
from sark_mw.reservation import UNLIMITED, Balance, Line, Need, Reserve, Settle, lines_for, new_reservation_id

NOW = 1_792_000_050_000


def limit(scope: str, amount: int = 10, **fields: str) -> Limit:
    """Make a limit in requests."""
    return Limit(**{"scope": scope, "unit": "requests", "amount": Decimal(amount), "window": "day", "root": "acme", **fields})


def test_each_limit_that_matches_is_a_line_and_budgets_come_first() -> None:
    lines = lines_for(
        [limit("user:al"), limit("user:al", unit="usd"), limit("user:bo"), limit("org:a")], ["user:al", "org:a"], NOW
    )
    assert [(line.unit, line.scope) for line in lines] == [("usd", "user:al"), ("requests", "user:al"), ("requests", "org:a")]


@pytest.mark.parametrize("turned", [False, True])
def test_the_exact_limit_wins_then_the_longest_pattern_whatever_their_order(turned: bool) -> None:
    limits = [limit("user:*", 1), limit("user:al*", 2), limit("user:alice", 3)]
    limits = limits[::-1] if turned else limits
    for scope, deciding, counting in (("user:bo", 1, []), ("user:albert", 2, [1]), ("user:alice", 3, [1, 2])):
        lines = lines_for(limits, [scope], NOW)
        assert [line.amount for line in lines if line.enforce] == [deciding]
        assert sorted(line.amount for line in lines if line.displaced and line.soft and not line.thresholds) == counting


def test_an_enforcing_and_a_shadow_limit_both_stand_with_counters_of_their_own() -> None:
    lines = lines_for([limit("user:al", 5), limit("user:*", 3, mode="shadow")], ["user:al"], NOW)
    assert {(line.amount, line.enforce) for line in lines} == {(5, True), (3, False)}
    assert len({line.counter for line in lines}) == 2


def test_no_counter_stands_twice_in_the_lines_of_a_request() -> None:
    limits = [limit("user:*"), limit("user:al"), limit("user:al", window="month"), limit("user:al", timezone="Europe/Berlin")]
    lines = lines_for(limits, ["user:al", "user:al", "user:bo"], NOW)
    assert len({line.counter for line in lines}) == len(lines) == 5
    assert len([line for line in lines if line.enforce]) == 4


def test_a_line_carries_the_boundaries_of_its_period_from_when_the_limit_counts() -> None:
    day = lines_for([limit("user:al")], ["user:al"], NOW)[0]
    assert day.starts_ms <= NOW < day.ends_ms
    late = lines_for([replace(limit("user:al"), since_ms=NOW + 1)], ["user:al"], NOW)[0]
    assert (late.starts_ms, late.ends_ms) == (NOW + 1, day.ends_ms)
    assert late.counter != day.counter


@given(st.integers(1, 366 * 86_400))
def test_a_rolling_window_fits_into_its_buckets(seconds: int) -> None:
    line = Line(counter="c", unit="usd", amount=1, rolling_ms=seconds * 1000)
    assert line.bucket_ms * ROLLING_BUCKETS >= line.rolling_ms
    assert (line.bucket_ms - 1) * ROLLING_BUCKETS < line.rolling_ms


def test_what_remains_may_be_negative_and_is_nothing_said_where_nothing_limits() -> None:
    line = Line(counter="c", unit="usd", amount=100)
    assert Balance(line=line, spent=90, held=30).remaining == -20
    assert Balance(line=replace(line, amount=UNLIMITED), spent=90, held=30).remaining is None


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "é", "\x00", "x" * 201, "a\tb"])
def test_an_id_that_would_not_travel_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="reservation id"):
        Reserve(reservation_id=name, root="acme", lines=(), needs=(), lease_ms=1, version=1)
    with pytest.raises(ValueError, match="reservation id"):
        Settle(reservation_id=name, root="acme", lines=(), amounts=())


@pytest.mark.parametrize("entry", ["", "[]", '{"a":\n1}', ' {"a":1}', "null"])
def test_an_entry_that_is_no_object_on_one_line_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="ledger entry"):
        Settle(reservation_id="r", root="acme", lines=(), amounts=(), entry=entry)


@pytest.mark.parametrize("lease_ms", [-1, 86_400_001])
def test_a_lease_is_at_most_a_day(lease_ms: int) -> None:
    with pytest.raises(ValueError, match="lease"):
        Reserve(reservation_id="r", root="acme", lines=(), needs=(), lease_ms=lease_ms, version=1)


def test_money_booked_at_once_needs_a_ledger_entry() -> None:
    with pytest.raises(ValueError, match="ledger entry"):
        Reserve(reservation_id="r", root="acme", lines=(), needs=(Need(unit="usd", held=1, expected=1),), lease_ms=0, version=1)


def test_nothing_more_is_expected_than_is_held() -> None:
    with pytest.raises(ValueError, match="expected"):
        Need(unit="usd", held=1, expected=2)


def test_ids_sort_by_time_and_never_repeat() -> None:
    names = [new_reservation_id() for _ in range(1000)]
    assert len(set(names)) == 1000
    assert [name[:12] for name in names] == sorted(name[:12] for name in names)
    assert {len(name) for name in names} == {32}
