"""Soak: processes with random limits, killed and started again, and an administrator; then every book is held to every other."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from benchmarks.figures import Figure, Options
from benchmarks.servers import postgres, valkey
from benchmarks.soak_worker import MEMBERS, ROOT, draw_limits
from sark_mw.enforcement.drift import Comparison, comparable, compare_lines
from sark_mw.ledger.base import CostFilter, ResolvedReservation
from sark_mw.ledger.events import EventFilter, EventKind
from sark_mw.limit import Limit, Unit
from sark_mw.reservation import Line, base_of, lines_for
from sark_mw.sark import Sark
from sark_mw.settings import LedgerSettings, ObserveSettings, ReservationSettings, Settings, StoreSettings

_SCOPES = tuple(f"{kind}:{n}" for kind, members in MEMBERS.items() for n in range(members))


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it: `kills` are SIGKILLs of workers, one after the other, each started again at once."""

    processes: int
    calls: int
    kills: int
    seed: int = 1


@dataclass(slots=True)
class Call:
    """What a worker's file says of one reservation."""

    ceiling: int = 0
    expected: int = 0
    made_ms: int = 0
    scopes: tuple[str, ...] = ()
    cost: int | None = None
    settled: bool = False
    late: bool = False
    overrun: int = 0


@dataclass(slots=True)
class Tally:
    """What all files say together."""

    calls: dict[str, Call] = field(default_factory=lambda: defaultdict(Call))
    refused: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    twice: int = 0

    def read(self, path: Path) -> None:
        """Read one worker's file."""
        for line in path.read_text().splitlines():
            kind, _, *words = line.split()
            if kind == "R":
                self.refused[words[0]] += 1
            elif kind == "X":
                self.twice += 1
            elif kind == "H":
                call = self.calls[words[0]]
                call.ceiling, call.expected, call.made_ms = map(int, words[1:4])
                call.scopes = tuple(words[4].split(","))
            elif kind == "T":
                self.calls[words[0]].cost = int(words[1])
            elif kind == "S":
                call = self.calls[words[0]]
                call.settled, call.late, call.overrun = True, words[1] == "1", int(words[2])


async def run(options: Options) -> list[Figure]:
    """Run it whole: 8 processes × 10,000 calls; `--quick` and `--tiny` do less."""
    size = Size(processes=8, calls=10_000, kills=40)
    if options.quick or options.tiny:
        size = Size(processes=3, calls=300 if options.tiny else 1_000, kills=2 if options.tiny else 6)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sark-soak-")))
        database = None if options.tiny else stack.enter_context(postgres())
        async with valkey() as url:
            return await soak(size, url, database or f"sqlite:///{folder / 'ledger.db'}", folder)


async def soak(size: Size, url: str, database: str, folder: Path) -> list[Figure]:
    """Let the processes work on a server, then compare everything."""
    settings = _settings(url, database, folder)
    async with Sark.open(settings) as witness:
        await witness.limits.set(*draw_limits(size.processes * size.calls, size.seed))
        began_ms, started = witness.clock.now_ms(), time.perf_counter()
        killed = await _work(size, settings, folder)
        seconds = time.perf_counter() - started
        await _drained(witness)
        tally = Tally()
        for path in sorted(folder.glob("*.tally")):
            tally.read(path)
        changes = json.loads((folder / "administrator.json").read_text())["changes"]
        note = f"{size.processes} processes × {size.calls:,} calls, {killed} SIGKILLs, {changes} changes by an administrator"
        note += f", ledger in {database.partition(':')[0]}"
        return [
            Figure(name="calls decided", value=size.processes * size.calls, unit="calls", note=note),
            Figure(name="rate", value=size.processes * size.calls / seconds, unit="calls/s", note=f"{seconds:.0f} s"),
            *await _against_tally(witness, tally, began_ms),
            *await _against_counters(witness, tally, began_ms),
        ]


def _settings(url: str, database: str, folder: Path) -> Settings:
    return Settings(
        store=StoreSettings(url=url, shards=2, deadline_ms=30_000, journal=folder / "journal.jsonl"),
        ledger=LedgerSettings(url=SecretStr(database), flush_interval_ms=100, deadline_ms=60_000),
        reservation=ReservationSettings(lease_s=6, sweep_interval_ms=500),
        observe=ObserveSettings(metrics=False, audit_log=False),
    )


async def _work(size: Size, settings: Settings, folder: Path) -> int:
    """Start the workers and the administrator; kill and start again until enough were killed; return when all have ended."""
    sections = json.loads(settings.model_dump_json(include={"store", "ledger", "reservation", "observe"}))
    sections["ledger"]["url"] = settings.ledger.url.get_secret_value()
    dice, killed = random.Random(size.seed), 0

    def start(mode: str, name: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "benchmarks.soak_worker", mode, name, str(folder), str(size.calls), json.dumps(sections)]
        return subprocess.Popen(words, cwd=Path(__file__).parent.parent)

    administrator = start("administer", "administrator")
    workers = {f"w{n}": start("work", f"w{n}") for n in range(size.processes)}
    try:
        # Each kill is due once so much more was done, so that they spread over the run on any machine.
        goals = [size.processes * size.calls * (n + 1) // (size.kills + 2) for n in range(size.kills)]
        while any(worker.poll() is None for worker in workers.values()):
            await asyncio.sleep(0.02)
            failed = [name for name, worker in workers.items() if worker.poll() not in (None, 0)]
            if failed:
                raise RuntimeError(f"{failed} ended by themselves")
            if goals and await asyncio.to_thread(_done, folder) >= goals[0]:
                goals.pop(0)
                name = dice.choice([name for name, worker in workers.items() if worker.poll() is None] or ["w0"])
                workers[name].kill()
                workers[name].wait()
                workers[name], killed = start("work", name), killed + 1
        (folder / "stop").touch()
        await asyncio.to_thread(administrator.wait)
    finally:
        for process in (*workers.values(), administrator):
            process.kill()
            process.wait()
    return killed


def _done(folder: Path) -> int:
    """Count the calls that have come to an end."""
    return sum(line[:1] in b"SFR" for path in folder.glob("*.tally") for line in path.read_bytes().splitlines())


async def _drained(witness: Sark) -> None:
    """Wait until what was in flight at a kill has expired, and all of it is in the ledger."""
    async with asyncio.timeout(120):
        while await witness.store.holds(ROOT) or await witness.store.backlog() or witness.flusher.report.lag_ms:
            await asyncio.sleep(0.1)


async def _against_tally(witness: Sark, tally: Tally, began_ms: int) -> list[Figure]:
    """Hold every reservation in the ledger to what the fake provider and the workers noted of it, to the nano."""
    shard = witness.store.shard_of(ROOT)
    booked = {each.reservation_id: each for each in await witness.ledger.resolved(shard, began_ms - 60_000)}
    total = await witness.ledger.total(CostFilter(root=ROOT))
    wrong = [name for name, each in booked.items() if not _is_right(each, tally.calls.get(name))]
    missing = [name for name in tally.calls if name not in booked]
    settled = sum(call.cost or 0 for call in tally.calls.values() if call.settled)
    known = sum(dict(each.known).get(Unit.USD, 0) for each in booked.values())
    guessed = sum(dict(each.estimated).get(Unit.USD, 0) for each in booked.values())
    # Settled in the store, but killed before its file could say so: the ledger has it as it was tallied.
    unsaid = {name for name, each in booked.items() if each.resolution == "settled" and not tally.calls[name].settled}
    settled += sum(tally.calls[name].cost or 0 for name in unsaid)
    partial = sum(dict(each.known).get(Unit.USD, 0) for each in booked.values() if each.resolution != "settled")
    expired = sum(each.resolution == "expired" for each in booked.values())
    refused = ", ".join(f"{count:,} {kind}" for kind, count in sorted(tally.refused.items()))
    return [
        Figure(name="admitted", value=len(booked), unit="calls", note=f"refused: {refused or 'none'}"),
        Figure(name="reservations in flight at a kill", value=expired + len(unsaid), unit="", note=f"{expired} of them expired"),
        Figure(
            name="reservations that differ from the tally", value=len(wrong), unit="", most=0, least=0, note=", ".join(wrong[:3])
        ),
        Figure(name="held, but not in the ledger", value=len(missing), unit="", most=0, least=0, note=", ".join(missing[:3])),
        Figure(name="admitted twice under one key", value=tally.twice, unit="", most=0, least=0),
        Figure(
            name="ledger, known − tally",
            value=known - partial - settled,
            unit="nanos",
            most=0,
            least=0,
            note=f"{settled:,} nanos",
        ),
        Figure(
            name="ledger − (tally + expectations of what expired)",
            value=total.cost_nanos - (settled + partial + guessed),
            unit="nanos",
            most=0,
            least=0,
            note=f"{guessed:,} nanos by expectation",
        ),
    ]


def _is_right(booked: ResolvedReservation, call: Call | None) -> bool:
    """Tell whether a reservation is in the ledger as its worker knows it; one that was killed before it knew may only expire."""
    known, guessed = dict(booked.known).get(Unit.USD, 0), dict(booked.estimated).get(Unit.USD, 0)
    if call is None or not call.ceiling:
        return booked.resolution == "expired" and known == 0
    if booked.resolution == "settled":
        return call.cost == known + guessed
    if booked.resolution == "expired":
        return not call.settled and known + guessed == max(call.expected, known)
    return call.cost is None and known + guessed == 0


async def _against_counters(witness: Sark, tally: Tally, began_ms: int) -> list[Figure]:
    """Hold every counter of every period to the ledger, and every limit to what it allowed."""
    limits = await witness.limits.list(ROOT)
    lines = _lines(limits, began_ms, witness.clock.now_ms())
    every = [line for period in lines for line in period]
    held = sum(balance.held for balance in (await witness.store.balance(ROOT, every)).balances)
    wanted = list({line.counter: line for line in every if comparable(line)}.values())
    compared = await compare_lines(witness.store, witness.ledger, ROOT, wanted, clock=witness.clock)
    differ = [each for each in compared if each.drift]
    unsettled = sum(not each.settled for each in compared)
    over = await _over(witness, compared, tally)
    events = await witness.ledger.events(EventFilter(root=ROOT, kinds=(EventKind.THRESHOLD,)), 100_000)
    return [
        Figure(name="counters compared", value=len(compared), unit="", note=f"{len(limits)} limits, {len(_SCOPES)} scopes"),
        Figure(name="counters that differ from the ledger", value=len(differ) + unsettled, unit="", most=0, least=0),
        Figure(name="still held", value=held, unit="", most=0, least=0),
        Figure(
            name="limits over their amount, beyond counted overruns",
            value=len(over),
            unit="",
            most=0,
            least=0,
            note=", ".join(over[:2]),
        ),
        Figure(name="thresholds told", value=len(events), unit="", note="each event id once, by the ledger's unique key"),
    ]


def _lines(limits: tuple[Limit, ...], began_ms: int, until_ms: int) -> list[tuple[Line, ...]]:
    """Lay all limits out on all scopes at an instant of each minute of the run: every period is among them."""
    instants = [*range(began_ms, until_ms, 60_000), until_ms]
    return [lines_for(limits, _SCOPES, at_ms) for at_ms in instants]


async def _over(witness: Sark, compared: list[Comparison], tally: Tally) -> list[str]:
    """Name the counters above the most that they ever allowed, and the runs of periods above all that those were given."""
    history = await witness.ledger.events(EventFilter(root=ROOT, kinds=(EventKind.TOP_UP, EventKind.OVERRIDE)), 1_000_000)
    top_ups: dict[str, int] = defaultdict(int)
    overrides: dict[str, int] = defaultdict(int)
    for event in (each.event for each in history):
        if event.kind == EventKind.TOP_UP:
            top_ups[event.counter] += event.amount or 0
        else:
            overrides[event.counter] = max(overrides[event.counter], event.amount or 0)
    over = []
    chains: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for each in compared:
        line, limit = each.balance.line, each.balance.line.limit
        if limit is None or not line.enforce:
            continue
        base = base_of(line.counter)
        amount = max(limit.amount_units, overrides[base]) + top_ups[line.counter] + _beyond(line, tally)
        chains[base].append((line.ordinal, each.balance.spent, amount))
        if each.balance.spent > amount + line.carry_cap:
            over.append(line.counter)
    for base, periods in chains.items():
        periods.sort()
        # From the first period on nothing was carried in: the run together may use what it was given together.
        for n in range(len(periods)):
            used, given = (sum(period[field] for period in periods[: n + 1]) for field in (1, 2))
            if used > given:
                over.append(base)
                break
    return over


def _beyond(line: Line, tally: Tally) -> int:
    """Sum what calls of this counter cost above their holds, or after those had expired: booked in full, and counted."""
    if line.unit != Unit.USD:
        return 0
    touching = (
        call
        for call in tally.calls.values()
        if line.scope in call.scopes and line.starts_ms <= call.made_ms < (line.ends_ms or call.made_ms + 1)
    )
    return sum(max((call.cost or 0) - (call.expected if call.late else call.ceiling), 0) for call in touching)
