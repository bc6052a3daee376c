"""Server-sent events, read incrementally from chunks of any size, without ever holding more than one bounded event."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Larger events are skipped, not kept: nothing that carries usage alone is this long.
MAX_EVENT_BYTES = 8 * 1024 * 1024

# Atomic groups: "\r\n" is one line end, and must not be split into two by backtracking.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_BLANK_LINE_BYTES = 4
_CR = 0x0D
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name, its data lines joined, and its `size` in bytes on the wire, the blank line included.

    Empty `data` for comments and for events over the bound.
    """

    name: str
    data: str
    size: int


class EventReader:
    """Cuts a byte stream into events; the same bytes give the same events however they are chunked."""

    __slots__ = ("_buffer", "_max", "_scan", "_skipped")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._buffer = bytearray()
        self._max = max_event_bytes
        self._scan = 0
        self._skipped = 0

    @property
    def pending(self) -> int:
        """Bytes of the event that has begun and not ended."""
        return self._skipped + len(self._buffer)

    def feed(self, chunk: bytes) -> list[Event]:
        """Take in a chunk and return the events that it completes."""
        buffer = self._buffer
        buffer += chunk
        events: list[Event] = []
        start = 0
        while match := _BLANK_LINE.search(buffer, max(self._scan, start)):
            end = match.end()
            if end == len(buffer) and buffer[end - 1] == _CR:
                break  # perhaps half a CRLF: its other half belongs to this event
            events.append(self._event(bytes(buffer[start:end])))
            start = end
        del buffer[:start]
        if self.pending > self._max:
            self._skip()
        # A blank line may have begun at the very end; what is before cannot become one.
        self._scan = max(0, len(buffer) - _BLANK_LINE_BYTES + 1)
        return events

    def finish(self) -> list[Event]:
        """End the stream: what is left counts as an event, since some providers omit the last blank line."""
        if not self.pending:
            return []
        event = self._event(bytes(self._buffer))
        self._buffer.clear()
        self._scan = 0
        return [event]

    def _skip(self) -> None:
        keep = _BLANK_LINE_BYTES - 1
        excess = len(self._buffer) - keep
        if excess > 0:
            del self._buffer[:excess]
            self._skipped += excess

    def _event(self, raw: bytes) -> Event:
        size = self._skipped + len(raw)
        self._skipped = 0
        if size > self._max:
            return Event("", "", size)
        name, data = _fields(raw)
        return Event(name, data, size)


def _fields(raw: bytes) -> tuple[str, str]:
    """Read the fields; `bytes.splitlines` knows only the three line ends of the standard, `str.splitlines` many more."""
    name = b""
    data: list[bytes] = []
    for line in raw.removeprefix(_BOM).splitlines():
        key, _, value = line.partition(b":")
        if key == b"data":
            data.append(value.removeprefix(b" "))
        elif key == b"event":
            name = value.removeprefix(b" ")
    return name.decode("utf-8", "replace"), b"\n".join(data).decode("utf-8", "replace")
