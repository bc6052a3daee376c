"""The report's verdict: every way in which books can fail to balance makes it bad."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from sark_mw.demo.probe import Added
from sark_mw.demo.provider import bill
from sark_mw.demo.report import Account, Report, Row
from sark_mw.testing import FakeCall
from sark_mw.usage import Usage

_ADDED = Added(p50_ms=1.0, p99_ms=2.0, bare_p50_ms=3.0, bare_p99_ms=4.0, pairs=5)
_ROW = Row(
    scope="user:a", window="day", shared=False, budget=100, spent=90, held=0, admitted=9, refused=3, peak=100, drift=0
)
_GOOD = Report(
    rows=(_ROW,),
    accounts=(Account(principal="user:a", ledger=90, billed=90),),
    loaded=_ADDED,
    calm=_ADDED,
    own_clock={"p50_ms": 1.0, "p99_ms": 2.0, "requests": 9},
    calls=12,
    streams=4,
    peak_in_flight=50,
    seconds=1.0,
    ledger_rows=9,
    unflushed=False,
    retried=0,
    out_of_time=False,
    errors={"openai.APIStatusError": 3},
)


def test_books_that_balance_are_good() -> None:
    assert _GOOD.good


@pytest.mark.parametrize(
    "bad",
    [
        replace(_GOOD, rows=(replace(_ROW, spent=101),)),
        replace(_GOOD, rows=(replace(_ROW, peak=101),)),
        replace(_GOOD, rows=(replace(_ROW, held=1),)),
        replace(_GOOD, rows=(replace(_ROW, drift=-1),)),
        replace(_GOOD, rows=(replace(_ROW, refused=0),)),
        replace(_GOOD, accounts=(Account(principal="user:a", ledger=90, billed=91),)),
        replace(_GOOD, accounts=()),
        replace(_GOOD, unflushed=True),
        replace(_GOOD, retried=1),
        replace(_GOOD, failures=Counter({"500": 1})),
    ],
    ids=[
        "overspent",
        "overspent_meanwhile",
        "held",
        "drift",
        "nobody_refused",
        "billed_more",
        "no_money",
        "unflushed",
        "retries",
        "errors",
    ],
)
def test_one_thing_amiss_makes_the_demo_fail(bad: Report) -> None:
    assert not bad.good


def test_the_bill_is_made_by_key_and_rounds_each_call_up_to_a_nano() -> None:
    def call(operation: str, model: str, usage: Usage, headers: dict[str, str]) -> FakeCall:
        return FakeCall(call_id="1", operation=operation, model=model, usage=usage, headers=headers, body={}, faults=frozenset())

    calls = [
        call("chat", "gpt-4o", Usage(input_tokens=100, cache_read_tokens=40, output_tokens=10), {"authorization": "Bearer a"}),
        call("embeddings", "text-embedding-3-small", Usage(input_tokens=3), {"authorization": "Bearer a"}),
        call("messages", "claude-sonnet-4-5", Usage(input_tokens=1, output_tokens=1), {"x-api-key": "b"}),
    ]
    # 60 × 2500 + 40 × 1250 + 10 × 10000 nanos, and 3 × 20; 3000 + 15000.
    assert bill(calls) == {"a": {"calls": 2, "nanos": 300_060}, "b": {"calls": 1, "nanos": 18_000}}
