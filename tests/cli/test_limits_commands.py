"""`sark-mw limits` and `reconcile`: what they set, show, take from files and write to them, and how they refuse."""

from __future__ import annotations

import asyncio
import getpass
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import pytest

from sark_mw.limit_documents import read_limits
from sark_mw.sark import Sark
from sark_mw.settings import Settings
from tests.cli.running import printed, sark
from tests.cli.test_commands import settings_file
from tests.servers.redis_server import RedisHandle

Found = TypeVar("Found")

FILE = """
[[limits]]
scope = "org:acme"
amount = 1000.10
window = "month:15"
timezone = "Europe/Berlin"
overcommit = true

[[limits]]
scope = "team:ml"
amount = "400"
window = "month:15"
timezone = "Europe/Berlin"
parent = "org:acme"
thresholds = [50, 90]
rollover = "12.5"

[[limits]]
scope = "user:*"
unit = "requests"
amount = 60
window = "rolling:1m"
mode = "shadow"

[[limits]]
scope = 'user:"quoted\\back'
amount = 0.000000001
root = "other"
"""


@pytest.fixture
def config(tmp_path: Path, valkey_server: RedisHandle) -> Path:
    return settings_file(tmp_path, store=valkey_server.url, extra="[observe]\nmetrics = false\naudit_log = false\n")


@pytest.fixture
def limits_file(tmp_path: Path) -> Path:
    path = tmp_path / "limits.toml"
    path.write_text(FILE)
    return path


def run(config: Path, work: Callable[[Sark], Awaitable[Found]]) -> Found:
    """Work on the store and the ledger of a settings file, as a gateway does."""

    async def opened() -> Found:
        async with Sark.open(Settings.load(config)) as sark:
            return await work(sark)

    return asyncio.run(opened())


async def spend(sark: Sark) -> None:
    async with sark.reserve(principal="user:al", scopes=["team:ml"], estimate=Decimal(4)) as reservation:
        reservation.settle(Decimal("1.5"))
    while sark.settler.pending:
        await asyncio.sleep(0.001)


# --- set, get, delete, history ---------------------------------------------------------------------------------------


def test_every_field_of_a_limit_can_be_set_and_the_record_says_who_and_why(config: Path) -> None:
    words = ("--window", "month:15", "--timezone", "Europe/Berlin", "--mode", "soft", "--overcommit", "--rollover", "7.5")
    more = ("--threshold", "90", "--threshold", "50", "--reason", "new year")
    done = printed("limits", "set", "org:acme", "50", *words, *more, "--json", "-c", config)
    (added,) = done["added"]
    assert (added["window"], added["mode"], added["thresholds"], added["rollover"]) == ("month:15", "soft", [50, 90], "7.5")
    part = sark(
        "limits",
        "set",
        "team:ml",
        "5",
        "--window",
        "month:15",
        "--timezone",
        "Europe/Berlin",
        "--parent",
        "org:acme",
        "-c",
        config,
    )
    assert part.stdout == "team:ml/usd/month:15@Europe/Berlin\n"
    table = sark("limits", "list", "-c", config).stdout
    assert "part of org:acme" in table and "overcommits; tells at 50, 90 %; carries up to 7.5" in table
    (_, first) = printed("limits", "history", "--json", "-c", config)
    assert (first["actor"], first["reason"], first["kind"]) == (getpass.getuser(), "new year", "set")
    assert "new year" in sark("limits", "history", "--scope", "org:acme", "--kind", "set", "-c", config).stdout


def test_a_dry_run_shows_the_difference_and_changes_nothing(config: Path) -> None:
    sark("limits", "set", "team:ml", "50", "-c", config)
    changed = sark("limits", "set", "team:ml", "60", "--mode", "shadow", "--dry-run", "-c", config)
    assert changed.stdout.splitlines() == [
        "~ team:ml/usd/day@UTC amount 50 -> 60, mode enforce -> shadow",
        "0 added, 1 changed, 0 dropped, 0 unchanged",
    ]
    gone = sark("limits", "delete", "team:ml/usd/day@UTC", "--dry-run", "-c", config)
    assert gone.stdout.splitlines()[0] == "- team:ml/usd/day@UTC 50 usd (enforce)"
    assert [each["amount"] for each in printed("limits", "list", "--json", "-c", config)] == ["50"]
    assert len(printed("limits", "history", "--json", "-c", config)) == 1


@pytest.mark.parametrize("word", ["delete", "drop"])
def test_a_limit_is_deleted_by_either_name_with_a_record(config: Path, word: str) -> None:
    sark("limits", "set", "team:ml", "50", "-c", config)
    done = printed("limits", word, "team:ml/usd/day@UTC", "--actor", "jane", "--reason", "gone", "--json", "-c", config)
    assert [each["limit_id"] for each in done["dropped"]] == ["team:ml/usd/day@UTC"]
    newest = printed("limits", "history", "--json", "-c", config)[0]
    assert (newest["kind"], newest["actor"], newest["reason"]) == ("delete", "jane", "gone")


def test_get_shows_every_limit_that_a_scope_touches_with_what_is_left(config: Path) -> None:
    sark("limits", "set", "team:ml", "50", "--window", "total", "-c", config)
    sark("limits", "set", "user:*", "10", "--window", "total", "-c", config)
    run(config, spend)
    told = {each["scope"]: each for each in printed("limits", "get", "user:al", "team:ml", "--json", "-c", config)}
    assert (told["team:ml"]["spent"], told["team:ml"]["remaining"]) == ("1.50", "48.50")
    assert (told["user:al"]["limit_id"], told["user:al"]["remaining"]) == ("user:*/usd/total", "8.50")
    (line,) = sark("limits", "get", "user:al", "-c", config).stdout.splitlines()[2:]
    assert line.split() == ["user:*/usd/total", "user:al", "10.00", "1.50", "0.00", "8.50", "enforce", "never"]


# --- top-up and override ---------------------------------------------------------------------------------------------


def test_top_ups_add_up_and_the_same_id_counts_once(config: Path) -> None:
    sark("limits", "set", "team:ml", "50", "--window", "total", "-c", config)
    for _ in range(2):
        done = printed("limits", "top-up", "team:ml", "2.5", "--event-id", "inv-4", "--reason", "paid", "--json", "-c", config)
        assert (done["amount"], done["topped_up"]) == ("52.50", "2.50")
    less = sark("limits", "top-up", "-c", config, "team:ml", "--", "-0.5")
    assert less.stdout == "team:ml/usd/total allows team:ml 52.00 usd, 52.00 left\n"


def test_what_is_taken_away_needs_no_minus(config: Path) -> None:
    sark("limits", "set", "team:ml", "50", "--window", "total", "-c", config)
    less = sark("limits", "top-up", "team:ml", "--take", "0.5", "-c", config)
    assert less.stdout == "team:ml/usd/total allows team:ml 49.50 usd, 49.50 left\n"


def test_an_override_is_for_a_time_and_can_be_ended(config: Path) -> None:
    sark("limits", "set", "team:ml", "50", "--window", "total", "-c", config)
    done = printed("limits", "override", "team:ml", "80", "--for", "2h", "--json", "-c", config)
    assert done["amount"] == "80.00" and done["override_until"]
    history = printed("limits", "history", "--kind", "override", "--json", "-c", config)
    assert history[0]["until"] == done["override_until"]
    ended = printed("limits", "override", "team:ml", "--end", "--json", "-c", config)
    assert (ended["amount"], ended["override_until"]) == ("50.00", None)


def test_the_end_of_an_override_is_read_in_a_zone(config: Path) -> None:
    from datetime import UTC, datetime, timedelta

    sark("limits", "set", "team:ml", "50", "--window", "total", "-c", config)
    day = (datetime.now(UTC) + timedelta(days=3)).date()
    words = ("--until", f"{day}T00:00", "--timezone", "Asia/Kolkata", "--json")
    done = printed("limits", "override", "team:ml", "80", *words, "-c", config)
    assert done["override_until"] == f"{day - timedelta(days=1)}T18:30:00Z"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("override", "team:ml", "5"), "--until or --for"),
        (("override", "team:ml", "--for", "2h"), "--until or --for"),
        (("override", "team:ml", "5", "--end", "--for", "2h"), "--until or --for"),
        (("override", "team:ml", "5", "--for", "2 hours"), "90s, 30m, 2h or 7d"),
        (("override", "team:ml", "5", "--until", "soon"), "2026-12-01T00:00"),
        (("override", "team:ml", "5", "--until", "2020-01-01"), "end in the future"),
        (("top-up", "team:other", "5"), "no limit of root"),
        (("top-up", "team:ml", "many"), "not an amount"),
        (("top-up", "team:ml", "1e999999999"), "must not exceed"),
        (("top-up", "team:ml", "--", "-1e999999999"), "must not exceed"),
        (("top-up", "team:ml", "sNaN"), "not a finite amount"),
        (("override", "team:ml", "sNaN", "--for", "2h"), "not a finite amount"),
        (("top-up", "team:ml"), "--take AMOUNT"),
        (("top-up", "team:ml", "1", "--take", "1"), "--take AMOUNT"),
        (("top-up", "team:ml", "--take", "0"), "more than 0"),
        (("set", "team:ml", "--", "-1"), "sark-mw: amount: "),
        (("set", "team:ml", "5", "--timezone", "Mars/Olympus"), "timezone: "),
        (("set", "team:ml", "--", "-5"), "amount: "),
        (("delete", "team:none/usd/day@UTC"), "there is no limit"),
        (("import", "absent.toml"), "absent.toml"),
        (("import", "limits.yaml"), "--format toml or --format json"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_and_exit_code_2(config: Path, words: tuple[str, ...], complaint: str) -> None:
    sark("limits", "set", "team:ml", "50", "--window", "total", "-c", config)
    done = sark("limits", *words, SARK_CONFIG=str(config))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert complaint in line


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_imported_and_what_is_exported_is_imported_unchanged(config: Path, limits_file: Path, tmp_path: Path) -> None:
    done = sark("limits", "import", limits_file, "--reason", "from git", "-c", config)
    assert done.stdout.splitlines()[-1] == "4 added, 0 changed, 0 dropped, 0 unchanged"
    assert "+ other: user:" in done.stdout
    wanted = {(limit.root, limit.limit_id): limit for limit in read_limits(FILE, "toml")}
    for form in ("toml", "json"):
        path = tmp_path / f"exported.{form}"
        assert sark("limits", "export", path, "-c", config).returncode == 0
        again = read_limits(path.read_text("utf-8"), form)  # type: ignore[arg-type]
        assert {(limit.root, limit.limit_id): limit for limit in again} == wanted
        same = sark("limits", "import", path, "--prune", "--dry-run", "-c", config)
        assert (same.returncode, same.stdout) == (0, "0 added, 0 changed, 0 dropped, 4 unchanged\n")
        assert sark("limits", "export", "--format", form, "-c", config).stdout == path.read_text("utf-8")


def test_an_import_shows_the_difference_and_prunes_only_if_asked(config: Path) -> None:
    sark("limits", "set", "team:ml", "50", "-c", config)
    sark("limits", "set", "team:old", "5", "-c", config)
    text = json.dumps({"limits": [{"scope": "team:ml", "amount": 60}, {"scope": "team:new", "amount": "1"}]})
    words = ("limits", "import", "-", "--format", "json", "-c", config)
    lines = ["~ team:ml/usd/day@UTC amount 50 -> 60", "+ team:new/usd/day@UTC 1 usd (enforce)"]
    shown = sark(*words, "--dry-run", stdin=text)
    assert (shown.returncode, shown.stdout.splitlines()[:-1]) == (0, lines)
    pruned = sark(*words, "--dry-run", "--prune", stdin=text)
    assert pruned.stdout.splitlines() == [
        *lines,
        "- team:old/usd/day@UTC 5 usd (enforce)",
        "1 added, 1 changed, 1 dropped, 0 unchanged",
    ]
    done = sark(*words, "--prune", "--json", stdin=text)
    assert [each["scope"] for each in json.loads(done.stdout)["dropped"]] == ["team:old"]
    assert [each["scope"] for each in printed("limits", "list", "--json", "-c", config)] == ["team:ml", "team:new"]


@pytest.mark.parametrize(
    "text",
    [
        '{"limits": [{"scope": "user:z", "amount": "1"}], "limits": []}',
        '{"limits": [{"scope": "a:b", "amount": 1, "amount": 9}]}',
    ],
)
def test_a_json_file_that_names_something_twice_is_refused(config: Path, text: str) -> None:
    sark("limits", "set", "team:ml", "50", "-c", config)
    done = sark("limits", "import", "-", "--format", "json", "--prune", "-c", config, stdin=text)
    assert done.returncode == 2 and "named twice" in done.stderr
    assert [each["scope"] for each in printed("limits", "list", "--json", "-c", config)] == ["team:ml"]


@pytest.mark.parametrize("empty_file", [False, True])
def test_a_dry_run_makes_no_schema_and_no_file(tmp_path: Path, limits_file: Path, empty_file: bool) -> None:
    config, database = settings_file(tmp_path), tmp_path / "ledger.db"
    assert str(database) in config.read_text() and not database.exists()
    if empty_file:
        database.touch()
    done = sark("limits", "import", limits_file, "--dry-run", "-c", config)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "4 added, 0 changed, 0 dropped, 0 unchanged")
    assert sark("limits", "set", "team:ml", "1", "--dry-run", "-c", config).returncode == 0
    assert database.exists() == empty_file
    if empty_file:
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("select name from sqlite_master").fetchall() == []


def test_an_empty_file_with_prune_drops_all_of_the_root(config: Path) -> None:
    sark("limits", "set", "team:ml", "50", "-c", config)
    assert sark("limits", "export", "--root", "nobody", "-c", config).stdout == "limits = []\n"
    done = sark("limits", "import", "-", "--prune", "-c", config, stdin="limits = []\n")
    assert done.stdout.splitlines()[0] == "- team:ml/usd/day@UTC 50 usd (enforce)"
    assert printed("limits", "list", "--json", "-c", config) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[limits]]\nscope = "user:a"\namount = 1\ncolor = "red"', "limits[0].color: there is no such field"),
        ('[[limits]]\nscope = "user:a"\namount = -1', "limits[0].amount: "),
        ('[[limits]]\nscope = "user:a"\namount = 1\nthresholds = [true]', "limits[0].thresholds.0: "),
        ('[[limits]]\nscope = "user:a"', "limits[0].amount: "),
        (
            '[[limits]]\nscope = "a:b"\namount = 1\n[[limits]]\nscope = "user:a"\namount = 1\ntimezone = "X/Y"',
            "limits[1].timezone: ",
        ),
        (
            '[[limits]]\nscope = "a:b"\namount = 1\n[[limits]]\nscope = "a:b"\namount = 2',
            "limits[1]: limits the same as limits[0]",
        ),
        ('[[limits]]\nscope = "a:b"\namount = 1\nparent = "c:d"', "a:b/usd/day@UTC: its parent 'c:d' has no limit"),
        ('[[limits]]\nscope = "a:b"\namount = 1\n[store]\nurl = "x"', "store: only limits are read here"),
        ("[store]", "limits: a list of limits is expected"),
        ("[[limits]", "this is no TOML"),
    ],
)
def test_a_file_with_a_fault_is_refused_as_a_whole_and_says_where(config: Path, text: str, complaint: str) -> None:
    sark("limits", "set", "team:ml", "50", "-c", config)
    done = sark("limits", "import", "-", "--prune", "-c", config, stdin=text)
    assert done.returncode == 2 and complaint in done.stderr and len(done.stderr.splitlines()) == 1
    assert [each["scope"] for each in printed("limits", "list", "--json", "-c", config)] == ["team:ml"]


def test_with_a_store_in_memory_an_import_counts_from_the_gateways_next_start(tmp_path: Path, limits_file: Path) -> None:
    config = settings_file(tmp_path)
    done = sark("limits", "import", limits_file, "-c", config)
    assert done.returncode == 0 and "from its next start" in done.stderr
    assert len(printed("limits", "list", "--json", "-c", config)) == 3


# --- reconcile -------------------------------------------------------------------------------------------------------


def test_reconcile_tells_drift_by_its_exit_code_and_repairs_it(config: Path, valkey_server: RedisHandle) -> None:
    import redis

    sark("limits", "set", "team:ml", "50", "--window", "total", "-c", config)
    sark("limits", "set", "team:ml", "50", "--unit", "requests", "--window", "rolling:60", "-c", config)
    run(config, spend)
    done = sark("reconcile", "-c", config)
    assert done.returncode == 0, done.stderr
    assert "not compared: team:ml/requests/rolling:60" in done.stdout
    client = redis.Redis.from_url(valkey_server.url, decode_responses=True)
    (key,) = [key for key in client.scan_iter("*:spent") if client.hlen(key)]
    (counter,) = [name for name in client.hkeys(key) if "/usd/" in name]
    client.hincrby(key, counter, 250_000_000)
    drifted = sark("reconcile", "--drift-only", "-c", config)
    assert drifted.returncode == 1
    assert "team:ml/usd/total" in drifted.stdout and "DRIFT" in drifted.stdout and " 0.25 " in drifted.stdout
    (root,) = printed("reconcile", "--repair", "--reason", "test", "--json", "-c", config)
    assert [(each["drift"], each["repair"]) for each in root["counters"]] == [("0.25", "repaired")]
    assert client.hget(key, counter) == "1500000000"
    client.close()
    (event,) = printed("limits", "history", "--kind", "repair", "--json", "-c", config)
    assert (event["amount"], event["reason"], event["actor"]) == ("-0.25", "test", getpass.getuser())


def test_reconcile_flushes_what_no_gateway_has_flushed(config: Path) -> None:
    config.write_text(config.read_text().replace("[ledger]", "[ledger]\nflush = false"))
    sark("limits", "set", "team:ml", "50", "--window", "total", "-c", config)
    run(config, spend)
    assert printed("report", "--json", "-c", config)["requests"] == 0
    assert sark("reconcile", "-c", config).returncode == 0
    assert printed("report", "--json", "-c", config)["requests"] == 1


def test_reconcile_is_not_for_a_store_that_only_the_gateway_sees(tmp_path: Path) -> None:
    done = sark("reconcile", "-c", settings_file(tmp_path))
    assert done.returncode == 2 and "memory:// lives in the gateway's process" in done.stderr
