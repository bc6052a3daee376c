"""One process of an engine and the socket to it: asked one thing at a time, ended at the deadline, watched all the time.

Who asks may go away: the process finishes what it was asked and is free again. Its socket is closed only after the loop
has stopped watching it, since the next descriptor of that number is somebody else's.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sark_mw.policy.engines.answers import MAX_BYTES, MAX_VALUES
from sark_mw.policy.isolated.inside.bounds import has_more_values

_CHUNK = 64 << 10
#: Who sends a longer reply is none of ours; one that is only too large fails its request.
_MOST_BYTES = 1 << 20
_MOST_DIGITS = 20


class ChildEndedError(Exception):
    """A process is gone; `unheard` when it never read what it was asked, `late` when it was killed at the deadline."""

    def __init__(self, reason: str, *, unheard: bool = False, late: bool = False) -> None:
        super().__init__(reason)
        self.unheard = unheard
        self.late = late


def started(command: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a process, its descriptor 0 a socket to the one returned. It asks to die with the thread that calls this."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            popen = subprocess.Popen(  # noqa: S603  # this very interpreter and a file of ours
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,  # what a terminal tells the gateway's group is not for it
            )
    except BaseException:
        ours.close()
        raise
    ours.setblocking(False)
    return popen, ours


class Child:
    """A process that was started, in the loop that makes this; `on_end` hears once of its end, `on_free` of each answer."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        sock: socket.socket,
        on_free: Callable[[Child], None],
        on_end: Callable[[Child], None],
    ) -> None:
        self.popen = popen
        self.pid = popen.pid
        self.ended = ""
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._on_free = on_free
        self._on_end = on_end
        self._received = bytearray()
        self._unsent = memoryview(b"")
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock.fileno(), self._readable)

    def ask(self, messages: bytes, seconds: float) -> asyncio.Future[dict[str, Any]]:
        """Send framed messages; the future holds the one answer to them, or `ChildEndedError`."""
        assert self._answer is None, "it is asked one thing at a time"
        self._answer = answer = self._loop.create_future()
        if self.ended:
            answer.set_exception(ChildEndedError(self.ended, unheard=True))
            return answer
        self._deadline = self._loop.call_later(seconds, self._late, seconds)
        self._send(memoryview(messages))
        return answer

    def end(self, reason: str, *, unheard: bool = False, late: bool = False) -> None:
        """Kill it and let go of everything; once."""
        if self.ended:
            return
        self.ended = reason
        if not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        with suppress(OSError):  # a system that does not let us: it ends by itself when it reads that its socket is closed
            self.popen.kill()
        if self._deadline is not None:
            self._deadline.cancel()
        if self._answer is not None and not self._answer.done() and not self._loop.is_closed():
            self._answer.set_exception(ChildEndedError(reason, unheard=unheard, late=late))
        self._on_end(self)

    def _late(self, seconds: float) -> None:
        self.end(f"no answer within {seconds} s", late=True)

    def _send(self, data: memoryview) -> None:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.end("its process was gone before it was asked", unheard=True)
            return
        if sent < len(data):
            self._loop.add_writer(self._socket.fileno(), self._writable)
        self._unsent = data[sent:]

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket.fileno())
        self._send(self._unsent)

    def _readable(self) -> None:
        try:
            part = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            # Reset, and not closed: it has left unread what it was asked.
            self.end("its process died before it read the request", unheard=isinstance(error, ConnectionResetError))
            return
        if not part:
            self.end("its process died")
        elif self._answer is None or self._unsent:
            self.end("its process spoke without being asked")
        else:
            self._received += part
            self._take()

    def _take(self) -> None:
        received = self._received
        size = int.from_bytes(received[:4], "big") if len(received) >= 4 else 0
        if size > _MOST_BYTES:
            self.end(f"its process sent a reply of {size:,} bytes")
        elif len(received) < 4 or len(received) < 4 + size:
            return
        elif len(received) > 4 + size:
            self.end("its process said more than it was asked")
        else:
            data = bytes(received[4:])
            received.clear()
            self._hear(data)

    def _hear(self, data: bytes) -> None:
        try:
            message = _parsed(data)
        except ValueError as error:
            self.end(f"its process babbled: {str(error) or type(error).__name__}")
            return
        answer, self._answer = self._answer, None
        assert answer is not None and self._deadline is not None
        self._deadline.cancel()
        if not answer.done():
            answer.set_result(message)
        self._on_free(self)


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES or has_more_values(data, MAX_VALUES):
        return {"error": f"a reply of more than {MAX_BYTES:,} bytes or {MAX_VALUES:,} values"}
    try:
        answer = _decode(data.decode())
    except RecursionError:
        return {"error": "a reply of more levels than can be read"}
    if not isinstance(answer, dict):
        raise ValueError("a reply that is no object")
    return answer


def _whole_number(digits: str) -> float:
    # The time that the digits of an int take grows by their square, and nobody needs them.
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


_decode = json.JSONDecoder(parse_int=_whole_number).decode
