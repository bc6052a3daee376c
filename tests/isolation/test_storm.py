"""Hostile plugins under traffic: the gateway goes on, honest plugins answer, and nothing is left over."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.deadline import DeadlineExceededError
from sark_mw.policy.isolated import IsolatedPlugin
from tests.isolation.abuse import whole
from tests.isolation.plugins import DOER, asked, loaded
from tests.isolation.processes import descendants, descriptors

pytestmark = pytest.mark.wall_clock

_FLOOD = whole("flood", """
    class Flood(PolicyPlugin):
        name = "flood"
        timeout = 0.3
        async def evaluate(self, context):
            say(frame(reply(10**6, "true")) * 100000)
""", wire=True)  # fmt: skip


class _Beat:
    """Remembers the longest time for which the event loop did not come round."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now


async def _clients(honest: IsolatedPlugin, seconds: float) -> tuple[float, int]:
    """Let 64 clients ask for so long; return the longest stall of the loop and the number of right answers."""
    beat, right, end = _Beat(), 0, time.monotonic() + seconds
    beating = asyncio.create_task(beat.run())

    async def client() -> None:
        nonlocal right
        for word in itertools.cycle(("allow", "deny")):
            if time.monotonic() > end:
                return
            assert (await honest.evaluate(asked(word))).allowed is (word == "allow")
            right += 1
            await asyncio.sleep(0.002)

    await asyncio.gather(*(client() for _ in range(64)))
    beating.cancel()
    return beat.longest, right


async def _storm(hostile: list[IsolatedPlugin]) -> None:
    for word in itertools.cycle(("exit", "hoard", "exit", "spin", "exit", "hang")):
        for plugin in hostile:
            await asyncio.gather(*(plugin.evaluate(asked(word)) for _ in range(3)), return_exceptions=True)


@pytest.mark.slow
async def test_a_storm_of_crashes_hangs_bombs_and_floods_does_not_hold_the_gateway_up() -> None:
    before = descendants(), descriptors()
    never = {"breaker_deaths": 10**6, "backoff_s": 0.001, "backoff_most_s": 0.01, "cpu_s": 0.2}
    honest = await loaded(DOER.replace(b"timeout = 0.5", b"timeout = 30"))
    hostile = [await loaded(**never), await loaded(workers=2, stateless=True, **never)]
    hostile.append(await loaded(_FLOOD.source.encode(), **never))
    calm, calm_answers = await _clients(honest, 1.5)
    storms = [asyncio.create_task(_storm([plugin])) for plugin in hostile]
    stormy, answers = await _clients(honest, 8.0)
    for storm in storms:
        storm.cancel()
    deaths = sum(figures["deaths"] for plugin in hostile for figures in plugin.figures())
    assert deaths >= 100
    assert calm_answers and answers
    # Generous, for machines that others use too: a loop that is blocked by a hang or a flood stands for as long as that lasts.
    assert stormy < max(0.5, calm * 20), (calm, stormy)
    for plugin in (honest, *hostile):
        await plugin.on_unload()
    assert (descendants(), descriptors()) == before
    with pytest.raises((PolicyEvaluationError, DeadlineExceededError)):
        await asyncio.wait_for(_fails(), 30)


async def _fails() -> None:
    plugin = await loaded(_FLOOD.source.encode())
    try:
        await plugin.evaluate(asked("x"))
    finally:
        await plugin.on_unload()
