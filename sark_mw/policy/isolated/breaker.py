"""Stop asking a plugin whose workers keep dying, and try again later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

from sark_mw.policy.isolated.options import IsolationOptions

State = Literal["closed", "probing", "open"]


class Breaker:
    """Counts deaths. `closed`: ask; `open`: do not; `probing`: one request decides which of the two comes next."""

    def __init__(self, isolation: IsolationOptions, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._isolation = isolation
        self._deaths: deque[float] = deque(maxlen=isolation.breaker_deaths)
        self._seconds = isolation.breaker_s
        self._in_a_row = 0
        self._unborn_in_a_row = 0
        self.state: State = "closed"
        self.opened = 0

    def died(self, now: float, *, unborn: bool = False) -> float:
        """Count a death, or a start that came to nothing, and return the seconds after which a new worker may start."""
        self._deaths.append(now)
        self._in_a_row += 1
        self._unborn_in_a_row += unborn
        most = self._isolation.breaker_deaths
        recent = len(self._deaths) == most and now - self._deaths[0] <= self._isolation.breaker_window_s
        # Starts that hang take longer than the window has room for.
        if self.state != "closed" or recent or self._unborn_in_a_row >= most:
            if self.state == "probing":
                self._seconds = min(self._seconds * 2, self._isolation.breaker_most_s)
            self._become("open")
            self.opened += 1
            return self._seconds
        if self._in_a_row == 1:
            return 0.0
        return min(self._isolation.backoff_s * 2.0 ** (min(self._in_a_row, 30) - 2), self._isolation.backoff_most_s)

    def started(self) -> None:
        """A worker is ready: an open breaker lets one request through."""
        self._unborn_in_a_row = 0
        if self.state == "open":
            self._become("probing")

    def answered(self, *, probe: bool) -> None:
        """A worker answered; only the answer to the probe, if nothing has died since, closes a breaker."""
        if self.state == "closed":
            self._in_a_row = 0
        elif probe and self.state == "probing":
            self._in_a_row = 0
            self._deaths.clear()
            self._seconds = self._isolation.breaker_s
            self._become("closed")

    def _become(self, state: State) -> None:
        changed = state != self.state
        self.state = state
        if changed:
            self._on_change()
