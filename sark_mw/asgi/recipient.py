"""The client of one exchange: takes the response as long as it is there, and may leave before its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sark_mw.asgi.idempotency import Recording
from sark_mw.asgi.types import Message, Send


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeOptions:
    """What becomes of a response whose client has gone."""

    drain_on_disconnect: bool = True
    drain_timeout_s: float = 30.0


class Recipient:
    """Where an exchange's response goes. With `recording`, what the client gets or would have got is kept as well."""

    __slots__ = ("_done", "_gone_at", "_options", "_recording", "_send")

    def __init__(self, send: Send, options: ExchangeOptions, recording: Recording | None = None) -> None:
        self._send = send
        self._options = options
        self._recording = recording
        self._gone_at: float | None = None
        self._done: asyncio.Event | None = None

    @property
    def gone(self) -> bool:
        """Tell whether the client has left."""
        return self._gone_at is not None

    def leave(self) -> None:
        """Note that the client has left."""
        if self._gone_at is None:
            self._gone_at = asyncio.get_running_loop().time()

    async def take(self, message: Message) -> None:
        """Send to the client, or to nobody while the response is only read for its usage."""
        if self._recording is not None:
            self._recording.hear(message)
        if self._may_drain():
            return
        try:
            await self._send(message)
        except OSError:
            self.leave()
            if not self._may_drain():
                raise

    def _may_drain(self) -> bool:
        if not self._options.drain_on_disconnect or self._gone_at is None:
            return False
        return asyncio.get_running_loop().time() < self._gone_at + self._options.drain_timeout_s

    async def drained(self) -> None:
        """Wait until the response without a client has been read, or for as long as it may be."""
        if not self._options.drain_on_disconnect:
            return
        assert self._gone_at is not None
        if self._done is None:
            self._done = asyncio.Event()
        try:
            async with asyncio.timeout_at(self._gone_at + self._options.drain_timeout_s):
                await self._done.wait()
        except TimeoutError:
            return

    def end(self, whole: bool) -> None:
        """Note that no more comes; `whole`: it was the response's own end."""
        if self._done is not None:
            self._done.set()
        if self._recording is not None:
            if whole:
                self._recording.keep()
            else:
                self._recording.forget()
            self._recording = None
