"""Landlock: no file, no port, no signal and no abstract socket outside, whatever the system call list lets through."""

from __future__ import annotations

import ctypes
import os

from sark_mw.policy.isolated.inside.kernel import syscall

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_ASK_VERSION = 1
#: Access rights by the version that brought them: 13 at first, then refer, truncate, and ioctl on devices.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NETWORK_VERSION, _NETWORK_RIGHTS = 4, 0b11
_SCOPE_VERSION, _SCOPES = 6, 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


def version() -> int:
    """Ask the kernel for its version of Landlock; raises `KernelRefusedError` where it has none."""
    return syscall("landlock", _CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))


def restrict(known: int) -> None:
    """Handle every right this version knows and grant none. Needs no_new_privs."""
    files = sum(rights for since, rights in _FILE_RIGHTS.items() if known >= since)
    network = _NETWORK_RIGHTS if known >= _NETWORK_VERSION else 0
    scoped = _SCOPES if known >= _SCOPE_VERSION else 0
    ruleset = _Ruleset(files, network, scoped)
    size = 24 if known >= _SCOPE_VERSION else 16 if known >= _NETWORK_VERSION else 8
    handle = syscall("landlock", _CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        syscall("landlock", _RESTRICT_SELF, ctypes.c_int(handle), ctypes.c_uint32(0))
    finally:
        os.close(handle)


def network_too(known: int) -> bool:
    """Tell whether this version knows the network."""
    return known >= _NETWORK_VERSION


def scopes_too(known: int) -> bool:
    """Tell whether this version keeps signals and abstract sockets in."""
    return known >= _SCOPE_VERSION
