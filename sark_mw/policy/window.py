"""Count on a sliding window: together with every other process through the store, or alone without one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.limit import DEFAULT_ROOT, ROLLING_BUCKETS, clean_scope
from sark_mw.policy.base import LimitVersion, SharedStore
from sark_mw.reservation import Line, Need, Outcome, Reserve, ReserveReply, new_reservation_id

#: A process remembers its own admissions to 1/1000 of the window, so that a key costs it at most that many numbers.
LOCAL_STEPS = 1000
#: Keys that a process remembers; only those that were used within the window count.
MAX_LOCAL_KEYS = 100_000
#: A change of the limits makes the store send a reserve back once; only a storm of changes does so again and again.
MAX_ATTEMPTS = 5
_NAME_CHARACTERS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowCount:
    """What a window answered; `retry_after_s` is above 0 only when it refused, `shared` tells whether all processes counted."""

    admitted: bool
    limit: int
    remaining: int
    retry_after_s: float
    shared: bool


class RollingWindow:
    """At most `amount` admissions per key in any `window_seconds`; a refusal counts nothing.

    With a store this is one reserve with a lease of 0 on one rolling line: counted and decided in one round trip, by the store's
    clock, accurate to 1/50 of the window. Without one the process counts for itself by `clock` (seconds, monotonic).
    """

    def __init__(
        self,
        *,
        name: str,
        amount: int,
        window_seconds: int,
        store: SharedStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(amount, bool) or not isinstance(amount, int) or amount < 0:
            raise ConfigurationError(f"{name}: the number of requests must be a whole number from 0, not {amount!r}")
        whole = isinstance(window_seconds, int) and not isinstance(window_seconds, bool)
        if not whole or not 1 <= window_seconds <= 366 * 86_400:
            raise ConfigurationError(f"{name}: a window must be 1 second to 366 days, in whole seconds, not {window_seconds!r}")
        self.store = store
        self._name = name
        self._amount = amount
        self._seconds = window_seconds
        self._clock = clock
        self._own = _OwnAdmissions(window_seconds)
        self._tables: dict[str, LimitVersion] = {}

    async def take(self, key: str, root: str = DEFAULT_ROOT) -> WindowCount:
        """Count one request of `key`, if it fits.

        Raises the store's errors, and `PolicyEvaluationError` for an answer of the store that decides nothing.
        """
        if self.store is None:
            return self._take_alone(f"{root}|{key}")
        line = self._line(key, root)
        reply = await self._reserve(self.store, line, root)
        # Our id is new, so one that is settled already is our own, repeated after a lost answer.
        admitted = reply.admitted or reply.outcome is Outcome.SETTLED
        if not admitted and reply.outcome is not Outcome.EXCEEDS_LIMIT:
            raise PolicyEvaluationError(f"{self._name}: the store answered {reply.outcome}")
        now = self._clock()
        if admitted:
            self._own.add(line.counter, now)
        remaining = (reply.balances[0].remaining or 0) if reply.balances else 0
        return self._count(line.counter, admitted, remaining, now, shared=True)

    async def _reserve(self, store: SharedStore, line: Line, root: str) -> ReserveReply:
        reservation_id = new_reservation_id()
        table = self._tables.get(root)
        for _ in range(MAX_ATTEMPTS):
            if table is None:
                table = self._tables[root] = await store.limits(root)
            reply = await store.reserve(
                Reserve(
                    reservation_id=reservation_id,
                    root=root,
                    lines=(line,),
                    needs=(Need(unit=line.unit, held=1, expected=1),),
                    lease_ms=0,
                    version=table.version,
                    epoch=table.epoch,
                )
            )
            if reply.outcome is not Outcome.STALE_LIMITS:
                return reply
            table = None
        raise PolicyEvaluationError(f"{self._name}: the limits of root {root!r} changed {MAX_ATTEMPTS} times during one request")

    def _line(self, key: str, root: str) -> Line:
        scope = clean_scope(f"plugin:{self._name}:{key}")
        if len(scope) > _NAME_CHARACTERS:  # a name that is cut would share its counter with others
            digest = blake2b(f"{self._name}:{key}".encode(errors="surrogatepass"), digest_size=16).hexdigest()
            scope = f"plugin:{digest}"
        return Line(
            counter=f"{root}|{scope}/requests/rolling:{self._seconds}|rolling",
            unit="requests",
            amount=self._amount,
            rolling_ms=self._seconds * 1000,
            scope=scope,
        )

    def _take_alone(self, key: str) -> WindowCount:
        now = self._clock()
        count = self._own.add(key, now, at_most=self._amount)
        admitted = count is not None
        return self._count(key, admitted, self._amount - count if count is not None else 0, now, shared=False)

    def _count(self, key: str, admitted: bool, remaining: int, now: float, *, shared: bool) -> WindowCount:
        retry_after_s = 0.0
        if not admitted:
            # Room appears when the oldest admission leaves. Of other processes' admissions nothing is known here, so
            # our own oldest says at the latest when; without one, no bucket of the store's can leave sooner than this.
            oldest = self._own.oldest(key, now)
            fallback = self._seconds / ROLLING_BUCKETS if shared else float(self._seconds)
            retry_after_s = fallback if oldest is None else max(oldest + self._seconds - now, 0.001)
        return WindowCount(
            admitted=admitted, limit=self._amount, remaining=max(remaining, 0), retry_after_s=retry_after_s, shared=shared
        )


class _OwnAdmissions:
    """When this process admitted whom, within the last window; loops in several threads may share it."""

    def __init__(self, window_s: int) -> None:
        self._window_s = window_s
        self._step_s = window_s / LOCAL_STEPS
        self._keys: OrderedDict[str, deque[list[float]]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, key: str, now: float, at_most: int | None = None) -> int | None:
        """Count one and return how many there are now; None, and nothing counted, if there are `at_most` already."""
        with self._lock:
            slots = self._current(key, now)
            count = int(sum(slot[1] for slot in slots)) if at_most is not None else 0
            if at_most is not None and count >= at_most:
                return None
            if slots and now - slots[-1][2] < self._step_s:
                # Counted as of the latest, so nothing leaves the window early.
                slots[-1][0], slots[-1][1] = now, slots[-1][1] + 1
            else:
                slots.append([now, 1, now])
            self._keys[key] = slots
            self._keys.move_to_end(key)
            self._forget(now)
            return count + 1

    def oldest(self, key: str, now: float) -> float | None:
        with self._lock:
            slots = self._current(key, now)
            return slots[0][0] if slots else None

    def _current(self, key: str, now: float) -> deque[list[float]]:
        slots = self._keys.get(key)
        if slots is None:
            return deque()
        while slots and slots[0][0] + self._window_s <= now:
            slots.popleft()
        return slots

    def _forget(self, now: float) -> None:
        # The key that was used longest ago is in front, so whatever is out of the window is found there.
        while self._keys:
            key, slots = next(iter(self._keys.items()))
            if len(self._keys) <= MAX_LOCAL_KEYS and slots and slots[-1][0] + self._window_s > now:
                return
            del self._keys[key]
