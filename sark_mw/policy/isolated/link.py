"""One worker as the gateway sees it: a socket, a pidfd, and how it comes to be locked down and loaded."""

from __future__ import annotations

import array
import asyncio
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sark_mw.policy.isolated.inside.zygote import BORN, DIED, HELLO
from sark_mw.policy.isolated.options import Hardening, IsolationOptions
from sark_mw.policy.isolated.replies import Description, MalformedReplyError, read_layers, read_message
from sark_mw.policy.isolated.requests import framed
from sark_mw.policy.isolated.zygote_process import Zygote

#: The longest message of a worker before it is asked anything.
_FIRST_BYTES = 16 << 10
_CHUNK = 64 << 10
#: macOS has no such flag: there a descriptor is told so right after it came.
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
#: The clock of a process's processor time by its pid, as clock_getcpuclockid(3) makes it.
_PROCESS_CLOCK = 2


class WorkerEndedError(Exception):
    """A worker is gone; says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a worker is to run."""

    source: bytes
    name: str
    class_name: str | None
    options: dict[str, Any] = field(default_factory=dict)


class Link:
    """The connection to one worker. `on_frame` hears of each message, `on_end` once of its end; ending it kills it."""

    def __init__(self, zygote: Zygote, sock: socket.socket, pid: int, pidfd: int | None) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._zygote = zygote
        self._socket = sock
        self._pidfd = pidfd
        self._kept = bytearray()
        self._unsent = bytearray()
        self.pid = pid
        self.most_bytes = _FIRST_BYTES
        self.ended = False
        self.last_words = ""
        self.on_frame: Callable[[bytes], None] = self._unsolicited
        self.on_end: Callable[[str], None] = lambda _: None
        loop.add_reader(sock.fileno(), self._readable)

    @property
    def killable(self) -> bool:
        """Tell whether a pidfd is there that may be used."""
        if self._pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, 0)  # asks for permission only
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return True

    @property
    def unread_bytes(self) -> int:
        """Return how much waits until the worker reads on."""
        return len(self._unsent)

    def cpu_seconds(self) -> float:
        """Read how much processor time the worker has used."""
        try:
            return time.clock_gettime((~self.pid << 3) | _PROCESS_CLOCK)
        except (OSError, OverflowError):
            return 0.0

    def send(self, frame: bytes) -> None:
        """Send now, or as soon as there is room; a worker that is gone is heard of by reading."""
        if self.ended:
            return
        sent = 0
        if not self._unsent:
            try:
                sent = self._socket.send(frame)
            except BlockingIOError:
                pass
            except OSError:
                return
        if sent < len(frame):
            if not self._unsent:
                self._loop.add_writer(self._socket.fileno(), self._writable)
            self._unsent += frame[sent:]

    def end(self, reason: str) -> None:
        """Kill the worker and let go of everything; once."""
        if self.ended:
            return
        self.ended = True
        self.last_words = reason
        if not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._kill()
        self.on_end(reason)

    def _kill(self) -> None:
        handle, self._pidfd = self._pidfd, None
        if handle is None:
            self._zygote.kill(self.pid)  # only in mode best-effort: this way is as slow as the zygote is busy
            return
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except OSError:
            self._zygote.kill(self.pid)  # likewise: root without CAP_KILL may not, while its zygote has the workers' user
        finally:
            os.close(handle)

    def _writable(self) -> None:
        try:
            sent = self._socket.send(self._unsent[:_CHUNK])
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            try:
                chunk = self._socket.recv(_CHUNK)
            except ConnectionResetError:
                # It died with requests unread. That is told first, and its last replies, which say how far it came, come after.
                chunk = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        kept = self._kept
        kept += chunk
        wrong = self._take_frames()
        if self.ended:
            return
        if wrong:
            self.end(wrong)
        elif not chunk or kept[-HELLO.size : -HELLO.size + 4] == DIED:
            self.end(self._how_it_ended())
        elif len(kept) > 4 + self.most_bytes + HELLO.size:  # a second lock: whatever is kept has an end
            self.end("it sent more than a message is long")

    def _take_frames(self) -> str:
        """Hand on all messages that are whole; returns what is wrong with the rest, empty if it may become one."""
        kept = self._kept
        while len(kept) >= 4 and not self.ended:
            (length,) = struct.unpack_from(">I", kept)
            if length == 0:
                # What the zygote says last begins like this too, and nothing comes after that.
                return "it sent an empty message" if len(kept) > HELLO.size else ""
            if length > self.most_bytes:
                return f"it sent a message of {length} bytes, {self.most_bytes} are the most"
            if len(kept) < 4 + length:
                return ""
            frame = bytes(kept[4 : 4 + length])
            del kept[: 4 + length]
            self.on_frame(frame)
        return ""

    def _how_it_ended(self) -> str:
        last = bytes(self._kept[-HELLO.size :])
        if len(last) < HELLO.size or last[:4] != DIED:
            return "it closed its socket, or its zygote ended"
        status = HELLO.unpack(last)[1] & 0xFFFF
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            known = {signal.SIGSYS: "it made a forbidden system call", signal.SIGXCPU: "it used up its processor time"}
            return f"{known.get(number, 'it was killed')} (signal {number})"  # type: ignore[call-overload]  # an int is as good
        return f"it exited ({os.WEXITSTATUS(status)})"

    def _unsolicited(self, _: bytes) -> None:
        self.end("it spoke without being asked")


async def born(zygote: Zygote, isolation: IsolationOptions) -> Link:
    """Have a worker forked; it runs nothing of anybody's yet."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        zygote.order(theirs, isolation.memory_bytes, isolation.worker_cpu_s)
        await _wait_readable(loop, ours)
        handles = array.array("i")
        hello, ancillary, _, _ = ours.recvmsg(HELLO.size, socket.CMSG_SPACE(handles.itemsize), _CLOSE_ON_EXEC)
        for _, _, data in ancillary:
            handles.frombytes(data[: handles.itemsize])
        for handle in handles:
            os.set_inheritable(handle, False)
        if len(hello) != HELLO.size or hello[:4] != BORN:
            raise WorkerEndedError("the zygote could not start a worker")
        return Link(zygote, ours, HELLO.unpack(hello)[1], handles[0] if handles else None)
    except BaseException:
        ours.close()
        raise


async def _wait_readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    readable = asyncio.Event()
    loop.add_reader(sock.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock.fileno())


class _Frames:
    """Takes the first messages of a worker one at a time."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._next: asyncio.Future[bytes] | None = None
        link.on_frame = self._take
        link.on_end = self._end

    async def next(self, frame: bytes) -> dict[str, Any]:
        """Send `frame` and return the message that answers it."""
        if self._link.ended:
            raise WorkerEndedError(self._link.last_words)
        self._next = asyncio.get_running_loop().create_future()
        self._link.send(frame)
        return read_message(await self._next)

    def _take(self, frame: bytes) -> None:
        if self._next is None or self._next.done():
            self._link.end("it spoke without being asked")
        else:
            self._next.set_result(frame)

    def _end(self, reason: str) -> None:
        if self._next is not None and not self._next.done():
            self._next.set_exception(WorkerEndedError(reason))


async def start(zygote: Zygote, source: Source | None, isolation: IsolationOptions) -> tuple[Link, Hardening, Description | None]:
    """Start a worker, see that it is locked down, and load the plugin; without a source, only see that.

    Raises `ConfigurationError` where a layer is missing that is required or the plugin refuses, and TimeoutError,
    `WorkerEndedError`, `MalformedReplyError` or OSError where there is no such worker to be had.
    """
    async with asyncio.timeout(isolation.start_timeout_s):
        link = await born(zygote, isolation)
        try:
            frames = _Frames(link)
            header = {"reply_bytes": isolation.reply_bytes}
            if source is not None:
                header |= {"name": source.name, "class_name": source.class_name, "options": source.options}  # type: ignore[dict-item]  # JSON
            hardening = read_layers(await frames.next(framed(json.dumps(header).encode())), pidfd=link.killable)
            if source is None:
                return link, hardening, None
            if isolation.mode == "require":
                hardening.require()
            description = Description(await frames.next(framed(source.source)))
            if link.ended:
                # After its answer and before we came to read it, so that nobody listened to its end.
                raise WorkerEndedError(link.last_words)
        except BaseException:
            link.end("it did not start")
            raise
        link.most_bytes = isolation.reply_bytes
        return link, hardening, description


__all__ = ["Link", "MalformedReplyError", "Source", "WorkerEndedError", "born", "start"]
