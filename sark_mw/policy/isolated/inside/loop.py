"""An event loop without a selector: it can sleep and take turns, which is all that a plugin without any input can wait for."""

from __future__ import annotations

import asyncio
import time
from typing import Any

__all__ = ["QuietLoop"]


class _Sleep:
    """Stands where a selector would: nothing ever becomes readable."""

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the plugin waits for something that nobody in this process can bring about")
        if timeout > 0:
            time.sleep(timeout)
        return []


class QuietLoop(asyncio.BaseEventLoop):
    """Runs one coroutine after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Sleep()

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing happens here."""

    def _write_to_self(self) -> None:
        """No other thread can exist that would have to be heard."""
