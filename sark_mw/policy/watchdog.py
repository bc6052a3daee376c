"""Name the plugin that blocks the event loop.

A thread asks the loop for a sign of life. When none comes, it looks at what the loop's thread is executing: a plugin is asked
inside `ask`, so the innermost such frame on the stack says which. That costs an evaluation nothing at all.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from sark_mw.policy.asking import ask
from sark_mw.policy.entries import Entry

logger = logging.getLogger(__name__)


class Watchdog:
    """Watch the running loop; `blocked` hears, on the loop, of each plugin that kept it from everything else for `after_s`."""

    def __init__(self, after_s: float, blocked: Callable[[str, float], None]) -> None:
        self._after_s = after_s
        self._blocked = blocked
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sark-policy-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End; does not wait for the thread."""
        self._ended.set()

    def _watch(self) -> None:
        # A block that lasts one and a half times as long is never missed.
        while not self._ended.wait(self._after_s / 2):
            answered = threading.Event()
            asked = time.monotonic()
            if not self._on_loop(answered.set):
                return
            if answered.wait(self._after_s) or self._ended.is_set():
                continue
            name = self._name_it()
            while not answered.wait(0.05) and not self._ended.is_set():
                name = name or self._name_it()
            if name is not None:
                self._on_loop(self._blocked, name, time.monotonic() - asked)

    def _name_it(self) -> str | None:
        entry, where = _on_stack(sys._current_frames().get(self._loop_thread))
        if entry is None:
            return None
        # At once, since one that never ends is never counted.
        logger.error("policy plugin %r blocks the event loop, in %s", entry.name, where)
        return entry.name

    def _on_loop(self, call: Callable[..., object], *args: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            return False  # the loop is closed
        return True


def _on_stack(frame: FrameType | None) -> tuple[Entry | None, str]:
    """Find the innermost evaluation on a stack, and what it is at."""
    where = "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
    while frame is not None:
        if frame.f_code is ask.__code__:
            entry = frame.f_locals.get("entry")
            return (entry, where) if isinstance(entry, Entry) else (None, "")
        frame = frame.f_back
    return None, ""
