"""The one place where Redis key names are made."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

#: Bumped when the layout of a key changes.
SCHEMA = 1
_PARTS = ("meta", "spent", "held", "rolling", "periods", "holds", "leases", "done", "done_before", "outbox", "limits", "grants")
_REFUSALS, _APPROVALS = "refusals", "approvals"
#: The consumer group of the ledger's flushers.
GROUP = "ledger"


@dataclass(frozen=True, slots=True)
class ShardKeys:
    """The keys of one shard, in the order of every script's KEYS; they share a hash tag."""

    all: tuple[str, ...]

    @property
    def outbox(self) -> str:
        """The stream of ledger entries."""
        return self.all[_PARTS.index("outbox")]

    @property
    def spent(self) -> str:
        """The hash of what counters have spent."""
        return self.all[_PARTS.index("spent")]

    @property
    def refusals(self) -> str:
        """The stream of recent refusals: beside the scripts' keys, none of them touches it."""
        return f"{self.all[0].rpartition(':')[0]}:{_REFUSALS}"

    @property
    def approvals(self) -> str:
        """The hash of requests that wait for an administrator, likewise."""
        return f"{self.all[0].rpartition(':')[0]}:{_APPROVALS}"

    @property
    def meta(self) -> str:
        """The hash that holds the epoch."""
        return self.all[0]


def shard_keys(prefix: str, shard: int) -> ShardKeys:
    """Name the keys of a shard."""
    return ShardKeys(tuple(f"{prefix}:{SCHEMA}:{{{prefix}-{shard}}}:{part}" for part in _PARTS))


def shard_of(root: str, shards: int) -> int:
    """Spread roots over a fixed number of shards."""
    return crc32(root.encode()) % shards
