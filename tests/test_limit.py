"""Limits: what may be written, what is refused, and under which names they count."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sark_mw.errors import ConfigurationError, MoneyError
from sark_mw.limit import SOFT_THRESHOLDS, Limit, Mode, clean_scope
from sark_mw.limit_options import limit_options, options_of_limit
from sark_mw.reservation import base_of


def test_the_total_never_ends_and_neither_does_a_rolling_window() -> None:
    total = Limit(scope="org:a", amount=Decimal(1), window="total")
    rolling = Limit(scope="org:a", amount=Decimal(1), window="rolling:90")
    assert (total.period(5).ends_ms, rolling.period(5).ends_ms) == (0, 0)
    assert (total.rolling_ms, rolling.rolling_ms) == (0, 90_000)


@pytest.mark.parametrize(
    ("window", "known"),
    [
        ("day", True),
        ("total", True),
        ("rolling:1", True),
        ("rolling:31622400", True),
        ("rolling:31622401", False),
        ("rolling:0", False),
        ("rolling:-1", False),
        ("rolling:1.5", False),
        ("rolling:", False),
        ("rolling", False),
        ("rolling:²", False),
        ("fortnight", False),
        ("Day", False),
        ("", False),
    ],
)
def test_a_window_is_known_or_a_configuration_error(window: str, known: bool) -> None:
    if known:
        assert Limit(scope="org:a", amount=Decimal(1), window=window).window == window
    else:
        with pytest.raises(ConfigurationError, match="unknown window"):
            Limit(scope="org:a", amount=Decimal(1), window=window)


def test_two_spellings_of_a_window_are_one_limit() -> None:
    spelt = [Limit(scope="org:a", amount=Decimal(1), window=window).limit_id for window in ("week", "week:monday", "week:mon")]
    assert set(spelt) == {"org:a/usd/week@UTC"}


def test_a_limit_keeps_its_counter_when_its_mode_or_amount_changes() -> None:
    limits = [Limit(scope="org:a", amount=Decimal(n), mode=mode, since_ms=5) for n, mode in enumerate(Mode)]
    assert len({limit.counter("org:a", limit.period(0)) for limit in limits}) == 1


def test_a_pattern_and_an_exact_limit_never_share_a_counter() -> None:
    exact, pattern = (Limit(scope=scope, amount=Decimal(1), since_ms=5) for scope in ("user:a", "user:*"))
    assert exact.name_for("user:a") == pattern.name_for("user:a")
    assert exact.counter("user:a", exact.period(0)) != pattern.counter("user:a", pattern.period(0))


@given(st.sampled_from(["user:*", "user:alice", "team:a|b", "tag:x<y*"]), st.sampled_from(["day", "total", "idle:60"]))
def test_the_base_of_a_counter_is_its_limits_base(scope: str, window: str) -> None:
    limit = Limit(scope=scope, amount=Decimal(1), window=window, since_ms=77)
    member = scope.replace("*", "bob")
    assert base_of(limit.counter(member, limit.period(0))) == limit.base(member)


def test_a_soft_limit_tells_at_its_thresholds_or_at_the_usual_ones() -> None:
    assert Limit(scope="org:a", amount=Decimal(1), mode="soft").thresholds == SOFT_THRESHOLDS
    assert Limit(scope="org:a", amount=Decimal(1), mode="soft", thresholds=(120, 30, 30)).thresholds == (30, 120)
    assert Limit(scope="org:a", amount=Decimal(1)).thresholds == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"thresholds": (0,)},
        {"thresholds": (1001,)},
        {"thresholds": (50.5,)},
        {"thresholds": tuple(range(1, 20))},
        {"thresholds": (50,), "unit": "concurrency"},
        {"parent": "team"},
        {"parent": "team:*"},
        {"parent": "org:a"},
        {"rollover": Decimal(1), "window": "total"},
        {"rollover": Decimal(1), "window": "rolling:60"},
        {"rollover": Decimal(-1)},
        {"rollover": Decimal("0.5"), "unit": "requests"},
    ],
)
def test_options_that_cannot_be_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises((ConfigurationError, MoneyError)):
        Limit(**{"scope": "org:a", "amount": Decimal(1), **fields})  # type: ignore[arg-type]


def test_options_come_back_as_they_were_written() -> None:
    limit = Limit(scope="user:*", amount=Decimal(1), parent="team:a", overcommit=True, thresholds=(80,), rollover=Decimal("0.5"))
    again = Limit(scope="user:*", amount=Decimal(1), **limit_options(options_of_limit(limit)))
    assert again == limit
    assert options_of_limit(Limit(scope="org:a", amount=Decimal(1))) == {}


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "Europe", "\x00", "UTC+1"])
def test_an_unknown_zone_is_a_configuration_error(zone: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown timezone"):
        Limit(scope="org:a", amount=Decimal(1), timezone=zone)


@pytest.mark.parametrize(
    "fields", [{"scope": "org"}, {"scope": ":a"}, {"scope": "org:"}, {"scope": "org:a\nb"}, {"root": ""}, {"root": "a b"}]
)
def test_a_scope_or_root_that_is_no_name_is_a_configuration_error(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        Limit(**{"scope": "org:a", "amount": Decimal(1), **fields})


@pytest.mark.parametrize("fields", [{"unit": "eur"}, {"mode": "maybe"}])
def test_an_unknown_unit_or_mode_is_a_configuration_error(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        Limit(scope="org:a", amount=Decimal(1), **fields)


@pytest.mark.parametrize("amount", ["-1", "1.5", "NaN", "9200000000000000001"])
def test_a_limit_in_whole_units_takes_whole_numbers(amount: str) -> None:
    with pytest.raises(MoneyError):
        Limit(scope="org:a", unit="tokens", amount=Decimal(amount))


def test_the_largest_limits_are_taken_exactly() -> None:
    assert Limit(scope="org:a", unit="tokens", amount=Decimal("9200000000000000000")).amount_units == 9_200_000_000_000_000_000
    assert Limit(scope="org:a", amount=Decimal("9200000000")).amount_units == 9_200_000_000_000_000_000
    assert Limit(scope="org:a", amount=Decimal("0.0000000001")).amount_units == 1


def test_concurrency_is_over_no_window() -> None:
    assert Limit(scope="org:a", unit="concurrency", amount=Decimal(3), window="day").window == "total"


@given(st.text(max_size=300), st.text(max_size=300))
def test_two_scopes_never_meet_in_one_clean_name(one: str, other: str) -> None:
    assume(one != other)
    assert clean_scope(one) != clean_scope(other)


@given(st.text(max_size=400))
def test_a_clean_name_is_one_short_printable_word(scope: str) -> None:
    clean = clean_scope(scope)
    assert len(clean) <= 200
    assert clean.isprintable() or clean == ""
    assert not any(c.isspace() or c == "|" for c in clean)


@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_a_pattern_matches_by_its_words_and_never_by_wildcards_smuggled_in(prefix: str, name: str) -> None:
    assume(prefix.isprintable())
    limit = Limit(scope=f"user:{prefix}*", amount=Decimal(1))
    assert limit.matches(f"user:{prefix}{name}")
    assert limit.matches(f"user:{name}") == name.startswith(prefix) or f"user:{name}" == limit.scope
