"""What attacks are after, and the eyes that see whether they got there: all of it outside of the process under attack."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import selectors
import shutil
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import sark_mw

#: In a module's namespace, so in the memory of whoever imports this; from the environment, so in that too.
TOKEN = os.environ.get("SARK_SECRET_TOKEN") or "token-" + secrets.token_hex(16)
SUCCEEDED = "abuse-succeeded"
_MEMORY = ctypes.create_string_buffer(TOKEN.encode())
#: More than a worker may have beside its own 64 MiB; what the gateway may grow by.
_WORKER_BYTES, _GROWTH_BYTES = 110 << 20, 150 << 20
#: A beat that comes later than this was held up.
STALL_S = 1.0


class Targets:
    """Plant the token everywhere, listen everywhere, and watch the processes."""

    def __init__(self, *, isolated: bool) -> None:
        self._isolated = isolated
        self.evidence: set[str] = set()
        self.folder = Path(tempfile.mkdtemp(prefix="targets_"))
        self.folder.chmod(0o777)
        secret = self.folder / "secret.txt"
        secret.write_text(f"{TOKEN}\n")
        (self.folder / "victim").write_text("victim")
        (self.folder / "abuse_module.py").write_text(f"TOKEN = {TOKEN!r}\n")
        self._handle = os.open(secret, os.O_RDONLY)
        os.set_inheritable(self._handle, True)
        self._listen()
        signal.signal(signal.SIGUSR1, lambda *_: self.evidence.add("signal"))
        self._bystander = os.fork()
        if self._bystander == 0:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            time.sleep(600)
            os._exit(0)
        self._ended = threading.Event()
        self._start_bytes = _resident("self")
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._accept, self._watch)]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        tcp, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        unix.bind(str(self.folder / "socket"))
        (self.folder / "socket").chmod(0o777)
        self.abstract = f"targets-{secrets.token_hex(8)}"
        abstract.bind("\0" + self.abstract)
        for each in (tcp, unix, abstract):
            each.listen()
        self._sockets = (tcp, udp, unix, abstract)

    def described(self) -> dict[str, Any]:
        """Tell an attack where everything is."""
        return {
            "isolated": self._isolated,
            "secret": str(self.folder / "secret.txt"),
            "folder": str(self.folder),
            "package": str(Path(sark_mw.__file__).parent),
            "gateway": os.getpid(),
            "group": os.getpgid(0),
            "other": self._bystander,
            "tcp": self._sockets[0].getsockname()[1],
            "udp": self._sockets[1].getsockname()[1],
            "unix": str(self.folder / "socket"),
            "abstract": self.abstract,
            "handle": self._handle,
            "address": ctypes.addressof(_MEMORY),
        }

    def see(self, text: str) -> None:
        """Look at what came back from a plugin."""
        if TOKEN in text or TOKEN[6:20] in text:
            self.evidence.add("token")
        if SUCCEEDED in text:
            self.evidence.add("claimed")

    def collect(self) -> set[str]:
        """Look at the files, and return all that was seen since the last time."""
        for path in (*self.folder.glob("abuse_*"), *Path("/dev/shm").glob(f"abuse_{os.getpid()}")):
            if path.name != "abuse_module.py":
                self.evidence.add("file")
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        victim = self.folder / "victim"
        if not victim.exists() or victim.read_text() != "victim":
            self.evidence.add("file")
        victim.write_text("victim")
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self._bystander, os.WNOHANG)[0]:
                self.evidence.add("killed")
        seen, self.evidence = self.evidence, set()
        return seen

    def close(self) -> None:
        """Let go of everything."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._bystander, signal.SIGKILL)
        os.close(self._handle)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in self._sockets:
                selector.register(each, selectors.EVENT_READ)
            while not self._ended.is_set():
                for key, _ in selector.select(0.05):
                    self.evidence.add("socket")
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    sock.recv(100) if sock.type == socket.SOCK_DGRAM else sock.accept()[0].close()

    def _watch(self) -> None:
        me = os.getpid()
        while not self._ended.wait(0.015):
            parents = _parents()
            children = {pid for pid, parent in parents.items() if parent == me} - {self._bystander}
            workers = {pid for pid, parent in parents.items() if parent in children}
            if (not self._isolated and children) or any(parent in workers for parent in parents.values()):
                self.evidence.add("process")
            for worker in workers if self._isolated else ():
                if _resident(str(worker)) > _WORKER_BYTES:
                    self.evidence.add("memory")
                if _status(str(worker), "Threads") > 1:
                    self.evidence.add("thread")
            if _resident("self") - self._start_bytes > _GROWTH_BYTES:
                self.evidence.add("memory")


def _parents() -> dict[int, int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    return parents


def _status(pid: str, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0


def _resident(pid: str) -> int:
    return _status(pid, "VmRSS") << 10
