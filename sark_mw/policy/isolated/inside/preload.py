"""Import what plugins may want while files can still be read: after the lockdown an import finds only what is loaded."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import sys
import zoneinfo
from collections.abc import Iterator, Sequence
from typing import Any

#: The standard modules that a plugin finds. Those marked by what they would load (OpenSSL) are kept out below.
STANDARD = (  # noqa: SIM905  # words, not lines
    "__future__ _strptime abc ast asyncio base64 binascii bisect calendar cmath collections collections.abc contextlib "
    "contextvars copy copyreg csv dataclasses datetime decimal difflib email.utils encodings.ascii encodings.idna "
    "encodings.latin_1 encodings.punycode encodings.utf_16 encodings.utf_8 encodings.utf_8_sig enum fnmatch fractions functools "
    "graphlib hashlib heapq hmac html inspect ipaddress itertools json keyword linecache locale logging math numbers operator "
    "pprint queue random re reprlib secrets shlex statistics string stringprep struct textwrap threading time tokenize "
    "traceback types typing unicodedata urllib.parse uuid warnings weakref zlib zoneinfo"
).split()
#: Would bring OpenSSL into every worker: megabytes, and code that reads files and environment.
_KEPT_OUT = ("_hashlib", "_ssl", "ssl")


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]  # None means: this import fails
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def load(more: Sequence[str], paths: Sequence[str], zones: str | None) -> None:
    """Import the standard modules, then `more` (the administrator's choice) from `paths`, and read the time zones."""
    with _without(_KEPT_OUT):
        for name in STANDARD:
            importlib.import_module(name)
    before = list(sys.path)
    try:
        sys.path.extend(paths)
        for name in more:
            importlib.import_module(name)
    finally:
        sys.path[:] = before
    _keep_zones(_read_zones(zones))
    # Python looks names up on first use: done here, since the files are out of reach later.
    traceback = sys.modules["traceback"]
    try:
        raise ValueError("warm")
    except ValueError as error:
        traceback.format_exception(error)
    gc.collect()
    gc.freeze()


def _read_zones(folder: str | None) -> dict[str, bytes]:
    zones: dict[str, bytes] = {}
    for root, _, names in os.walk(folder or ""):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:  # noqa: PTH123, PTH118  # pathlib stays unloaded
                content = file.read(1 << 17)
            if content[:4] == b"TZif":
                zones[os.path.relpath(os.path.join(root, name), folder)] = content  # noqa: PTH118  # as above
    return zones


def _keep_zones(zones: dict[str, bytes]) -> None:
    """Let `ZoneInfo` find its data in memory."""
    if not zones:
        return

    def load_tzdata(key: str) -> io.BytesIO:
        if key not in zones:
            raise zoneinfo.ZoneInfoNotFoundError(f"No time zone found with key {key}")
        return io.BytesIO(zones[key])

    common: Any = sys.modules["zoneinfo._common"]
    common.load_tzdata = load_tzdata
    zoneinfo.reset_tzpath(to=[])
    zoneinfo.available_timezones = lambda: set(zones)
    zoneinfo.ZoneInfo("UTC")
