"""A real cluster of three masters on loopback ports, made with cluster commands alone (the wheel brings no CLI)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis.asyncio.retry
import redis.backoff
from redis.asyncio.cluster import RedisCluster
from redis.crc import key_slot

from tests.servers.process import ports, wait_until
from tests.servers.redis_server import RedisServer

SLOTS = 16384


class ClusterNode(RedisServer):
    """One node; its bus port is claimed like its port."""

    def __init__(self, binary: Path, **options: str | int) -> None:
        self._bus_port = ports.claim()
        super().__init__(
            binary,
            tcp=True,
            appendonly=False,
            cluster_enabled="yes",
            cluster_port=self._bus_port,
            cluster_node_timeout=1000,
            repl_diskless_sync_delay=0,
            **options,
        )

    @property
    def id(self) -> str:
        """Return the node's id in the cluster."""
        return str(self.command("CLUSTER", "MYID"))

    def meet(self, other: ClusterNode) -> None:
        """Introduce this node to another one."""
        assert other.port is not None
        self.command("CLUSTER", "MEET", "127.0.0.1", other.port, other._bus_port)

    def close(self) -> None:
        """Kill the node and remove its files."""
        super().close()
        ports.release(self._bus_port)


class ValkeyCluster:
    """Three masters, with one replica each when asked for; `masters[i]` starts with the i-th third of the slots."""

    def __init__(self, binary: Path, *, replicas: bool = False, **options: str | int) -> None:
        self.masters = [ClusterNode(binary, **options) for _ in range(3)]
        self.replicas = [ClusterNode(binary, **options) for _ in range(3)] if replicas else []
        try:
            self._form()
        except BaseException:
            self.close()
            raise

    @property
    def nodes(self) -> list[ClusterNode]:
        """Return the masters, then the replicas (by their first role)."""
        return [*self.masters, *self.replicas]

    @property
    def url(self) -> str:
        """Return the address of one node, from which a cluster client learns the others."""
        return self.masters[0].url

    def client(self, **options: Any) -> RedisCluster:
        """Return an asyncio cluster client without back-off (it still follows MOVED); the caller closes it."""
        retry = redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 3)
        return RedisCluster.from_url(self.url, **{"retry": retry, **options})

    def node_of(self, key: str | bytes) -> ClusterNode:
        """Return the living node that owns the slot of `key` now."""
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        asked = next(node for node in self.nodes if node.running)
        for first, last, (_, port, *_), *_ in asked.command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(f"no node owns slot {slot}")

    def move_slot(self, key: str | bytes, target: ClusterNode) -> None:
        """Move the slot of `key`, its keys included, to another master: clients meet MOVED afterwards."""
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        source = self.node_of(key)
        if source is target:
            return
        target_id = target.id
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", "127.0.0.1", str(target.port), "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *(master for master in self.masters if master not in (target, source))):
            if node.running:
                node.command("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def reset(self) -> None:
        """Empty all masters, and bring back those that a test left paused."""
        for node in self.masters:
            node.resume()
        for node in self.masters:
            node.reset()

    def wait_until_ok(self) -> None:
        """Return when every living node sees a whole cluster, and every living replica is in step with a master."""
        for node in self.nodes:
            if node.running:
                wait_until(lambda node=node: _is_ok(node), lambda node=node: node.command("CLUSTER", "NODES"))

    def wait_for_failover(self, old: ClusterNode) -> None:
        """Return when the slots of a killed master belong to others and the cluster is whole again."""
        for node in self.nodes:
            if node.running:
                wait_until(lambda node=node: not _has_slots(node, old), lambda: "no replica took over")
        self.wait_until_ok()

    def close(self) -> None:
        """Kill all nodes and remove their files."""
        for node in self.nodes:
            node.close()

    def _form(self) -> None:
        for node in self.nodes:
            node.start()
        bounds = [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
        for epoch, node in enumerate(self.nodes, start=1):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for index, node in enumerate(self.masters):
            node.command("CLUSTER", "ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
        # Everybody meets everybody: waiting for gossip to introduce them takes seconds.
        for index, node in enumerate(self.nodes):
            for other in self.nodes[index + 1 :]:
                node.meet(other)
        for node in self.nodes:
            wait_until(lambda node=node: self._knows_all(node), lambda: "the nodes of the cluster did not meet")
        for master, replica in zip(self.masters, self.replicas, strict=False):
            replica.command("CLUSTER", "REPLICATE", master.id)
        self.wait_until_ok()

    def _knows_all(self, node: ClusterNode) -> bool:
        known = node.command("CLUSTER", "NODES")
        lines = known.values() if isinstance(known, dict) else str(known).splitlines()
        return len(lines) == len(self.nodes) and "handshake" not in str(known)


def _is_ok(node: ClusterNode) -> bool:
    if "cluster_state:ok" not in str(node.command("CLUSTER", "INFO")):
        return False
    replication = node.command("INFO", "replication")
    return replication["role"] == "master" or replication["master_link_status"] == "up"


def _has_slots(asked: ClusterNode, owner: ClusterNode) -> bool:
    return any(port == owner.port for _, _, (_, port, *_), *_ in asked.command("CLUSTER", "SLOTS"))
