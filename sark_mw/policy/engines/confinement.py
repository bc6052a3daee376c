"""Confine an engine's process in two steps: before it touches the policy, and, when all is compiled, for good.

Machine code needs executable memory, which the last step takes away. Whatever reads and compiles a policy runs between the two:
as nobody, with no file, no network where namespaces are granted, no new privilege, and bounded memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
from collections.abc import Iterator
from functools import partial

from sark_mw.policy.isolated.inside import kernel, landlock, lockdown

#: What compiling may take beside the engine itself; a module of 2 MiB takes some 10 MiB, one enormous function hundreds.
COMPILE_BYTES = 512 << 20
_FOREVER_S = 10**7


class Confinement:
    """The two steps; made while there is still a /proc, of which it keeps what it reads later."""

    def __init__(self, parent: int, memory_bytes: int) -> None:
        self._parent = parent
        self._memory_bytes = memory_bytes
        self._linux = os.path.exists("/proc/self/maps")  # noqa: PTH110  # pathlib is not needed here
        self._layers: lockdown.Layers = {}
        self._files = [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("status", "maps")] if self._linux else []

    def begin(self, *, namespaces: bool, own_user: bool) -> None:
        """Give up user, files, privileges and most of the memory; what is missing is reported by `finish`."""
        before = self._own_bytes()
        self._layers = lockdown.take_zygote_down(namespaces=namespaces, own_user=own_user)
        if not self._linux:
            return
        # A change of the user forgets this.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._parent:
            os._exit(0)
        lockdown.attempt({}, "landlock", lambda: landlock.restrict(landlock.version()))
        lockdown.attempt({}, "capabilities", kernel.drop_capabilities)
        for name, own in zip(("AS", "DATA"), before, strict=True):
            most = own + self._memory_bytes + COMPILE_BYTES
            lockdown.attempt({}, name, partial(_limit, name, most))
        for name in ("FSIZE", "CORE", "NPROC"):
            lockdown.attempt({}, name, partial(_limit, name, 0))

    def finish(self) -> lockdown.Layers:
        """Take everything else, and list the layers that hold this process."""
        own = self._own_bytes()
        for start, size in self._writable_code():
            lockdown.attempt({}, "code", partial(_protect, start, size))
        for handle in self._files:
            os.close(handle)
        return lockdown.WorkerLockdown(self._layers, own).put_on(self._memory_bytes, _FOREVER_S, self._parent)

    def _own_bytes(self) -> tuple[int, int]:
        if not self._linux:
            return lockdown.own_bytes()
        sizes = dict(line.split(":", 1) for line in self._read(0).splitlines() if line.startswith("Vm"))
        return int(sizes["VmSize"].split()[0]) << 10, int(sizes["VmData"].split()[0]) << 10

    def _writable_code(self) -> Iterator[tuple[int, int]]:
        # The page of trampolines that ctypes makes for callbacks: all are made by now.
        for line in self._read(1).splitlines() if self._linux else ():
            addresses, rights = line.split(maxsplit=2)[:2]
            if "w" in rights and "x" in rights:
                start, end = (int(each, 16) for each in addresses.split("-"))
                yield start, end - start

    def _read(self, place: int) -> str:
        os.lseek(self._files[place], 0, os.SEEK_SET)
        parts = iter(lambda: os.read(self._files[place], 1 << 16), b"")
        return b"".join(parts).decode(errors="replace")


def _limit(name: str, most: int) -> None:
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def _protect(start: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_int(mmap.PROT_READ | mmap.PROT_EXEC)) < 0:
        raise kernel.refused("mprotect")
