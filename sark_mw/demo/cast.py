"""Who takes part: the callers with their keys, and the budgets that they spend, their own and their teams'."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from pydantic import SecretStr

from sark_mw.instrumentation.keys import hash_key
from sark_mw.settings import (
    KeySettings,
    LedgerSettings,
    LimitSettings,
    ObserveSettings,
    PrincipalSettings,
    Settings,
    StoreSettings,
)

ROOT = "acme"
#: The caller that measures latency, through the middleware and past it in turn: what goes past is in nobody's books.
PROBE_KEY = "demo-key-probe"
BYPASS_KEY = "demo-key-bypass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One principal: its key, its team, how many of its calls are in flight at once, and what it calls, by weight."""

    name: str
    key: str
    team: str
    workers: int
    calls: dict[str, int]

    @property
    def scopes(self) -> tuple[str, ...]:
        """What its requests touch besides itself."""
        return (self.team,)


CALLERS = (
    Caller(name="user:alice", key="demo-key-alice", team="team:research", workers=12, calls={"chat": 5, "chat_stream": 5}),
    Caller(name="user:bob", key="demo-key-bob", team="team:research", workers=12, calls={"messages": 4, "messages_stream": 6}),
    Caller(
        name="user:carol",
        key="demo-key-carol",
        team="team:research",
        workers=12,
        calls={"chat": 3, "chat_stream": 3, "embeddings": 1, "messages": 2, "messages_stream": 2},
    ),
    Caller(name="user:dave", key="demo-key-dave", team="team:support", workers=12, calls={"chat": 4, "messages_stream": 4}),
    Caller(name="user:erin", key="demo-key-erin", team="team:support", workers=12, calls={"chat_stream": 6, "embeddings": 2}),
)
PROBE = Caller(name="user:probe", key=PROBE_KEY, team="team:probes", workers=1, calls={"embeddings": 1})

#: Bob's and Carol's team has less than its members together, so that the shared budget is what stops them.
LIMITS = (
    LimitSettings(root=ROOT, scope="user:alice", amount=Decimal("0.05"), window="day"),
    LimitSettings(root=ROOT, scope="user:bob", amount=Decimal("0.12"), window="month"),
    LimitSettings(root=ROOT, scope="user:carol", amount=Decimal("0.12"), window="week", timezone="Europe/Berlin"),
    LimitSettings(root=ROOT, scope="user:dave", amount=Decimal("0.06"), window="total"),
    LimitSettings(root=ROOT, scope="user:erin", amount=Decimal("0.04"), window="day", timezone="Asia/Tokyo"),
    LimitSettings(root=ROOT, scope="team:research", amount=Decimal("0.15"), window="day"),
    LimitSettings(root=ROOT, scope="team:support", amount=Decimal("0.50"), window="month"),
    LimitSettings(root=ROOT, scope="org:acme", amount=Decimal("5"), window="month"),
)


def demo_settings(directory: Path) -> Settings:
    """Make the settings of the embedded default: reservations in memory, the ledger in SQLite below `directory`."""
    secret = secrets.token_hex(16)
    keys = tuple(
        KeySettings(key_hash=hash_key(secret.encode(), caller.key), principal=caller.name, scopes=caller.scopes, root=ROOT)
        for caller in (*CALLERS, PROBE)
    )
    return Settings(
        store=StoreSettings(url="memory://", journal=directory / "journal.jsonl", deadline_ms=5000),
        ledger=LedgerSettings(url=SecretStr(f"sqlite:///{directory / 'ledger.db'}"), flush_interval_ms=200),
        principal=PrincipalSettings(
            key_secret=SecretStr(secret), keys=keys, require_known_key=True, default_scopes=("org:acme",), root=ROOT
        ),
        observe=ObserveSettings(audit_log=False),
        limits=LIMITS,
    )
