"""The zygote: imports once, gives up what it can, then forks a locked-down worker for each descriptor that it is sent.

It never runs a line of a plugin. It lives as long as the gateway does: the end of its control socket or of the gateway's process
ends it, and every worker goes with it.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys

from sark_mw.policy.isolated.inside import api, lockdown, preload, worker

#: An order: memory in bytes, processor time in seconds; the worker's socket comes with it. Without one: 0, and whom to kill.
ORDER = struct.Struct(">QI")
#: What is sent about a worker first, with its pidfd, and last: its pid, or how it ended (as `waitpid` says).
HELLO = struct.Struct(">4sQ")
BORN, DIED = b"born", b"\0\0\0\0"
#: The control socket's descriptor.
CONTROL = 0


def main(settings_text: str) -> None:
    """Prepare and serve until the gateway is gone."""
    settings = json.loads(settings_text)
    control = socket.socket(fileno=CONTROL)
    gateway = _watch(settings["gateway"])
    preload.load(settings["preload"], settings["paths"], settings["zones"])
    api.install()
    own = lockdown.own_bytes()
    layers = lockdown.take_zygote_down(namespaces=settings["namespaces"])
    _Zygote(control, gateway, lockdown.WorkerLockdown(layers, own)).serve()


def _watch(gateway: int) -> int | None:
    handle = _pidfd(gateway)
    # A pid may be another's by now; a parent that is still ours cannot be.
    if os.getppid() != gateway:
        sys.exit(0)
    return handle


def _pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        handle: int = os.pidfd_open(pid)
    except OSError:
        return None  # too old a kernel, or forbidden: the gateway hears that this layer is missing
    return handle


class _Zygote:
    def __init__(self, control: socket.socket, gateway: int | None, locks: lockdown.WorkerLockdown) -> None:
        self._control = control
        self._gateway = gateway
        self._locks = locks
        self._pid = os.getpid()
        #: By what their end is heard on (a pidfd): the worker's pid, and our copy of its socket.
        self._workers: dict[int, tuple[int, socket.socket]] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        if gateway is not None:
            self._poll.register(gateway, select.POLLIN)

    def serve(self) -> None:
        """Fork and reap until the gateway goes."""
        try:
            while self._turn():
                pass
        finally:
            for pid, _ in self._workers.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid, _ in self._workers.values():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _turn(self) -> bool:
        for handle, _ in self._poll.poll(None if self._gateway is not None else 50):
            if handle == self._gateway:
                return False
            if handle != self._control.fileno():
                self._bury(handle)
            elif not self._take_order():
                return False
        if self._gateway is None:
            for pid in [pid for pid, _ in self._workers.values()]:
                self._bury(-pid)
        return True

    def _take_order(self) -> bool:
        handles = array.array("i")
        order, ancillary, _, _ = self._control.recvmsg(ORDER.size, socket.CMSG_SPACE(handles.itemsize))
        if len(order) != ORDER.size:
            return False
        for _, _, data in ancillary:
            handles.frombytes(data[: handles.itemsize])
        memory_bytes, cpu_s = ORDER.unpack(order)
        if not handles:
            if any(pid == cpu_s for pid, _ in self._workers.values()):
                os.kill(cpu_s, signal.SIGKILL)  # an order to kill: our child, so the number is still its own
        else:
            self._fork(socket.socket(fileno=handles[0]), memory_bytes, cpu_s)
        return True

    def _fork(self, theirs: socket.socket, memory_bytes: int, cpu_s: int) -> None:
        try:
            pid = os.fork()
        except OSError:
            theirs.close()  # the gateway hears the end of it
            return
        if pid == 0:
            worker.run(theirs.fileno(), self._locks, memory_bytes, cpu_s, self._pid)
        sent: list[tuple[int, int, array.array[int]]] = []
        handle = _pidfd(pid) or -pid
        if handle > 0:
            self._poll.register(handle, select.POLLIN)
            sent = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [handle]))]
        self._workers[handle] = (pid, theirs)
        with contextlib.suppress(OSError):
            theirs.sendmsg([HELLO.pack(BORN, pid)], sent)

    def _bury(self, handle: int) -> None:
        pid, theirs = self._workers[handle]
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone == 0:
            return
        del self._workers[handle]
        if handle > 0:
            self._poll.unregister(handle)
            os.close(handle)
        with contextlib.suppress(OSError):
            theirs.send(HELLO.pack(DIED, status), socket.MSG_DONTWAIT)
        theirs.close()
