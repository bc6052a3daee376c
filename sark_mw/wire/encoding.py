"""Undo a response's compression for the copy that the tap reads; bounded, so that a bomb costs the bomber more than us.

gzip and deflate are always there; br needs `brotli` 1.2 or later (earlier ones cannot bound their output), zstd needs Python
3.14, `backports.zstd` or `zstandard`. What cannot be decoded is not read: its usage is estimated.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

from sark_mw.wire.base import Headers

#: Decoded bytes read of one response; beyond that its usage is estimated.
MAX_DECODED_BYTES = 64 * 1024 * 1024
_PIECE = 64 * 1024
# Per spec a zstd block holds 128 KiB at most and takes 4 bytes at least: 64 bytes of input give 2 MiB at most.
_ZSTD_SLICE = 64
_ZSTD_WINDOW_LOG = 23


class UndecodableError(Exception):
    """The body is not what its content-encoding says."""


class Decoder(Protocol):
    """Turns encoded chunks into decoded pieces of bounded size; raises `UndecodableError`."""

    def feed(self, chunk: bytes) -> Iterator[bytes]: ...


class Identity:
    """No compression."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Return the chunk itself."""
        if chunk:
            yield chunk


class Deflate:
    """gzip (with several members) and deflate (zlib-wrapped, or raw as some servers send it)."""

    def __init__(self, wbits: int | None) -> None:
        self._wbits = wbits
        self._zlib = None if wbits is None else zlib.decompressobj(wbits)
        self._head = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield pieces of at most 64 KiB."""
        if self._zlib is None:
            self._head += chunk
            if len(self._head) < 2:
                return
            chunk, self._head = self._head, b""
            self._wbits = zlib.MAX_WBITS if _is_zlib(chunk) else -zlib.MAX_WBITS
            self._zlib = zlib.decompressobj(self._wbits)
        while chunk:
            if self._zlib.eof:
                if self._wbits != _GZIP:
                    return
                self._zlib = zlib.decompressobj(_GZIP)
            try:
                piece = self._zlib.decompress(chunk, _PIECE)
            except zlib.error as error:
                raise UndecodableError(str(error)) from error
            chunk = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
            if piece:
                yield piece


_GZIP = 16 + zlib.MAX_WBITS


def _is_zlib(head: bytes) -> bool:
    return head[0] & 0x0F == 8 and (head[0] << 8 | head[1]) % 31 == 0


class Brotli:
    """br, by `brotli` 1.2 or later."""

    def __init__(self, module: ModuleType) -> None:
        self._error: type[Exception] = module.error
        self._brotli: Any = module.Decompressor()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield pieces of about 64 KiB."""
        while not self._brotli.is_finished():
            try:
                piece = self._brotli.process(chunk, output_buffer_limit=_PIECE)
            except self._error as error:
                raise UndecodableError(str(error)) from error
            if piece:
                yield piece
            if self._brotli.can_accept_more_data():
                return
            chunk = b""


class Zstd:
    """zstd frames, by the standard library's module (or its backport) or by `zstandard`."""

    def __init__(self, begin: Callable[[], Any], error: type[Exception]) -> None:
        self._begin = begin
        self._error = error
        self._frame = begin()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield pieces of at most 2 MiB."""
        for start in range(0, len(chunk), _ZSTD_SLICE):
            rest = chunk[start : start + _ZSTD_SLICE]
            while rest:
                if self._frame.eof:
                    self._frame = self._begin()
                try:
                    piece = self._frame.decompress(rest)
                except self._error as error:
                    raise UndecodableError(str(error)) from error
                rest = self._frame.unused_data if self._frame.eof else b""
                if piece:
                    yield piece


class Bounded:
    """Ends the reading of a body that decodes to more than `MAX_DECODED_BYTES`."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._left = MAX_DECODED_BYTES

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what the decoder yields, up to the bound."""
        for piece in self._decoder.feed(chunk):
            self._left -= len(piece)
            if self._left < 0:
                raise UndecodableError(f"decodes to more than {MAX_DECODED_BYTES} bytes")
            yield piece


def _module(*names: str) -> ModuleType | None:
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _brotli() -> Decoder | None:
    module = _module("brotli")
    if module is None or not hasattr(module.Decompressor, "can_accept_more_data"):
        return None
    return Brotli(module)


def _zstd() -> Decoder | None:
    if standard := _module("compression.zstd", "backports.zstd"):
        options = {standard.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        return Zstd(lambda: standard.ZstdDecompressor(options=options), standard.ZstdError)
    if package := _module("zstandard"):
        window = 1 << _ZSTD_WINDOW_LOG
        return Zstd(lambda: package.ZstdDecompressor(max_window_size=window).decompressobj(), package.ZstdError)
    return None


_DECODERS: dict[bytes, Callable[[], Decoder | None]] = {
    b"gzip": lambda: Deflate(_GZIP),
    b"x-gzip": lambda: Deflate(_GZIP),
    b"deflate": lambda: Deflate(None),
    b"br": _brotli,
    b"zstd": _zstd,
}


def content_codings(headers: Headers) -> list[bytes]:
    """List the codings of a body in the order they were applied, without `identity`."""
    values = b",".join(value for name, value in headers if name.lower() == b"content-encoding")
    codings = [coding.strip().lower() for coding in values.split(b",")]
    return [coding for coding in codings if coding and coding != b"identity"]


def decoder_for(headers: Headers) -> Decoder | None:
    """Make the decoder for a response; None if it cannot be decoded here (unknown, not installed, or stacked)."""
    codings = content_codings(headers)
    if not codings:
        return Identity()
    make = _DECODERS.get(codings[0]) if len(codings) == 1 else None
    decoder = make() if make else None
    return Bounded(decoder) if decoder else None


def readable_encodings() -> tuple[str, ...]:
    """Name the codings that taps can read here: forward no other `accept-encoding`, or those responses are estimated."""
    return tuple(name.decode() for name, make in _DECODERS.items() if name != b"x-gzip" and make() is not None)
