"""A real PostgreSQL on a Unix socket, run as an ordinary user even where the tests run as root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import signal
import subprocess
import uuid
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.servers.process import Account, ServerProcess, new_directory, remove_directory

AS_ORDINARY_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")

TIMESCALE_SETTINGS = {"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"}


class PostgresHandle:
    """Reach a server of which `url` names one database. Nothing here is tied to an event loop."""

    def __init__(self, url: str) -> None:
        self.url = url

    def dsn(self, database: str) -> str:
        """Return the address of another database of this server, as asyncpg takes it."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{database}"))

    def query(self, sql: str, *arguments: object, dsn: str | None = None) -> list[asyncpg.Record]:
        """Run one statement over a connection of its own (in `dsn`'s database, if given) and return its rows."""
        return _run(_query(dsn or self.url, sql, *arguments))

    def create_database(self) -> str:
        """Create an empty database with a name of its own and return its DSN."""
        name = f"sark_test_{uuid.uuid4().hex[:12]}"
        self.query(f"create database {name} template template0")
        return self.dsn(name)

    def drop_database(self, dsn: str) -> None:
        """Drop a database of `create_database`, whoever is still connected to it."""
        name = urlsplit(dsn).path.lstrip("/")
        assert re.fullmatch(r"sark_test_[0-9a-f]{12}", name)
        self.query(f"drop database if exists {name} with (force)")

    @property
    def has_timescale(self) -> bool:
        """Tell whether `create extension timescaledb` would work here."""
        return bool(self.query("select 1 from pg_available_extensions where name = 'timescaledb'"))


class PostgresServer(PostgresHandle):
    """A server process with its own data directory; data survive `stop`, `kill` and `start`."""

    def __init__(self, binaries: Path, **settings: str | int) -> None:
        self.directory = new_directory()
        self._binaries = binaries
        self._account, self._prefix = _unprivileged(binaries / "postgres")
        if self._account is not None:
            os.chown(self.directory, self._account.uid, self._account.gid)
        super().__init__(f"postgresql://postgres@/postgres?host={self.directory}&port=5432")
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "port": 5432,
            "fsync": "off",  # a killed server loses nothing by it, only a machine without power would
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": 100,
            "dynamic_shared_memory_type": "mmap",  # goes with the directory, where /dev/shm would keep it after a kill
            "timezone": "UTC",
            **(TIMESCALE_SETTINGS if _has_extension(binaries, "timescaledb") else {}),
            **settings,
        }
        self.process = ServerProcess(
            [
                binaries / "postgres",
                *("-D", self.directory / "data"),
                *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
            ],
            log=self.directory / "log",
            account=self._account,
            prefix=self._prefix,
            death_signal=signal.SIGQUIT,  # immediate, and takes the backends and the shared memory along
        )
        self._frozen: list[int] = []

    @property
    def unix_socket(self) -> Path:
        """Return the socket that connections go to."""
        return self.directory / ".s.PGSQL.5432"

    @property
    def running(self) -> bool:
        """Tell whether the server lives; a paused one does."""
        return self.process.running

    def start(self) -> None:
        """Start the server and return when it takes connections; the first time, make its data directory."""
        if not (self.directory / "data").exists():
            self._initdb()
        self.process.start(self._answers)

    def stop(self) -> None:
        """Stop in order; open connections are ended."""
        self.resume()
        self.process.end(signal.SIGINT)

    def kill(self) -> None:
        """Stop at once, as a crash does: the next start recovers from the log."""
        self.resume()
        self.process.end(signal.SIGQUIT)

    def pause(self) -> None:
        """SIGSTOP the server and all its backends: connections stay open and nothing answers."""
        self.process.pause()
        self._frozen = _children(self.process.pid)
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT everything that `pause` froze; nothing to do when there is nothing frozen."""
        frozen, self._frozen = self._frozen, []
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.running:
            self.process.resume()

    def recover(self) -> None:
        """Bring a server back that a test left paused or stopped."""
        self.resume()
        if not self.running:
            self.start()

    def close(self) -> None:
        """Stop the server and remove its files."""
        self.kill()
        remove_directory(self.directory)

    def _initdb(self) -> None:
        flags = ("-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "-U", "postgres", "--no-instructions")
        done = subprocess.run(
            [*self._prefix, self._binaries / "initdb", "-D", self.directory / "data", *flags],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            **_identity(self._account),
        )
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stdout}{done.stderr}")

    def _answers(self) -> bool:
        if not self.unix_socket.exists():
            return False
        try:
            self.query("select 1")
        except (OSError, asyncpg.PostgresError):
            return False
        return True


class ExternalPostgres(PostgresHandle):
    """A server of the user's (`SARK_TEST_DATABASE_URL`) or of a container; databases are made in it and dropped."""

    def stop(self) -> None:
        """Skip: this server's life is not in our hands."""
        pytest.skip("this test stops the database, and SARK_TEST_DATABASE_URL names one that is not ours to stop")

    start = kill = pause = resume = stop

    def recover(self) -> None:
        """Do nothing: no test can have stopped it."""


def _unprivileged(binary: Path) -> tuple[Account | None, tuple[str, ...]]:
    """Return as whom PostgreSQL runs, which refuses root: an account that can read `binary`, or a user namespace."""
    if os.geteuid() != 0:
        return None, ()
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError, PermissionError, subprocess.CalledProcessError):
            entry = pwd.getpwnam(name)
            account = Account(uid=entry.pw_uid, gid=entry.pw_gid)
            subprocess.run([binary, "--version"], check=True, capture_output=True, cwd="/", **_identity(account))
            return account, ()
    return None, AS_ORDINARY_USER


def _has_extension(binaries: Path, name: str) -> bool:
    answer = subprocess.run([binaries / "pg_config", "--sharedir"], capture_output=True, text=True, check=False)
    return Path(answer.stdout.strip(), "extension", f"{name}.control").exists()


def _identity(account: Account | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (command) state ppid …; the command may hold spaces and parentheses
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


async def _query(dsn: str, sql: str, *arguments: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await connection.fetch(sql, *arguments)
    finally:
        await connection.close()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    # In a thread of its own, so that it works with and without a running event loop in this one.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
