"""Store and ledger for a command: opened without starting a gateway, closed again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sark_mw.assembly import make_ledger, make_store
from sark_mw.enforcement.limits import LimitRegistry
from sark_mw.enforcement.recovery import Recovery
from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.errors import ConfigurationError
from sark_mw.ledger.base import Ledger
from sark_mw.settings import Settings
from sark_mw.store.redis_store import RedisStore

MEMORY_STORE = "memory:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a command works on."""

    store: RedisStore
    ledger: Ledger
    tables: LimitTables
    limits: LimitRegistry
    recovery: Recovery


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Parts]:
    """Open store and ledger; nothing is migrated, swept or flushed."""
    ledger = make_ledger(settings.ledger)
    try:
        store = await make_store(settings.store)
        try:
            tables = LimitTables(store, ServerClock())
            recovery = Recovery(store, ledger)
            registry = LimitRegistry(store, ledger, tables=tables, recovery=recovery)
            yield Parts(store=store, ledger=ledger, tables=tables, limits=registry, recovery=recovery)
        finally:
            await store.aclose()
    finally:
        await ledger.aclose()


def require_lasting(settings: Settings, consequence: str) -> None:
    """Raise `ConfigurationError` where the ledger ends with the gateway's process: there is nothing of it to work on."""
    if not settings.ledger.lasts:
        raise ConfigurationError(
            "sqlite:///:memory: is a ledger in the gateway's own memory and does not outlive it: "
            f"{consequence}; set ledger.url to sqlite:///sark.db or postgresql://…"
        )


def store_is_shared(settings: Settings) -> bool:
    """Tell whether another process sees this store."""
    return not settings.store.url.startswith(MEMORY_STORE)
