"""A provider to drive, and settings to drive it with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.running import SARK, Stage, answers
from tests.servers.fixtures import RunProcess


@pytest.fixture
def stage(run_process: RunProcess, free_port: Callable[[], int], tmp_path: Path) -> Iterator[Stage]:
    """A fake provider that answers at once, run by the command line."""
    with contextlib.closing(make_stage(run_process, free_port, tmp_path)) as stage:
        yield stage


@pytest.fixture
def slow_stage(run_process: RunProcess, free_port: Callable[[], int], tmp_path: Path) -> Iterator[Stage]:
    """A fake provider whose streams take a second or more."""
    with contextlib.closing(make_stage(run_process, free_port, tmp_path, "--chunk", "0.2")) as stage:
        yield stage


def make_stage(run: RunProcess, free_port: Callable[[], int], directory: Path, *words: str) -> Stage:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    latency = words or ("--chunk", "0")
    run(SARK, "fake-provider", "--port", str(port), "--ttft", "0", *latency, ready=lambda: answers(url))
    stage = Stage(run=run, free_port=free_port, directory=directory, provider_url=url)
    stage.settings()
    return stage
