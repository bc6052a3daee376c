"""Policies that are no Python, from settings: fractions as they are written, changed files, and what holds their processes."""

from __future__ import annotations

import asyncio
import os
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sark_mw import ConfigurationError
from sark_mw.admin.plugins import described_plugins
from sark_mw.plugin_loading import load_plugins, make_policies, missing_layers
from sark_mw.policy.base import PolicyPlugin
from sark_mw.policy.engines.process import EngineProcesses
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.policy.packages.manifest import Contents
from sark_mw.policy.reloading import OvertakenError
from sark_mw.rule_files import RuleWatch
from sark_mw.settings import PolicySettings, Settings
from tests.rules.requests import a_request

GUEST = Path(__file__).parents[2] / "plugins/wasm/small_model.wat"
SAYS = """
package sark
import rego.v1
default decision := {{"allow": false, "reason": "{}"}}
"""


def policy(folder: Path, text: str) -> Path:
    (folder / "policy.rego").write_text(SAYS.format(text) if "\n" not in text else text)
    return folder / "policy.rego"


def settings_of(path: Path, **more: Any) -> PolicySettings:
    plugin = {"name": "rego", "options": {"path": str(path), "limits": False, "deadline_s": 5.0}, **more}
    return Settings.of({"policy": {"plugins": (plugin,)}}).policy


async def said(manager: PolicyPluginManager) -> list[str]:
    return [each.reason for each in await manager.evaluate_all(a_request(), timeout=10)]


async def test_a_policy_that_changes_is_taken_up_and_a_broken_one_leaves_the_old_version(tmp_path: Path) -> None:
    settings = settings_of(policy(tmp_path, "first"))
    manager = make_policies(settings)
    names = await load_plugins(manager, settings)
    watch = RuleWatch(manager, settings.plugins)
    try:
        assert names == ["rego"] and "rego" in watch and "opa" not in watch
        policy(tmp_path, "the second one")
        assert await said(manager) == ["first"]
        await watch.look()
        assert await said(manager) == ["the second one"]
        policy(tmp_path, "package sark\nthis is {no rego")
        await watch.look()
        await watch.look()
        assert await said(manager) == ["the second one"]
        (listed,) = manager.list_plugins()
        assert "last_error" in listed
        with pytest.raises(ConfigurationError):
            await watch.reload("rego")
        policy(tmp_path, "mended")
        await watch.look()
        assert await said(manager) == ["mended"] and "last_error" not in manager.list_plugins()[0]
        await manager.retired()
    finally:
        await manager.unregister_plugin("rego")


async def test_one_that_is_switched_off_stays_off_when_it_changes(tmp_path: Path) -> None:
    settings = settings_of(policy(tmp_path, "first"))
    manager = make_policies(settings)
    await load_plugins(manager, settings)
    try:
        manager.switch_plugins({"rego": False})
        policy(tmp_path, "the second one")
        await RuleWatch(manager, settings.plugins).reload("rego")
        assert await said(manager) == []
        await manager.retired()
    finally:
        await manager.unregister_plugin("rego")


@pytest.mark.parametrize("enabled", [True, False])
async def test_what_code_switched_stays_as_it_is_when_the_file_changes(tmp_path: Path, enabled: bool) -> None:
    settings = settings_of(policy(tmp_path, "first"), enabled=enabled)
    manager = make_policies(settings)
    await load_plugins(manager, settings)
    watch = RuleWatch(manager, settings.plugins)
    try:
        (manager.disable_plugin if enabled else manager.enable_plugin)("rego")
        policy(tmp_path, "the second one")
        await watch.look()
        assert await said(manager) == ([] if enabled else ["the second one"])
        # By default it is still what the settings say.
        assert manager.asked_by_default("rego") is enabled
        await manager.retired()
    finally:
        await manager.unregister_plugin("rego")


async def test_one_that_code_took_out_does_not_come_back_when_its_file_changes(tmp_path: Path) -> None:
    settings = settings_of(policy(tmp_path, "first"))
    manager = make_policies(settings)
    await load_plugins(manager, settings)
    watch = RuleWatch(manager, settings.plugins)
    await manager.unregister_plugin("rego")
    policy(tmp_path, "the second one")
    await watch.look()
    assert manager.list_plugins() == []
    with pytest.raises(ConfigurationError, match="not registered"):
        await watch.reload("rego")


async def test_of_two_reloads_at_once_the_last_word_of_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(policy(tmp_path, "first"))
    manager = make_policies(settings)
    await load_plugins(manager, settings)
    watch, put, reading = RuleWatch(manager, settings.plugins), manager.put_plugin, asyncio.Event()

    async def slowly(plugin: PolicyPlugin, enabled: bool = True) -> None:
        if not reading.is_set():
            reading.set()
            await asyncio.sleep(0.3)  # the process of the older version starts slowly
        await put(plugin, enabled)

    monkeypatch.setattr(manager, "put_plugin", slowly)
    try:
        policy(tmp_path, "the second one")
        by_hand = asyncio.ensure_future(watch.reload("rego"))
        await reading.wait()
        policy(tmp_path, "the third and last one")
        await asyncio.gather(by_hand, watch.look())
        assert await said(manager) == ["the third and last one"]
        await manager.retired()
    finally:
        await manager.unregister_plugin("rego")


async def test_another_file_of_the_same_time_and_size_behind_a_link_is_taken_up(tmp_path: Path) -> None:
    for release in ("first", "other"):
        (tmp_path / release).mkdir()
        os.utime(policy(tmp_path / release, release), (1, 1))
    (tmp_path / "current").symlink_to("first")
    settings = settings_of(tmp_path / "current" / "policy.rego")
    manager = make_policies(settings)
    await load_plugins(manager, settings)
    watch = RuleWatch(manager, settings.plugins)
    try:
        (tmp_path / "next").symlink_to("other")
        (tmp_path / "next").replace(tmp_path / "current")
        await watch.look()
        assert await said(manager) == ["other"]
        await manager.retired()
    finally:
        await manager.unregister_plugin("rego")


async def test_one_that_was_overtaken_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(policy(tmp_path, "first"))
    manager = make_policies(settings)
    await load_plugins(manager, settings)
    watch = RuleWatch(manager, settings.plugins)

    async def overtaken(*_: Any) -> None:
        raise OvertakenError("another was there first")

    try:
        policy(tmp_path, "the second one")
        with monkeypatch.context() as patched:
            patched.setattr(manager, "put_plugin", overtaken)
            await watch.look()
        assert await said(manager) == ["first"]
        await watch.look()
        assert await said(manager) == ["the second one"]
        await manager.retired()
    finally:
        await manager.unregister_plugin("rego")


@pytest.mark.parametrize("what", ["file", "folder", "wasm"])
async def test_what_runs_are_the_bytes_that_the_lock_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "wasm":
        path = tmp_path / "guest.wat"
        path.write_bytes(GUEST.read_bytes())
        settings = Settings.of({"policy": {"plugins": ({"name": "wasm", "options": {"path": str(path)}},)}}).policy
    else:
        path = policy(tmp_path, "what is pinned")
        (tmp_path / "policy_test.rego").write_text("this is {no rego, and no part of the policy")
        settings = settings_of(path if what == "file" else tmp_path)
    manager = make_policies(settings)
    admitted = []

    def swapped(admitting: Path, contents: Contents) -> None:
        admitted.append(contents.source)
        admitting.write_text("this is {nothing that was ever pinned")

    monkeypatch.setattr(manager.packages, "admit", swapped)
    names = await load_plugins(manager, settings)
    try:
        assert admitted
        if what != "wasm":
            assert await said(manager) == ["what is pinned"]
    finally:
        await manager.unregister_plugin(names[0])


async def test_what_holds_its_process_is_told_like_that_of_isolated_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = EngineProcesses._check

    def lacking(self: EngineProcesses, ready: Any) -> None:
        check(self, {**ready, "layers": {**ready["layers"], "landlock_fs": "not here"}})

    monkeypatch.setattr(EngineProcesses, "_check", lacking)
    settings = settings_of(policy(tmp_path, "first"))
    with pytest.raises(ConfigurationError, match="landlock_fs"):
        await load_plugins(make_policies(settings), settings)
    lenient = settings.model_copy(update={"isolation": "best-effort"})
    manager = make_policies(lenient)
    await load_plugins(manager, lenient)
    try:
        assert missing_layers(manager) == ("landlock_fs",)
        (told,) = described_plugins(manager, {})
        assert (told.tier, told.missing_layers) == ("isolated", ("landlock_fs",))
    finally:
        await manager.unregister_plugin("rego")


def test_fractions_of_the_settings_reach_plugins_as_numbers_of_python(tmp_path: Path) -> None:
    path = tmp_path / "sark.toml"
    path.write_text('[[policy.plugins]]\nname = "anomaly"\noptions = {deviations = 2.5, nested = [{share = 0.25, whole = 2}]}\n')
    (plugin,) = Settings.load(path).policy.plugins
    assert plugin.options == {"deviations": 2.5, "nested": [{"share": 0.25, "whole": 2}]}
    assert type(plugin.options["deviations"]) is float and type(plugin.options["nested"][0]["share"]) is float
    assert isinstance(tomllib.loads("a = 2.5", parse_float=Decimal)["a"], Decimal)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"isolated": False, "stateless": True}, "processes of their own"),
        ({"isolated": False, "workers": 4}, "processes of their own"),
        ({"isolated": False, "preload": ("numpy",)}, "processes of their own"),
        ({"name": "rate_limit", "stateless": True}, "processes of their own"),
        ({"installed": "acme", "memory_bytes": 2**26}, "processes of their own"),
    ],
)
def test_what_is_for_processes_is_refused_where_there_are_none(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Settings.of({"policy": {"plugins": ({"path": "own.py", **options} if "isolated" in options else options,)}})


@pytest.mark.parametrize("models", [(), ("gpt-4o-mini",)])
async def test_a_rule_that_obliges_to_an_unlisted_model_refuses_the_start(models: tuple[str, ...]) -> None:
    rule = {"when": "true", "oblige": {"use_model": "gpt-4o-mini"}, "name": "cheaper"}
    settings = Settings.of({"policy": {"rules": (rule,), "obligation_models": models}}).policy
    manager = make_policies(settings)
    if models:
        assert await load_plugins(manager, settings) == ["cheaper"]
        return
    with pytest.raises(ConfigurationError, match=r"'gpt-4o-mini' is not among policy.obligation_models"):
        await load_plugins(manager, settings)
