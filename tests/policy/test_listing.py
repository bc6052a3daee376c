"""Plugins are listed whatever one of them says of itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from sark_mw import PolicyContext, PolicyDecision, PolicyPluginManager
from sark_mw.admin.plugins import described_plugins
from sark_mw.plugin_loading import missing_layers
from sark_mw.policy import judging
from tests.policy.samples import Sample, a_context

KNOWN = {
    "name": "odd",
    "version": "0.0.0",
    "description": "",
    "priority": 7,
    "timeout": None,
    "on_error": "skip",
    "enabled": True,
}


def fails() -> dict[str, Any]:
    raise RuntimeError("boom")


class Odd(Sample):
    """Describes itself as it is told to."""

    def __init__(self, describe: Callable[[], Any]) -> None:
        super().__init__("odd", priority=7, on_error="skip")
        self._describe = describe

    def get_metadata(self) -> dict[str, Any]:
        said: dict[str, Any] = self._describe()
        return said


async def listed(describe: Callable[[], Any]) -> dict[str, Any]:
    manager = PolicyPluginManager()
    await manager.register_plugin(Odd(describe))
    assert missing_layers(manager) == ()
    (told,) = manager.list_plugins()
    return told


async def test_what_a_plugin_says_of_itself_is_added_to_what_is_known_of_it() -> None:
    assert await listed(lambda: {"owner": "me", "description": "mine"}) == KNOWN | {"owner": "me", "description": "mine"}


async def test_what_the_manager_acts_on_is_told_as_it_is_whatever_the_plugin_calls_it() -> None:
    lie = {"name": "other", "priority": "high", "timeout": "long", "on_error": "never", "enabled": "no"}
    assert await listed(lambda: lie) == KNOWN


@pytest.mark.parametrize("describe", [fails, lambda: None, lambda: ["name"]])
async def test_a_plugin_that_cannot_describe_itself_is_listed_plainly_and_told_of_once(
    describe: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    told = await listed(describe)
    assert told.pop("last_error").startswith("get_metadata(): ")
    assert told == KNOWN
    assert [each.getMessage() for each in caplog.records] == ["policy plugin 'odd' cannot describe itself"]


async def test_one_whose_members_cannot_be_read_any_more_is_listed_as_it_is_asked() -> None:
    class Broken(Sample):
        broken = False

        @property
        def on_error(self) -> str:
            return fails()["on_error"] if self.broken else "allow"

    manager, plugin = PolicyPluginManager(), Broken("odd", priority=7)
    await manager.register_plugin(plugin)
    plugin.broken = True
    (told,) = manager.list_plugins()
    assert told | {"last_error": ""} == KNOWN | {"on_error": "deny", "last_error": ""}


class Boasting(Sample):
    """Says what is not so, or nothing at all."""

    hardening = "high"

    def __init__(self) -> None:
        super().__init__("boasting", on_error="allow", timeout=0.5)

    @property
    def description(self) -> str:
        raise SystemExit


async def test_one_that_cannot_say_what_it_is_for_is_listed_by_what_is_acted_on() -> None:
    manager = PolicyPluginManager()
    await manager.register_plugin(Boasting())
    (told,) = manager.list_plugins()
    assert (told["on_error"], told["timeout"]) == ("allow", 0.5)
    assert "hardening" not in told and missing_layers(manager) == ()


async def test_what_a_caller_wrote_does_not_keep_plugins_from_being_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging.logger, "disabled", True)  # xdist cannot pass half a character on

    class Echoing(Sample):
        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            raise ValueError(f"no such user {context.principal_id}")

    manager = PolicyPluginManager()
    await manager.register_plugin(Echoing("echoing"))
    (decision,) = await manager.evaluate_all(a_context(principal_id="x\ud800"))
    assert not decision.allowed
    (answer,) = described_plugins(manager, {})
    assert answer.model_dump_json().endswith('no such user x?"}')
