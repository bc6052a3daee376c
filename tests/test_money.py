"""Money: exact at the boundaries of DESIGN.md §3, rounded up once, never a float."""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sark_mw.errors import MoneyError
from sark_mw.money import MAX_HOLD, MAX_LIMIT_NANOS, ceil_nanos, from_nanos, price_nanos, to_decimal, to_nanos

nanos = st.one_of(
    st.integers(0, MAX_LIMIT_NANOS),
    st.sampled_from([0, 1, MAX_HOLD - 1, MAX_HOLD, MAX_HOLD + 1, MAX_HOLD + 2, MAX_LIMIT_NANOS - 1, MAX_LIMIT_NANOS]),
)


@given(nanos)
def test_dollars_and_nanos_are_the_same_amount_both_ways(amount: int) -> None:
    assert to_nanos(from_nanos(amount)) == amount
    assert from_nanos(-amount) == -from_nanos(amount)
    assert Fraction(from_nanos(amount)) == Fraction(amount, 10**9)


@given(st.decimals(min_value=0, max_value=Decimal("9200000000"), allow_nan=False, places=25))
def test_a_part_of_a_nano_is_rounded_up_and_nothing_is_rounded_to_nothing(dollars: Decimal) -> None:
    exact = Fraction(dollars) * 10**9
    assert to_nanos(dollars) == -(-exact.numerator // exact.denominator)
    assert (to_nanos(dollars) == 0) == (dollars == 0)


@pytest.mark.parametrize(
    ("dollars", "expected"),
    [
        ("0", 0),
        ("-0", 0),
        ("0.000000001", 1),
        ("0.0000000001", 1),
        ("1e-400", 1),
        ("1e-2000000", 1),
        ("1." + "0" * 60 + "1", 10**9 + 1),
        ("9007199.254740991", MAX_HOLD),
        ("9200000000", MAX_LIMIT_NANOS),
        (9_200_000_000, MAX_LIMIT_NANOS),
    ],
)
def test_the_edges_of_what_is_an_amount(dollars: str | int, expected: int) -> None:
    assert to_nanos(dollars) == expected


@pytest.mark.parametrize(
    "nonsense",
    [
        "-1",
        "-1e-30",
        "NaN",
        "sNaN",
        "Infinity",
        "-Infinity",
        "",
        "one",
        "1,5",
        "0x10",
        "9200000000.0000000001",
        "1e10",
        "1e999999",
        pytest.param(10**5000, id="huge"),
    ],
)
def test_what_is_no_amount_says_so_in_a_short_sentence(nonsense: str | int) -> None:
    with pytest.raises(MoneyError) as raised:
        to_nanos(nonsense)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("nonsense", [0.1, 1.0, True, None, b"1", [1]])
def test_a_float_is_no_amount(nonsense: object) -> None:
    with pytest.raises(MoneyError, match="must be a Decimal"):
        to_decimal(nonsense)  # type: ignore[arg-type]


def test_the_callers_decimal_context_changes_no_amount() -> None:
    with decimal.localcontext(
        decimal.Context(prec=3, rounding=decimal.ROUND_DOWN, traps=[decimal.Inexact, decimal.FloatOperation])
    ):
        assert from_nanos(MAX_LIMIT_NANOS - 1) == Decimal("9199999999.999999999")
        assert from_nanos(-123_456_789) == Decimal("-0.123456789")
        assert to_nanos(Decimal("1234567.8912345678")) == 1_234_567_891_234_568
        assert ceil_nanos(price_nanos(123_457, Decimal("0.15"))) == 18_518_550


def test_cents_are_shown_as_cents_and_more_only_where_there_is_more() -> None:
    shown = [str(from_nanos(amount)) for amount in (0, 10**9, 1_500_000_000, 1_234_500_000, 1, 10**11)]
    assert shown == ["0.00", "1.00", "1.50", "1.2345", "1E-9", "100.00"]


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_token_count_times_a_price_is_exact_until_the_one_rounding(tokens: int, micro_dollars: int) -> None:
    per_million = Decimal(micro_dollars).scaleb(-6)
    exact = Fraction(tokens * micro_dollars, 1000)
    assert Fraction(price_nanos(tokens, per_million)) == exact
    assert ceil_nanos(price_nanos(tokens, per_million)) == -(-exact.numerator // exact.denominator)


def test_a_token_at_two_cents_per_million_costs_twenty_nanos() -> None:
    assert ceil_nanos(price_nanos(1, Decimal("0.02"))) == 20
