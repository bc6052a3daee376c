"""The lifespan around the wrapped app's own: started before it, drained after it, and there even if the app has none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sark_mw.asgi.types import App, Message, Receive, Scope, Send
from sark_mw.errors import ConfigurationError

_log = logging.getLogger(__name__)

Step = Callable[[], Awaitable[None]]


class Lifespan:
    """One run of the lifespan protocol: `start` comes before the app's startup, `stop` after its shutdown."""

    def __init__(self, app: App, start: Step, stop: Step) -> None:
        self._app = app
        self._start = start
        self._stop = stop
        self._answered = False
        self._replayed = False
        self._running = False

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the scope to its end; a start that fails is reported to the server and raised."""
        self._receive, self._send = receive, send
        self._startup = await receive()
        try:
            await self._start()
        except BaseException as error:
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            raise
        self._running = True
        try:
            await self._run_app(scope)
        finally:
            await self._stop_once()

    async def _run_app(self, scope: Scope) -> None:
        try:
            await self._app(scope, self._replay, self._pass)
        except ConfigurationError as error:
            if not self._answered:
                await self._send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._answered:
                raise
            # How an app says that it has no lifespan; ours goes on without it.
            _log.debug("the app has no lifespan: %r", error)
        if not self._answered:
            await self._send({"type": "lifespan.startup.complete"})
        if self._running:
            # An app that answers and returns, or none at all: it is over when the server says so.
            await self._receive()
            await self._stop_once()
            await self._send({"type": "lifespan.shutdown.complete"})

    async def _replay(self) -> Message:
        if not self._replayed:
            self._replayed = True
            return self._startup
        return await self._receive()

    async def _pass(self, message: Message) -> None:
        self._answered = True
        if message["type"] != "lifespan.startup.complete":
            await self._stop_once()
        await self._send(message)

    async def _stop_once(self) -> None:
        if self._running:
            self._running = False
            await self._stop()
