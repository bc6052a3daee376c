"""One admitted request: its hold, what it has cost so far, and the one settle or release that ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from sark_mw.enforcement.settler import SettleContext, Settling
from sark_mw.instrumentation.base import Instrumentation
from sark_mw.ledger.entries import CallerEntry
from sark_mw.limit import Unit
from sark_mw.policy.base import Obligation
from sark_mw.pricing.base import Estimate
from sark_mw.reservation import Balance, Line, Need, Resolution, Settle, SettleReply
from sark_mw.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a request has cost: nanos, and tokens where they are known. `estimated`: not the provider's own figures."""

    cost_nanos: int
    input_tokens: int = 0
    output_tokens: int = 0
    usage: Usage | None = None
    estimated: bool = False
    status: int | None = None

    def amounts(self, requests: int = 1) -> tuple[tuple[str, int], ...]:
        """Lay the cost out per unit, as the store books it; a concurrency slot is given back, so it costs nothing."""
        return (
            (Unit.USD, self.cost_nanos),
            (Unit.REQUESTS, requests),
            (Unit.INPUT_TOKENS, self.input_tokens),
            (Unit.OUTPUT_TOKENS, self.output_tokens),
            (Unit.TOKENS, self.input_tokens + self.output_tokens),
        )


#: The gauges of what is held: money, and requests in flight.
HELD_UNITS = (Unit.USD, Unit.CONCURRENCY)


def tell_held(instrumentation: Instrumentation, needs: Iterable[Need], sign: int) -> None:
    """Tell of what is held (1) or not any more (-1)."""
    for need in needs:
        if need.unit in HELD_UNITS:
            instrumentation.held(need.unit, sign * need.held)


@dataclass(slots=True, kw_only=True)
class Admission:
    """A request that may go on. End it with exactly one `settle` or `release`; further calls change nothing.

    `balances` are those after the hold; `unreserved` tells that the store was out of reach and the settings let it pass.
    """

    reservation_id: str
    root: str
    lines: tuple[Line, ...]
    needs: tuple[Need, ...]
    made_ms: int
    estimate: Estimate
    entry: CallerEntry
    request_id: str
    settler: Settling
    instrumentation: Instrumentation
    on_end: Callable[[Admission], None]
    balances: tuple[Balance, ...] = ()
    shadowed: tuple[int, ...] = ()
    unreserved: bool = False
    #: What the policies oblige to, done or left to the caller.
    obligations: tuple[Obligation, ...] = ()
    part: int = 0
    ended: asyncio.Task[SettleReply | None] | None = None
    _reported: Spent | None = field(default=None)
    _booked: Spent | None = field(default=None)

    @property
    def remaining_nanos(self) -> int | None:
        """What the tightest budget has left, None without one."""
        left = [b.remaining for b in self.balances if b.line.unit == Unit.USD and b.line.enforce and b.remaining is not None]
        return min(left, default=None)

    @property
    def share(self) -> float | None:
        """Which share of the fullest enforced budget is spent or held, this request's hold included; None without one."""
        budgets = [b for b in self.balances if b.line.unit == Unit.USD and b.line.enforce and b.line.amount >= 0]
        return max(((b.spent + b.held) / b.line.amount if b.line.amount else 1.0 for b in budgets), default=None)

    def report(self, spent: Spent) -> None:
        """Note what is known so far of a long stream: booked in part with the next renewal of the lease."""
        self._reported = spent

    def book_progress(self) -> asyncio.Task[SettleReply | None] | None:
        """Book what was reported since the last time, as a partial settle."""
        if self.ended is not None or self.unreserved or self._reported is None or self._reported == self._booked:
            return None
        self._booked = self._reported
        return self._submit(self._booked, Resolution.PARTIAL)

    def settle(self, spent: Spent) -> asyncio.Task[SettleReply | None]:
        """Book what the request cost, in the background; the task ends with the store's answer."""
        return self._end(spent, Resolution.SETTLE)

    def release(self, status: int | None = None) -> asyncio.Task[SettleReply | None]:
        """Give the hold back: nothing reached the provider, or it refused before any output."""
        return self._end(Spent(cost_nanos=0, status=status), Resolution.RELEASE)

    def expected(self, status: int | None = None) -> Spent:
        """What to book when the true usage cannot be known: the expectation, or what is known if that is more."""
        known = self._reported
        tokens_in = self.estimate.expected_input_tokens or self.estimate.input_tokens
        return Spent(
            cost_nanos=max(self.estimate.expected_nanos, known.cost_nanos if known else 0),
            input_tokens=max(tokens_in, known.input_tokens if known else 0),
            output_tokens=max(self.estimate.expected_output_tokens, known.output_tokens if known else 0),
            estimated=True,
            status=status,
        )

    def _end(self, spent: Spent, kind: Resolution) -> asyncio.Task[SettleReply | None]:
        if self.ended is None:
            self.ended = self._submit(spent, kind)
            self.on_end(self)
            tell_held(self.instrumentation, self.needs, -1)
        return self.ended

    def in_doubt(self) -> Settle:
        """What to book if nothing more is ever heard of this request: its expectation, in place of its next settle."""
        return self._settle(self.expected(), Resolution.SETTLE, self.part + 1)

    def _requests(self) -> int:
        return next((need.held for need in self.needs if need.unit == Unit.REQUESTS), 1)

    def _submit(self, spent: Spent, kind: Resolution) -> asyncio.Task[SettleReply | None]:
        self.part += 1
        known = kind is not Resolution.RELEASE and not spent.estimated
        return self.settler.submit(
            self._settle(spent, kind, self.part),
            SettleContext(
                request_id=self.request_id,
                principal_id=self.entry.principal_id,
                provider=self.entry.provider or "",
                model=self.estimate.model,
                expected_nanos=self.estimate.expected_nanos,
                actual_nanos=spent.cost_nanos if known else None,
            ),
        )

    def _settle(self, spent: Spent, kind: Resolution, part: int) -> Settle:
        known = kind is not Resolution.RELEASE and not spent.estimated
        usage = spent.usage or Usage(input_tokens=spent.input_tokens, output_tokens=spent.output_tokens)
        entry = replace(
            self.entry,
            actual_nanos=spent.cost_nanos if known else None,
            model=usage.model or self.entry.model,
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            status=spent.status,
        )
        return Settle(
            reservation_id=self.reservation_id,
            root=self.root,
            lines=self.lines,
            amounts=() if kind is Resolution.RELEASE else spent.amounts(self._requests()),
            part=part,
            kind=kind,
            made_ms=self.made_ms,
            estimated=spent.estimated,
            entry=entry.to_json(),
        )
