"""A rate limit counts only what passed: what a later plugin, the budget or the client's leaving ends is given back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from plugins.anomaly import AnomalyPlugin
from plugins.rate_limit import RateLimitPlugin
from sark_mw import (
    Outcomes,
    PolicyContext,
    PolicyDecision,
    PolicyPlugin,
    PolicyPluginManager,
    PolicyServices,
    RefusedError,
    RequestEnd,
    Sark,
)
from sark_mw._fake_provider import FakeProvider
from sark_mw._memory_store import MemoryStore
from sark_mw.enforcement.reconcile import Reconciler
from sark_mw.errors import StoreUnavailableError
from sark_mw.reservation import Reserve, ReserveReply
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, LONG, Answer, Gateway
from tests.enforcement import whole
from tests.policy.samples import Sample, a_context

SLOTS = {"scope": "user:a", "amount": 100, "unit": "concurrency"}


class Later(PolicyPlugin):
    """Denies what says "no", after everybody else."""

    name = "later"
    priority = 200

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(context.arguments.get("user") != "no", "no")


async def limited(most: int, *more: PolicyPlugin, **options: Any) -> PolicyPluginManager:
    manager = PolicyPluginManager()
    for plugin in (RateLimitPlugin(max_requests=most, **options), *more):
        await manager.register_plugin(plugin)
    return manager


async def settled(manager: PolicyPluginManager) -> None:
    """Wait until what was to be given back is."""
    plugin = manager.get_plugin("rate_limit")
    assert isinstance(plugin, RateLimitPlugin)
    while plugin._window._counting._giving:
        await asyncio.sleep(0)


async def post(gateway: Gateway, manager: PolicyPluginManager, body: dict[str, Any] = CHAT, **more: Any) -> Answer:
    answer = await gateway.post(body, **more)
    await settled(manager)
    return answer


async def test_what_a_later_plugin_denies_is_given_back(books: MakeGateway) -> None:
    manager = await limited(2, Later())
    gateway = await books(FakeProvider(), {"policies": manager})
    for _ in range(5):
        assert "later" in (await post(gateway, manager, {**CHAT, "user": "no"})).json["error"]["message"]
    assert [(await post(gateway, manager)).status for _ in range(3)] == [200, 200, 403]


async def test_what_the_budget_refuses_is_given_back(books: MakeGateway) -> None:
    manager = await limited(2)
    gateway = await books(FakeProvider(), {"policies": manager}, limits=({"scope": "user:a", "amount": "0.01"}, SLOTS))
    for _ in range(5):
        assert (await post(gateway, manager, LONG)).status == 402
    assert [(await post(gateway, manager)).status for _ in range(3)] == [200, 200, 403]


async def test_a_request_that_gets_a_cheaper_model_is_counted_once(books: MakeGateway) -> None:
    manager = await limited(2)
    instead = {"models": ({"from": "gpt-4o*", "to": ("gpt-4o-mini",)},)}
    limits = ({"scope": "user:a", "amount": "0.001"}, SLOTS)
    gateway = await books(FakeProvider(), {"policies": manager}, limits=limits, instead=instead)
    assert [(await post(gateway, manager)).headers.get("x-sark-model") for _ in range(2)] == ["gpt-4o-mini"] * 2
    assert (await post(gateway, manager)).status == 403


async def test_each_call_of_a_batch_counts_and_all_are_given_back_if_one_is_denied(books: MakeGateway) -> None:
    async def no_deleting(context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(context.capability_id != "delete", "no")

    manager = await limited(3, Sample("careful", no_deleting))
    routes = ({"path": "/mcp", "methods": ("POST",), "price_usd": "0.001", "wire": "mcp", "provider": "tools"},)
    gateway = await books(FakeProvider(), {"policies": manager}, routes=routes)

    def batch(*tools: str) -> list[dict[str, Any]]:
        return [
            {"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": {"name": tool, "arguments": {}}}
            for n, tool in enumerate(tools)
        ]

    async def call(*tools: str) -> str:
        answer = await gateway.post(batch(*tools), path="/mcp")
        await settled(manager)
        return answer.body.decode()

    for _ in range(3):
        assert "careful" in await call("read", "delete")
    assert "rate limit" in await call("read", "read", "read", "read")
    assert "rate limit" not in await call("read", "read", "read")
    assert "rate limit" in await call("read")


async def test_a_client_that_leaves_while_it_is_decided_is_not_counted(books: MakeGateway) -> None:
    asked = asyncio.Event()

    async def wait(context: PolicyContext) -> PolicyDecision:
        if context.arguments.get("user") == "wait":
            asked.set()
            await asyncio.Event().wait()
        return PolicyDecision(True)

    manager = await limited(1, Sample("slow", wait, timeout=60))
    gateway = await books(FakeProvider(), {"policies": manager})
    leaving = asyncio.ensure_future(gateway.client({**CHAT, "user": "wait"}).run())
    await asked.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await settled(manager)
    assert [event.reason for event in gateway.seen.requests] == ["client_gone"]
    assert [(await post(gateway, manager)).status for _ in range(2)] == [200, 403]


async def test_without_http_it_is_the_same(books: MakeGateway) -> None:
    manager = await limited(1)
    gateway = await books(FakeProvider(), {"policies": manager})
    for _ in range(3):
        with pytest.raises(RefusedError, match="budget"):
            async with gateway.sark.reserve(principal="user:a", estimate="5"):
                pass
        await settled(manager)
    async with gateway.sark.reserve(principal="user:a", estimate="0.1"):
        pass
    with pytest.raises(RefusedError, match="rate limit"):
        async with gateway.sark.reserve(principal="user:a", estimate="0.1"):
            pass


async def test_a_process_that_counts_alone_gives_back_too() -> None:
    outcomes = Outcomes()
    plugin = RateLimitPlugin(max_requests=2)
    plugin.bind(PolicyServices(outcomes=outcomes))

    async def ask(request_id: str) -> bool:
        return (await plugin.evaluate(a_context(environment={"request_id": request_id}))).allowed

    assert [await ask(each) for each in ("a", "a", "b", "c")] == [True, True, True, False]
    outcomes.tell(RequestEnd(request_id="a", admitted=False))
    outcomes.tell(RequestEnd(request_id="b", admitted=True))
    assert [await ask(each) for each in ("d", "e")] == [True, False]
    await plugin.on_unload()
    outcomes.tell(RequestEnd(request_id="d", admitted=False))
    assert not await ask("f")


class LateStore(MemoryStore):
    """Carries out what plugins reserve, but late where it is told to wait, as a server does that was sent it."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.refusals = 0
        self.sent: list[asyncio.Task[ReserveReply]] = []

    async def reserve(self, request: Reserve) -> ReserveReply:
        self.sent.append(asyncio.ensure_future(self._carry_out(request)))
        return await asyncio.shield(self.sent[-1])

    async def _carry_out(self, request: Reserve) -> ReserveReply:
        await self.answers.wait()
        return await super().reserve(request)

    async def give_back(self, booked: Reserve) -> bool:
        if self.refusals:
            self.refusals -= 1
            raise StoreUnavailableError("no answer")
        return await super().give_back(booked)


async def on_late_store(most: int, **options: Any) -> tuple[LateStore, Outcomes, PolicyPluginManager]:
    store, outcomes = LateStore(), Outcomes()
    await store.begin()
    manager = PolicyPluginManager(services=PolicyServices(store=store, outcomes=outcomes))
    await manager.register_plugin(RateLimitPlugin(max_requests=most, **options))
    return store, outcomes, manager


async def asked(manager: PolicyPluginManager, request_id: str) -> PolicyDecision:
    context = a_context(environment={"request_id": request_id})
    return (await manager.evaluate_all(context, timeout=0.02))[0]


async def test_what_a_rate_limit_reserves_after_its_own_deadline_is_given_back_too() -> None:
    store, outcomes, manager = await on_late_store(2)
    for request_id in ("a", "b", "c"):
        assert (await asked(manager, request_id)).outcome == "timed_out"
        outcomes.tell(RequestEnd(request_id=request_id, admitted=False))
    store.answers.set()
    await settled(manager)
    assert [(await asked(manager, each)).allowed for each in ("d", "e", "f")] == [True, True, False]


async def test_a_request_that_goes_on_after_the_deadline_stays_counted_once() -> None:
    store, outcomes, manager = await on_late_store(2, on_error="allow")
    for _ in range(2):  # with a cheaper model
        assert (await asked(manager, "a")).outcome == "timed_out"
    outcomes.tell(RequestEnd(request_id="a", admitted=True))
    store.answers.set()
    await asyncio.sleep(0.01)
    assert [(await asked(manager, each)).allowed for each in ("b", "c")] == [True, False]


async def test_unloading_waits_for_what_is_still_being_reserved_and_given_back() -> None:
    store, outcomes, manager = await on_late_store(1)
    assert (await asked(manager, "a")).outcome == "timed_out"
    outcomes.tell(RequestEnd(request_id="a", admitted=False))
    asyncio.get_running_loop().call_later(0.02, store.answers.set)
    await manager.unregister_plugin("rate_limit")
    await manager.register_plugin(RateLimitPlugin(max_requests=1))
    assert (await asked(manager, "b")).allowed


async def test_a_store_that_does_not_take_it_back_at_once_is_asked_again() -> None:
    store, outcomes, manager = await on_late_store(1)
    store.answers.set()
    store.refusals = 1
    assert (await asked(manager, "a")).allowed
    outcomes.tell(RequestEnd(request_id="a", admitted=False))
    await settled(manager)
    assert (await asked(manager, "b")).allowed


async def test_a_store_that_does_not_answer_leaves_it_counted_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    store, outcomes = MemoryStore(), Outcomes()
    await store.begin()

    async def fail(booked: object) -> bool:
        raise StoreUnavailableError("no answer")

    store.give_back = fail  # type: ignore[method-assign]
    manager = PolicyPluginManager(services=PolicyServices(store=store, outcomes=outcomes))
    await manager.register_plugin(RateLimitPlugin(max_requests=1))
    assert (await manager.evaluate_all(a_context(environment={"request_id": "a"})))[0].allowed
    outcomes.tell(RequestEnd(request_id="a", admitted=False))
    await settled(manager)
    assert "stays counted" in caplog.text
    assert not (await manager.evaluate_all(a_context(environment={"request_id": "b"})))[0].allowed


async def test_what_policies_count_is_no_limits_business_when_counters_are_reconciled(tmp_path: Path) -> None:
    settings = whole.settings_for(f"memory://{uuid4().hex}", tmp_path, ledger={"flush_interval_ms": 10})
    manager = await limited(5, AnomalyPlugin())
    async with Sark.open(settings, policies=manager) as sark:
        async with sark.reserve(principal="user:a", scopes=[whole.TEAM], estimate="0.1"):
            pass
        reconciler = Reconciler(sark.store, sark.ledger, limits=sark.limits, clock=sark.clock, drain=sark.flusher.flush_once)
        found = await reconciler.run("default")
        assert found.balanced and "plugin:" not in repr(found)
