from __future__ import annotations

from typing import Any

import pytest

from plugins.adaptive_rate_limit import AdaptiveRateLimitPlugin
from sark_mw import ConfigurationError, Outcomes, PolicyDecision, PolicyPluginManager, PolicyServices, RequestEnd
from tests.asgi.apps import Replies
from tests.asgi.conftest import MakeGateway
from tests.policy.samples import a_context


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Upstream:
    """A plugin, and what the gateway would tell it."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.plugin = AdaptiveRateLimitPlugin(clock=self.clock, **options)
        self.outcomes = Outcomes()
        self.plugin.bind(PolicyServices(outcomes=self.outcomes))
        self.ids = 0

    async def ask(self, request_id: str | None = None, **changes: Any) -> PolicyDecision:
        self.ids += 1
        environment = {"request_id": request_id or f"r{self.ids}", "model": "gpt-4o"}
        return await self.plugin.evaluate(a_context(environment=environment, **changes))

    def end(self, request_id: str, *, admitted: bool = True, status: int | None = 200, seconds: float | None = 0.1) -> None:
        self.outcomes.tell(RequestEnd(request_id=request_id, admitted=admitted, status=status, upstream_seconds=seconds))

    async def round(self, **ended: Any) -> int:
        """Fill it to its limit, end all of that, and return the limit then."""
        ids = []
        while (await self.ask(f"x{self.ids}")).allowed:
            ids.append(f"x{self.ids - 1}")
        for each in ids:
            self.end(each, **ended)
        self.clock.now += 10
        return len(ids)


async def test_so_many_requests_may_be_under_way_at_once() -> None:
    upstream = Upstream(start=2)
    decisions = [await upstream.ask() for _ in range(3)]
    assert [d.allowed for d in decisions] == [True, True, False]
    assert decisions[2].metadata == {"limit": 2, "running": 2, "retry_after": 1}
    upstream.end("r1")
    assert (await upstream.ask()).allowed


async def test_quick_answers_add_one_a_round_and_failures_halve() -> None:
    upstream = Upstream(start=8)
    sizes = [await upstream.round() for _ in range(4)]
    assert sizes[0] == 8 and sizes == sorted(sizes) and sizes[-1] - sizes[0] in (2, 3)
    before = await upstream.round(status=503)
    assert await upstream.round(seconds=99.0) == before // 2
    assert await upstream.round() == before // 2 // 2


async def test_one_bad_moment_steps_back_once_and_never_below_the_least() -> None:
    upstream = Upstream(start=16, least=3)
    for n in range(8):
        await upstream.ask(f"a{n}")
    for n in range(8):
        upstream.end(f"a{n}", status=429)
    upstream.clock.now += 10
    assert await upstream.round(status=500) == 8
    assert await upstream.round(status=500) == 4
    assert [await upstream.round(status=500) for _ in range(2)] == [3, 3]


async def test_it_grows_no_further_than_the_most_and_not_where_nobody_comes_near() -> None:
    upstream = Upstream(start=2, most=3)
    assert max([await upstream.round() for _ in range(20)]) == 3
    idle = Upstream(start=10)
    for n in range(100):
        await idle.ask(f"i{n}")
        idle.end(f"i{n}")
    assert await idle.round() == 10


async def test_what_says_nothing_of_the_upstream_changes_nothing_but_is_not_under_way_any_more() -> None:
    upstream = Upstream(start=1)
    await upstream.ask("a")
    upstream.end("a", admitted=False, status=402)
    await upstream.ask("b")
    upstream.end("b", status=None)
    upstream.end("never heard of")
    assert await upstream.round() == 1


async def test_a_request_that_is_asked_about_again_is_under_way_once_and_one_without_an_end_is_forgotten() -> None:
    upstream = Upstream(start=1, forget_seconds=60)
    assert (await upstream.ask("a")).allowed and (await upstream.ask("a")).allowed
    assert not (await upstream.ask("b")).allowed
    upstream.clock.now += 61
    assert (await upstream.ask("b")).allowed


async def test_each_key_learns_for_itself() -> None:
    upstream = Upstream(start=1, key="principal")
    assert (await upstream.ask()).allowed and not (await upstream.ask()).allowed
    assert (await upstream.ask(principal_id="user:bob")).allowed


async def test_without_a_gateway_its_on_error_decides() -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(AdaptiveRateLimitPlugin())
    assert "no gateway tells" in (await manager.evaluate_all(a_context()))[0].metadata["error"]


@pytest.mark.parametrize("options", [{"start": 0}, {"start": 2, "most": 1}, {"backoff": 1}, {"latency_seconds": 0}, {"key": "x"}])
def test_figures_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        AdaptiveRateLimitPlugin(**options)


async def test_over_http_failures_of_the_upstream_lower_what_is_let_through(make: MakeGateway) -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(AdaptiveRateLimitPlugin(start=4, cooldown_seconds=0))
    failing = await make(Replies({"error": "down"}, 503), {"policies": manager})
    for _ in range(2):
        assert (await failing.post()).status == 503
    plugin = manager.get_plugin("adaptive_rate_limit")
    assert isinstance(plugin, AdaptiveRateLimitPlugin)
    decision = await plugin.evaluate(a_context(resource_id="openai", environment={"request_id": "one"}))
    assert decision.metadata == {"limit": 1, "running": 0}
    assert (await failing.post()).status == 403
