"""Replay of production traffic: arrival times, input and output lengths of a trace, through the enforcer, on a real server."""

from __future__ import annotations

import asyncio
import csv
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from pydantic import SecretStr

from benchmarks.figures import Figure, Options, percentile
from benchmarks.servers import valkey
from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.enforcer import Invocation
from sark_mw.limit import Unit
from sark_mw.money import from_nanos
from sark_mw.pricing.base import InvocationRequest, Meter
from sark_mw.reservation import lines_for
from sark_mw.sark import Sark
from sark_mw.settings import LedgerSettings, LimitSettings, ObserveSettings, PricingSettings, Settings, StoreSettings
from sark_mw.usage import Usage

_USUAL = Path("../shared/traces/azure_llm_2023_conv.csv")
_MODEL = "gpt-4o"
_ROOT, _SCOPES = "acme", ("user:replay", "org:acme")
_FIRST_TOKEN_S, _TOKEN_S = 0.4, 0.02  # of a provider's usual pace


@dataclass(frozen=True, slots=True)
class Arrival:
    """One call of the trace: seconds after the first, tokens in, tokens out."""

    at_s: float
    tokens_in: int
    tokens_out: int


@dataclass(slots=True)
class Seen:
    """What came of it."""

    admitted: int = 0
    refused: int = 0
    late: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    hold: list[float] = field(default_factory=list)
    overrun: int = 0
    peak_held: int = 0
    peak_used: int = 0


def read_trace(path: Path, minutes: float) -> list[Arrival]:
    """Read the first minutes of a trace."""
    arrivals: list[Arrival] = []
    first: datetime | None = None
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            first = first or at
            seconds = (at - first).total_seconds()
            if seconds > minutes * 60:
                break
            arrivals.append(Arrival(seconds, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    return arrivals


async def run(options: Options) -> list[Figure]:
    """Replay a trace on a budget of 80 % of what it costs, so that the last part of it is refused."""
    path = options.trace or _USUAL
    if not path.is_file():
        raise SystemExit(f"{path} is not there: give a trace with --path")
    arrivals = read_trace(path, options.minutes)
    if options.tiny or options.quick:
        arrivals = arrivals[: 40 if options.tiny else 800]
    price = sum(arrival.tokens_in * 2500 + arrival.tokens_out * 10_000 for arrival in arrivals)
    budget = max(from_nanos(price * 8 // 10), Decimal("0.05"))
    async with valkey() as url:
        with tempfile.TemporaryDirectory() as directory:
            async with Sark.open(_settings(url, Path(directory), budget)) as sark:
                seen, seconds, books = await _replay(sark, arrivals, options.speed)
    amount, spent, ledger = books
    rate = len(arrivals) / seconds
    note = f"{path.name}, {len(arrivals):,} calls in {seconds:.0f} s, {options.speed:g} × as fast as they were"
    return [
        Figure(name="calls", value=len(arrivals), unit="calls", note=note),
        Figure(name="rate", value=rate, unit="calls/s", note=f"p99 of calls began {percentile(seen.late, 99) * 1e3:.0f} ms late"),
        Figure(name="admitted", value=seen.admitted, unit="calls", note=f"budget ${budget:.4f}, 80 % of what the trace costs"),
        Figure(name="refused", value=seen.refused, unit="calls"),
        Figure(name="spent ÷ budget", value=spent / amount, unit="×"),
        Figure(name="most held at once ÷ budget", value=seen.peak_held / amount, unit="×"),
        Figure(name="most spent and held at once ÷ budget", value=seen.peak_used / amount, unit="×", most=1.0),
        Figure(name="overspend", value=max(spent - amount, 0), unit="nanos", most=0, least=0),
        Figure(name="booked above their holds", value=seen.overrun, unit="nanos", most=0, least=0),
        Figure(name="counter − ledger", value=spent - ledger, unit="nanos", most=0, least=0),
        Figure(name="estimate: |expected − actual| ÷ actual, p50", value=percentile(seen.error, 50), unit="×"),
        Figure(
            name="hold ÷ actual, p50",
            value=percentile(seen.hold, 50),
            unit="×",
            note="no max_tokens; output capped at 2,048 by setting",
        ),
        Figure(name="admission, p50", value=percentile(seen.took, 50) * 1e3, unit="ms", note="tokens counted, priced, reserved"),
        Figure(name="admission, p99", value=percentile(seen.took, 99) * 1e3, unit="ms"),
    ]


def _settings(url: str, directory: Path, budget: Decimal) -> Settings:
    return Settings(
        store=StoreSettings(url=url, shards=1, deadline_ms=10_000, journal=directory / "journal.jsonl"),
        ledger=LedgerSettings(url=SecretStr(f"sqlite:///{directory / 'ledger.db'}")),
        pricing=PricingSettings(max_output_tokens_cap=2048),
        observe=ObserveSettings(audit_log=False),
        limits=(
            LimitSettings(root=_ROOT, scope="user:replay", amount=budget, window="total"),
            LimitSettings(root=_ROOT, scope="org:acme", amount=Decimal(100_000), window="month"),
        ),
    )


async def _replay(sark: Sark, arrivals: list[Arrival], speed: float) -> tuple[Seen, float, tuple[int, int, int]]:
    seen = Seen()
    limits = await sark.limits.list(_ROOT)
    lines = [line for line in lines_for(limits, _SCOPES, sark.clock.now_ms()) if line.scope == "user:replay"]

    async def look() -> None:
        while True:
            [balance] = (await sark.store.balance(_ROOT, lines)).balances
            seen.peak_held = max(seen.peak_held, balance.held)
            seen.peak_used = max(seen.peak_used, balance.held + balance.spent)
            await asyncio.sleep(0.02)

    looking = asyncio.ensure_future(look())
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for arrival in arrivals:
            wait = started + arrival.at_s / speed - time.perf_counter()
            await asyncio.sleep(max(wait, 0))
            seen.late.append(max(time.perf_counter() - started - arrival.at_s / speed, 0.0))
            group.create_task(_call(sark, arrival, speed, seen))
    seconds = time.perf_counter() - started
    looking.cancel()
    while sark.settler.pending or await sark.store.backlog():
        await asyncio.sleep(0.05)
    [compared] = [each for each in await sark.drift.compare(_ROOT, limits) if each.balance.line.scope == "user:replay"]
    return seen, seconds, (compared.balance.line.amount, compared.balance.spent, compared.ledger)


async def _call(sark: Sark, arrival: Arrival, speed: float, seen: Seen) -> None:
    text = "a " * max(arrival.tokens_in - 8, 1)
    estimator = sark.estimators["openai"]
    assert isinstance(estimator, Meter)
    body = {"model": _MODEL, "messages": [{"role": "user", "content": text}]}
    started = time.perf_counter()
    admission = await sark.enforcer.admit(
        Invocation(
            request=InvocationRequest("chat", "user:replay", body, resource_id=_MODEL),
            estimator=estimator,  # type: ignore[arg-type]  # both a Meter and a CostEstimator
            root=_ROOT,
            scopes=_SCOPES,
            request_id=str(id(arrival)),
            resource_metadata={"model": _MODEL},
        )
    )
    seen.took.append(time.perf_counter() - started)
    if not isinstance(admission, Admission):
        seen.refused += 1
        return
    seen.admitted += 1
    await asyncio.sleep((_FIRST_TOKEN_S + arrival.tokens_out * _TOKEN_S) / speed)
    usage = Usage(input_tokens=arrival.tokens_in, output_tokens=min(arrival.tokens_out, 2048), model=_MODEL)
    actual = estimator.actual(usage, admission.estimate)
    seen.error.append(abs(admission.estimate.expected_nanos - actual) / actual)
    seen.hold.append(admission.estimate.ceiling_nanos / actual)
    estimator.observe(usage, admission.estimate)
    spent = Spent(cost_nanos=actual, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, usage=usage)
    reply = await admission.settle(spent)
    seen.overrun += sum(amount for unit, amount in (reply.overrun if reply else ()) if unit == Unit.USD)
