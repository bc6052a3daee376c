"""Plugin files in several versions, and who listens to what becomes of them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

TEMPLATE = """
    import asyncio
    from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin

    class Versioned(PolicyPlugin):
        name = {name!r}
        version = {version!r}
        options_model = {model}

        def __init__(self, word="none", **others):
            self.word = word

        async def on_load(self):
            {on_load}

        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            gate = context.environment.get("gate")
            if gate is not None:
                await gate.wait()
            return PolicyDecision(True, self.version + " " + self.word)

        async def on_unload(self):
            self.version = "unloaded"
"""


def write(
    folder: Path,
    version: str = "1",
    *,
    name: str = "versioned",
    file: str = "versioned.py",
    model: str = "None",
    on_load: str = "pass",
) -> Path:
    """Write a version of the plugin; a later one replaces it."""
    path = folder / file
    path.write_text(dedent(TEMPLATE).format(name=name, version=version, model=model, on_load=on_load))
    return path


class Listener:
    """Hears what observers hear."""

    def __init__(self) -> None:
        self.life: list[tuple[str, str]] = []
        self.blocked: list[tuple[str, float]] = []

    def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
        pass

    def plugin_loaded(self, name: str, outcome: str) -> None:
        self.life.append((name, outcome))

    def plugin_blocked(self, name: str, seconds: float) -> None:
        self.blocked.append((name, seconds))
