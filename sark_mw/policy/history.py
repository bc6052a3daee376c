"""What a key has spent in each of the last hours: counted in the store by all processes, kept there and nowhere else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import PolicyServices, SharedStore
from sark_mw.policy.context import PolicyContext
from sark_mw.policy.counting import Counting, root_of
from sark_mw.reservation import UNLIMITED, Line, Need, Outcome

_HOUR_MS = 3_600_000
#: A store reads so many counters in one call.
MAX_HOURS = 400
#: Keys whose past a process remembers until the hour is over; the one that was used longest ago is read again.
_MAX_KEYS = 10_000
#: The units of an hour that is counted on, and of those that are only read: no limit has them.
_NOW, _PAST = "nanos", "past_nanos"


@dataclass(frozen=True, slots=True, kw_only=True)
class HourAmount:
    """What this hour has come to; not `admitted`: the amount would have gone above what was allowed, and was not counted."""

    admitted: bool
    nanos: int


class HourlyAmounts:
    """Amounts by key and hour (UTC), for so many `hours`; `bind` lends it what a plugin is lent.

    Two calls for a request: `past`, which is read once an hour, and `add`, which counts and decides in one round trip. What was
    added for a request that is refused afterwards is given back; an MCP batch, whose price is that of all its calls, is added
    once. An hour is told by the context's timestamp.
    """

    def __init__(self, *, name: str, hours: int = 72) -> None:
        if isinstance(hours, bool) or not isinstance(hours, int) or not 1 <= hours <= MAX_HOURS:
            raise ConfigurationError(f"{name}: the hours of a history are 1 to {MAX_HOURS}, not {hours!r}")
        self._name = name
        self._hours = hours
        self._store: SharedStore | None = None
        self._counting = Counting(name, each_call=False)
        self._known: OrderedDict[str, tuple[int, tuple[int, ...]]] = OrderedDict()

    def bind(self, services: PolicyServices) -> None:
        """Count in the gateway's store, and hear what becomes of the requests."""
        self._store = services.store
        self._counting.listen(services.outcomes)

    async def aclose(self) -> None:
        """Hear no more, and end what is being given back."""
        await self._counting.aclose()

    async def past(self, key: str, context: PolicyContext) -> Sequence[int]:
        """Return the nanos of each full hour before this one, the oldest first; 0 where nothing was spent."""
        hour, whose = _hour(context), f"{root_of(context)}|{key}"
        known = self._known.get(whose)
        if known is None or known[0] != hour:
            lines = tuple(self._line(key, context, hour - n, _PAST, UNLIMITED) for n in range(self._hours, 0, -1))
            reply = await self._counting.take(self._lent(), context, lines, ())
            if not reply.admitted and reply.outcome is not Outcome.SETTLED:
                raise PolicyEvaluationError(f"{self._name}: the store answered {reply.outcome}")
            known = self._known[whose] = (hour, tuple(balance.spent for balance in reply.balances))
            while len(self._known) > _MAX_KEYS:
                self._known.popitem(last=False)
        self._known.move_to_end(whose)
        return known[1]

    async def add(self, key: str, context: PolicyContext, nanos: int, at_most: int | None = None) -> HourAmount:
        """Add to this hour, unless that makes it more than `at_most`; raises the store's errors."""
        line = self._line(key, context, _hour(context), _NOW, UNLIMITED if at_most is None else at_most)
        reply = await self._counting.take(self._lent(), context, (line,), (Need(unit=_NOW, held=nanos, expected=nanos),))
        admitted = reply.admitted or reply.outcome is Outcome.SETTLED
        if not admitted and reply.outcome is not Outcome.EXCEEDS_LIMIT:
            raise PolicyEvaluationError(f"{self._name}: the store answered {reply.outcome}")
        return HourAmount(admitted=admitted, nanos=reply.balances[0].spent if reply.balances else nanos)

    def _lent(self) -> SharedStore:
        if self._store is None:
            raise PolicyEvaluationError(f"{self._name}: a history needs the gateway's store")
        return self._store

    def _line(self, key: str, context: PolicyContext, hour: int, unit: str, amount: int) -> Line:
        root = root_of(context)
        scope = f"plugin:{blake2b(f'{self._name}:{key}'.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"
        # The end is that of its use: until then it is kept.
        ends_ms = (hour + 1 + self._hours) * _HOUR_MS if unit == _NOW else 0
        return Line(counter=f"{root}|{scope}/nanos/hour|{hour}", unit=unit, amount=amount, ends_ms=ends_ms, scope=scope)


def _hour(context: PolicyContext) -> int:
    return int(context.timestamp.timestamp()) // 3600
