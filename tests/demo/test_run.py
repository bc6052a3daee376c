"""The demo as a person runs it: what it prints, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

DEMO = [sys.executable, "-m", "sark_mw.demo"]


@pytest.fixture
def left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory in which the demo makes its temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_callers_spend_their_budgets_and_ledger_counters_and_bill_are_one_sum(left_behind: Path) -> None:
    ran = subprocess.run([*DEMO, "--json"], capture_output=True, text=True, timeout=180, check=False)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["overspend"] == 0
    assert report["ledger_equals_counters"] and report["ledger_equals_bill"]
    assert report["peak_in_flight"] >= 50
    assert report["streams"] > 0
    assert report["retried"] == 0
    assert set(report["errors"]) >= {"openai.APIStatusError", "anthropic.PaymentRequiredError"}
    rows = {row["scope"]: row for row in report["rows"]}
    shared = rows["team:research"]
    assert all(rows[user]["refused"] > 0 for user in ("user:alice", "user:bob", "user:carol", "user:dave", "user:erin"))
    assert shared["spent"] == sum(rows[user]["spent"] for user in ("user:alice", "user:bob", "user:carol"))
    assert {each["principal"]: each["ledger"] for each in report["accounts"]}["user:dave"] == rows["user:dave"]["spent"]
    assert not list(left_behind.iterdir())


def test_serving_answers_both_dialects_and_metrics_until_interrupted(left_behind: Path) -> None:
    serving = subprocess.Popen([*DEMO, "--serve"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert serving.stdout is not None and serving.stderr is not None
        lines: list[str] = []
        while not any("Official clients" in line for line in lines):
            lines.append(serving.stdout.readline())
            assert lines[-1], serving.stderr.read()
        named = dict(line.split() for line in lines if line.startswith(("  gateway ", "  metrics ")))
        hello = {"max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}
        with httpx2.Client(trust_env=False) as client:
            chat = client.post(
                f"{named['gateway']}/v1/chat/completions",
                json={"model": "gpt-4o", **hello},
                headers={"authorization": "Bearer demo-key-alice"},
            )
            refused = client.post(
                f"{named['gateway']}/v1/messages",
                json={"model": "claude-sonnet-4-5", **hello, "max_tokens": 60_000},
                headers={"x-api-key": "demo-key-bob"},
            )
            stranger = client.post(f"{named['gateway']}/v1/messages", json=hello, headers={"x-api-key": "nobody"})
            metrics = client.get(named["metrics"])
        assert chat.status_code == 200 and float(chat.headers["x-sark-cost"]) > 0
        assert refused.status_code == 402 and refused.json()["error"]["type"] == "billing_error"
        assert stranger.status_code == 401
        assert "sark_requests_total" in metrics.text
        serving.send_signal(signal.SIGINT)
        _, complaints = serving.communicate(timeout=30)
        assert serving.returncode == 0
        assert complaints == ""
    finally:
        serving.kill()
        serving.wait()
    assert not list(left_behind.iterdir())


def test_interrupting_it_midway_ends_quietly_and_takes_its_processes_along(left_behind: Path) -> None:
    running = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert running.stdout is not None
        while line := running.stdout.readline():
            if "in flight" in line and " 0 admitted" not in line:
                break
        children = _children(running.pid)
        os.killpg(running.pid, signal.SIGINT)
        _, complaints = running.communicate(timeout=40)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert complaints == ""
    assert len(children) == 2
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not list(left_behind.iterdir())


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
