"""Policies: what asking plugins costs, beside calling them directly. Target: under 100 ms, to be beaten by far."""

from __future__ import annotations

import asyncio
import time

from benchmarks.figures import Figure, Options, p50_p99, percentile
from benchmarks.servers import store_on, valkey
from benchmarks.workload import set_limits
from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin, PolicyPluginManager, PolicyServices, builtin_plugin_path
from sark_mw.enforcement.budgets import StoreBudgets
from sark_mw.enforcement.tables import LimitTables, ServerClock


class _Allow(PolicyPlugin):
    """Allows at once; `suspends` gives the loop a turn first."""

    def __init__(self, name: str, *, suspends: bool = False) -> None:
        self._name = name
        self._suspends = suspends

    @property
    def name(self) -> str:
        return self._name

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        if self._suspends:
            await asyncio.sleep(0)
        return PolicyDecision(allowed=True, reason="yes")


def _context() -> PolicyContext:
    environment = {"provider": "openai", "model": "gpt-4o", "root": "acme", "scopes": ("user:1",), "estimated_nanos": 1000}
    return PolicyContext("user:1", "gpt-4o", "chat", "invoke", {"messages": [{"role": "user", "content": "hi"}]}, environment)


async def _time(manager: PolicyPluginManager, times: int) -> list[float]:
    took = []
    for _ in range(times):
        context = _context()
        started = time.perf_counter()
        await manager.evaluate_all(context)
        took.append(time.perf_counter() - started)
    return took


async def run(options: Options) -> list[Figure]:
    """Measure plugins that do nothing, directly and through the manager, then the three that ship, on a real store."""
    figures = await _nothing(options)
    async with valkey() as url, store_on(url) as store:
        await set_limits(store)
        services = PolicyServices(store=store, budgets=StoreBudgets(store, LimitTables(store, ServerClock())))
        for name in ("business_hours", "rate_limit", "cost_aware"):
            manager = PolicyPluginManager()
            manager.bind(services)
            path = builtin_plugin_path(name)
            settings = {
                "business_hours": {"start_hour": 0, "end_hour": 24, "allowed_days": list(range(7))},
                "rate_limit": {"max_requests": 1_000_000},
                "cost_aware": {},
            }[name]
            await manager.load_from_file(path, **settings)
            figures += p50_p99(name, await _time(manager, options.count(1000)), most_p99=100_000)
    return figures


async def _nothing(options: Options) -> list[Figure]:
    plugin, context, direct = _Allow("direct"), _context(), []
    for _ in range(options.count(5000)):
        started = time.perf_counter()
        await plugin.evaluate(context)
        direct.append(time.perf_counter() - started)
    guarded = []
    for _ in range(options.count(5000)):
        started = time.perf_counter()
        await asyncio.wait_for(plugin.evaluate(context), 5.0)
        guarded.append(time.perf_counter() - started)
    one, ten, suspending = PolicyPluginManager(), PolicyPluginManager(), PolicyPluginManager()
    await one.register_plugin(plugin)
    await suspending.register_plugin(_Allow("suspends", suspends=True))
    for n in range(10):
        await ten.register_plugin(_Allow(f"plugin {n}"))
    took = await _time(one, options.count(5000))
    return [
        Figure(name="a plugin called directly, p50", value=percentile(direct, 50) * 1e6, unit="µs"),
        Figure(name="the same under asyncio.wait_for, p50", value=percentile(guarded, 50) * 1e6, unit="µs"),
        *p50_p99("the same through the manager", took, most_p99=100_000, note="with a timeout of 5 s"),
        Figure(name="manager ÷ wait_for", value=percentile(took, 50) / percentile(guarded, 50), unit="×", most=1.0),
        *p50_p99("10 plugins", await _time(ten, options.count(2000)), most_p99=100_000),
        *p50_p99("a plugin that suspends", await _time(suspending, options.count(2000)), most_p99=100_000),
    ]
