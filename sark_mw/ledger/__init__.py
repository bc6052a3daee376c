"""The ledger: an append-only record of money, in SQLite or PostgreSQL, and the way into it."""

from sark_mw.ledger.entries import CallerEntry
from sark_mw.ledger.flusher import Flusher, FlushReport
from sark_mw.ledger.open import open_ledger

__all__ = ["CallerEntry", "FlushReport", "Flusher", "open_ledger"]
