"""The outbox: the stream between the scripts and the ledger, read with a consumer group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redis import exceptions as redis_errors

from sark_mw.store.base import OutboxEntry
from sark_mw.store.commands import Commands
from sark_mw.store.keys import GROUP, ShardKeys

# Redis says it to XGROUP CREATE; fakeredis says it to XREADGROUP too.
_NO_STREAM = "requires the key to exist"


class RedisOutbox:
    """Implements `Outbox` over the streams of all shards."""

    def __init__(self, commands: Commands, keys: Sequence[ShardKeys]) -> None:
        self._calls = commands
        self._streams = [key.outbox for key in keys]
        #: (consumer, shard) of reads that nobody is known to have got the answer of.
        self._unsure: set[tuple[str, int]] = set()

    async def _grouped(self, stream: str, read: Any) -> Any:
        """Read with the group; make it when it is missing (a new shard, or one that lost its data)."""
        try:
            return await read()
        except redis_errors.ResponseError as error:
            if "NOGROUP" not in str(error) and _NO_STREAM not in str(error):
                raise
        try:
            await self._calls.client.xgroup_create(stream, GROUP, id="0")
        except redis_errors.ResponseError as error:
            if _NO_STREAM in str(error):
                return None  # nothing was ever appended
            if "BUSYGROUP" not in str(error):
                raise
        return await read()

    async def _each(self, name: str, call: Any) -> list[Any]:
        """Call for each shard in turn, one deadline each."""

        def bound(shard: int) -> Any:
            return lambda: call(shard)

        return [await self._calls.run(name, bound(shard)) for shard in range(len(self._streams))]

    async def read(self, consumer: str, count: int) -> list[OutboxEntry]:
        """Take up to `count` new entries per shard for `consumer`; those of a read whose answer was lost come first."""

        async def one(shard: int) -> list[OutboxEntry]:
            stream, entries = self._streams[shard], list[OutboxEntry]()
            # What was given in an answer that was lost is this consumer's all the same, and not new any more.
            for start in ("0", ">") if (consumer, shard) in self._unsure else (">",):
                self._unsure.add((consumer, shard))
                read = {stream: start}
                reply = await self._grouped(
                    stream, lambda read=read: self._calls.client.xreadgroup(GROUP, consumer, read, count=count)
                )
                entries = _entries(shard, _messages(reply))
                if entries:
                    break
            return entries

        found = [entry for entries in await self._each("read_outbox", one) for entry in entries]
        # Only now: when one shard fails, what the others gave is given again.
        self._unsure -= {(consumer, shard) for shard in range(len(self._streams))}
        return found

    async def reclaim(self, consumer: str, idle_ms: int, count: int) -> list[OutboxEntry]:
        """Take over what was taken but not acknowledged for `idle_ms`, and what this consumer itself had taken."""

        async def one(shard: int) -> list[OutboxEntry]:
            stream, client = self._streams[shard], self._calls.client
            own = await self._grouped(stream, lambda: client.xreadgroup(GROUP, consumer, {stream: "0"}, count=count))
            if own is None:
                return []
            idle = await client.xautoclaim(stream, GROUP, consumer, min_idle_time=idle_ms, count=count)
            messages = dict(_messages(own)) | {key: fields for key, fields in idle[1] if fields}
            return _entries(shard, messages.items())

        return [entry for entries in await self._each("reclaim_outbox", one) for entry in entries]

    async def acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        """Drop entries that are safely in the ledger."""
        by_shard: dict[int, list[str]] = {}
        for entry in entries:
            by_shard.setdefault(entry.shard, []).append(entry.stream_id)
        for shard, ids in by_shard.items():
            await self._calls.run("acknowledge_outbox", lambda shard=shard, ids=ids: self._drop(shard, ids))  # type: ignore[misc]

    async def discard(self, entries: Sequence[OutboxEntry]) -> None:
        """Drop entries of data that were lost, where they survived: another entry may have their stream id by now."""
        for entry in entries:
            found = await self._calls.run("discard_outbox", lambda entry=entry: self._look(entry))  # type: ignore[misc]
            if found == [entry]:
                await self.acknowledge([entry])

    async def _look(self, entry: OutboxEntry) -> list[OutboxEntry]:
        stream = self._streams[entry.shard]
        return _entries(entry.shard, await self._calls.client.xrange(stream, entry.stream_id, entry.stream_id))

    async def _drop(self, shard: int, ids: list[str]) -> None:
        async with self._calls.client.pipeline(transaction=False) as pipe:
            pipe.xack(self._streams[shard], GROUP, *ids)
            pipe.xdel(self._streams[shard], *ids)
            await pipe.execute()

    async def backlog(self) -> int:
        """Count the entries that are not in the ledger yet."""

        async def one(shard: int) -> int:
            return int(await self._calls.client.xlen(self._streams[shard]))

        return sum(await self._each("backlog", one))


def _messages(reply: Any) -> Iterable[tuple[str, dict[str, str]]]:
    """Flatten an XREADGROUP answer: a list under RESP2, a dict of lists of lists under RESP3."""
    if not reply:
        return []
    pairs = reply.items() if isinstance(reply, dict) else reply
    found = []
    for _, messages in pairs:
        for message in messages[0] if messages and isinstance(messages[0], list) else messages:
            # A message that was deleted while it was taken has no fields.
            found += [(message[0], message[1])] if message[1] else []
    return found


def _entries(shard: int, messages: Iterable[tuple[str, dict[str, str]]]) -> list[OutboxEntry]:
    return [_entry(shard, stream_id, fields) for stream_id, fields in messages]


def _entry(shard: int, stream_id: str, fields: dict[str, str]) -> OutboxEntry:
    booked = tuple((unit, int(amount)) for unit, _, amount in (word.rpartition(":") for word in fields["booked"].split()))
    return OutboxEntry(
        stream_id=stream_id,
        shard=shard,
        shard_seq=int(fields["seq"]),
        epoch=fields["epoch"],
        reservation_id=fields["id"],
        part=int(fields["part"]),
        kind=fields["kind"],
        root=fields["root"],
        reserved_ms=int(fields["made"]),
        booked_ms=int(fields["at"]),
        booked=booked,
        estimated=fields["est"] == "1",
        late=fields["late"] == "1",
        entry_json=fields["entry"],
    )
