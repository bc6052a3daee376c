"""The system calls that Python has no function for, through ctypes.

By hand, since no library fits: pyseccomp needs libseccomp.so on the system (slim images lack it), pyprctl and python-prctl have
had no release since 2021, and landlock on PyPI is a development version that knows neither network nor scopes.
"""

from __future__ import annotations

import ctypes
import os
import platform

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47

_libc = ctypes.CDLL(None, use_errno=True)

MACHINE = platform.machine()
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522


class KernelRefusedError(OSError):
    """A system call failed."""


def refused(what: str) -> KernelRefusedError:
    """Make an error of errno."""
    number = ctypes.get_errno()
    return KernelRefusedError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, second: int = 0, third: int = 0, fourth: int = 0) -> int:
    """Call prctl; raise `KernelRefusedError` when it fails."""
    long = ctypes.c_ulong
    result: int = _libc.prctl(ctypes.c_int(option), long(second), long(third), long(fourth), long(0))
    if result < 0:
        raise refused(f"prctl({option})")
    return result


def syscall(what: str, number: int, *arguments: object) -> int:
    """Make a system call by its number; raise `KernelRefusedError` when it fails."""
    call = _libc.syscall
    call.restype = ctypes.c_long
    result: int = call(ctypes.c_long(number), *arguments)
    if result < 0:
        raise refused(what)
    return result


def unshare(flags: int) -> None:
    """Leave namespaces."""
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        raise refused("unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """Mount a file system."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()) < 0:
        raise refused(f"mount {target}")


def unmount(target: str, flags: int) -> None:
    """Unmount a file system."""
    if _libc.umount2(target.encode(), ctypes.c_int(flags)) < 0:
        raise refused(f"umount {target}")


def drop_capabilities() -> None:
    """Give up every capability, those that a user namespace granted included."""

    class _Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    header = _Header(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    syscall("capset", _CAPSET[MACHINE], ctypes.byref(header), ctypes.byref(nothing))
