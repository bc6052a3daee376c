"""From an address to a ledger."""

from __future__ import annotations

from datetime import timedelta

from sark_mw.errors import ConfigurationError
from sark_mw.ledger.base import Ledger


def open_ledger(
    url: str, *, deadline_s: float = 5.0, retention: timedelta | None = None, compress_after: timedelta = timedelta(days=14)
) -> Ledger:
    """Make the ledger of an address: `sqlite:///path`, `sqlite:///:memory:`, `postgresql://…` or `postgres://…`.

    It connects at its first use. `retention` (None keeps everything) and `compress_after` are for TimescaleDB. Raises
    `ConfigurationError` for another scheme, and names the extra to install where a driver is missing.
    """
    scheme = url.partition("://")[0].lower()
    if scheme == "sqlite":
        from sark_mw.ledger.sqlite import SqliteLedger

        return SqliteLedger(url, deadline_s=deadline_s)
    if scheme in ("postgres", "postgresql"):
        try:
            from sark_mw.ledger.postgres import PostgresLedger
        except ImportError as error:
            raise ConfigurationError(
                f"a ledger in PostgreSQL needs its driver: pip install 'sark-mw[postgres]' ({error})"
            ) from error
        return PostgresLedger(url, deadline_s=deadline_s, retention=retention, compress_after=compress_after)
    raise ConfigurationError(f"no ledger is known for {scheme!r}: sqlite:///path, sqlite:///:memory: or postgresql://…")
