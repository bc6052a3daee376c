"""Processes of the command line: the gateway and its fake provider, as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.servers.fixtures import RunProcess
from tests.servers.process import ServerProcess

SARK = Path(sys.executable).with_name("sark-mw")
SECRET = {"SARK_PRINCIPAL__KEY_SECRET": "a secret of the tests, long enough"}


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=1).status_code < 500
    except httpx2.HTTPError:
        return False


def sark(*words: str | Path, stdin: str = "", cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SARK_")}
    return subprocess.run(
        [SARK, *words],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=60,
        env={**clean, **environment},
    )


def printed(*words: str | Path, **environment: str) -> Any:
    """Run a command that prints JSON and must succeed."""
    done = sark(*words, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(kw_only=True)
class Stage:
    """A fake provider, and gateways in front of it that share one settings file."""

    run: RunProcess
    free_port: Any
    directory: Path
    provider_url: str
    config: Path = field(init=False)
    gateways: list[ServerProcess] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.config = self.directory / "sark.toml"

    def settings(self, extra: str = "", *, store: str | None = None, ledger: str | None = None) -> None:
        """Write the settings file: by default on an embedded store and SQLite."""
        self.config.write_text(
            f"""
            [store]
            url = "{store or f"embedded:///{self.directory}/store"}"
            journal = "{self.directory}/journal.jsonl"
            deadline_ms = 5000
            [ledger]
            url = "{ledger or f"sqlite:///{self.directory}/ledger.db"}"
            flush_interval_ms = 50
            [principal]
            default_scopes = ["org:acme"]
            [serve]
            upstreams = [{{url = "{self.provider_url}"}}]
            {extra}
            """
        )

    def gateway(self, *words: str, **environment: str) -> tuple[ServerProcess, str]:
        """Start a gateway; return it and its address."""
        port = self.free_port()
        url = f"http://127.0.0.1:{port}"
        process = self.run(
            *(SARK, "serve", "--config", self.config, "--port", str(port), *words),
            ready=lambda: answers(url + "/readyz"),
            environment={**SECRET, **environment},
        )
        self.gateways.append(process)
        return process, url

    def close(self) -> None:
        """Ask the gateways to go: the last one takes the embedded store along, which outlives those that are killed."""
        for process in self.gateways:
            process.end(signal.SIGTERM)

    def report(self, *words: str) -> Any:
        """What the ledger says, by the command line."""
        return printed("report", "--config", self.config, "--json", *words)
