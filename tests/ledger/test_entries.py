"""What a caller writes comes back from the ledger's side, and whatever else it writes costs what was booked."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sark_mw.ledger.base import LedgerEntry
from sark_mw.ledger.entries import CallerEntry, ledger_entry, parse_entry
from sark_mw.ledger.rows import clean_json, clean_text
from tests.ledger.books import outbox_entry

INT64 = st.integers(-(2**63), 2**63 - 1)
CALLERS = st.builds(
    CallerEntry,
    principal_id=st.text(),
    resource_id=st.text(),
    capability_id=st.text(),
    scopes=st.lists(st.text(), unique=True).map(tuple),
    provider=st.none() | st.text(),
    model=st.none() | st.text(),
    held_nanos=INT64,
    expected_nanos=INT64,
    actual_nanos=st.none() | INT64,
    input_tokens=INT64,
    cache_read_tokens=INT64,
    cache_write_tokens=INT64,
    output_tokens=INT64,
    reasoning_tokens=INT64,
    status=st.none() | INT64,
    stream=st.booleans(),
    request_id=st.text(),
    metadata=st.none() | st.dictionaries(st.text(), st.text() | st.booleans() | INT64, min_size=1),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("prcsvmheaiotqdx") | st.text(), inner, max_size=6)
    ),
    max_leaves=12,
)


@given(CALLERS)
def test_an_entry_is_read_as_it_was_written(caller: CallerEntry) -> None:
    written = caller.to_json()
    assert written.startswith("{")
    assert written.isascii()
    assert "\n" not in written
    assert parse_entry(written) == (caller, True)


def test_an_entry_says_only_what_it_knows() -> None:
    assert CallerEntry().to_json() == "{}"
    assert json.loads(CallerEntry(principal_id="user:a", actual_nanos=0, stream=True).to_json()) == {
        "p": "user:a",
        "a": 0,
        "x": True,
    }


def _cost(entry: LedgerEntry) -> tuple[int, int, str]:
    return entry.cost_nanos, entry.requests, entry.reservation_id


@given(st.text() | JSON.map(json.dumps))
def test_whatever_the_caller_wrote_its_cost_is_booked(entry_json: str) -> None:
    entry = ledger_entry(outbox_entry(7, entry_json=entry_json))
    assert _cost(entry) == (1000, 1, "res-000007")
    assert isinstance(json.loads(entry.metadata_json), dict)
    assert isinstance(json.loads(clean_json(entry.metadata_json)), dict)


UNREADABLE = {
    "nothing": "",
    "no JSON": "nonsense",
    "a list": "[]",
    "null": "null",
    "a number for a name": '{"p":1}',
    "a string for scopes": '{"s":"x"}',
    "a number among the scopes": '{"s":[1]}',
    "half a token": '{"i":1.5}',
    "a truth for a number": '{"i":true}',
    "a float of money": '{"h":1e3}',
    "a list for metadata": '{"d":[]}',
    "more than int64": '{"a":9223372036854775808}',
    "a word for a truth": '{"x":"yes"}',
    "5,000 digits": '{"st":' + "9" * 5000 + "}",
    "5,000 levels": '{"d":' + '{"a":' * 5000 + "1" + "}" * 5001,
}


@pytest.mark.parametrize("entry_json", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_flagged(entry_json: str) -> None:
    entry = ledger_entry(outbox_entry(1, entry_json=entry_json))
    assert _cost(entry) == (1000, 1, "res-000001")
    assert json.loads(entry.metadata_json) == {"malformed": True}


def test_what_can_be_read_of_a_malformed_entry_is_kept() -> None:
    entry = ledger_entry(outbox_entry(1, entry_json='{"p":"user:a","m":["gpt"],"d":{"tier":"flex"},"unheard":1}'))
    assert (entry.principal_id, entry.model) == ("user:a", None)
    assert json.loads(entry.metadata_json) == {"tier": "flex", "malformed": True}


@pytest.mark.parametrize("depth", [300, 470, 900, 980])
def test_metadata_of_any_depth_end_as_json(depth: int) -> None:
    entry = ledger_entry(outbox_entry(1, entry_json='{"d":{"a":' + "[" * depth + "]" * depth + "}}"))
    assert _cost(entry) == (1000, 1, "res-000001")
    assert isinstance(json.loads(clean_json(entry.metadata_json)), dict)


def test_each_booked_unit_has_its_column_and_an_unknown_one_is_kept() -> None:
    booked = (("usd", -5), ("requests", 1), ("tokens", 30), ("input_tokens", 20), ("output_tokens", 10), ("pages", 3), ("usd", 2))
    entry = ledger_entry(outbox_entry(1, booked=booked, entry_json='{"i":999}'))
    assert (entry.cost_nanos, entry.requests, entry.tokens) == (-3, 1, 30)
    assert (entry.booked_input_tokens, entry.booked_output_tokens, entry.input_tokens) == (20, 10, 999)
    assert json.loads(entry.metadata_json) == {"booked": [["pages", 3]]}


@given(st.text(alphabet=st.characters(codec=None)))
def test_cleaned_text_is_taken_by_every_database(text: str) -> None:
    cleaned = clean_text(text)
    assert "\0" not in cleaned
    cleaned.encode()
    assert clean_text(cleaned) == cleaned
