"""Run a command as an ordinary user, also where root's interpreter lies in a folder that is closed to others."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.servers.lookup import unavailable

NOBODY = 65534
#: In a mount namespace of its own, the closed folder becomes an open one that holds nothing but the interpreter.
_OPEN = """
prefix=$1 closed=$2; shift 2
mkdir -p /run/sark_python && mount --bind "$prefix" /run/sark_python && mount -t tmpfs -o mode=755 tmpfs "$closed" &&
mkdir -p "$prefix" && mount --bind /run/sark_python "$prefix" && exec "$@"
"""


def as_nobody(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` as nobody; skips (in CI: fails) where this cannot be had."""
    if os.geteuid() != 0:
        return list(command)  # nobody in particular already
    setpriv, unshare = shutil.which("setpriv"), shutil.which("unshare")
    if setpriv is None or unshare is None:
        unavailable("setpriv and unshare are needed to become an ordinary user")
    become = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
    closed = _closed_above(Path(sys.base_prefix))
    if closed is None:
        return become
    return [unshare, "-m", "bash", "-c", _OPEN, "bash", sys.base_prefix, str(closed), *become]


def _closed_above(path: Path) -> Path | None:
    return next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001), None)
