"""What one shard of the in-memory store remembers of reservations that ended, and of idempotency keys."""

from __future__ import annotations

from collections.abc import Iterable

from sark_mw._memory_records import Tombstone, remembered
from sark_mw.store.base import RestoredReservation


class Ended:
    """Tombstones and keys in two generations: each lives between one and two retentions, as server time passes."""

    def __init__(self, retention_ms: int, resolved: Iterable[RestoredReservation] = (), now: int = 0) -> None:
        self._retention_ms = retention_ms
        self._stones = {each.reservation_id: remembered(each) for each in resolved}
        self._stones_before: dict[str, Tombstone] = {}
        self._keys: dict[str, tuple[str, str]] = {}
        self._keys_before: dict[str, tuple[str, str]] = {}
        self._since_ms = now

    def get(self, reservation_id: str) -> Tombstone | None:
        """Return what is remembered of a reservation."""
        return self._stones.get(reservation_id) or self._stones_before.get(reservation_id)

    def put(self, reservation_id: str, stone: Tombstone) -> None:
        """Remember how a reservation ended, or what became of it since."""
        self._stones[reservation_id] = stone

    def take(self, reservation_id: str) -> Tombstone | None:
        """Return what is remembered of a reservation that is held again, and forget it."""
        return self._stones.pop(reservation_id, None) or self._stones_before.pop(reservation_id, None)

    def keyed(self, key: str) -> tuple[str, str] | None:
        """Return (fingerprint, reservation id) of the request that came with an idempotency key."""
        return self._keys.get(key) or self._keys_before.get(key)

    def put_key(self, key: str, fingerprint: str, reservation_id: str) -> None:
        """Remember whose an idempotency key is."""
        self._keys[key] = (fingerprint, reservation_id)

    def rotate(self, now: int) -> None:
        """Forget the older generation, once the newer one is a retention old."""
        if now < self._since_ms:
            self._since_ms = now  # the clock went back: the generation begins anew, but forgets nothing
        elif now - self._since_ms > self._retention_ms:
            self._stones_before, self._stones, self._since_ms = self._stones, {}, now
            self._keys_before, self._keys = self._keys, {}
