"""Each benchmark runs at its smallest and says what it promises to say; how fast it was is nobody's business here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import figures
from benchmarks.__main__ import main
from benchmarks.figures import Figure
from benchmarks.replay import read_trace
from tests.servers.lookup import unavailable, valkey_binary

_SAID = {
    "estimate": {"chat, 20 words, p99", "ours ÷ genai-prices"},
    "plugin": {"the same through the manager, p99", "business_hours, p99", "rate_limit, p99", "cost_aware, p99"},
    "plugin_tiers": {"a rule in CEL, p99", "the cost policy in Rego, p99", "a WebAssembly guest, p99", "OPA over HTTP, p99"},
    "plugin_isolation": {
        "one call at a time, p50",
        "one call ÷ a byte there and back, p50",
        "decisions per second and worker, 64 at once",
        "stateless, a process per request, p50",
        "storm ÷ calm, p99",
    },
    "reserve": {
        "Valkey, one at a time, p99",
        "memory://, 64 at once, p99",
        "store ÷ single evalsha",
        "server, per reservation, one principal",
        "server, per reservation, 64 distinct users and keys",
        "server, per limit more, one principal",
    },
    "settle": {"slow settle ÷ usual settle, p50", "server, per settle among 64, p50"},
    "overhead": {"Valkey, 1 in flight: p50, wrapped ÷ bare", "memory://, 64 in flight: throughput, wrapped ÷ bare"},
    "summary": {"SQLite, a principal's day, p50", "SQLite, everybody's 30 days, by model, p50"},
    "overspend": {"2 processes × 200 calls, budget for 50: passed", "2 processes × 200 calls, budget for 50: overspend"},
    "replay": {"admitted", "refused", "overspend", "booked above their holds", "counter − ledger"},
    "limits": {
        "commands per reserve on 12 limits",
        "plain, alone: per limit more",
        "top-ups in the shard, alone: per limit more",
        "rollover, alone: per limit more",
        "settle, with thresholds, alone: per limit more ÷ an empty evalsha",
    },
    "soak": {
        "admitted",
        "reservations that differ from the tally",
        "ledger − (tally + expectations of what expired)",
        "counters that differ from the ledger",
        "still held",
        "limits over their amount, beyond counted overruns",
    },
}
_TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "".join(
    f"2023-11-16 18:{15 + n // 60:02d}:{n % 60:02d}.6805900,{300 + 40 * n},{20 + 7 * n}\r\n" for n in range(60)
)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep results of tests away from those of people."""
    monkeypatch.setattr(figures, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Return a trace of a call a second."""
    path = tmp_path / "trace.csv"
    path.write_text(_TRACE, "utf-8", newline="")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", _SAID)
def test_a_benchmark_runs_and_keeps_its_figures(name: str, results: Path, trace: Path) -> None:
    if valkey_binary() is None and name not in ("estimate", "summary"):
        unavailable("no Valkey")
    assert main([name, "--tiny", "--path", str(trace), "--speed", "60"]) == 0
    kept = json.loads((results / f"{name}.json").read_text())
    found = {figure["name"]: figure for figure in kept["figures"]}
    assert set(found) >= _SAID[name]
    exact = [figure for figure in found.values() if figure["most"] is not None and figure["most"] == figure["least"]]
    assert all(figure["met"] for figure in exact), exact


def test_a_trace_is_read_up_to_the_minutes_that_are_asked_for(trace: Path) -> None:
    assert len(read_trace(trace, 10)) == 60
    first_half = read_trace(trace, 0.5)
    assert [arrival.at_s for arrival in first_half] == [float(n) for n in range(31)]
    assert (first_half[3].tokens_in, first_half[3].tokens_out) == (420, 41)


@pytest.mark.parametrize(
    ("bounds", "met"),
    [({}, None), ({"most": 5}, True), ({"most": 4}, False), ({"least": 6}, False), ({"most": 5, "least": 5}, True)],
)
def test_a_figure_knows_whether_it_meets_its_target(bounds: dict[str, float], met: bool | None) -> None:
    assert Figure(name="x", value=5, unit="ms", **bounds).met is met
