"""A proxy in front of a server that delays, stalls, loses answers or requests, and cuts connections, on command."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

CHUNK = 65536


@dataclass(slots=True)
class _Loss:
    """What is to be lost next: `left` times, whenever a request holds `containing`."""

    left: int = 0
    containing: bytes = b""
    then_cut: bool = True

    def takes(self, request: bytes) -> bool:
        if self.left == 0 or self.containing.upper() not in request.upper():
            return False
        self.left -= 1
        return True


@dataclass(slots=True, eq=False)
class _Link:
    """One client's connection and the one made to the server for it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    losing: bool = False
    then_cut: bool = False

    def abort(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


@dataclass(slots=True, kw_only=True)
class TcpProxy:
    """Forward a loopback port to the server at `upstream_url` (redis://, unix://, postgresql:// …).

    `url` is `upstream_url` by way of the proxy. It runs in the event loop of the test. `answers_lost` and
    `requests_lost` count what really was lost, `connections` what was ever accepted.
    """

    upstream_url: str
    delay_s: float = 0.0
    port: int = 0
    connections: int = 0
    answers_lost: int = 0
    requests_lost: int = 0
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _answer_loss: _Loss = field(default_factory=_Loss)
    _request_loss: _Loss = field(default_factory=_Loss)
    _refusing: bool = False
    _links: set[_Link] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Return the address to give to the client under test."""
        return _by_way_of(self.upstream_url, self.port)

    async def start(self) -> None:
        """Listen on a free loopback port."""
        self._flowing.set()
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Cut everything and stop listening."""
        if self._listener is not None:
            self._listener.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            await self._listener.wait_closed()

    def stall(self) -> None:
        """Move no more bytes, in either direction; connections are still accepted."""
        self._flowing.clear()

    def resume(self) -> None:
        """End a `stall` and a `refuse`; what was sent meanwhile now arrives."""
        self._refusing = False
        self._flowing.set()

    def refuse(self) -> None:
        """Cut every connection, and every new one as soon as it is made."""
        self._refusing = True
        self.cut()

    def cut(self) -> None:
        """Abort the connections of this moment; new ones are served."""
        for link in list(self._links):
            link.abort()

    def lose_answers(self, count: int = 1, *, containing: bytes = b"", then_cut: bool = True) -> None:
        """Lose the answers to the next `count` requests that hold `containing`: the server executes them.

        The connection is cut when the server has answered; with `then_cut=False` it stays open and silent for good.
        Name the command (`containing=b"EVALSHA"`), else the client's greeting may be what is lost.
        """
        self._answer_loss = _Loss(count, containing, then_cut)

    def lose_requests(self, count: int = 1, *, containing: bytes = b"") -> None:
        """Lose the next `count` requests that hold `containing`, and cut: the server never sees them."""
        self._request_loss = _Loss(count, containing)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._refusing:
                writer.transport.abort()
                return
            await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, upstream = await _connect(self.upstream_url)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(client=writer, server=upstream)
        self._links.add(link)
        pumps = [asyncio.create_task(self._requests(link, reader)), asyncio.create_task(self._answers(link, answers))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._links.discard(link)
            await _close(writer, upstream)

    async def _requests(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                await self._flowing.wait()
                if self._request_loss.takes(chunk):
                    self.requests_lost += 1
                    link.abort()
                    return
                if self._answer_loss.takes(chunk):
                    link.losing, link.then_cut = True, self._answer_loss.then_cut
                link.server.write(chunk)
                await link.server.drain()

    async def _answers(self, link: _Link, reader: asyncio.StreamReader) -> None:
        counted = False
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._flowing.wait()
                if not link.losing:
                    link.client.write(chunk)
                    await link.client.drain()
                    continue
                self.answers_lost += not counted
                counted = True
                if link.then_cut:
                    link.abort()
                    return


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    unix_socket = _unix_socket(url)
    if unix_socket is not None:
        return await asyncio.open_unix_connection(unix_socket)
    parts = urlsplit(url)
    port = parts.port or (5432 if parts.scheme.startswith("postgres") else 6379)
    return await asyncio.open_connection(parts.hostname, port)


async def _close(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
    for writer in writers:
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _unix_socket(url: str) -> Path | None:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return Path(parts.path)
    query = parse_qs(parts.query)
    if parts.scheme.startswith("postgres") and "host" in query:
        return Path(query["host"][0]) / f".s.PGSQL.{query.get('port', ['5432'])[0]}"
    return None


def _by_way_of(url: str, port: int) -> str:
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    netloc = f"{user}{at}127.0.0.1:{port}"
    if parts.scheme == "unix":
        return urlunsplit(("redis", netloc, "", "", ""))
    if _unix_socket(url) is not None:
        return urlunsplit((parts.scheme, netloc, parts.path, "", ""))
    return urlunsplit(parts._replace(netloc=netloc))
