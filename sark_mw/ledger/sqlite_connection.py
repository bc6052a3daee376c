"""A connection to SQLite: how it is opened, its transactions, and its errors in our words."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sark_mw.errors import LedgerError, LedgerUnavailableError

_OLD_SCHEMA = re.compile(r"^no such table|no such column|has no column named")


def open_file(path: str, deadline_s: float) -> sqlite3.Connection:
    """Connect to a file, or to memory of its own."""
    connection = sqlite3.connect(path, timeout=deadline_s, isolation_level=None)
    try:
        # FULL: what is committed survives a loss of power, since it is then gone from the outbox.
        for pragma in ("synchronous = full", "foreign_keys = on"):
            connection.execute(f"pragma {pragma}")
        # Only the first one changes the mode, which is kept in the file.
        if connection.execute("pragma journal_mode").fetchone()[0] not in ("wal", "memory"):
            connection.execute("pragma journal_mode = wal")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write in one transaction that no other writer overlaps."""
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        # A full disk may have rolled it back already.
        if connection.in_transaction:
            connection.execute("rollback")
        raise


@contextmanager
def mapped() -> Iterator[None]:
    """Raise what a ledger raises in place of the driver's errors."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if _OLD_SCHEMA.search(str(error)):
            raise LedgerError(f"the ledger's schema is not there or too old, run `sark-mw migrate`: {error}") from error
        raise LedgerUnavailableError(f"SQLite: {error}") from error
    except OSError as error:
        raise LedgerUnavailableError(f"the ledger's directory cannot be made: {error}") from error
    except sqlite3.Error as error:
        raise LedgerError(f"SQLite: {error}") from error
