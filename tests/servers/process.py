"""Server processes that a test can pause, kill and start again, and that never outlive the tests."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

START_DEADLINE_S = 30.0
POLL_S = 0.005

# Linux tells a child of its parent's death, and means the parent's *thread*: one thread that lives as long as the
# interpreter starts all servers, so that a test may start them from any other.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-spawner")
_running: weakref.WeakSet[ServerProcess] = weakref.WeakSet()

# Runs as the tests do and only then becomes somebody else, who may not be able to read this Python.
_DIE_WITH_PARENT = """
import ctypes, os, sys
signal, parent, uid, gid = map(int, sys.argv[1:5])
if gid != -1:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal)
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[5], sys.argv[5:])
"""


class ServerFailedError(RuntimeError):
    """A server did not start, or did not become ready; the message carries the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The user that a server runs as."""

    uid: int
    gid: int


class ServerProcess:
    """Run one command in the background, its output in `log`; it dies with the test run, even with a SIGKILLed one."""

    def __init__(
        self,
        argv: Iterable[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        account: Account | None = None,
        prefix: Iterable[str] = (),
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self._argv = [str(word) for word in argv]
        self._log = log
        self._environment = {**os.environ, **(environment or {})}
        self._account = account
        self._prefix = list(prefix)
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the pid of the living process."""
        if self._process is None:
            raise ServerFailedError(f"{self._argv[0]} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Tell whether the process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    def start(self, ready: Callable[[], bool]) -> None:
        """Start the process and return when `ready()` is true."""
        if self.running:
            raise ServerFailedError(f"{self._argv[0]} is running already")
        self._process = _spawner.submit(self._spawn).result()
        _running.add(self)
        wait_until(ready, lambda: f"{self._argv[0]} is not ready: {self.output[-2000:]}", alive=lambda: self.running)

    @property
    def output(self) -> str:
        """Return everything that the process has written so far, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def pause(self) -> None:
        """Freeze the process: its connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self, number: signal.Signals, *, patience_s: float = 20.0) -> None:
        """Send a signal and wait for the end; a process that is paused or ignores it is killed. Dead ones are fine."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _running.discard(self)

    def _spawn(self) -> subprocess.Popen[bytes]:
        account = self._account or Account(uid=-1, gid=-1)
        words = [int(self._death_signal), os.getpid(), account.uid, account.gid]
        wrapper = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *map(str, words)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*self._prefix, *wrapper, *self._argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._log.parent,
                start_new_session=True,  # Ctrl-C is for the test run, which then stops its servers in order
            )


class Ports:
    """TCP ports of this test run, held against other runs on the machine even while a server is being restarted."""

    def __init__(self) -> None:
        self._claims: dict[int, socket.socket] = {}

    def claim(self) -> int:
        """Return a loopback port below the range that outgoing connections draw from."""
        for _ in range(1000):
            port = random.randrange(12000, 32000)
            claim = self._try_claim(port)
            if claim is not None:
                self._claims[port] = claim
                return port
        raise ServerFailedError("no free port found")

    def release(self, port: int) -> None:
        """Give a port back."""
        self._claims.pop(port).close()

    def _try_claim(self, port: int) -> socket.socket | None:
        claim = socket.socket(socket.AF_UNIX)
        try:
            if sys.platform == "linux":
                claim.bind(f"\0sark-test-port-{port}")  # an abstract name: the kernel frees it with the process
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            return None
        return claim


ports = Ports()


def new_directory() -> Path:
    """Make a private directory with a path short enough for Unix sockets; `remove_directory` takes it away."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="sark-", dir=base if len(base) < 60 else "/tmp"))


def remove_directory(directory: Path) -> None:
    """Remove a server's files."""
    shutil.rmtree(directory, ignore_errors=True)


def wait_until(
    condition: Callable[[], bool],
    complaint: Callable[[], str],
    *,
    alive: Callable[[], bool] = lambda: True,
    deadline_s: float = START_DEADLINE_S,
) -> None:
    """Return when `condition()` is true; raise `ServerFailedError` at the deadline or when `alive()` is no longer."""
    end = time.monotonic() + deadline_s
    while not condition():
        if not alive() or time.monotonic() > end:
            raise ServerFailedError(complaint())
        time.sleep(POLL_S)


@atexit.register
def _kill_what_is_left() -> None:
    for process in list(_running):
        process.end(signal.SIGKILL)
