from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.rate_limit import RateLimitPlugin
from sark_mw import ConfigurationError, PolicyDecision, PolicyPluginManager, PolicyServices
from sark_mw.errors import StoreUnavailableError
from sark_mw.policy import counting, window
from sark_mw.reservation import Balance, Outcome, Reserve, ReserveReply
from tests.policy.samples import a_context


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Table:
    version: int = 1
    epoch: str = "first"


@dataclass
class ScriptedStore:
    """Answers with the given outcomes and keeps what it was asked: for the shape of the calls only."""

    outcomes: list[Outcome | Exception]
    reserves: list[Reserve] = field(default_factory=list)
    tables: int = 0

    async def limits(self, root: str) -> Table:
        self.tables += 1
        return Table(version=self.tables)

    async def reserve(self, request: Reserve) -> ReserveReply:
        self.reserves.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        balances = tuple(Balance(line=line, spent=1, held=0) for line in request.lines)
        return ReserveReply(reservation_id=request.reservation_id, outcome=outcome, at_ms=1, balances=balances)


async def verdicts(plugin: RateLimitPlugin, count: int, **changes: Any) -> list[bool]:
    return [(await plugin.evaluate(a_context(**changes))).allowed for _ in range(count)]


async def test_without_a_store_the_process_counts_alone_and_says_so() -> None:
    plugin = RateLimitPlugin(max_requests=2, clock=Clock())
    decisions = [await plugin.evaluate(a_context()) for _ in range(3)]
    assert [d.allowed for d in decisions] == [True, True, False]
    assert [d.metadata["remaining"] for d in decisions] == [1, 0, 0]
    assert all(d.metadata["shared"] is False and d.metadata["limit"] == 2 for d in decisions)
    assert decisions[2].metadata["retry_after"] == 3600 and "retry_after" not in decisions[1].metadata


async def test_the_window_slides() -> None:
    clock = Clock()
    plugin = RateLimitPlugin(max_requests=2, window_seconds=60, clock=clock)
    assert await verdicts(plugin, 1) == [True]
    clock.now += 30
    assert await verdicts(plugin, 2) == [True, False]
    clock.now += 29.9
    decision = await plugin.evaluate(a_context())
    assert not decision.allowed and decision.metadata["retry_after"] == 1
    clock.now += 0.1
    assert await verdicts(plugin, 2) == [True, False]
    clock.now += 30
    assert await verdicts(plugin, 2) == [True, False]


@given(steps=st.lists(st.floats(0, 20), max_size=80), amount=st.integers(0, 5))
def test_no_window_ever_holds_more_than_the_limit_and_a_refusal_counts_nothing(steps: list[float], amount: int) -> None:
    async def run() -> tuple[list[float], list[float]]:
        clock = Clock()
        admitted: list[float] = []
        refused: list[float] = []
        plugin = RateLimitPlugin(max_requests=amount, window_seconds=60, clock=clock)
        for step in steps:
            clock.now += step
            (admitted if (await verdicts(plugin, 1))[0] else refused).append(clock.now)
        return admitted, refused

    admitted, refused = asyncio.run(run())
    for end in admitted:
        assert sum(end - 60 < at <= end for at in admitted) <= amount
    for end in refused:  # to 1/1000 of the window
        assert sum(end - 60.06 < at <= end for at in admitted) >= amount


async def test_keys_are_counted_apart() -> None:
    plugin = RateLimitPlugin(max_requests=1, key="principal+capability")
    assert await verdicts(plugin, 2) == [True, False]
    assert await verdicts(plugin, 2, principal_id="user:bob") == [True, False]
    assert await verdicts(plugin, 2, capability_id="embed") == [True, False]
    tricky = RateLimitPlugin(max_requests=1, key="principal+capability")
    assert await verdicts(tricky, 1, principal_id="a", capability_id="b|1:c") == [True]
    assert await verdicts(tricky, 1, principal_id="a|5:b", capability_id="c") == [True]
    everyone = RateLimitPlugin(max_requests=1, key="everyone")
    assert await verdicts(everyone, 1) + await verdicts(everyone, 1, principal_id="user:bob") == [True, False]


async def test_what_a_process_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "MAX_LOCAL_KEYS", 10)
    clock = Clock()
    plugin = RateLimitPlugin(max_requests=1, window_seconds=60, clock=clock)
    for number in range(100):
        await verdicts(plugin, 1, principal_id=f"user:{number}")
    keys = plugin._window._own._keys
    assert len(keys) == 10
    clock.now += 61
    await verdicts(plugin, 1)
    assert len(keys) == 1
    busy = RateLimitPlugin(max_requests=100_000, window_seconds=60, clock=clock)
    for _ in range(5000):
        clock.now += 0.01
        await verdicts(busy, 1)
    assert len(next(iter(busy._window._own._keys.values()))) <= window.LOCAL_STEPS


async def test_with_a_store_each_decision_is_one_reserve_that_books_at_once() -> None:
    store = ScriptedStore([Outcome.BOOKED, Outcome.EXCEEDS_LIMIT])
    plugin = RateLimitPlugin(max_requests=7, window_minutes=2, store=store)
    decisions = [await plugin.evaluate(a_context(environment={"root": "acme"})) for _ in range(2)]
    assert [d.allowed for d in decisions] == [True, False] and decisions[0].metadata["shared"] is True
    assert store.tables == 1 and len(store.reserves) == 2
    asked = store.reserves[0]
    assert (asked.root, asked.lease_ms, asked.version, asked.epoch, len(asked.lines)) == ("acme", 0, 1, "first", 1)
    line = asked.lines[0]
    assert (line.counter, line.amount, line.rolling_ms) == (
        "acme|plugin:rate_limit:user:alice/requests/rolling:120|rolling",
        7,
        120_000,
    )
    assert [(need.unit, need.held) for need in asked.needs] == [("requests", 1)]
    assert store.reserves[0].reservation_id != store.reserves[1].reservation_id


async def test_limits_that_changed_are_read_anew_and_the_same_reservation_asked_again() -> None:
    store = ScriptedStore([Outcome.STALE_LIMITS, Outcome.BOOKED])
    assert await verdicts(RateLimitPlugin(store=store), 1) == [True]
    assert [reserve.version for reserve in store.reserves] == [1, 2]
    assert len({reserve.reservation_id for reserve in store.reserves}) == 1


async def test_an_answer_that_was_lost_and_repeated_still_counts_as_admitted() -> None:
    assert await verdicts(RateLimitPlugin(store=ScriptedStore([Outcome.SETTLED])), 1) == [True]


@pytest.mark.parametrize(
    "outcomes", [[StoreUnavailableError("no answer")], [Outcome.NO_EPOCH], [Outcome.STALE_LIMITS] * counting.MAX_ATTEMPTS]
)
@pytest.mark.parametrize("on_error", ["deny", "allow"])
async def test_a_store_that_does_not_decide_leaves_it_to_on_error(outcomes: list[Outcome | Exception], on_error: str) -> None:
    manager = PolicyPluginManager(services=PolicyServices(store=ScriptedStore(list(outcomes))))
    await manager.register_plugin(RateLimitPlugin(on_error=on_error))
    decision = (await manager.evaluate_all(a_context()))[0]
    assert decision.allowed is (on_error == "allow") and decision.metadata["error"]


async def test_counters_of_long_and_odd_principals_do_not_run_together() -> None:
    store = ScriptedStore([Outcome.BOOKED] * 4)
    plugin = RateLimitPlugin(store=store)
    long = "user:" + "a" * 500
    for principal in (long + "1", long + "2", "user:a|b\n", "user:a b\ud800"):
        await verdicts(plugin, 1, principal_id=principal)
    counters = [reserve.lines[0].counter for reserve in store.reserves]
    assert len(set(counters)) == 4
    assert all(len(counter) < 250 and counter.count("|") == 2 and counter.split() == [counter] for counter in counters)


async def test_a_store_of_ones_own_is_kept_and_the_gateways_used_otherwise() -> None:
    own, gateways = ScriptedStore([Outcome.BOOKED]), ScriptedStore([Outcome.BOOKED])
    manager = PolicyPluginManager(services=PolicyServices(store=gateways))
    await manager.register_plugin(RateLimitPlugin(store=own, name="own"))
    await manager.register_plugin(RateLimitPlugin(name="gateways"))
    decisions: list[PolicyDecision] = await manager.evaluate_all(a_context())
    assert [d.metadata["shared"] for d in decisions] == [True, True]
    assert (len(own.reserves), len(gateways.reserves)) == (1, 1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_requests": -1}, "whole number from 0"),
        ({"max_requests": 1.5}, "whole number from 0"),
        ({"window_seconds": 0}, "1 second to 366 days"),
        ({"window_seconds": 1.5}, "1 second to 366 days"),
        ({"window_minutes": 0}, "1 second to 366 days"),
        ({"window_seconds": 60, "window_minutes": 1}, "not both"),
        ({"key": "address"}, "key must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        RateLimitPlugin(**options)
