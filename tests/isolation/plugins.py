"""Sources of plugins that these tests isolate."""

from __future__ import annotations

from typing import Any

from sark_mw import PolicyContext
from sark_mw.policy.isolated import IsolatedPlugin, IsolationOptions, isolate

#: Does what its principal's name says.
DOER = b"""
import os, time, sys
from sark_mw import Obligation, PolicyContext, PolicyDecision, PolicyPlugin

kept = []

class Doer(PolicyPlugin):
    version = "1.2.3"
    description = "does as told"
    priority = 7
    timeout = 0.5
    on_error = "skip"
    needs = {"principal_id", "arguments.text"}

    def __init__(self, name="doer", **others):
        self._name = name
        self._asked = 0

    @property
    def name(self):
        return self._name

    async def evaluate(self, context):
        self._asked += 1
        word, _, rest = context.principal_id.partition(":")
        if word == "exit":
            os._exit(3)
        if word == "hang":
            time.sleep(600)
        if word == "spin":
            while True:
                pass
        if word == "hoard":
            while True:
                kept.append(bytearray(b"x") * 1_000_000)
        if word == "raise":
            raise ValueError("as told")
        if word == "oblige":
            return PolicyDecision(True, "on conditions", {"rest": rest}, obligations=(Obligation("add_tag", "tag:" + rest),))
        if word == "count":
            return PolicyDecision(True, str(self._asked))
        if word == "echo":
            return PolicyDecision(True, rest, {"arguments": context.arguments, "environment": context.environment,
                                               "time": context.timestamp.isoformat()})
        return PolicyDecision(word == "allow", "as told")
"""


async def loaded(source: bytes = DOER, **options: Any) -> IsolatedPlugin:
    """Isolate and load a plugin."""
    plugin = await isolate(source, "plugin.py", isolation=IsolationOptions(**options))
    await plugin.on_load()
    return plugin


def asked(word: str, **arguments: Any) -> PolicyContext:
    """Make a context whose principal says what to do."""
    return PolicyContext(word, "gpt-4o", "chat", "invoke", arguments, {"model": "gpt-4o"})
