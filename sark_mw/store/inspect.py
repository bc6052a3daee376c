"""Look at the server behind a store without changing anything: what `sark-mw doctor` asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis import exceptions as redis_errors

from sark_mw.errors import StoreUnavailableError
from sark_mw.store.commands import Commands
from sark_mw.store.redis_store import RedisStore
from sark_mw.store.scripts import load_script

#: What a whole cluster covers.
SLOTS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What a server (of a cluster: its masters) tells of itself; None where it did not: no permission, or it has no such thing.

    Of several masters the worst counts. `memory_used_share` is 0 to 1, None without a `maxmemory`.
    """

    masters: int = 1
    name: str | None = None
    version: tuple[int, ...] | None = None
    eviction: str | None = None
    memory_used_share: float | None = None
    append_only: bool | None = None
    replicas: int | None = None
    cluster: bool = False
    slots_covered: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxFacts:
    """Entries that are not in the ledger yet, and when the oldest of them was appended, by the server's clock."""

    entries: int
    oldest_ms: int | None


async def server_facts(store: RedisStore) -> ServerFacts:
    """Ask INFO, and of a cluster CLUSTER INFO; raises `StoreUnavailableError` only where nothing answers at all."""
    infos = [info for info in await _ask(store, "INFO") if isinstance(info, Mapping)]
    if not infos:
        return ServerFacts()
    cluster = any(str(info.get("cluster_enabled")) == "1" for info in infos)
    shares = [float(info["used_memory"]) / float(info["maxmemory"]) for info in infos if float(info.get("maxmemory", 0))]
    evictions = [str(info["maxmemory_policy"]) for info in infos if "maxmemory_policy" in info]
    append_only = [str(info["aof_enabled"]) == "1" for info in infos if "aof_enabled" in info]
    replicas = [int(info["connected_slaves"]) for info in infos if "connected_slaves" in info]
    return ServerFacts(
        masters=len(infos),
        name="Valkey" if "valkey_version" in infos[0] else "Redis",
        version=min((_version(info) for info in infos), default=None),
        eviction=next((each for each in evictions if each != "noeviction"), evictions[0] if evictions else None),
        memory_used_share=max(shares, default=None),
        append_only=all(append_only) if append_only else None,
        replicas=min(replicas, default=None),
        cluster=cluster,
        slots_covered=await _slots(store) if cluster else None,
    )


def _version(info: Mapping[str, Any]) -> tuple[int, ...]:
    """Read the version that compatibility is judged by: Valkey says which Redis it is like, and its own besides."""
    said = str(info.get("valkey_version") or info.get("redis_version") or "0")
    return tuple(int(part) for part in said.split(".") if part.isdigit())


async def _slots(store: RedisStore) -> int | None:
    answers = [info for info in await _ask(store, "CLUSTER INFO") if isinstance(info, Mapping)]
    return min((int(info.get("cluster_slots_ok", 0)) for info in answers), default=None)


async def server_time_ms(store: RedisStore) -> int | None:
    """Read the server's clock; None without permission."""
    answers = await _ask(store, "TIME")
    if not answers:
        return None
    first = answers[0]
    return int(first[0]) * 1000 + int(first[1]) // 1000


async def round_trip_s(store: RedisStore, calls: int = 9) -> float:
    """Time the script that reads limits, and return the middle of some calls; raises `StoreUnavailableError`."""
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        await _calls(store).script("limits", store.keys_of(0).all, ["|"])
        times.append(time.perf_counter() - started)
    return sorted(times)[calls // 2]


async def runs_by_sha(store: RedisStore) -> bool:
    """Tell whether EVALSHA is allowed; where it is not, every call sends its whole script."""
    script = load_script("limits")
    keys = store.keys_of(0).all
    client = _calls(store).client
    try:
        async with asyncio.timeout(_calls(store).deadline_s):
            await client.execute_command("EVALSHA", script.sha, len(keys), *keys, "|")
    except (redis_errors.RedisError, OSError, TimeoutError):
        return False
    return True


async def outbox_facts(store: RedisStore) -> OutboxFacts:
    """Count what waits for the ledger and find its oldest; raises `StoreUnavailableError`."""
    oldest = []
    for shard in range(store.shards):
        stream = store.keys_of(shard).outbox
        call = partial(_calls(store).client.xrange, stream, count=1)
        first = await _calls(store).run("oldest", call)
        oldest += [int(str(stream_id).partition("-")[0]) for stream_id, _ in first]
    return OutboxFacts(entries=await store.backlog(), oldest_ms=min(oldest, default=None))


def _calls(store: RedisStore) -> Commands:
    return store._commands  # of this room: what is asked here is nobody's need on the request path


async def _ask(store: RedisStore, command: str) -> list[Any]:
    """Ask every master; an empty list where it may not be asked."""
    client = _calls(store).client
    try:
        async with asyncio.timeout(4 * _calls(store).deadline_s):
            if hasattr(client, "get_primaries"):
                answers = await client.execute_command(command, target_nodes=client.PRIMARIES)
                # One node answers plainly, several by their names.
                return list(answers.values()) if _by_node(answers) else [answers]
            return [await client.execute_command(command)]
    except (TimeoutError, redis_errors.TimeoutError, redis_errors.ConnectionError, OSError) as error:
        raise StoreUnavailableError(f"the store did not answer {command}: {error or type(error).__name__}") from error
    except redis_errors.RedisError:
        return []


def _by_node(answers: object) -> bool:
    return isinstance(answers, Mapping) and all(":" in str(name) for name in answers)
