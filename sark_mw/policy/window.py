"""Count on a sliding window: together with every other process through the store, or alone without one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.limit import ROLLING_BUCKETS, clean_scope
from sark_mw.policy.base import PolicyServices, SharedStore
from sark_mw.policy.context import PolicyContext
from sark_mw.policy.counting import MAX_PENDING, Counting, OtherEpochError, asked_by, root_of
from sark_mw.policy.outcomes import Outcomes, RequestEnd
from sark_mw.reservation import Line, Need, Outcome

#: A process remembers its own admissions to 1/1000 of the window, so that a key costs it at most that many numbers.
LOCAL_STEPS = 1000
#: Keys that a process remembers; only those that were used within the window count.
MAX_LOCAL_KEYS = 100_000
_NAME_CHARACTERS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowCount:
    """What a window answered; `retry_after_s` is above 0 only when it refused, `shared` tells whether all processes counted.

    `lost`: nothing was counted, since the store has lost the data that were meant.
    """

    admitted: bool
    limit: int
    remaining: int
    retry_after_s: float
    shared: bool
    lost: bool = False


class RollingWindow:
    """At most `amount` admissions per key in any `window_seconds`; a refusal counts nothing.

    With a store this is one reserve with a lease of 0 on one rolling line: counted and decided in one round trip, by the store's
    clock, accurate to 1/50 of the window. Without one the process counts for itself by `clock` (seconds, monotonic). `bind` lends
    it what a plugin is lent: then it gives back what it counted for requests that another plugin or a limit refused. Each call of
    an MCP batch is counted for itself, or with `each_call=False` the request once.
    """

    def __init__(
        self,
        *,
        name: str,
        amount: int,
        window_seconds: int,
        store: SharedStore | None = None,
        clock: Callable[[], float] = time.monotonic,
        each_call: bool = True,
    ) -> None:
        if isinstance(amount, bool) or not isinstance(amount, int) or amount < 0:
            raise ConfigurationError(f"{name}: the number of requests must be a whole number from 0, not {amount!r}")
        whole = isinstance(window_seconds, int) and not isinstance(window_seconds, bool)
        if not whole or not 1 <= window_seconds <= 366 * 86_400:
            raise ConfigurationError(f"{name}: a window must be 1 second to 366 days, in whole seconds, not {window_seconds!r}")
        self.store = store
        self._own_store = store is not None
        self._name = name
        self._amount = amount
        self._seconds = window_seconds
        self._clock = clock
        self._own = _OwnAdmissions(window_seconds)
        self._each_call = each_call
        self._counting = Counting(name, each_call=each_call)
        self._pending: OrderedDict[str, dict[str, tuple[str, float]]] = OrderedDict()
        self._outcomes: Outcomes | None = None

    def bind(self, services: PolicyServices) -> None:
        """Count in the gateway's store, unless one was given, and hear what becomes of the requests."""
        if not self._own_store:
            self.store = services.store
        self._listen(services.outcomes)

    def _listen(self, outcomes: Outcomes | None) -> None:
        if self._outcomes is not None and self._outcomes is not outcomes:
            self._outcomes.forget(self._heard)
        self._outcomes = outcomes
        if outcomes is not None:
            outcomes.listen(self._heard)
        self._counting.listen(outcomes)

    async def aclose(self) -> None:
        """Hear no more, and end what is being given back."""
        self._listen(None)
        await self._counting.aclose()

    async def take(self, key: str, context: PolicyContext, *, epoch: str | None = None) -> WindowCount:
        """Count one request of `key`, if it fits; the same request, asked about again, is counted once.

        With an `epoch` it is refused (`lost`) where the store's data are of another one: what was counted before is unknown then.

        Raises the store's errors, and `PolicyEvaluationError` for an answer of the store that decides nothing.
        """
        root = root_of(context)
        if self.store is None:
            return self._take_alone(f"{root}|{key}", context)
        line = self._line(key, root)
        need = Need(unit=line.unit, held=1, expected=1)
        try:
            reply = await self._counting.take(self.store, context, (line,), (need,), epoch)
        except OtherEpochError:
            return WindowCount(admitted=False, limit=self._amount, remaining=0, retry_after_s=0.0, shared=True, lost=True)
        # The id is this request's own, so one that is settled already is our own, repeated.
        admitted = reply.admitted or reply.outcome is Outcome.SETTLED
        if not admitted and reply.outcome is not Outcome.EXCEEDS_LIMIT:
            raise PolicyEvaluationError(f"{self._name}: the store answered {reply.outcome}")
        now = self._clock()
        if admitted and not reply.repeated:
            self._own.add(line.counter, now)
            self._remember(context, line.counter, now)
        remaining = (reply.balances[0].remaining or 0) if reply.balances else 0
        return self._count(line.counter, admitted, remaining, now, shared=True)

    def _remember(self, context: PolicyContext, key: str, now: float) -> None:
        asked = asked_by(context, each_call=self._each_call)
        if asked is not None and self._outcomes is not None:
            self._pending.setdefault(asked[0], {})[f"{asked[1]}|{key}"] = (key, now)
            while len(self._pending) > MAX_PENDING:
                self._pending.popitem(last=False)

    def _heard(self, end: RequestEnd) -> None:
        counted = self._pending.pop(end.request_id, None)
        if counted and not end.admitted:
            for key, at in counted.values():
                self._own.remove(key, at)

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

    def _take_alone(self, key: str, context: PolicyContext) -> WindowCount:
        now, asked = self._clock(), asked_by(context, each_call=self._each_call)
        if asked is not None and f"{asked[1]}|{key}" in self._pending.get(asked[0], {}):
            return self._count(key, True, self._amount - self._own.count(key, now), now, shared=False)
        count = self._own.add(key, now, at_most=self._amount)
        admitted = count is not None
        if admitted:
            self._remember(context, key, now)
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

    def remove(self, key: str, at: float) -> None:
        """Take one out that was added at `at`."""
        with self._lock:
            for slot in self._keys.get(key, ()):
                if slot[2] <= at <= slot[0] and slot[1] > 0:
                    slot[1] -= 1
                    return

    def count(self, key: str, now: float) -> int:
        with self._lock:
            return int(sum(slot[1] for slot in self._current(key, now)))

    def oldest(self, key: str, now: float) -> float | None:
        with self._lock:
            return next((slot[0] for slot in self._current(key, now) if slot[1] > 0), None)

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
