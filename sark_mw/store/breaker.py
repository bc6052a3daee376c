"""A circuit breaker: after some failures in a row nobody waits for a dead server; one probe at a time finds it alive again."""

from __future__ import annotations

import time
from collections.abc import Callable


class Breaker:
    """Count failures in a row; open for `cooldown_s` after `threshold` of them, then let one call probe."""

    def __init__(
        self,
        *,
        threshold: int = 5,
        cooldown_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str], None] = lambda state: None,
    ) -> None:
        self._threshold = threshold
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._on_change = on_change
        self._failures = 0
        self._opened_at = 0.0
        self.state = "closed"

    def allows(self) -> bool:
        """Tell whether a call may go to the server now; turns half-open when the cool-down is over."""
        if self.state == "closed":
            return True
        if self._clock() - self._opened_at < self._cooldown_s:
            return False
        # Half open: this call is the probe; the next may only follow after another cool-down.
        self._opened_at = self._clock()
        self._turn("half_open")
        return True

    def succeeded(self) -> None:
        """Note an answer of the server."""
        self._failures = 0
        self._turn("closed")

    def failed(self) -> None:
        """Note a call without an answer."""
        self._failures += 1
        if self.state == "half_open" or self._failures >= self._threshold:
            self._opened_at = self._clock()
            self._turn("open")

    def _turn(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._on_change(state)
