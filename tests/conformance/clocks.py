"""The server's clock of each kind of store, as far as a test may move it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Protocol

import fakeredis._helpers
import fakeredis.commands_mixins.server_mixin
import fakeredis.model._stream
import pytest

from sark_mw._memory_store import ManualClock
from sark_mw.store.base import ReservationStore
from tests.servers.faketime import FaketimeServer

#: When every test begins whose clock it moves: no outcome depends on the hour or the day on which the suite runs.
BEGINNING_MS = 1_792_000_000_123


class ServerClock(Protocol):
    """Lets the server's time pass."""

    async def advance(self, ms: int) -> None:
        """Return when at least `ms` have passed on the server."""

    def step(self, ms: int) -> None:
        """Put the clock forwards or back."""


class StillClock:
    """A clock that stands until it is moved: memory and fakeredis."""

    def __init__(self) -> None:
        self.manual = ManualClock(BEGINNING_MS)

    async def advance(self, ms: int) -> None:
        """Move at once."""
        self.manual.advance(ms)

    def step(self, ms: int) -> None:
        """Move at once."""
        self.manual.step(ms)


class FaketimeClock:
    """A real server's clock, moved through libfaketime; it runs on by itself."""

    def __init__(self, server: FaketimeServer) -> None:
        self._server = server

    async def advance(self, ms: int) -> None:
        """Move at once."""
        self.step(ms)

    def step(self, ms: int) -> None:
        """Move, and return when the server has noticed."""
        self._server.advance(timedelta(milliseconds=ms))


class RealClock:
    """A clock that nobody moves: wait until the server says that the time has passed."""

    def __init__(self, store: ReservationStore) -> None:
        self._store = store

    async def advance(self, ms: int) -> None:
        """Ask the server for its time until it is late enough; for leases of milliseconds only."""
        assert ms <= 500, "nobody waits that long: ask for `moving_books`"
        end = (await self._store.limits("clock")).at_ms + ms
        while (await self._store.limits("clock")).at_ms < end:
            await asyncio.sleep(0.002)

    def step(self, ms: int) -> None:
        """Fail: ask for `moving_books`."""
        raise NotImplementedError(f"a real server's clock cannot be moved by {ms} ms")


@contextmanager
def fakeredis_time(clock: ManualClock) -> Iterator[None]:
    """Let fakeredis (TIME, stream ids and idle times) go by `clock`."""
    shim = SimpleNamespace(time=lambda: clock() / 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fakeredis.commands_mixins.server_mixin, "time", shim)
        patch.setattr(fakeredis.model._stream, "time", shim)
        patch.setattr(fakeredis._helpers, "time", shim)
        yield
