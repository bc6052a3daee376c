"""Plugins that the tests of the policy room share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin

Judge = Callable[[PolicyContext], Awaitable[Any]]


class Sample(PolicyPlugin):
    """A plugin made of a function; remembers what it was asked."""

    def __init__(
        self,
        name: str = "sample",
        judge: Judge | None = None,
        *,
        priority: int = 100,
        timeout: float | None = None,
        on_error: str = "deny",
    ) -> None:
        self._members = (name, priority, timeout, on_error)
        self._judge = judge or allow
        self.asked: list[PolicyContext] = []
        self.hooks: list[str] = []

    @property
    def name(self) -> str:
        return self._members[0]

    @property
    def priority(self) -> int:
        return self._members[1]

    @property
    def timeout(self) -> float | None:
        return self._members[2]

    @property
    def on_error(self) -> str:
        return self._members[3]

    async def on_load(self) -> None:
        self.hooks.append("load")

    async def on_unload(self) -> None:
        self.hooks.append("unload")

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        self.asked.append(context)
        return cast(PolicyDecision, await self._judge(context))


async def allow(context: PolicyContext) -> PolicyDecision:
    return PolicyDecision(True, "fine")


async def deny(context: PolicyContext) -> PolicyDecision:
    return PolicyDecision(False, "no")


async def hang(context: PolicyContext) -> PolicyDecision:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def a_context(**changes: Any) -> PolicyContext:
    fields: dict[str, Any] = {
        "principal_id": "user:alice",
        "resource_id": "openai",
        "capability_id": "chat",
        "action": "invoke",
        "arguments": {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]},
        "environment": {"scopes": ["team:ml"]},
    }
    return PolicyContext(**(fields | changes))
