"""Read files that anyone may have written: regular ones only, of a bounded size, and TOML that takes no time to parse."""

from __future__ import annotations

import errno
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from sark_mw.errors import ConfigurationError

#: No TOML of a package is longer.
MOST_TOML_BYTES = 64 << 10
#: In one line: tomllib takes time by the square of the parts of a key, which stands in one line.
_MOST_DOTS = 100
_MOST_DEPTH = 32
_INTEGERS = range(-(2**63), 2**63)


def content_of(path: Path, most_bytes: int) -> bytes:
    """Read a file; raises `OSError` also for what is no regular file (a pipe has no end, a device may do anything) or longer."""
    _regular(path.stat())
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        _regular(os.fstat(file.fileno()))
        content = file.read(most_bytes + 1) or b""
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is longer than {most_bytes:,} bytes")
    return content


def toml_of(content: bytes, most_bytes: int = MOST_TOML_BYTES) -> dict[str, Any]:
    """Parse TOML; raises `ConfigurationError` for what is none, or more than a plugin says of itself."""
    if len(content) > most_bytes:
        raise ConfigurationError(f"it is longer than {most_bytes:,} bytes")
    if any(line.count(b".") > _MOST_DOTS for line in content.split(b"\n")):
        raise ConfigurationError(f"a line has more than {_MOST_DOTS} dots in it: break it")
    try:
        said = tomllib.loads(content.decode())
    except RecursionError:
        raise ConfigurationError("it is nested too deep") from None
    except ValueError as error:  # a TOMLDecodeError, a UnicodeDecodeError, or a number of thousands of digits
        raise ConfigurationError(str(error)) from error
    _check(said)
    return said


def _regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def _check(root: object) -> None:
    pending = [(root, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > _MOST_DEPTH:
            raise ConfigurationError("it is nested too deep")
        if isinstance(value, dict | list):
            pending.extend((each, depth + 1) for each in (value.values() if isinstance(value, dict) else value))
        elif isinstance(value, int) and value not in _INTEGERS:
            raise ConfigurationError("a number in it has more than 64 bits")
