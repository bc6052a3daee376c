"""Several processes, real servers, and their deaths: at the end the workers' tally, the counters and the ledger are one."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from sark_mw.ledger.base import CostFilter
from sark_mw.sark import Sark
from tests.enforcement.whole import assert_balanced, counted, settings_for, until
from tests.servers.fixtures import FreshValkey, RunProcess
from tests.servers.postgres import ExternalPostgres, PostgresServer
from tests.servers.process import ServerProcess
from tests.servers.redis_server import RedisHandle

CENT = 10_000_000
ROOT = Path(__file__).parents[2]


class Crew:
    """Worker processes that share a store and a ledger, and a witness in this process that looks at the books."""

    def __init__(self, run: RunProcess, folder: Path, url: str, **changes: Any) -> None:
        self._run, self.folder = run, folder
        self.settings = settings_for(url, folder, **changes)
        self._names: list[str] = []

    def start(self, mode: str, name: str) -> ServerProcess:
        """Start a worker and return when it is ready."""
        text = self.settings.model_dump_json(include={"store", "ledger", "reservation", "observe", "limits"})
        sections = json.loads(text)
        sections["ledger"]["url"] = self.settings.ledger.url.get_secret_value()
        self._names.append(name)
        return self._run(
            sys.executable,
            "-m",
            "tests.faults.worker",
            mode,
            name,
            self.folder,
            json.dumps(sections),
            ready=(self.folder / f"{name}.ready").exists,
            environment={"PYTHONPATH": str(ROOT)},
        )

    def say(self, word: str) -> None:
        """Tell all workers something."""
        (self.folder / word).touch()

    async def tally(self) -> dict[str, int]:
        """Wait for every worker's own count, and add them up."""
        files = [self.folder / f"{name}.json" for name in self._names]
        await until(lambda: _all(path.exists() for path in files))
        counts = [json.loads(path.read_text()) for path in files]
        return {key: sum(count[key] for count in counts) for key in counts[0]}

    async def progress(self, more: int) -> None:
        """Return when every worker has done so many calls more."""
        goals = {name: self._done(name) + more for name in self._names}
        await until(lambda: _all(self._done(name) >= goal for name, goal in goals.items()))

    def _done(self, name: str) -> int:
        path = self.folder / f"{name}.progress"
        return int(path.read_text()) if path.exists() else 0


async def _all(conditions: Any) -> bool:
    return all(conditions)


async def test_two_processes_with_two_hundred_calls_each_on_a_budget_for_fifty_admit_exactly_fifty(
    valkey_server: RedisHandle, run_process: RunProcess, tmp_path: Path
) -> None:
    crew = Crew(run_process, tmp_path, valkey_server.url, budget="0.50", store={"deadline_ms": 20_000})
    for name in ("one", "two"):
        await asyncio.to_thread(crew.start, "burst", name)
    crew.say("go")
    assert await crew.tally() == {"booked": 50, "refused": 350, "unavailable": 0}
    async with Sark.open(crew.settings) as witness:
        await assert_balanced(witness, 50 * CENT)


@pytest.mark.parametrize("mode", ["deny", "allow"])
async def test_fifty_calls_of_a_killed_process_are_booked_once_at_their_expectation(
    fresh_valkey: FreshValkey, run_process: RunProcess, tmp_path: Path, mode: str
) -> None:
    server = fresh_valkey(appendfsync="always")
    crew = Crew(
        run_process,
        tmp_path,
        server.url,
        budget="100",
        store={"deadline_ms": 300, "on_store_failure": mode, "breaker_failures": 1_000_000},
        reservation={"lease_s": 1, "sweep_interval_ms": 20},
    )
    worker = await asyncio.to_thread(crew.start, "hang", "one")
    if mode == "allow":
        server.kill()
    crew.say("go")
    await until(lambda: _all([(tmp_path / "one.holding").exists()]))
    worker.end(signal.SIGKILL)
    if mode == "allow":
        server.start()
    async with Sark.open(crew.settings) as witness:

        async def booked() -> bool:
            await witness.upkeep.book_journal()
            return await counted(witness) == (50 * CENT, 0)

        await until(booked)
        await assert_balanced(witness, 50 * CENT)
        total = await witness.ledger.total(CostFilter(scope="team:ml"))
        assert (total.cost_nanos, total.requests) == (50 * CENT, 50)
    assert [*tmp_path.glob("journal.*")] == []


async def test_redis_paused_restarted_and_flushed_of_scripts_under_traffic_leaves_the_books_balanced(
    fresh_valkey: FreshValkey, run_process: RunProcess, tmp_path: Path
) -> None:
    server = fresh_valkey(appendfsync="always")
    store = {"deadline_ms": 300, "breaker_cooldown_ms": 50}
    crew = Crew(run_process, tmp_path, server.url, budget="1000000", store=store)
    for name in ("one", "two"):
        await asyncio.to_thread(crew.start, "steady", name)
    await crew.progress(50)
    server.command("SCRIPT", "FLUSH", "SYNC")
    await crew.progress(50)
    server.pause()
    await asyncio.sleep(0.5)
    server.resume()
    await crew.progress(50)
    await asyncio.to_thread(server.restart)
    await crew.progress(50)
    crew.say("stop")
    tally = await crew.tally()
    assert tally["refused"] == 0
    async with Sark.open(crew.settings) as witness:
        await assert_balanced(witness, tally["booked"] * CENT)


async def test_a_database_stopped_under_traffic_loses_and_doubles_nothing(
    valkey_server: RedisHandle,
    postgres_server: PostgresServer | ExternalPostgres,
    postgres_url: str,
    run_process: RunProcess,
    tmp_path: Path,
) -> None:
    if isinstance(postgres_server, ExternalPostgres):
        pytest.skip("an external database cannot be stopped")
    ledger = {"url": postgres_url, "deadline_ms": 1000}
    crew = Crew(run_process, tmp_path, valkey_server.url, budget="1000000", ledger=ledger)
    for name in ("one", "two"):
        await asyncio.to_thread(crew.start, "steady", name)
    await crew.progress(50)
    await asyncio.to_thread(postgres_server.kill)
    await crew.progress(100)
    await asyncio.to_thread(postgres_server.start)
    await crew.progress(50)
    crew.say("stop")
    tally = await crew.tally()
    assert (tally["refused"], tally["unavailable"]) == (0, 0)
    async with Sark.open(crew.settings) as witness:
        await assert_balanced(witness, tally["booked"] * CENT)
