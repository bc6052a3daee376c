"""The reservation store on Redis, Valkey, Cluster, Sentinel and the embedded fakeredis: one set of Lua scripts."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sark_mw.errors import StoreDataLostError
from sark_mw.limit import Limit
from sark_mw.reservation import (
    Balance,
    ExtendReply,
    Line,
    Outcome,
    Reserve,
    ReserveReply,
    Settle,
    SettleReply,
)
from sark_mw.store.approvals import WaitingHash
from sark_mw.store.base import (
    Grant,
    LimitTable,
    LiveHold,
    RecentRefusal,
    RestoredCounter,
    RestoredReservation,
    ShardPosition,
    Snapshot,
)
from sark_mw.store.batch import Batch
from sark_mw.store.commands import Commands
from sark_mw.store.encode import (
    LineTable,
    extend_replies,
    in_effect,
    line_args,
    line_texts,
    live_hold,
    reserve_args,
    reserve_replies,
    settle_args,
    settle_replies,
)
from sark_mw.store.keys import ShardKeys, shard_keys, shard_of
from sark_mw.store.limit_json import limit_field, limit_from_json, limit_to_json
from sark_mw.store.outbox import RedisOutbox
from sark_mw.store.refusals import RefusalStream

#: Bounds of one script call: the server is busy for about 10 µs a reservation.
MAX_GROUP = 64
MAX_LINES = 512
SWEEP_MAX = 64
_SHARDS_AT_ONCE = 32


class RedisStore(RedisOutbox):
    """Implements all protocols of `sark_mw.store.base`; open one with `sark_mw.store.connect.open_store`."""

    def __init__(
        self, commands: Commands, *, shards: int, prefix: str, retention_ms: int, close: Callable[[], Awaitable[None]]
    ) -> None:
        self.shards = shards
        self.retention_ms = retention_ms
        self._keys = [shard_keys(prefix, shard) for shard in range(shards)]
        super().__init__(commands, self._keys)
        self._commands = commands
        self._close = close
        self._refusals = RefusalStream(commands, self._keys)
        self._waiting = WaitingHash(commands, self._keys)
        self._reserves = [self._batch(self._send_reserves, shard) for shard in range(shards)]
        self._settles = [self._batch(self._send_settles, shard) for shard in range(shards)]
        self._extends = [self._batch(self._send_extends, shard) for shard in range(shards)]

    @staticmethod
    def _batch(send: Callable[[int, Sequence[Any]], Awaitable[Sequence[Any]]], shard: int) -> Batch[Any, Any]:
        return Batch(lambda group: send(shard, group), most=MAX_GROUP)

    def shard_of(self, root: str) -> int:
        """Name the shard in which a root lives."""
        return shard_of(root, self.shards)

    def keys_of(self, shard: int) -> ShardKeys:
        """Name the keys of a shard."""
        return self._keys[shard]

    @property
    def breaker_state(self) -> str:
        """closed, open or half_open."""
        return self._commands.breaker.state

    async def reserve(self, request: Reserve) -> ReserveReply:
        """Hold every need on every line, or nothing."""
        reply: ReserveReply = await self._reserves[self.shard_of(request.root)].submit(request)
        if reply.outcome is Outcome.NO_EPOCH:
            raise StoreDataLostError("the store has no data for this shard: it was never begun, or lost it")
        return reply

    async def settle(self, request: Settle) -> SettleReply:
        """Book a (part of a) reservation, or release it, and append its ledger entry."""
        reply: SettleReply = await self._settles[self.shard_of(request.root)].submit(request)
        return reply

    async def extend(self, root: str, reservation_id: str, lease_ms: int) -> ExtendReply:
        """Renew the lease of a reservation."""
        reply: ExtendReply = await self._extends[self.shard_of(root)].submit((reservation_id, lease_ms))
        return reply

    async def _script(self, name: str, shard: int, args: Sequence[str | int], *, items: int = 1, durable: bool = False) -> Any:
        return await self._commands.script(name, self._keys[shard].all, args, items=items, durable=durable)

    async def _send_reserves(self, shard: int, group: Sequence[Reserve]) -> list[ReserveReply]:
        """Send a group; requests that disagree about limits or lines go in calls of their own, in order."""
        replies: list[ReserveReply] = []
        start = 0
        while start < len(group):
            first, table, end = group[start], LineTable(), start
            while end < len(group) and (group[end].epoch, group[end].version) == (first.epoch, first.version):
                if not table.fits(group[end].lines, MAX_LINES):
                    break
                table.add(group[end].lines)
                end += 1
            replies += await self._reserve_call(shard, group[start:end], table)
            start = end
        return replies

    async def _reserve_call(self, shard: int, group: Sequence[Reserve], table: LineTable) -> list[ReserveReply]:
        args = reserve_args(group, table, self.retention_ms, shard)
        reply = await self._script("reserve", shard, args, items=len(group), durable=True)
        replies = reserve_replies(group, table, reply)
        if reply[0] == "ok" and reply[4] >= SWEEP_MAX:
            refused = [n for n, answer in enumerate(replies) if answer.outcome is Outcome.EXCEEDS_LIMIT]
            if refused:
                # There may be more dead holds than one call sweeps: they must not refuse anybody.
                await self.sweep(shard)
                again = await self._send_reserves(shard, [group[n] for n in refused])
                for n, answer in zip(refused, again, strict=True):
                    replies[n] = answer
        return replies

    async def _send_settles(self, shard: int, group: Sequence[Settle]) -> list[SettleReply]:
        args = settle_args(group, self.retention_ms, shard)
        reply = await self._script("settle", shard, args, items=len(group), durable=True)
        _refuse_lost(reply)
        return settle_replies(group, reply)

    async def _send_extends(self, shard: int, group: Sequence[tuple[str, int]]) -> list[ExtendReply]:
        items = [word for item in group for word in item]
        reply = await self._script("extend", shard, [self.retention_ms, shard, len(group), *items], items=len(group))
        _refuse_lost(reply)
        return extend_replies(group, reply)

    async def balance(self, root: str, lines: Sequence[Line]) -> Snapshot:
        """Read counters and the ledger sequence of the same instant."""
        shard = self.shard_of(root)
        reply = await self._script("balance", shard, [self.retention_ms, shard, len(lines), *line_args(lines)])
        _refuse_lost(reply)
        _, now, epoch, seq, _, spent, held, amounts = reply
        return Snapshot(
            at_ms=now,
            shard=shard,
            seq=int(seq),
            epoch=epoch,
            balances=tuple(
                Balance(line=line, spent=int(s), held=int(h))
                for line, s, h in zip(in_effect(lines, amounts), spent, held, strict=True)
            ),
        )

    async def sweep(self, shard: int | None = None) -> int:
        """Expire every hold past its lease, delete counters long gone; return how many holds."""
        total = 0
        for each in range(self.shards) if shard is None else (shard,):
            swept = SWEEP_MAX
            while swept >= SWEEP_MAX:
                code, _, expired, dropped = await self._script("sweep", each, [self.retention_ms, each, SWEEP_MAX])
                swept = max(expired, dropped)
                total += expired if code == "ok" else 0
        return total

    async def limits(self, root: str) -> LimitTable:
        """Read the limits of a root."""
        reply = await self._script("limits", self.shard_of(root), [f"{root}|"])
        _refuse_lost(reply)
        _, now, epoch, version, texts = reply
        limits = sorted((limit_from_json(text) for text in texts), key=lambda limit: limit.limit_id)
        return LimitTable(root=root, version=int(version), epoch=epoch, limits=tuple(limits), at_ms=now)

    async def set_limits(self, root: str, put: Sequence[Limit] = (), drop: Sequence[str] = ()) -> LimitTable:
        """Add or replace limits, drop others by `limit_id`, in one step."""
        await self._set_limits(root, ("", ""), put, drop)
        return await self.limits(root)

    async def change_limits(self, table: LimitTable, put: Sequence[Limit], drop: Sequence[str]) -> LimitTable | None:
        """Set limits as `set_limits` does, unless another table than this one is in force."""
        changed = await self._set_limits(table.root, (table.epoch, table.version), put, drop)
        return await self.limits(table.root) if changed else None

    async def _set_limits(self, root: str, expected: tuple[str | int, ...], put: Sequence[Limit], drop: Sequence[str]) -> bool:
        args: list[str | int] = [*expected, len(put)]
        for limit in put:
            args += (limit_field(root, limit.limit_id), limit_to_json(replace(limit, root=root)))
        args += (len(drop), *(limit_field(root, limit_id) for limit_id in drop))
        reply = await self._script("set_limits", self.shard_of(root), args, durable=True)
        _refuse_lost(reply)
        return bool(reply[0] == "ok")

    async def adjust(self, grants: Sequence[Grant]) -> None:
        """Set top-ups and overrides, each only over one that is made of fewer events."""
        by_shard: dict[int, list[Grant]] = {}
        for grant in grants:
            by_shard.setdefault(self.shard_of(grant.root), []).append(grant)
        for shard, own in by_shard.items():
            for first in range(0, len(own), MAX_LINES):
                some = own[first : first + MAX_LINES]
                words = [word for grant in some for word in (grant.field, grant.value, grant.keep_until_ms)]
                _refuse_lost(await self._script("adjust", shard, [self.retention_ms, len(some), *words], durable=True))

    async def repair(self, root: str, epoch: str, seq: int, line: Line, change: int) -> Outcome:
        """Add `change` to what a counter has spent, if nobody has since it was measured: REPAIRED or STALE."""
        keep = line.ends_ms + self.retention_ms if line.ends_ms else 0
        reply = await self._script("repair", self.shard_of(root), [epoch, seq, line.counter, change, keep], durable=True)
        _refuse_lost(reply)
        return Outcome(reply[0])

    async def give_back(self, booked: Reserve) -> bool:
        """Take back what a reserve without a lease and an entry counted; False if that is not (or no more) there."""
        shard, amounts = self.shard_of(booked.root), " ".join(f"{need.unit}:{need.held}" for need in booked.needs)
        args: list[str | int] = [self.retention_ms, shard, booked.reservation_id, amounts, line_texts(booked.lines)]
        reply = await self._script("give_back", shard, args)
        _refuse_lost(reply)
        return bool(reply[0] == Outcome.RELEASED)

    async def holds(self, root: str, most: int = 100) -> list[LiveHold]:
        """List the live reservations of a root, those whose lease ends first at the head."""
        reply = await self._script("holds", self.shard_of(root), [root, most])
        _refuse_lost(reply)
        words = reply[3]
        return [live_hold(*words[n : n + 3], now=reply[1]) for n in range(0, len(words), 3)]

    async def counters(self, root: str) -> AsyncIterator[tuple[str, int]]:
        """Walk over all counters of a root that have spent anything: (name, spent); one may come twice."""
        hash_name, cursor = self._keys[self.shard_of(root)].spent, 0
        while True:
            call = partial(self._commands.client.hscan, hash_name, cursor, match=f"{_glob(root)}|*", count=500)
            cursor, found = await self._commands.run("scan_counters", call)
            for name, spent in found.items():
                yield name, int(spent)
            if not int(cursor):
                return

    async def note_refusals(self, refusals: Sequence[RecentRefusal]) -> None:
        """Add refusals to the streams of their shards."""
        await self._refusals.add([(self.shard_of(each.root), each) for each in refusals])

    async def recent_refusals(self, root: str, most: int = 100) -> list[RecentRefusal]:
        """List the last refusals of a root, the newest first."""
        return await self._refusals.last(self.shard_of(root), root, most)

    async def put_approval(self, root: str, place: str, text: str, keep_ms: int) -> None:
        """Put a text in a place of the root's shard."""
        await self._waiting.put(self.shard_of(root), place, text, keep_ms)

    async def approvals(self, root: str, places: Sequence[str] | None = None) -> dict[str, str]:
        """Return every text of the root's shard by its place, or those in `places`."""
        return await self._waiting.get(self.shard_of(root), places)

    async def drop_approvals(self, root: str, places: Sequence[str]) -> int:
        """Empty places of the root's shard, and return how many were not empty."""
        return await self._waiting.drop(self.shard_of(root), places)

    async def lost_shards(self) -> list[int]:
        """Name the shards without an epoch: never begun, or lost."""
        replies: list[Any] = []
        # Not all of thousands at once: each has a deadline, and would spend it in the queue for a connection.
        for first in range(0, self.shards, _SHARDS_AT_ONCE):
            some = range(first, min(first + _SHARDS_AT_ONCE, self.shards))
            replies += await asyncio.gather(*(self._script("limits", shard, ["|"]) for shard in some))
        return [shard for shard, reply in enumerate(replies) if reply[0] == "no_epoch"]

    async def position(self, shard: int) -> ShardPosition:
        """Tell where a shard stands, also one without data."""
        _, now, epoch, seq, *_ = await self._script("balance", shard, [self.retention_ms, shard, 0])
        return ShardPosition(shard=shard, epoch=epoch, seq=int(seq), at_ms=now)

    async def abandon(self, shard: int, epoch: str) -> str:
        """Give up a shard's data of one epoch; return the epoch in force."""
        in_force: str = (await self._script("abandon", shard, [epoch], durable=True))[2]
        return in_force

    async def restore(
        self,
        shard: int,
        limits: Sequence[Limit] = (),
        counters: Sequence[RestoredCounter] = (),
        last_seq: int = 0,
        resolved: Sequence[RestoredReservation] = (),
        *,
        epoch: str = "",
        grants: Sequence[tuple[str, str]] = (),
    ) -> str:
        """Begin a shard with what the ledger knows; the first caller wins."""
        args: list[str | int] = [epoch or secrets.token_hex(8), last_seq, self.retention_ms, len(limits)]
        for limit in limits:
            args += (limit_field(limit.root, limit.limit_id), limit_to_json(limit, since=True))
        args.append(len(counters))
        for c in counters:
            args += (c.line.counter, c.spent, c.line.ends_ms, c.line.rolling_ms, c.line.bucket_ms, c.line.idle_ms)
            args.append(int(c.line.carry_cap > 0))
        args.append(len(resolved))
        for each in resolved:
            args += (each.reservation_id, _tombstone(each))
        args += (len(grants), *(word for grant in grants for word in grant))
        in_force: str = (await self._script("restore", shard, args, durable=True))[2]
        return in_force

    async def begin(self) -> None:
        """Begin every shard that has no data as a new one: for tests and for stores without a ledger."""
        for shard in await self.lost_shards():
            await self.restore(shard)

    async def aclose(self) -> None:
        """Let calls in flight end, then close the connections."""
        for batch in (*self._reserves, *self._settles, *self._extends):
            await batch.drain()
        await self._close()


def _tombstone(each: RestoredReservation) -> str:
    """Write a tombstone as lua/include/tombstone.lua reads it."""
    estimated = dict(each.estimated)
    units = dict.fromkeys([unit for unit, _ in (*each.known, *each.estimated)], 0) | dict(each.known)
    words = [f"{unit}:{amount}:{estimated.get(unit, 0)}" for unit, amount in units.items()]
    # The entry of an expiry is no part of the caller's.
    last_part = each.entries - 1 if each.resolution == "expired" else each.entries
    return " ".join([each.resolution, str(last_part), str(each.entries), str(each.made_ms), *words])


def _glob(text: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\^" else char for char in text)


def _refuse_lost(reply: Sequence[Any]) -> None:
    if reply[0] == "no_epoch":
        raise StoreDataLostError("the store has no data for this shard: it was never begun, or lost it")
