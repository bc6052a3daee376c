"""What the doctor says of real servers, healthy and ill; it changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.doctor import Examination, Question, Status, examine
from sark_mw.doctor.checks import clock
from sark_mw.doctor.ledger_checks import database_checks
from sark_mw.doctor.store_checks import server_checks
from sark_mw.errors import ConfigurationError
from sark_mw.ledger.inspect import DatabaseFacts
from sark_mw.limit import Limit
from sark_mw.sark import Sark
from sark_mw.settings import Settings, StoreSettings
from sark_mw.store.connect import open_store
from sark_mw.store.inspect import ServerFacts, server_facts
from tests.cli.running import sark
from tests.servers.cluster import ValkeyCluster
from tests.servers.fixtures import FreshValkey
from tests.servers.postgres import PostgresHandle
from tests.servers.redis_server import RedisHandle, RedisServer

DAY_MS = 86_400_000


def settings_for(directory: Path, store_url: str = "memory://", ledger_url: str = "", **sections: Mapping[str, Any]) -> Settings:
    fields: dict[str, Any] = {name: dict(section) for name, section in sections.items()}
    fields["store"] = {"url": store_url, "journal": directory / "journal.jsonl", "deadline_ms": 5_000, **fields.get("store", {})}
    fields["ledger"] = {"url": ledger_url or f"sqlite:///{directory}/ledger.db", **fields.get("ledger", {})}
    fields.setdefault("observe", {"audit_log": False, "metrics": False})
    return Settings(**fields)


def by_name(found: Examination) -> dict[str, Status]:
    return {check.name: check.status for check in found.checks}


def sentence(found: Examination, name: str) -> str:
    return next(check.sentence for check in found.checks if check.name == name)


@asynccontextmanager
async def begun(settings: Settings, *limits: Limit) -> AsyncIterator[Sark]:
    """A set-up that a gateway has started once."""
    async with Sark.open(settings) as opened:
        await opened.limits.set(*limits)
        yield opened


# --- healthy ---------------------------------------------------------------------------------------------------------


async def test_a_set_up_that_was_never_started_has_warnings_and_no_failure(tmp_path: Path) -> None:
    found = await examine(settings_for(tmp_path))
    assert not found.failed
    assert by_name(found)["migrations"] is Status.WARN and by_name(found)["limits"] is Status.WARN


async def test_a_running_set_up_on_valkey_and_postgresql_is_well(
    tmp_path: Path, fresh_valkey: FreshValkey, postgres_url: str
) -> None:
    settings = settings_for(tmp_path, fresh_valkey().url, postgres_url, principal={"key_secret": "x" * 32})
    async with begun(settings, Limit(scope="user:*", amount=Decimal(5)), Limit(scope="user:alice", amount=Decimal(9))):
        found = await examine(settings)
    assert {check.name: check.sentence for check in found.checks if check.status is not Status.OK} == {}
    assert by_name(found).keys() >= {
        "store",
        "server",
        "eviction",
        "append-only file",
        "replicas",
        "scripts",
        "data",
        "store clock",
    }
    assert by_name(found).keys() >= {
        "ledger",
        "migrations",
        "TimescaleDB",
        "database clock",
        "drift",
        "outbox",
        "prices",
        "tokenizer",
    }


async def test_an_examination_changes_nothing(
    tmp_path: Path, valkey_server: RedisHandle, postgres_url: str, postgres_server: PostgresHandle
) -> None:
    question = Question(model="gpt-4o")
    found = await examine(settings_for(tmp_path, valkey_server.url, postgres_url), question)
    assert by_name(found)["data"] is Status.WARN
    assert valkey_server.command("DBSIZE") == 0
    tables = "select count(*) from pg_tables where schemaname = 'public'"
    assert postgres_server.query(tables, dsn=postgres_url)[0][0] == 0
    assert list(tmp_path.glob("journal*")) == []


async def test_a_cluster_is_asked_on_every_master(valkey_cluster: ValkeyCluster) -> None:
    store = await open_store(f"redis+cluster{valkey_cluster.url[5:]}", deadline_s=5)
    facts = await server_facts(store)
    await store.aclose()
    verdicts = {check.name: check for check in server_checks(facts, StoreSettings())}
    assert verdicts["cluster slots"].sentence == "16384 of 16384 covered by 3 masters"
    assert {verdicts[name].status for name in ("server", "eviction", "cluster slots")} == {Status.OK}


async def test_the_oldest_supported_server_is_recent_enough(tmp_path: Path, redis62_server: RedisServer) -> None:
    found = await examine(settings_for(tmp_path, redis62_server.url))
    assert by_name(found)["server"] is Status.OK and sentence(found, "server").startswith("Redis 6.2")


# --- ill -------------------------------------------------------------------------------------------------------------


async def test_a_server_that_evicts_or_forgets_is_found_out(tmp_path: Path, fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey(appendonly=False, maxmemory_policy="allkeys-lru")
    found = await examine(settings_for(tmp_path, server.url))
    assert (by_name(found)["eviction"], by_name(found)["append-only file"]) == (Status.FAIL, Status.WARN)
    assert found.failed


async def test_replicas_that_are_waited_for_and_not_there_are_a_failure(tmp_path: Path, valkey_server: RedisHandle) -> None:
    found = await examine(settings_for(tmp_path, valkey_server.url, store={"wait_replicas": 1}))
    assert by_name(found)["replicas"] is Status.FAIL


async def test_a_user_without_permissions_leaves_things_unknown(tmp_path: Path, fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey(tcp=True)
    server.command("ACL", "SETUSER", "app", "on", ">pass", "~sark:*", "+@all", "-@dangerous", "-@admin", "-info", "-evalsha")
    url = server.url.replace("redis://", "redis://app:pass@")
    async with begun(settings_for(tmp_path, url)):
        found = await examine(settings_for(tmp_path, url))
    statuses = by_name(found)
    assert {statuses[name] for name in ("server", "eviction", "append-only file", "replicas")} == {Status.UNKNOWN}
    assert statuses["scripts"] is Status.WARN, "each call sends its script"
    assert not found.failed


async def test_a_store_that_is_away_fails_and_the_rest_is_still_looked_at(tmp_path: Path, postgres_url: str) -> None:
    found = await examine(settings_for(tmp_path, f"unix://{tmp_path}/nobody.sock", postgres_url), Question(model="gpt-4o"))
    statuses = by_name(found)
    assert (statuses["store"], statuses["ledger"], statuses["drift"]) == (Status.FAIL, Status.OK, Status.UNKNOWN)
    assert (statuses["forecast"], statuses["prices"]) == (Status.FAIL, Status.OK)


async def test_a_store_that_hangs_is_given_up_on(tmp_path: Path, fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey()
    server.pause()
    found = await examine(settings_for(tmp_path, server.url, store={"deadline_ms": 50}))
    assert by_name(found)["store"] is Status.FAIL


async def test_a_ledger_that_is_away_fails_and_the_store_is_still_looked_at(tmp_path: Path, valkey_server: RedisHandle) -> None:
    settings = settings_for(
        tmp_path, valkey_server.url, f"postgresql://nobody@/none?host={tmp_path}", ledger={"deadline_ms": 500}
    )
    found = await examine(settings)
    assert (by_name(found)["store"], by_name(found)["ledger"]) == (Status.OK, Status.FAIL)


async def test_a_counter_that_the_ledger_does_not_know_is_drift(tmp_path: Path, valkey_server: RedisHandle) -> None:
    settings = settings_for(tmp_path, valkey_server.url)
    async with begun(settings, Limit(scope="team:ml", amount=Decimal(5))) as opened:
        shard = opened.store.shard_of("default")
        layout = await opened.tables.layout("default", ("team:ml",))
        key = next(name for name in opened.store.keys_of(shard).all if name.endswith(":spent"))
        valkey_server.command("HSET", key, layout.lines[0].counter, 7_000_000)
        found = await examine(settings)
    assert by_name(found)["drift"] is Status.FAIL
    assert "team:ml by $0.007" in sentence(found, "drift")


async def test_entries_that_nobody_flushes_grow_old(tmp_path: Path, valkey_server: RedisHandle) -> None:
    settings = settings_for(tmp_path, valkey_server.url)
    async with begun(settings) as opened:
        stream = opened.store.keys_of(3).outbox
    now_ms = time.time_ns() // 1_000_000
    for age_ms, status in ((1_000, Status.OK), (120_000, Status.WARN), (DAY_MS, Status.FAIL)):
        valkey_server.command("DEL", stream)
        valkey_server.command("XADD", stream, f"{now_ms - age_ms}-1", "id", "x")
        found = await examine(settings)
        assert by_name(found)["outbox"] is status
        assert sentence(found, "outbox").startswith("1 entries wait")


async def test_bookings_in_the_journal_and_a_missing_journal_are_seen(tmp_path: Path) -> None:
    (tmp_path / "journal.99999999.jsonl").write_text("{}\n{}\n")
    assert sentence(await examine(settings_for(tmp_path)), "journal").startswith("2 bookings wait")
    found = await examine(settings_for(tmp_path, store={"journal": tmp_path / "absent" / "journal.jsonl"}))
    assert by_name(found)["journal"] is Status.FAIL


async def test_limits_of_the_settings_that_are_not_in_force_yet_are_named(tmp_path: Path, valkey_server: RedisHandle) -> None:
    limits = [{"scope": "team:ml", "amount": "5"}]
    async with begun(settings_for(tmp_path, valkey_server.url), Limit(scope="team:ml", amount=Decimal(4))):
        pass
    found = await examine(Settings(**{**settings_for(tmp_path, valkey_server.url).model_dump(), "limits": limits}))
    assert by_name(found)["limits"] is Status.WARN and "team:ml/usd/day@UTC" in sentence(found, "limits")


async def test_a_ledger_in_memory_is_a_warning_with_a_remedy(tmp_path: Path, valkey_server: RedisHandle) -> None:
    for store in ("memory://", valkey_server.url):
        found = await examine(settings_for(tmp_path, store, "sqlite:///:memory:"))
        assert by_name(found)["ledger"] is Status.WARN and "a restart forgets" in sentence(found, "ledger")
        remedy = next(check.remedy for check in found.checks if check.name == "ledger")
        assert "sqlite:///sark.db" in remedy
        assert "migrations" not in by_name(found), "nobody can migrate it from here"


# --- what a gateway could not start with -----------------------------------------------------------------------------


def with_lists(directory: Path, **lists: Any) -> Settings:
    return Settings(**{**settings_for(directory).model_dump(), **lists})


async def test_a_plugin_that_does_not_load_fails_with_the_sentence_of_the_start(tmp_path: Path) -> None:
    settings = with_lists(tmp_path, policy={"plugins": [{"name": "rate_limit"}, {"path": tmp_path / "absent.py"}]})
    with pytest.raises(ConfigurationError) as raised:
        async with Sark.open(settings):
            pass
    found = await examine(settings)
    assert (by_name(found)["plugins"], sentence(found, "plugins")) == (Status.FAIL, str(raised.value))


_NOTING = """
from pathlib import Path
from sark_mw import PolicyDecision, PolicyPlugin

class Noting(PolicyPlugin):
    name = "noting"

    def __init__(self, told):
        self._path = Path(told)

    def _tell(self, word):
        self._path.write_text((self._path.read_text() if self._path.exists() else "") + word)

    async def evaluate(self, context):
        return PolicyDecision(True, "yes")

    async def on_load(self):
        self._tell("on")

    async def on_unload(self):
        self._tell(" off")
"""


async def test_a_plugin_is_loaded_and_unloaded_again(tmp_path: Path) -> None:
    path, told = tmp_path / "noting.py", tmp_path / "told"
    path.write_text(_NOTING)
    found = await examine(
        with_lists(tmp_path, policy={"plugins": [{"path": path, "isolated": False, "options": {"told": str(told)}}]})
    )
    assert (sentence(found, "plugins"), told.read_text()) == ("loaded: noting", "on off")
    path.write_text(path.read_text().replace('self._tell("on")', "1 / 0"))
    broken = await examine(
        with_lists(tmp_path, policy={"plugins": [{"path": path, "isolated": False, "options": {"told": str(told)}}]})
    )
    assert by_name(broken)["plugins"] is Status.FAIL and "ZeroDivisionError" in sentence(broken, "plugins")


async def test_an_estimator_that_is_not_there_fails_with_the_sentence_of_the_start(tmp_path: Path) -> None:
    settings = with_lists(tmp_path, routes=[{"path": "/x", "estimator": "nobody_has_this:estimator"}])
    with pytest.raises(ConfigurationError) as raised:
        SarkMiddleware(lambda *_: None, settings)  # type: ignore[arg-type]
    found = await examine(settings)
    assert (by_name(found)["routes"], sentence(found, "routes")) == (Status.FAIL, str(raised.value))


async def test_a_request_that_no_limit_touches_is_a_warning_that_asks_who_pays(tmp_path: Path) -> None:
    settings = with_lists(tmp_path, limits=[{"scope": "key:*", "amount": "5"}])
    found = await examine(settings, Question(model="gpt-4o"))
    assert by_name(found)["forecast"] is Status.WARN
    assert "--principal key:" in next(check.remedy for check in found.checks if check.name == "forecast")
    assert "forecast" not in by_name(await examine(settings, Question(model="gpt-4o", principal="key:abc")))


async def test_memory_is_blamed_only_where_the_store_is_in_memory(tmp_path: Path, valkey_server: RedisHandle) -> None:
    for url, blamed in (("memory://", True), (valkey_server.url, False)):
        found = (await examine(settings_for(tmp_path, url), Question(model="gpt-4o"))).forecast
        assert found is not None
        (note,) = [note for note in found.notes if "nothing is shown as spent" in note]
        assert ("memory://" in note) is blamed


# --- facts that no server here has -----------------------------------------------------------------------------------


def verdicts(facts: ServerFacts) -> dict[str, Status]:
    return {check.name: check.status for check in server_checks(facts, StoreSettings())}


def test_servers_that_are_too_old_full_or_full_of_holes() -> None:
    assert verdicts(ServerFacts(version=(6, 0, 16)))["server"] is Status.FAIL
    assert verdicts(ServerFacts(eviction="noeviction", memory_used_share=0.85))["eviction"] is Status.WARN
    assert verdicts(ServerFacts(cluster=True, slots_covered=16_000))["cluster slots"] is Status.FAIL


@pytest.mark.parametrize(
    ("ahead_ms", "status"), [(0, Status.OK), (-900, Status.OK), (1_500, Status.WARN), (-61_000, Status.FAIL)]
)
def test_clocks_apart_are_a_warning_and_far_apart_a_failure(ahead_ms: int, status: Status) -> None:
    assert clock("clock", ahead_ms).status is status


def test_timescale_without_its_hypertable_and_entries_that_were_refused_are_told() -> None:
    facts = DatabaseFacts(name="PostgreSQL", version="17", timescale="community", timescale_version="2.21", rejected=3)
    assert {check.name: check.status for check in database_checks(facts)} == {
        "TimescaleDB": Status.WARN,
        "rejected entries": Status.FAIL,
    }


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_ends_with_1_where_something_failed_and_prints_json(tmp_path: Path, fresh_valkey: FreshValkey) -> None:
    server = fresh_valkey(maxmemory_policy="allkeys-lru")
    config = tmp_path / "sark.toml"
    config.write_text(f'[store]\nurl = "{server.url}"\n[ledger]\nurl = "sqlite:///{tmp_path}/ledger.db"\n')
    done = sark("doctor", "--json", "-c", config, "--model", "gpt-4o", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (1, False)
    assert {check["status"] for check in found["checks"]} <= set(Status)
    server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert sark("doctor", "-c", config, cwd=tmp_path).returncode == 0
