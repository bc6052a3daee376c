"""The worker's end of the socket: frames are a length (4 bytes, big endian) and a body.

A request's body is its number (8 bytes) and JSON. One that does not fit into the memory that is left is cut to its number, so
that the gateway hears which request could not be read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

#: The only descriptor of a worker: the lowest, so that a limit of one descriptor leaves no number for another.
SOCKET = 0
_LENGTH = struct.Struct(">I")
_NUMBER_BYTES = 8
_CHUNK = 65536


def frames() -> Iterator[bytes]:
    """Read one body after the other, until the gateway closes its end."""
    kept = bytearray()
    while True:
        while len(kept) >= _LENGTH.size and len(kept) >= (end := _LENGTH.size + _LENGTH.unpack_from(kept)[0]):
            yield _taken(kept, end)
        more = os.read(SOCKET, _CHUNK)
        if not more:
            return
        try:
            kept += more
        except MemoryError:
            yield _passed_over(kept, more)


def write(body: bytes) -> None:
    """Send a body."""
    frame = memoryview(_LENGTH.pack(len(body)) + body)
    while frame:
        frame = frame[os.write(SOCKET, frame) :]


def _taken(kept: bytearray, end: int) -> bytes:
    try:
        with memoryview(kept) as view:
            return bytes(view[_LENGTH.size : end])
    except MemoryError:
        return _number(kept)
    finally:
        del kept[:end]


def _passed_over(kept: bytearray, more: bytes) -> bytes:
    """Forget the frame that `kept` begins with, and keep what comes after it; returns its number."""
    if len(kept) < _LENGTH.size + _NUMBER_BYTES:
        raise MemoryError  # there is no room for anything: not the request's fault
    number = _number(kept)
    left = _LENGTH.size + _LENGTH.unpack_from(kept)[0] - len(kept)
    kept.clear()
    while left > len(more):
        left -= len(more)
        more = os.read(SOCKET, _CHUNK) or os._exit(0)
    kept += more[left:]
    return number


def _number(kept: bytearray) -> bytes:
    return bytes(kept[_LENGTH.size : _LENGTH.size + _NUMBER_BYTES])
