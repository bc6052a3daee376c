"""How much a lease may set aside: what the settings say, and of what a limit has left only a share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sark_mw.limit import Unit
from sark_mw.reservation import Balance, Line


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOptions:
    """What one process holds in advance per set of limits: the ceiling of what it may spend blind.

    `requests` also counts concurrent ones, `tokens` each of input, output and both. All leases of a process together take at
    most one `share`-th of what a limit has left.
    """

    usd_nanos: int
    requests: int
    tokens: int
    share: int = 10

    def amounts(self) -> dict[str, int]:
        """Lay the ceiling out per unit."""
        return {
            Unit.USD: self.usd_nanos,
            Unit.REQUESTS: self.requests,
            Unit.INPUT_TOKENS: self.tokens,
            Unit.OUTPUT_TOKENS: self.tokens,
            Unit.TOKENS: self.tokens,
            Unit.CONCURRENCY: self.requests,
        }


class Shares:
    """Know what the leases of this process hold on each counter, and size leases so that together they leave room for others."""

    def __init__(self, options: LeaseOptions) -> None:
        self._options = options
        self._aside: Counter[str] = Counter()
        self._sharing: Counter[str] = Counter()

    def join(self, lines: Sequence[Line]) -> None:
        """Count one set of scopes more that wants a lease on these lines, whether it gets one or not."""
        for line in lines:
            self._sharing[line.counter] += 1

    def leave(self, lines: Sequence[Line]) -> None:
        """Count one set of scopes less."""
        for line in lines:
            self._sharing[line.counter] -= 1
            if self._sharing[line.counter] <= 0:
                del self._sharing[line.counter]

    def count(self, lines: Sequence[Line], changes: Mapping[str, int]) -> None:
        """Add (signed) changes per unit to what is held on the lines of that unit."""
        for line in lines:
            if line.unit in changes:
                self._aside[line.counter] += changes[line.unit]
                if self._aside[line.counter] == 0:
                    del self._aside[line.counter]

    def affordable(self, balances: Sequence[Balance], left: Mapping[str, int] | None = None) -> dict[str, int]:
        """Size a lease by what its limits can spare, per unit; empty if one can spare nothing.

        What a limit can spare is divided evenly among all that have joined. `left` is what a lease that there is already
        still has: it may keep that.
        """
        amounts = self._options.amounts()
        for balance in balances:
            line = balance.line
            if not line.enforce or balance.remaining is None or line.unit not in amounts:
                continue
            aside = self._aside[line.counter]
            most = (balance.remaining + aside) // self._options.share
            free = most - aside + (0 if left is None else left.get(line.unit, 0))
            fair = most // max(self._sharing[line.counter], 1)
            amounts[line.unit] = max(min(amounts[line.unit], max(fair, 1), free), 0)
        return amounts if all(amounts.values()) else {}
