"""Run the demo: start provider and gateway, let the callers spend, compare the books. Or stay up for a person to try."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2
from rich.console import Console

from sark_mw.demo.books import Books
from sark_mw.demo.books import Counter as BudgetCounter
from sark_mw.demo.cast import CALLERS
from sark_mw.demo.probe import Added, Probe
from sark_mw.demo.progress import Progress
from sark_mw.demo.report import Report, make_accounts, make_rows
from sark_mw.demo.serving import Child
from sark_mw.demo.table import print_report
from sark_mw.demo.traffic import Traffic
from sark_mw.demo.welcome import print_welcome

_TTFT_S, _CHUNK_S, _WORDS = 0.5, 0.05, 60
_CALM_PAIRS = 200
_LOOK_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Addresses of what has been started."""

    gateway: str
    bare: str
    desk: str
    provider: str


@dataclass(slots=True)
class Watch:
    """Looks at the budgets while they are spent: no counter may be above its budget at any instant."""

    desk: str
    peaks: dict[str, int] = field(default_factory=dict)
    counters: list[BudgetCounter] = field(default_factory=list)

    async def run(self, progress: Progress, traffic: Traffic) -> None:
        """Look until cancelled."""
        async with httpx2.AsyncClient(base_url=self.desk, timeout=30) as client:
            while True:
                self.counters = (await client.get("/now")).json()
                for each in self.counters:
                    used = each["spent"] + each["held"]
                    self.peaks[each["scope"]] = max(self.peaks.get(each["scope"], 0), used)
                progress.show(self.counters, traffic)
                await asyncio.sleep(_LOOK_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns 0 only if nothing was overspent and the books balance."""
    parser = argparse.ArgumentParser(prog="sark-mw demo", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="stay up and print addresses, keys and commands to try")
    parser.add_argument("--port", type=int, default=0, help="port of the gateway (default: a free one)")
    parser.add_argument("--seconds", type=float, default=60.0, help="longest time to spend the budgets in (default: 60)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, progress to stderr")
    chosen = parser.parse_args(arguments)
    runner = _serve(chosen.port) if chosen.serve else _demo(chosen.port, chosen.seconds, as_json=chosen.json)
    try:
        return asyncio.run(runner)
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1


async def _demo(port: int, seconds: float, *, as_json: bool) -> int:
    with tempfile.TemporaryDirectory(prefix="sark-demo-") as directory:
        async with _staged(directory, port) as stage:
            report = await _spend(stage, seconds, Console(stderr=as_json))
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2) + "\n")
    else:
        print_report(Console(), report)
    return 0 if report.good else 1


@asynccontextmanager
async def _staged(directory: str, port: int) -> AsyncIterator[Stage]:
    async with (
        Child("sark_mw.demo.provider", [str(_TTFT_S), str(_CHUNK_S), str(_WORDS)]) as provider,
        Child("sark_mw.demo.gateway_app", [provider.url("provider"), directory, str(port)]) as gateway,
    ):
        urls = {name: gateway.url(name) for name in ("gateway", "bare", "desk")}
        yield Stage(**urls, provider=provider.url("provider"))


async def _spend(stage: Stage, seconds: float, console: Console) -> Report:
    traffic = Traffic(stage.gateway, CALLERS, seconds=seconds)
    watch, probe = Watch(stage.desk), Probe(stage.gateway, stage.bare)
    started = time.monotonic()
    with Progress(console) as progress:
        beside = [asyncio.ensure_future(watch.run(progress, traffic)), asyncio.ensure_future(probe.run())]
        try:
            await traffic.run()
        finally:
            took = time.monotonic() - started
            for task in beside:
                task.cancel()
            ended = await asyncio.gather(*beside, return_exceptions=True)
    failures = Counter(f"{type(e).__name__}: {e}" for e in ended if isinstance(e, Exception))
    calm = Probe(stage.gateway, stage.bare)
    await calm.run(_CALM_PAIRS)
    return await _conclude(stage, traffic, watch, (probe.added(), calm.added()), took, failures)


async def _conclude(
    stage: Stage, traffic: Traffic, watch: Watch, added: tuple[Added, Added], took: float, failures: Counter[str]
) -> Report:
    async with httpx2.AsyncClient(timeout=60) as client:
        books: Books = (await client.get(f"{stage.desk}/books")).json()
        bill = (await client.get(f"{stage.provider}/bill")).json()
    tallies = traffic.tallies
    for tally in tallies.values():
        failures += tally.failed
    admitted = sum(tally.admitted for tally in tallies.values())
    refused = sum((tally.refused for tally in tallies.values()), Counter[str]())
    billed = sum(bill["keys"].get(caller.key, {}).get("calls", 0) for caller in CALLERS)
    return Report(
        rows=make_rows(books, tallies, watch.peaks),
        accounts=make_accounts(books, bill["keys"]),
        loaded=added[0],
        calm=added[1],
        own_clock=books["own_clock"],
        calls=admitted + refused.total(),
        streams=sum(tally.streams for tally in tallies.values()),
        peak_in_flight=traffic.peak,
        seconds=took,
        ledger_rows=books["rows"],
        unflushed=not (books["quiet"] and books["complete"]),
        retried=billed - admitted,
        out_of_time=traffic.out_of_time,
        failures=dict(failures),
        errors=dict(refused),
    )


async def _serve(port: int) -> int:
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    with tempfile.TemporaryDirectory(prefix="sark-demo-") as directory:
        async with _staged(directory, port) as stage:
            print_welcome(Console(), stage.gateway, stage.desk)
            sys.stdout.flush()
            await over.wait()
    return 0
