"""Requests as policies see them, and figures of limits that never change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sark_mw.policy.base import LimitFigures, PolicyContext, PolicyServices

DOLLAR = 1_000_000_000
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)  # a Wednesday


def a_request(model: str = "gpt-4o", scopes: Sequence[str] = ("user:alice", "team:ml"), **arguments: Any) -> PolicyContext:
    """Make a chat request of alice of the team ml, estimated at 20 cents."""
    return PolicyContext(
        "user:alice",
        "openai",
        "chat",
        "chat",
        {"model": model, "messages": [{"role": "user", "content": "SECRET-PROMPT"}], **arguments},
        {"provider": "openai", "model": model, "scopes": tuple(scopes), "root": "acme", "estimated_nanos": DOLLAR // 5},
        NOON,
    )


def a_limit(
    scope: str = "team:ml", *, amount: float = 100, spent: float = 0, held: float = 0, unit: str = "usd", **more: Any
) -> LimitFigures:
    """Make the figures of a limit in dollars, or in whole ones of another unit."""
    scale = DOLLAR if unit == "usd" else 1
    return LimitFigures(
        scope=scope, unit=unit, window="day", amount=int(amount * scale), spent=int(spent * scale), held=int(held * scale), **more
    )


class Limits:
    """A reader whose figures never change, and which counts how often it is asked."""

    def __init__(self, *figures: LimitFigures) -> None:
        self.figures = figures
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    async def read(self, root: str, scopes: Sequence[str], request_id: str = "") -> Sequence[LimitFigures]:
        self.asked.append((root, tuple(scopes)))
        return self.figures


def lending(*figures: LimitFigures) -> PolicyServices:
    """Make services that lend these figures."""
    return PolicyServices(limits=Limits(*figures))
