"""The zygote as the gateway sees it: started by exec with nothing of the gateway's, asked for workers, ended with them.

There is one in each process for all plugins (per set of preloaded modules), held by those that use it. Orders go over its control
socket without waiting, so that any event loop and thread may place them; the worker's own socket then tells of its birth.
"""

from __future__ import annotations

import array
import asyncio
import atexit
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from sark_mw.policy.isolated.inside.zygote import ORDER

_BOOT = Path(__file__).with_name("boot.py")
#: What a zygote gets to end its workers and itself; it is killed after that.
_END_S = 5.0
Key = tuple[tuple[str, ...], bool]


class Zygote:
    """A zygote that is started when it is first needed, and again when it died."""

    def __init__(self, preload: tuple[str, ...], *, namespaces: bool) -> None:
        self._preload = preload
        self._namespaces = namespaces
        self._lock = threading.Lock()
        self._owner = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Return its process id, None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def order(self, theirs: socket.socket, memory_bytes: int, cpu_s: int) -> None:
        """Ask for a worker at the other end of `theirs`, which is closed here; raises OSError where none can be started."""
        message = [ORDER.pack(memory_bytes, cpu_s)]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
        with self._lock, theirs:
            control = self._alive()
            try:
                control.sendmsg(message, rights)
            except (BrokenPipeError, ConnectionResetError):
                self._end()
                self._alive().sendmsg(message, rights)

    def kill(self, pid: int) -> None:
        """Have one of its workers killed, for systems without pidfds; whatever is none of its workers is safe."""
        with self._lock, contextlib.suppress(OSError):
            if self._control is not None and self._owner == os.getpid():
                self._control.send(ORDER.pack(0, pid))

    def close(self) -> None:
        """End it and its workers, and wait until they are gone."""
        with self._lock:
            self._end()

    def _alive(self) -> socket.socket:
        if self._owner != os.getpid():
            # A fork of the process that started it: that one's zygote is none of ours.
            if self._control is not None:
                self._control.close()
            if self._process is not None:
                self._process.returncode = 0
            self._process = self._control = None
            self._owner = os.getpid()
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._control is None:
            self._start()
        assert self._control is not None
        return self._control

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            zones = importlib.util.find_spec("tzdata")
            folder = next(iter(zones.submodule_search_locations or ()), None) if zones else None
            settings = {
                "gateway": os.getpid(),
                "preload": self._preload,
                "paths": [path for path in sys.path if self._preload and path and Path(path).is_dir()],
                "zones": str(Path(folder) / "zoneinfo") if folder else None,
                "namespaces": self._namespaces,
            }
            # Where an interpreter needs to be told of its own library; nothing else of the environment goes along.
            environment = {name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"}
            command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_BOOT), json.dumps(settings)]
            try:
                self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and file
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    cwd="/",
                    close_fds=True,
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        self._control = ours
        self.starts += 1

    def _end(self) -> None:
        control, process = self._control, self._process
        self._control = self._process = None
        if control is not None:
            control.close()
        if process is not None and self._owner == os.getpid():
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


_zygotes: dict[Key, tuple[Zygote, int]] = {}
_guard = threading.Lock()


def hold_zygote(preload: tuple[str, ...], *, namespaces: bool) -> Zygote:
    """Return the zygote of this process for these modules; `release_zygote` when it is not needed any more. Waits for nobody."""
    key = (preload, namespaces)
    with _guard:
        zygote, holders = _zygotes.get(key) or (Zygote(preload, namespaces=namespaces), 0)
        _zygotes[key] = (zygote, holders + 1)
        return zygote


def release_zygote(held: Zygote) -> None:
    """Let go of it; the last one to do so ends it."""
    last = False
    with _guard:
        for key, (zygote, holders) in list(_zygotes.items()):
            if zygote is held:
                last = holders == 1
                if last:
                    del _zygotes[key]
                else:
                    _zygotes[key] = (zygote, holders - 1)
    if last:
        held.close()


async def zygote_released(held: Zygote) -> None:
    """Let go of it in a thread, as ending it takes a moment; also where the caller is cancelled meanwhile."""
    await asyncio.shield(asyncio.to_thread(release_zygote, held))


@atexit.register
def _end_all() -> None:
    for zygote, _ in list(_zygotes.values()):
        with contextlib.suppress(OSError):
            zygote.close()
