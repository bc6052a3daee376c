"""How an event is read off the outbox, whatever it says of itself."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from sark_mw.ledger.events import event_of
from sark_mw.limit import Limit
from tests.ledger.books import NOON_MS, outbox_entry


def read(said: object, **changes: object) -> object:
    text = said if isinstance(said, str) else json.dumps(said)
    return event_of(outbox_entry(1, kind="threshold", shard_seq=0, booked_ms=NOON_MS, entry_json=text, **changes))


def test_an_event_says_what_its_entry_says_and_keeps_the_whole() -> None:
    said = {"counter": "acme|team:ml/usd/day@UTC|2026-11-22|9", "percent": 80, "spent": "812", "amount": "1000", "ordinal": 7}
    event = read(said, reservation_id="threshold:80:acme|x")
    assert (event.event_id, event.kind, event.root, event.at_ms) == ("threshold:80:acme|x", "threshold", "acme", NOON_MS)
    assert (event.counter, event.amount, json.loads(event.detail_json)) == (
        said["counter"],
        1000,
        {**said, "spent": "0.000000812", "amount": "0.000001"},
    )
    assert (event.scope, event.unit, event.limit_id) == ("team:ml", "usd", "team:ml/usd/day@UTC")


def test_what_the_entry_says_itself_goes_before_what_its_counter_says() -> None:
    event = read({"counter": "acme|team:ml/usd/day@UTC|p|9", "scope": "a:b", "unit": "tokens", "limit_id": "x", "amount": -4})
    assert (event.scope, event.unit, event.limit_id, event.amount) == ("a:b", "tokens", "x", -4)


def test_a_base_stands_where_there_is_no_counter() -> None:
    event = read({"base": "acme|team:ml/requests/total|9"})
    assert (event.counter, event.scope, event.unit) == ("acme|team:ml/requests/total|9", "team:ml", "requests")


@pytest.mark.parametrize("text", ["", "{broken", "[1]", '"text"', "null", "[" * 100_000])
def test_what_is_no_object_is_an_event_all_the_same(text: str) -> None:
    event = read(text)
    assert (event.counter, event.amount, event.detail_json) == ("", None, '{"malformed":true}')


@pytest.mark.parametrize("amount", ["1e3", "x", 2**63, str(2**63), -(2**63) - 1, 1.5, True, None, [], "9" * 400])
def test_an_amount_that_is_none_is_left_out(amount: object) -> None:
    assert read({"amount": amount, "counter": 5, "scope": [], "unit": None}).amount is None


SCOPES = [
    ("user:alice", "user:alice"),
    ("user:alice", "user:*"),
    ("tag:a/b/usd/day@x", "tag:a/b/usd/day@x"),
    ("tag:a/usd/day", "tag:a/*"),
    ("tag:a<b<c", "tag:a<*"),
    ("tag:a<b", "tag:a<b"),
    ("tag:a<tag:a<*/x", "tag:a<*"),
    ("tag:a b|c", "tag:a *"),
    ("tag:" + "x" * 400, "tag:" + "x" * 400),
    ("tag:" + "x" * 400, "tag:*"),
    ("tag:" + "x" * 400, "tag:" + "x" * 300 + "*"),
]


@pytest.mark.parametrize(("scope", "pattern"), SCOPES)
@pytest.mark.parametrize("window", ["day", "month", "total", "rolling:3600"])
@pytest.mark.parametrize("unit", ["usd", "input_tokens", "tokens"])
def test_scope_unit_and_limit_are_read_off_the_counters_that_limits_make(
    scope: str, pattern: str, window: str, unit: str
) -> None:
    limit = Limit(
        scope=pattern, unit=unit, amount=Decimal(5), window=window, timezone="America/Argentina/Ushuaia", root="acme", since_ms=9
    )
    exact = Limit(scope=scope, amount=Decimal(5)).limit_id.removesuffix("/usd/day@UTC")
    for counter in (limit.counter(scope, limit.period(NOON_MS)), limit.base(scope)):
        event = read({"counter": counter})
        assert (event.scope, event.unit, event.limit_id) == (exact, unit, limit.limit_id)


@pytest.mark.parametrize("counter", ["", "|", "a|b|c", "a|b/usd/day|c|d|e", "a|user:x/dollars/day|p|1", "a|u:x/usd/day<v:*|p|1"])
def test_a_name_that_is_no_counter_says_nothing(counter: str) -> None:
    event = read({"counter": counter})
    assert (event.counter, event.scope, event.unit, event.limit_id) == (counter, "", "", "")
