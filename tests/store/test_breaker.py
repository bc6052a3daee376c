"""The circuit breaker, by a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sark_mw.store.breaker import Breaker


@dataclass
class Bench:
    """A breaker of threshold 3 and a cool-down of 10 s, its clock, and the states that it told of."""

    now: float = 100.0
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.breaker = Breaker(threshold=3, cooldown_s=10, clock=lambda: self.now, on_change=self.told.append)

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.failed()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_opens_after_so_many_failures_in_a_row(bench: Bench) -> None:
    bench.fail(2)
    assert bench.breaker.allows()
    bench.fail(1)
    assert not bench.breaker.allows()
    assert bench.told == ["open"]


def test_an_answer_in_between_starts_the_count_anew(bench: Bench) -> None:
    for _ in range(5):
        bench.fail(2)
        bench.breaker.succeeded()
    assert bench.breaker.state == "closed"
    assert bench.told == []


def test_after_the_cool_down_one_call_probes_and_the_others_wait(bench: Bench) -> None:
    bench.fail(3)
    bench.now += 9.9
    assert not bench.breaker.allows()
    bench.now += 0.1
    assert [bench.breaker.allows() for _ in range(3)] == [True, False, False]
    assert bench.breaker.state == "half_open"


def test_a_probe_that_fails_opens_it_for_another_cool_down(bench: Bench) -> None:
    bench.fail(3)
    bench.now += 10
    assert bench.breaker.allows()
    bench.fail(1)
    bench.now += 9.9
    assert not bench.breaker.allows()
    bench.now += 0.1
    assert bench.breaker.allows()
    assert bench.told == ["open", "half_open", "open", "half_open"]


def test_a_probe_that_is_answered_closes_it_and_the_count_starts_anew(bench: Bench) -> None:
    bench.fail(3)
    bench.now += 10
    assert bench.breaker.allows()
    bench.breaker.succeeded()
    bench.fail(2)
    assert bench.breaker.allows()
    assert bench.told == ["open", "half_open", "closed"]


def test_a_probe_of_which_nothing_is_ever_heard_does_not_shut_it_for_good(bench: Bench) -> None:
    bench.fail(3)
    bench.now += 10
    assert bench.breaker.allows()
    bench.now += 10
    assert bench.breaker.allows()


def test_a_late_answer_to_a_call_from_before_closes_it(bench: Bench) -> None:
    bench.fail(3)
    bench.breaker.succeeded()
    assert bench.breaker.allows()
    assert bench.told == ["open", "closed"]
