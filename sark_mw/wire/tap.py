"""Taps: they let a response pass and read its usage on the way, whatever the chunking and the compression."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from sark_mw.usage import Usage
from sark_mw.wire.base import Headers
from sark_mw.wire.body import parse
from sark_mw.wire.encoding import Decoder, UndecodableError, content_codings, decoder_for
from sark_mw.wire.seen import SeenText
from sark_mw.wire.sse import Event, EventReader

#: A larger JSON response is not parsed (it would stall the event loop for a second): its usage is estimated.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
#: An injected usage chunk is some 500 bytes; no event longer than this is held back while it is incomplete.
MAX_HELD_BYTES = 64 * 1024
_SPACE = re.compile(r"[ \t\r\n]*")
_TAIL_BYTES = 16 * 1024
# Embeddings end with their usage and hold no text of the user's, so the tail of a huge one is enough.
_TAIL_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})(?:\s*,\s*"\w+"\s*:\s*[^{}\[\],]+)*\s*\}\s*\Z')


class Reader(Protocol):
    """What one dialect understands of a response: events of a stream, or one document."""

    usage: Usage | None
    text: SeenText
    failed: bool
    started: bool

    def event(self, name: str, data: str) -> bool:
        """Read an event; True if it is an injected usage chunk that the client must not see."""
        ...

    def document(self, body: object) -> None:
        """Read a whole response."""
        ...


class PassTap:
    """Passes everything and reads nothing: errors, unknown encodings, wires without usage."""

    usage: Usage | None = None
    output_chars = 0
    failed = False

    def __init__(self, failed: bool = False) -> None:
        self.output_byte_counts: Mapping[int, int] = {}
        self.failed = failed
        self.started = False

    def feed(self, chunk: bytes) -> bytes:
        """Pass the chunk on."""
        self.started = self.started or bool(chunk and not self.failed)
        return chunk

    def finish(self) -> bytes:
        """Nothing was held back."""
        return b""


class _ReadingTap:
    def __init__(self, reader: Reader, decoder: Decoder) -> None:
        self._reader = reader
        self._decoder: Decoder | None = decoder

    @property
    def usage(self) -> Usage | None:
        return self._reader.usage

    @property
    def output_chars(self) -> int:
        return self._reader.text.chars

    @property
    def output_byte_counts(self) -> Mapping[int, int]:
        return self._reader.text.byte_counts

    @property
    def failed(self) -> bool:
        return self._reader.failed

    @property
    def started(self) -> bool:
        return self._reader.started

    def _decoded(self, chunk: bytes) -> Iterator[bytes]:
        if self._decoder is None:
            return
        try:
            yield from self._decoder.feed(chunk)
        except UndecodableError:
            self._decoder = None  # what was read stands; the rest is passed on unread


class DocumentTap(_ReadingTap):
    """Reads a JSON response at its end; of huge embeddings only the tail, of other huge ones nothing."""

    def __init__(self, reader: Reader, decoder: Decoder, tail_only: bool = False) -> None:
        super().__init__(reader, decoder)
        self._body = bytearray()
        self._tail_only = tail_only
        self._cut = False

    def feed(self, chunk: bytes) -> bytes:
        """Pass the chunk on and keep a bounded copy."""
        for piece in self._decoded(chunk):
            self._reader.started = True
            self._body += piece
            if self._tail_only and len(self._body) > MAX_HELD_BYTES:
                self._cut = True
                del self._body[:-_TAIL_BYTES]
            elif len(self._body) > MAX_DOCUMENT_BYTES:
                self._body.clear()
                self._decoder = None
        return chunk

    def finish(self) -> bytes:
        """Read the document."""
        if self._cut:
            match = _TAIL_USAGE.search(self._body)
            if match:
                self._reader.document({"usage": parse(bytes(match[1]))})
        elif self._body:
            body = bytes(self._body)
            parsed = parse(body)
            # A stream of Gemini's may be one array: cut off, it says what its whole elements say.
            self._reader.document(_whole_items(body) if parsed is None else parsed)
        self._body.clear()
        return b""


def _whole_items(body: bytes) -> list[Any] | None:
    """Return the whole elements of a JSON array that was cut off; None if it is none."""
    text = body.decode("utf-8", "replace")
    at = _past_space(text, 0)
    if text[at : at + 1] != "[":
        return None
    found: list[Any] = []
    decoder = json.JSONDecoder()
    try:
        while text[at : at + 1] in ("[", ","):
            item, at = decoder.raw_decode(text, _past_space(text, at + 1))
            found.append(item)
            at = _past_space(text, at)
    except (ValueError, RecursionError):
        pass  # the element that was cut, or what is no JSON at all
    return found


def _past_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


class StreamTap(_ReadingTap):
    """Reads server-sent events and passes every chunk on as it is."""

    def __init__(self, reader: Reader, decoder: Decoder) -> None:
        super().__init__(reader, decoder)
        self._events = EventReader()

    def feed(self, chunk: bytes) -> bytes:
        """Pass the chunk on and read its events."""
        for piece in self._decoded(chunk):
            for event in self._events.feed(piece):
                self._read(event)
        return chunk

    def finish(self) -> bytes:
        """Read what has no blank line after it."""
        for event in self._events.finish():
            self._read(event)
        return b""

    def _read(self, event: Event) -> bool:
        return self._reader.event(event.name, event.data) if event.data else False


class DroppingTap(StreamTap):
    """Takes the usage chunk out of an uncompressed stream whose client did not ask for it.

    Whole events pass at once; the bytes of an event that has only begun are held until it ends or is too long to be one.
    """

    def __init__(self, reader: Reader, decoder: Decoder) -> None:
        super().__init__(reader, decoder)
        self._held = bytearray()
        self._released = 0

    def feed(self, chunk: bytes) -> bytes:
        """Return what may pass: the chunk itself where nothing is held or taken out."""
        return self._pass(chunk, self._events.feed(chunk))

    def finish(self) -> bytes:
        """Return what was held, unless it is the usage chunk."""
        return self._pass(b"", self._events.finish())

    def _pass(self, chunk: bytes, events: list[Event]) -> bytes:
        untouched = not self._held
        self._held += chunk
        out = bytearray()
        for event in events:
            rest = event.size - self._released
            drop = self._read(event) and event.size <= MAX_HELD_BYTES
            if not drop:
                out += self._held[:rest]
            del self._held[:rest]
            self._released = 0
        if self._events.pending > MAX_HELD_BYTES:
            out += self._held
            self._released += len(self._held)
            self._held.clear()
        return chunk if untouched and len(out) == len(chunk) else bytes(out)


def tap_for(
    make: Callable[[], Reader], headers: Headers, *, stream: bool, drop: bool = False, tail_only: bool = False
) -> PassTap | DocumentTap | StreamTap:
    """Choose the tap for a successful response by its content type and encoding.

    `stream` decides where the content type says nothing. A chunk cannot be taken out of a compressed stream, so it then passes.
    """
    pairs = list(headers)
    decoder = decoder_for(pairs)
    if decoder is None:
        return PassTap()
    kind = next((value for name, value in pairs if name.lower() == b"content-type"), b"").split(b";")[0].strip().lower()
    if kind == b"text/event-stream" or (stream and not kind.endswith(b"json")):
        return DroppingTap(make(), decoder) if drop and not content_codings(pairs) else StreamTap(make(), decoder)
    return DocumentTap(make(), decoder, tail_only=tail_only)
