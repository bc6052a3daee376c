"""A plugin's file changes while the gateway runs: what is asked, what stays, and what is said."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from sark_mw import ConfigurationError, PolicyPluginManager
from sark_mw.policy.files import plugin_files
from sark_mw.policy.reloading import FileWatch
from tests.policy.samples import Sample, a_context
from tests.policy.versions import Listener, write


def trusted() -> tuple[PolicyPluginManager, Listener]:
    listener = Listener()
    return PolicyPluginManager(listener, isolation="off"), listener


async def said(manager: PolicyPluginManager) -> list[str]:
    return [each.reason for each in await manager.evaluate_all(a_context())]


def modules() -> set[str]:
    return {name for name in sys.modules if "loaded_plugin" in name}


async def test_a_new_version_is_asked_after_a_reload_and_the_old_ones_module_is_gone(tmp_path: Path) -> None:
    manager, listener = trusted()
    before = modules()
    path = write(tmp_path)
    await manager.load_from_file(path, word="hello")
    write(tmp_path, "2")
    assert await said(manager) == ["1 hello"]
    await manager.reload_plugin("versioned")
    assert await said(manager) == ["2 hello"]
    await manager.retired()
    assert len(modules() - before) == 1
    (listed,) = manager.list_plugins()
    assert (listed["version"], listed["source"], listed["isolated"]) == ("2", str(path), False)
    assert "last_error" not in listed
    await manager.unregister_plugin("versioned")
    assert modules() == before
    assert listener.life == [("versioned", "loaded"), ("versioned", "reloaded"), ("versioned", "unloaded")]


async def test_calls_under_way_are_served_by_the_version_that_they_began_with(tmp_path: Path) -> None:
    manager, _ = trusted()
    old = await manager.load_from_file(write(tmp_path))
    gate = asyncio.Event()
    asking = asyncio.create_task(manager.evaluate_all(a_context(environment={"gate": gate})))
    await asyncio.sleep(0)
    write(tmp_path, "2")
    await manager.reload_plugin("versioned")
    assert await said(manager) == ["2 none"]
    await asyncio.sleep(0.03)
    assert old.version == "1"  # in use, so not unloaded
    gate.set()
    assert [each.reason for each in await asking] == ["1 none"]
    await manager.retired()
    assert old.version == "unloaded"
    await manager.unregister_plugin("versioned")


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"version": "2", "on_load": "raise OSError('no table')"}, "no table"),
        ({"version": "2", "name": "another"}, "'another' now, and not 'versioned'"),
        ({"version": "2", "model": "{'type': 'object', 'required': ['key']}"}, "'key' is a required property"),
    ],
)
async def test_a_version_that_does_not_load_leaves_the_old_one_in_place_and_says_so(
    tmp_path: Path, broken: dict[str, str], complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager, listener = trusted()
    before = modules()
    await manager.load_from_file(write(tmp_path))
    write(tmp_path, **broken)
    with pytest.raises(ConfigurationError, match=complaint):
        await manager.reload_plugin("versioned")
    assert await said(manager) == ["1 none"] and len(modules() - before) == 1
    (listed,) = manager.list_plugins()
    assert listed["version"] == "1" and complaint in listed["last_error"] and complaint in caplog.text
    assert listener.life[-1] == ("versioned", "failed")
    write(tmp_path, "3")
    await manager.reload_plugin("versioned")
    assert await said(manager) == ["3 none"] and "last_error" not in manager.list_plugins()[0]
    await manager.unregister_plugin("versioned")


async def test_a_file_that_is_half_written_or_gone_leaves_the_old_version(tmp_path: Path) -> None:
    manager, _ = trusted()
    path = write(tmp_path)
    await manager.load_from_file(path)
    path.write_text("class Half(")
    with pytest.raises(ConfigurationError, match="not valid Python"):
        await manager.reload_plugin("versioned")
    path.unlink()
    with pytest.raises(ConfigurationError, match="cannot read"):
        await manager.reload_plugin("versioned")
    assert await said(manager) == ["1 none"]
    await manager.unregister_plugin("versioned")


async def test_a_reload_keeps_the_order_and_whether_it_is_enabled(tmp_path: Path) -> None:
    manager, _ = trusted()
    await manager.load_from_file(write(tmp_path))
    await manager.register_plugin(Sample("second"))
    manager.disable_plugin("versioned")
    write(tmp_path, "2")
    await manager.reload_plugin("versioned")
    assert await said(manager) == ["fine"]
    manager.enable_plugin("versioned")
    assert await said(manager) == ["2 none", "fine"]
    await manager.unregister_plugin("versioned")


async def test_what_came_from_no_file_cannot_be_reloaded() -> None:
    manager, _ = trusted()
    await manager.register_plugin(Sample("code"))
    with pytest.raises(ConfigurationError, match="'code' was not loaded from a file"):
        await manager.reload_plugin("code")
    with pytest.raises(ValueError, match="'unknown' is not registered"):
        await manager.reload_plugin("unknown")


async def test_no_request_is_lost_while_versions_come_and_go(tmp_path: Path) -> None:
    manager, _ = trusted()
    await manager.load_from_file(write(tmp_path))
    stop = False
    heard: list[str] = []

    async def client() -> None:
        while not stop:
            gate = asyncio.Event()
            asyncio.get_running_loop().call_soon(gate.set)
            decisions = await manager.evaluate_all(a_context(environment={"gate": gate}))
            heard.extend(f"{each.allowed} {each.reason}" for each in decisions)
            assert len(decisions) == 1

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for version in range(2, 20):
        write(tmp_path, str(version))
        await manager.reload_plugin("versioned")
        await asyncio.sleep(0.002)
    stop = True
    await asyncio.gather(*clients)
    await manager.retired()
    assert {each.split()[0] for each in heard} == {"True"} and "True 19 none" in heard
    assert not any("unloaded" in each for each in heard)
    await manager.unregister_plugin("versioned")


async def test_no_request_is_lost_while_isolated_versions_come_and_go(tmp_path: Path) -> None:
    manager = PolicyPluginManager()
    await manager.load_from_file(write(tmp_path))
    stop = False
    heard: set[tuple[bool, str]] = set()

    async def client() -> None:
        while not stop:
            heard.update((each.allowed, each.reason) for each in await manager.evaluate_all(a_context()))

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for version in range(2, 6):
        write(tmp_path, str(version))
        await manager.reload_plugin("versioned")
        await asyncio.sleep(0.02)
    stop = True
    await asyncio.gather(*clients)
    await manager.retired()
    await manager.unregister_plugin("versioned")
    assert {allowed for allowed, _ in heard} == {True} and (True, "5 none") in heard


async def test_the_watch_takes_up_what_has_changed_and_tries_a_broken_version_once(tmp_path: Path) -> None:
    manager, listener = trusted()
    path = write(tmp_path)
    await manager.load_from_file(path)
    watch = FileWatch(manager, 0.01)
    await watch.look()
    path.touch()
    await watch.look()
    assert listener.life == [("versioned", "loaded")]
    write(tmp_path, "22")
    await watch.look()
    assert await said(manager) == ["22 none"]
    path.write_text("class Half(")
    await watch.look()
    await watch.look()
    assert listener.life == [("versioned", "loaded"), ("versioned", "reloaded"), ("versioned", "failed")]
    write(tmp_path, "333")
    await watch.look()
    assert await said(manager) == ["333 none"]
    await manager.unregister_plugin("versioned")


async def test_plugins_come_to_a_folder_change_with_their_options_and_go(tmp_path: Path) -> None:
    manager, listener = trusted()
    write(tmp_path, name="a", file="a.py")
    (tmp_path / "_helper.py").write_text("raise RuntimeError")
    (tmp_path / "notes.txt").write_text("no plugin")
    for file in plugin_files(tmp_path, None):
        await manager.load_file(file)
    watch = FileWatch(manager, 0.01, lambda: plugin_files(tmp_path, None))
    assert await said(manager) == ["1 none"]
    (tmp_path / "a.toml").write_text('word = "told"')
    write(tmp_path, name="b", file="b.py")
    (tmp_path / "broken.py").write_text("class Half(")
    await watch.look()
    assert await said(manager) == ["1 told", "1 none"]
    (tmp_path / "a.toml").write_text('word = "told ag')
    await watch.look()
    assert await said(manager) == ["1 told", "1 none"]
    assert "a.toml" in manager.list_plugins()[0]["last_error"]
    (tmp_path / "a.py").unlink()
    (tmp_path / "broken.py").unlink()
    await watch.look()
    assert await said(manager) == ["1 told", "1 none"]  # it may come back
    await watch.look()
    assert await said(manager) == ["1 none"]
    assert [each for each in listener.life if each[1] == "failed"] == [("broken", "failed"), ("a", "failed")]
    await manager.unregister_plugin("b")


def test_a_folder_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the plugin folder"):
        plugin_files(tmp_path / "missing", None)


async def reloading(manager: PolicyPluginManager) -> asyncio.Future[None]:
    """Begin a reload; its source has been read when this returns."""
    before = modules()
    begun = asyncio.ensure_future(manager.reload_plugin("versioned"))
    while not modules() - before:
        await asyncio.sleep(0.001)
    return begun


async def test_of_two_reloads_at_once_the_version_that_lies_there_wins_in_the_end(tmp_path: Path) -> None:
    manager, _ = trusted()
    await manager.load_from_file(write(tmp_path))
    watch = FileWatch(manager, 1)
    write(tmp_path, "2", on_load="await asyncio.sleep(0.05)")
    slow = await reloading(manager)
    write(tmp_path, "3", on_load="await asyncio.sleep(0.1)")
    await watch.look()  # it is overtaken by the older one
    await slow
    await watch.look()
    assert await said(manager) == ["3 none"]
    write(tmp_path, "4", on_load="await asyncio.sleep(1)")
    slow = await reloading(manager)
    write(tmp_path, "5")
    await watch.look()
    with pytest.raises(ConfigurationError, match="was replaced"):
        await slow
    assert await said(manager) == ["5 none"]
