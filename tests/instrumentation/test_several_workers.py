"""Two real processes, one page: what `/metrics` of either worker shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.instrumentation.scraping import samples

ROOT = Path(__file__).parents[2]


class Worker:
    def __init__(self, directory: Path) -> None:
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.instrumentation.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def _say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def work(self, requests: int, backlog: int) -> None:
        self._say(f"work {requests} {backlog}")
        assert self._line() == "done"

    def scrape(self) -> dict[str, float]:
        self._say("scrape")
        return samples("\n".join(iter(self._line, "# END")) + "\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[Worker, Worker]]:
    one = Worker(tmp_path)
    other = Worker(tmp_path)
    yield one, other
    one.close()
    other.close()


REQUESTS = "sark_requests_total{operation=chat,outcome=admitted,provider=,status=2xx,wire=openai}"


def test_either_worker_answers_for_both(workers: tuple[Worker, Worker]) -> None:
    one, other = workers
    one.work(3, backlog=1)
    other.work(4, backlog=5)
    for got in (one.scrape(), other.scrape()):
        assert got[REQUESTS] == 7
        assert got["sark_spend_nanos_total{model=,provider=}"] == 70
        assert got["sark_settle_seconds_count{kind=settle,outcome=settled}"] == 7
        assert got["sark_settle_seconds_bucket{kind=settle,le=0.005,outcome=settled}"] == 7
        assert got["sark_held_nanos"] == 700, "holds of both add up"
        assert got["sark_outbox_entries"] == 5, "the backlog is one thing: the latest measurement counts"
        assert got["sark_breaker_state{breaker=store}"] == 2, "the worst breaker shows"


def test_a_killed_worker_holds_nothing_any_more_but_its_counts_stay(workers: tuple[Worker, Worker]) -> None:
    one, other = workers
    one.work(3, backlog=1)
    other.work(4, backlog=5)
    other.kill()
    got = one.scrape()
    assert got[REQUESTS] == 7
    assert got["sark_held_nanos"] == 300
    assert got["sark_outbox_entries"] == 1
