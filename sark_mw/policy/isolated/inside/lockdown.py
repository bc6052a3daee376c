"""Take everything away from a process: the zygote's part once, the worker's part before any plugin source arrives.

Each layer reports True, or why it is not there. None relies on another: any one of them may be missing where the mode allows.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sys
from collections.abc import Callable

from sark_mw.policy.isolated.inside import kernel, landlock, seccomp

Layers = dict[str, bool | str]

#: User ids that systemd keeps for services of the moment and that passwd does not name; a number of one's own makes the limit
#: on processes count, and keeps other programs of `nobody` away.
_FREE_UIDS = range(61184, 65520)
_NOBODY = 65534
_NEW_USER, _NEW_NET, _NEW_MOUNT, _NEW_IPC, _NEW_UTS = 0x10000000, 0x40000000, 0x00020000, 0x08000000, 0x04000000
_PRIVATE, _RECURSIVE = 1 << 18, 1 << 14
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_EXEC = 1, 2, 4, 8
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def attempt(layers: Layers, name: str, take: Callable[[], bool | str | None]) -> None:
    """Put one layer on and note how that went."""
    try:
        result = take()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        layers[name] = str(error) or type(error).__name__
    else:
        layers[name] = True if result is None else result


def take_zygote_down(*, namespaces: bool, own_user: bool = True) -> Layers:
    """Do what holds for all workers: another user, namespaces where granted, no way back to privileges, nobody looks in.

    Without `own_user` it stays root, for a parent that has no power to kill another user's processes.
    """
    layers: Layers = {}
    if not sys.platform.startswith("linux"):
        return dict.fromkeys(("uid", "namespaces"), f"needs Linux, this is {sys.platform}")
    # Should memory run out, the kernel takes workers first and not the gateway.
    attempt({}, "oom", _be_the_first_to_go)
    if own_user:
        attempt(layers, "uid", _become_nobody)
    else:
        layers["uid"] = "root without CAP_KILL could not end it as another user"
    if namespaces:
        attempt(layers, "namespaces", _leave_namespaces)
    else:
        layers["namespaces"] = "switched off"
    attempt({}, "no_new_privs", _no_new_privs)
    # Nobody of the same user may look into the zygote or take its descriptors.
    attempt({}, "dumpable", lambda: _zero(kernel.prctl(kernel.PR_SET_DUMPABLE, 0)))
    os.chdir("/")
    return layers


def _be_the_first_to_go() -> None:
    handle = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    try:
        os.write(handle, b"1000")
    finally:
        os.close(handle)


def _zero(_: int) -> None:
    return None


def _become_nobody() -> bool | str:
    if os.getuid() != 0 and os.geteuid() != 0:
        return True  # an ordinary user has nothing to give up
    import pwd

    os.setgroups([])
    own = random.choice(_FREE_UIDS)  # noqa: S311  # any will do
    with contextlib.suppress(KeyError):
        pwd.getpwuid(own)
        own = _NOBODY  # somebody has that number
    for uid in (own, _NOBODY):
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            if uid == _NOBODY:
                return f"cannot stop being root: {error.strerror}"
        else:
            return True
    return "cannot stop being root"


def _leave_namespaces() -> None:
    uid, gid = os.getuid(), os.getgid()
    # Who changed its user owns nothing of its own /proc until it may be looked into again; taken back right after this.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    kernel.unshare(_NEW_USER | _NEW_NET | _NEW_MOUNT | _NEW_IPC | _NEW_UTS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        handle = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)
    # An empty root that nobody can write to; the old one is let go.
    kernel.mount("", "/", "", _PRIVATE | _RECURSIVE, "")
    kernel.mount("nothing", "/tmp", "tmpfs", _READ_ONLY | _NO_SUID | _NO_DEV | _NO_EXEC, "size=4k,nr_inodes=2,mode=555")  # noqa: S108  # any folder does
    os.chdir("/tmp")  # noqa: S108  # mounted just above
    kernel.syscall("pivot_root", _PIVOT_ROOT[kernel.MACHINE], b".", b".")
    kernel.unmount(".", _DETACH)
    os.chdir("/")


def _no_new_privs() -> bool | str:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    return True if kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) == 1 else "the kernel did not keep it"


class WorkerLockdown:
    """What a worker puts on; made in the zygote, so that a fork has little to do."""

    def __init__(self, zygote_layers: Layers, zygote_bytes: tuple[int, int]) -> None:
        self._zygote_layers = zygote_layers
        self._linux = sys.platform.startswith("linux")
        self._filter: object | str = "needs Linux"
        self._landlock: int | str = "needs Linux"
        if self._linux:
            try:
                self._filter = seccomp.assembled()
            except KeyError:
                self._filter = f"no list of system calls for {kernel.MACHINE}"
            try:
                self._landlock = landlock.version()
            except OSError as error:
                self._landlock = error.strerror or str(error)
        self._zygote_bytes = zygote_bytes

    def put_on(self, memory_bytes: int, cpu_s: int, zygote: int) -> Layers:
        """Take everything from this process, and list the layers that hold it."""
        layers = dict(self._zygote_layers)
        if not self._linux:
            layers |= dict.fromkeys(("no_new_privs", "landlock_fs", "landlock_net", "seccomp"), "needs Linux")
            attempt(layers, "rlimits", lambda: self._limits(memory_bytes, cpu_s))
            return layers
        attempt(layers, "no_new_privs", _no_new_privs)
        self._put_landlock_on(layers)
        attempt(layers, "rlimits", lambda: self._limits(memory_bytes, cpu_s))
        attempt({}, "capabilities", kernel.drop_capabilities)
        attempt({}, "dumpable", lambda: _zero(kernel.prctl(kernel.PR_SET_DUMPABLE, 0)))
        attempt(layers, "parent_death", lambda: _zero(kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)))
        if os.getppid() != zygote:
            os._exit(0)  # the zygote died before this process could ask to go with it
        if isinstance(self._filter, str):
            layers["seccomp"] = self._filter
        else:
            attempt(layers, "seccomp", lambda: seccomp.enter(self._filter))
        return layers

    def _put_landlock_on(self, layers: Layers) -> None:
        known = self._landlock
        if isinstance(known, str):
            layers["landlock_fs"] = layers["landlock_net"] = known
            return
        attempt(layers, "landlock_fs", lambda: landlock.restrict(known))
        held = layers["landlock_fs"] is True
        layers["landlock_net"] = held if landlock.network_too(known) else f"needs version 4, this kernel has {known}"
        layers["landlock_scopes"] = held if landlock.scopes_too(known) else f"needs version 6, this kernel has {known}"

    def _limits(self, memory_bytes: int, cpu_s: int) -> None:
        space, data = self._zygote_bytes
        wanted = {
            "AS": space + memory_bytes,
            "DATA": data + memory_bytes,
            "CPU": cpu_s,
            "NOFILE": 1,
            "NPROC": 0,
            "FSIZE": 0,
            "CORE": 0,
            "MEMLOCK": 0,
            "MSGQUEUE": 0,
            "NICE": 0,
            "RTPRIO": 0,
        }
        for name, most in wanted.items():
            number = getattr(resource, f"RLIMIT_{name}", None)
            if number is not None:
                resource.setrlimit(number, (most, most))


def own_bytes() -> tuple[int, int]:
    """Return how much address space and private writable memory this process has; limits are counted from there."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123  # pathlib is not loaded here
            sizes = dict(line.split(":", 1) for line in status if line.startswith("Vm"))
    except OSError:
        return 512 << 20, 256 << 20
    return tuple(int(sizes[name].split()[0]) << 10 for name in ("VmSize", "VmData"))  # type: ignore[return-value]  # two of them
