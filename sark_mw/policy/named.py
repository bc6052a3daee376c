"""A plugin whose name, priority and `on_error` are given when it is made, as the settings say them."""

from __future__ import annotations

from sark_mw.policy.base import PolicyPlugin


class NamedPlugin(PolicyPlugin):
    """What policies that are no Python have in common."""

    def __init__(self, name: str, priority: int, on_error: str) -> None:
        self._name = name
        self._priority = priority
        self._on_error = on_error

    @property
    def name(self) -> str:
        return self._name

    @property
    def priority(self) -> int:
        return self._priority

    @property
    def on_error(self) -> str:
        return self._on_error
