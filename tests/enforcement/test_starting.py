"""A start that fails leaves nothing behind, and the next one succeeds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sark_mw.enforcement.grants import Why
from sark_mw.errors import ConfigurationError, LedgerUnavailableError
from sark_mw.instrumentation.base import NullInstrumentation
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.sark import Sark
from tests.enforcement.whole import admitted, settings_for

POLICY = {"rules": [{"name": "night", "when": "request.stream", "deny": "no"}], "plugins": [{"name": "rate_limit"}]}


class Hears(NullInstrumentation):
    """Count what is told of decisions."""

    def __init__(self) -> None:
        self.decisions: list[str] = []

    def plugin_evaluated(self, name: str, outcome: Any, seconds: float) -> None:
        self.decisions.append(name)


def unstarted(tmp_path: Path, **parts: Any) -> Sark:
    return Sark(settings_for(f"memory://{uuid4().hex}", tmp_path, policy=POLICY), policies=PolicyPluginManager(), **parts)


async def away(*_: Any) -> Any:
    raise LedgerUnavailableError("away")


async def test_a_start_that_fails_at_its_last_step_leaves_nothing_and_the_next_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hears = Hears()
    sark = unstarted(tmp_path, instrumentation=hears)
    with monkeypatch.context() as patched:
        patched.setattr(sark.ledger, "policy_events", away)
        for _ in range(2):
            with pytest.raises(LedgerUnavailableError):
                await sark.start()
            assert sark.policies.list_plugins() == []
    await sark.start()
    await (await admitted(sark, "0.1")).release()
    # Once each, however often it was tried to start.
    assert sorted(hears.decisions) == ["night", "rate_limit"]
    await sark.aclose()
    assert sark.policies.list_plugins() == []


async def test_closing_ends_a_start_that_is_under_way_and_what_it_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sark, waits = unstarted(tmp_path), asyncio.Event()

    async def hangs(*_: Any) -> Any:
        waits.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(sark.ledger, "policy_events", hangs)
    starting = asyncio.ensure_future(sark.start())
    await waits.wait()
    assert len(sark.policies.list_plugins()) == 2
    await sark.aclose()
    assert sark.policies.list_plugins() == [] and not sark.started
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_a_manager_that_another_sark_has_is_refused_until_that_one_is_closed(tmp_path: Path) -> None:
    first, manager = unstarted(tmp_path), PolicyPluginManager()
    first.policies = manager
    await first.start()
    await first.shared_policies.switch("rate_limit", "disable", Why(actor="jane"))
    second = Sark(settings_for(f"memory://{uuid4().hex}", tmp_path), policies=manager)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="one of its own"):
            await second.start()
    await second.aclose()
    assert {each["name"]: each["enabled"] for each in manager.list_plugins()} == {"rate_limit": False, "night": True}
    await (await admitted(first, "0.1")).release()
    await first.aclose()
    third = Sark(settings_for(f"memory://{uuid4().hex}", tmp_path), policies=manager)
    await third.start()
    await third.aclose()
