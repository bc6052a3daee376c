"""Overspend: processes that all want the same budget at once, on a real server. Exactly as many pass as it pays for."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from decimal import Decimal

from benchmarks.figures import Figure, Options
from benchmarks.servers import store_on, valkey
from benchmarks.workload import ROOT, reserve, settle
from sark_mw.limit import Limit
from sark_mw.money import to_nanos
from sark_mw.reservation import lines_for
from sark_mw.store.connect import open_store

_PRICE = 10_000_000  # a cent
_CASES = ((2, 200, 50), (4, 500, 333))


async def run(options: Options) -> list[Figure]:
    """Let N processes make M calls each, on a budget for K."""
    figures: list[Figure] = []
    for processes, calls, budget in _CASES[:1] if options.tiny else _CASES:
        figures += await _case(processes, calls, budget)
    return figures


async def _case(processes: int, calls: int, budget: int) -> list[Figure]:
    async with valkey() as url, store_on(url) as store:
        limit = Limit(root=ROOT, scope="user:1", amount=Decimal(budget) / 100, window="total")
        table = await store.set_limits(ROOT, [limit])
        start_at = time.time() + 2.0 + processes * 0.5  # all have imported what they need by then
        words = [sys.executable, "-m", "benchmarks.overspend", url, str(calls), str(start_at)]
        workers = [await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE) for _ in range(processes)]
        outputs = [json.loads((await worker.communicate())[0]) for worker in workers]
        lines = lines_for(table.limits, ["user:1"], round(time.time() * 1000))
        [balance] = (await store.balance(ROOT, lines)).balances
    passed = sum(output["passed"] for output in outputs)
    name = f"{processes} processes × {calls} calls, budget for {budget}"
    took = max(output["seconds"] for output in outputs)
    over = max(balance.spent + balance.held - to_nanos(limit.amount), 0)
    return [
        Figure(name=f"{name}: passed", value=passed, unit="calls", most=budget, least=budget),
        Figure(name=f"{name}: overspend", value=over, unit="nanos", most=0, least=0),
        Figure(
            name=f"{name}: decided", value=processes * calls / took, unit="calls/s", note="half of those that pass settle at once"
        ),
    ]


async def _work(url: str, calls: int, start_at: float) -> None:
    store = await open_store(url, shards=1, deadline_s=30.0)
    table = await store.limits(ROOT)
    lines = lines_for(table.limits, ["user:1"], round(time.time() * 1000))
    await asyncio.sleep(max(start_at - time.time(), 0))
    started = time.perf_counter()

    async def call(number: int) -> bool:
        await asyncio.sleep(number % 7 * 0.001)  # several groups, that race with those of the other processes
        request = reserve(table, lines, _PRICE)
        reply = await store.reserve(request)
        if reply.admitted and number % 2:
            await store.settle(settle(request, _PRICE))
        return reply.admitted

    passed = sum(await asyncio.gather(*(call(number) for number in range(calls))))
    print(json.dumps({"passed": passed, "seconds": time.perf_counter() - started}))
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
