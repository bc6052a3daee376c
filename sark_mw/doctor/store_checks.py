"""Checks of the store: is it there, will it keep what it is told, is it whole."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sark_mw.doctor.checks import Check, clock, fail, ok, unknown, warn
from sark_mw.settings import StoreSettings
from sark_mw.store.inspect import SLOTS, ServerFacts, outbox_facts, round_trip_s, runs_by_sha, server_facts, server_time_ms
from sark_mw.store.redis_store import RedisStore

_OLDEST = (6, 2)
_SLOW_S = 0.005
_OLD_S, _TOO_OLD_S = 60, 3600


async def check_store(store: RedisStore, settings: StoreSettings) -> list[Check]:
    """Look at everything that concerns the store; raises `StoreUnavailableError` where it does not answer."""
    seconds = await round_trip_s(store)
    slow = seconds > _SLOW_S
    found = [(warn if slow else ok)("store", f"answers a script in {seconds * 1000:.2f} ms")]
    if settings.url.startswith("memory:"):
        found.append(ok("server", "memory:// lives in the gateway's process: what follows is about a new, empty one"))
    else:
        found += server_checks(await server_facts(store), settings)
        by_sha = await runs_by_sha(store)
        said = "scripts run by their digest" if by_sha else "scripts run, but EVALSHA does not: each call sends its whole script"
        found.append((ok if by_sha else warn)("scripts", said, *(() if by_sha else ("allow EVALSHA",))))
        found.append(await _clock(store))
        found.append(await _epochs(store))
    found.append(await _outbox(store))
    return found


def server_checks(facts: ServerFacts, settings: StoreSettings) -> Iterator[Check]:
    """Judge what the server tells of itself; what it does not tell is unknown."""
    if facts.version is None:
        yield unknown("server", "does not tell about itself", "let this user run INFO to have the next four checked")
    elif facts.version < _OLDEST:
        yield fail("server", f"{_named(facts)} is too old", "sark_mw needs Redis 6.2, Valkey 7.2 or newer")
    else:
        yield ok("server", _named(facts))
    yield _eviction(facts)
    if facts.append_only is None:
        yield unknown("append-only file", "not known")
    elif facts.append_only:
        yield ok("append-only file", "on: a restart forgets at most its last second")
    else:
        yield warn(
            "append-only file", "off: a restart forgets all, and budgets are rebuilt from the ledger", "set appendonly yes"
        )
    yield _replicas(facts, settings)
    if facts.cluster:
        covered = facts.slots_covered
        if covered is None:
            yield unknown("cluster slots", "not known")
        else:
            yield (ok if covered == SLOTS else fail)("cluster slots", f"{covered} of {SLOTS} covered by {facts.masters} masters")


def _named(facts: ServerFacts) -> str:
    return f"{facts.name} {'.'.join(str(part) for part in facts.version or ())}"


def _eviction(facts: ServerFacts) -> Check:
    name = "eviction"
    if facts.eviction is None:
        return unknown(name, "maxmemory-policy is not known", "make sure that it is noeviction")
    if facts.eviction != "noeviction":
        return fail(
            name, f"maxmemory-policy is {facts.eviction}: an evicted counter is a forgotten budget", "set it to noeviction"
        )
    share = facts.memory_used_share
    if share is not None and share >= 0.8:
        return warn(
            name, f"noeviction, and {share:.0%} of maxmemory is used: a full server refuses every request", "give it memory"
        )
    return ok(name, "noeviction")


def _replicas(facts: ServerFacts, settings: StoreSettings) -> Check:
    name, wanted, there = "replicas", settings.wait_replicas, facts.replicas
    if there is None:
        return unknown(name, "not known")
    if wanted > there:
        remedy = "connect more replicas, or lower store.wait_replicas"
        return fail(
            name, f"{wanted} must confirm each reserve and settle, and {there} are connected: every request fails", remedy
        )
    if wanted:
        return ok(name, f"{there} connected, {wanted} of them confirm each reserve and settle")
    if there:
        return ok(name, f"{there} connected; a failover may lose what was not replicated yet (store.wait_replicas is 0)")
    return ok(name, "none, and none are waited for")


async def _clock(store: RedisStore) -> Check:
    before = time.time()
    now_ms = await server_time_ms(store)
    if now_ms is None:
        return unknown("store clock", "not known", "let this user run TIME")
    return clock("store clock", now_ms - round((before + time.time()) * 500))


async def _epochs(store: RedisStore) -> Check:
    lost = await store.lost_shards()
    name = "data"
    if not lost:
        return ok(name, f"all {store.shards} shards have begun")
    if len(lost) == store.shards:
        return warn(
            name,
            "the store is empty: new, or it lost everything",
            "a gateway begins it, or rebuilds it from the ledger, when it starts",
        )
    return warn(
        name,
        f"{len(lost)} of {store.shards} shards have no data",
        "a gateway rebuilds them from the ledger before it admits anything there",
    )


async def _outbox(store: RedisStore) -> Check:
    facts = await outbox_facts(store)
    if facts.oldest_ms is None:
        return ok("outbox", "empty: the ledger has everything")
    now_ms = await server_time_ms(store)
    age_s = max(0, (now_ms if now_ms is not None else time.time_ns() // 1_000_000) - facts.oldest_ms) / 1000
    said = f"{facts.entries} entries wait for the ledger, the oldest for {age_s:.0f} s"
    remedy = "is a flusher running (ledger.flush, or `sark-mw flush`), and does the database answer?"
    if age_s > _TOO_OLD_S:
        return fail("outbox", said, remedy)
    return warn("outbox", said, remedy) if age_s > _OLD_S else ok("outbox", said)
