"""Recent refusals: noted in memory where a request is refused, written to the store once a second, beside the requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sark_mw.enforcement.tables import ServerClock
from sark_mw.store.base import RecentRefusal, RemembersRefusals
from sark_mw.wire.base import Refusal, RefusalKind

#: Written of one second's refusals, by one process; the others are counted.
_MOST = 100
_MOST_ROOTS = 100
_MAX_CHARS, _MAX_NAME, _MAX_SCOPES = 500, 200, 20
#: Malformed requests are their callers' business, and what is wrong with them may quote them.
_NOT_NOTED = frozenset({RefusalKind.INVALID, RefusalKind.TOO_LARGE, RefusalKind.UNSUPPORTED})


class RecentRefusals:
    """Keep the refusals of this process until they are written; at most a hundred a second, the rest are counted."""

    def __init__(self, store: object, clock: ServerClock) -> None:
        self._store = store if isinstance(store, RemembersRefusals) else None
        self._clock = clock
        self._noted: dict[str, RecentRefusal] = {}
        self._left_out: Counter[str] = Counter()

    def refused(self, refusal: Refusal, *, root: str, principal_id: str, scopes: Sequence[str]) -> None:
        """Note a refusal; of one request the first counts: it is about what was asked for."""
        if self._store is None or refusal.kind in _NOT_NOTED or refusal.request_id in self._noted:
            return
        if len(self._noted) >= _MOST:
            if root in self._left_out or len(self._left_out) < _MOST_ROOTS:
                self._left_out[root] += 1
            return
        self._noted[refusal.request_id] = RecentRefusal(
            at_ms=refusal.now_ms or self._clock.now_ms(),
            root=root,
            principal_id=principal_id[:_MAX_NAME],
            scopes=tuple(scope[:_MAX_NAME] for scope in scopes[:_MAX_SCOPES]),
            kind=refusal.kind.value,
            limit_id=(refusal.limit or "")[:_MAX_CHARS],
            unit=refusal.unit or "",
            message=refusal.message[:_MAX_CHARS],
            request_id=refusal.request_id,
            needed=_shown(refusal.needed),
            remaining=_shown(refusal.remaining),
        )

    def admitted(self, request_id: str) -> None:
        """Forget a refusal of a request that was admitted after all, with a cheaper model or less output."""
        self._noted.pop(request_id, None)

    async def write(self) -> None:
        """Write what was noted; raises `StoreUnavailableError`, and then it is lost."""
        if self._store is None or not (self._noted or self._left_out):
            return
        noted, left_out = [*self._noted.values()], self._left_out
        self._noted, self._left_out = {}, Counter()
        now = self._clock.now_ms()
        more = [RecentRefusal(at_ms=now, root=root, left_out=count) for root, count in left_out.items()]
        await self._store.note_refusals([*noted, *more])


def _shown(amount: object) -> str:
    return "" if amount is None else f"{amount:f}" if not isinstance(amount, int) else str(amount)
