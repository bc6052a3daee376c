"""The commands that end: what they print, what they change, and how they refuse."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sark_mw.instrumentation.keys import hash_key
from sark_mw.ledger.base import LedgerEntry
from sark_mw.ledger.sqlite import SqliteLedger
from tests.cli.running import SARK, SECRET, answers, printed, sark
from tests.servers.fixtures import FreshValkey, RunProcess
from tests.servers.redis_server import RedisHandle

NOON = 1_782_043_200_000  # 2026-06-21 12:00 UTC


def settings_file(directory: Path, *, store: str = "memory://", ledger: str = "", extra: str = "") -> Path:
    path = directory / "sark.toml"
    ledger = ledger or f"sqlite:///{directory}/ledger.db"
    path.write_text(
        f'[store]\nurl = "{store}"\njournal = "{directory}/j.jsonl"\ndeadline_ms = 20_000\n[ledger]\nurl = "{ledger}"\n{extra}'
    )
    return path


def entry(number: int, **changes: Any) -> LedgerEntry:
    fields: dict[str, Any] = {
        "reservation_id": f"r{number}",
        "part": 1,
        "kind": "settle",
        "root": "default",
        "shard": 0,
        "shard_seq": number,
        "epoch": "e",
        "reserved_ms": NOON,
        "booked_ms": NOON,
        "cost_nanos": 1,
        "requests": 1,
        "tokens": 10,
        "estimated": False,
        "late": False,
        **changes,
    }
    return LedgerEntry(**fields)


# --- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("serve",), "needs an upstream"),
        (("serve", "--upstream", "ftp://x"), "write URL, /prefix=URL or strip:/prefix=URL"),
        (("serve", "--upstream", "http://127.0.0.1:9", "--workers", "2"), "memory:// lives in one process"),
        (("serve", "--config", "absent.toml"), "absent.toml"),
        (("flush",), "memory:// lives in the gateway's process"),
        (("limits", "list"), "write them into its settings"),
        (("limits", "set", "team:ml", "ten"), "not an amount"),
        (("limits", "set", "nonsense", "10"), "kind:name"),
        (("report", "--since", "yesterday"), "2026-11-01"),
        (("report", "--timezone", "Mars/Olympus"), "Mars/Olympus"),
        (("report",), "does not outlive it: there is nothing to report from"),
        (("migrate",), "does not outlive it: there is nothing to migrate"),
        (("doctor", "--model", "x", "--provider", "nobody"), "no estimator for provider"),
    ],
)
def test_what_is_configured_wrongly_is_said_in_one_line_with_exit_code_2(
    words: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    done = sark(*words, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("sark-mw: ") and complaint in line
    assert done.stdout == ""


def test_a_shared_store_with_a_ledger_in_memory_is_refused_for_several_workers(tmp_path: Path) -> None:
    config = settings_file(tmp_path, store=f"embedded:///{tmp_path}/store", ledger="sqlite:///:memory:")
    done = sark("serve", "-c", config, "--upstream", "http://127.0.0.1:9", "--workers", "2")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "one process's ledger" in done.stderr


def test_a_shared_store_is_never_flushed_into_the_memory_of_a_command(tmp_path: Path) -> None:
    done = sark("flush", "--once", "-c", settings_file(tmp_path, store="redis://127.0.0.1:1", ledger="sqlite:///:memory:"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "is lost when this process ends" in done.stderr


def test_a_store_that_is_away_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    config = settings_file(tmp_path, store=f"unix://{tmp_path}/nobody.sock")
    done = sark("limits", "list", "-c", config)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("sark-mw: the store")


def test_a_base_installation_says_what_to_install(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['typer'] = None; from sark_mw.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'sark-mw[serve]'" in done.stderr and "Traceback" not in done.stderr


# --- secrets -----------------------------------------------------------------------------------------------------------


def test_a_key_is_read_from_stdin_and_hashed_as_the_middleware_does() -> None:
    done = sark("hash-key", stdin="sk-live-123\n", **SECRET)
    secret = SECRET["SARK_PRINCIPAL__KEY_SECRET"].encode()
    assert done.stdout == hash_key(secret, "sk-live-123") + "\n"
    assert "sk-live-123" not in done.stdout + done.stderr


def test_a_key_is_never_taken_from_the_command_line() -> None:
    done = sark("hash-key", "sk-live-123", **SECRET)
    assert done.returncode == 2 and "extra argument" in done.stderr


def test_no_key_is_an_error_and_a_missing_secret_a_warning() -> None:
    assert sark("hash-key", **SECRET).returncode == 2
    done = sark("hash-key", stdin="sk-1\n")
    assert done.returncode == 0 and "key_secret is not set" in done.stderr


def test_config_shows_what_is_in_force_and_no_secret() -> None:
    environment = {
        **SECRET,
        "SARK_STORE__URL": "redis://me:hush@one@cache:6379/0",
        "SARK_LEDGER__URL": "postgresql://sark:hush@db/sark?sslpassword=hush",
    }
    done = sark("config", **environment)
    shown = json.loads(done.stdout)
    assert shown["store"]["url"] == "redis://me:***@cache:6379/0"
    assert shown["ledger"]["url"] == "postgresql://sark:***@db/sark?sslpassword=***"
    assert "hush" not in done.stdout and SECRET["SARK_PRINCIPAL__KEY_SECRET"] not in done.stdout


# --- limits ------------------------------------------------------------------------------------------------------------


def test_limits_are_set_listed_and_dropped_in_the_running_store(tmp_path: Path, valkey_server: RedisHandle) -> None:
    config = settings_file(tmp_path, store=valkey_server.url)
    assert (
        sark("limits", "set", "team:ml", "50", "--timezone", "Europe/Berlin", "-c", config).stdout
        == "team:ml/usd/day@Europe/Berlin\n"
    )
    assert sark("limits", "set", "user:*", "100", "--unit", "requests", "--window", "rolling:60", "-c", config).returncode == 0
    listed = printed("limits", "list", "--json", "-c", config)
    assert [(limit["limit_id"], limit["amount"]) for limit in listed] == [
        ("team:ml/usd/day@Europe/Berlin", "50"),
        ("user:*/requests/rolling:60", "100"),
    ]
    dropped = sark("limits", "drop", "user:*/requests/rolling:60", "-c", config)
    assert dropped.stdout == "dropped user:*/requests/rolling:60, which was 100 requests (enforce)\n"
    table = sark("limits", "list", "-c", config).stdout
    assert "team:ml" in table and "user:*" not in table
    unknown = sark("limits", "drop", "user:*/requests/rolling:60", "-c", config)
    assert unknown.returncode == 2 and "there is no limit" in unknown.stderr


def test_limits_of_a_store_in_memory_are_kept_for_the_gateways_next_start(tmp_path: Path) -> None:
    config = settings_file(tmp_path)
    done = sark("limits", "set", "team:ml", "50", "-c", config)
    assert done.returncode == 0 and "from its next start" in done.stderr
    assert [limit["amount"] for limit in printed("limits", "list", "--json", "-c", config)] == ["50"]


# --- the ledger --------------------------------------------------------------------------------------------------------


def test_migrating_says_what_it_did_and_the_second_time_that_nothing_was_to_do(tmp_path: Path, postgres_url: str) -> None:
    config = settings_file(tmp_path, ledger=postgres_url)
    assert "postgres/0001_cost_tracking" in sark("migrate", "-c", config).stdout
    assert sark("migrate", "-c", config).stdout == "nothing to do: the schema is up to date\n"


async def test_a_report_adds_up_by_anything_and_by_the_days_of_a_zone(tmp_path: Path) -> None:
    config = settings_file(tmp_path)
    ledger = SqliteLedger(f"sqlite:///{tmp_path}/ledger.db")
    await ledger.migrate()
    hour = 3_600_000
    await ledger.append(
        [
            entry(1, principal_id="user:a", model="gpt-4o", cost_nanos=1_500_000_000, scopes=("team:ml",)),
            entry(2, principal_id="user:b", model="gpt-4o", cost_nanos=20),
            # 23:00 in UTC is the next day in Berlin.
            entry(3, principal_id="user:b", model="claude", cost_nanos=250_000_000, reserved_ms=NOON + 11 * hour),
            entry(4, principal_id="user:b", model="claude", cost_nanos=9_000_000_000, reserved_ms=NOON + 40 * 24 * hour),
        ]
    )
    await ledger.aclose()
    span = ("--since", "2026-06-01", "--until", "2026-06-30", "--json", "-c", config)
    by_principal = printed("report", *span)
    assert by_principal["usd"] == "1.75000002"
    assert by_principal["groups"] == [{"principal": "user:a", "usd": "1.50"}, {"principal": "user:b", "usd": "0.25000002"}]
    assert printed("report", "--by", "model", "--principal", "user:b", *span)["groups"] == [
        {"model": "claude", "usd": "0.25"},
        {"model": "gpt-4o", "usd": "0.00000002"},
    ]
    assert [group["day"] for group in printed("report", "--by", "day", *span)["groups"]] == ["2026-06-21"]
    berlin = printed("report", "--by", "day", "--timezone", "Europe/Berlin", *span)
    assert berlin["groups"] == [{"day": "2026-06-21", "usd": "1.50000002"}, {"day": "2026-06-22", "usd": "0.25"}]
    assert printed("report", "--scope", "team:ml", *span)["requests"] == 1
    table = sark("report", "--since", "2026-06-01", "--until", "2026-06-30", "-c", config).stdout
    assert table.splitlines()[-2].split() == ["total", "1.75000002"]


def test_a_flusher_of_its_own_drains_the_outbox_at_sigterm(
    tmp_path: Path, fresh_valkey: FreshValkey, run_process: RunProcess, free_port: Any, stage: Any
) -> None:
    import httpx2

    server = fresh_valkey(tcp=True)
    stage.settings(store=f"{server.url}/0")
    # The gateway leaves flushing to the other process, which begins with a pause longer than the test.
    gateway, url = stage.gateway(SARK_LEDGER__FLUSH="false")
    port = free_port()
    flusher = run_process(
        *(SARK, "flush", "-c", stage.config, "--metrics-port", str(port)),
        ready=lambda: answers(f"http://127.0.0.1:{port}/"),
        environment={"SARK_LEDGER__FLUSH_INTERVAL_MS": "600000"},
    )
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    for _ in range(3):
        assert httpx2.post(f"{url}/v1/chat/completions", json=body, headers={"authorization": "Bearer k"}).status_code == 200
    assert "sark_outbox_entries" in httpx2.get(f"http://127.0.0.1:{port}/").text
    gateway.end(signal.SIGTERM)
    assert stage.report()["requests"] == 0
    flusher.end(signal.SIGTERM)
    assert "3 entries flushed, 3 of them new, 0 rejected, 0 left" in flusher.output
    assert stage.report()["requests"] == 3


def test_flushing_once_ends_by_itself(tmp_path: Path, valkey_server: RedisHandle) -> None:
    config = settings_file(tmp_path, store=valkey_server.url)
    sark("migrate", "-c", config)
    done = sark("flush", "--once", "-c", config)
    assert (done.returncode, done.stdout) == (0, "0 entries flushed, 0 of them new, 0 rejected, 0 left\n")
