"""What plugins require of each other holds while they run: through new versions, and files that go."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sark_mw import ConfigurationError, PolicyPluginManager
from sark_mw.plugin_loading import load_plugins
from sark_mw.policy.files import plugin_files
from sark_mw.policy.reloading import FileWatch
from sark_mw.settings import PolicySettings
from tests.policy.test_packages import manager_of, package, reasons
from tests.policy.versions import Listener


async def base_and_upper(folder: Path) -> PolicyPluginManager:
    """Load a package and one that requires it."""
    package(folder, "base")
    package(folder, "upper", more='[requires.plugins]\nbase = ">=1,<2"')
    manager = manager_of()
    await load_plugins(manager, PolicySettings(folder=folder, isolation="off"))
    return manager


async def test_a_new_version_that_others_cannot_use_leaves_the_old_one(tmp_path: Path) -> None:
    manager = await base_and_upper(tmp_path)
    package(tmp_path, "base", "2")
    with pytest.raises(ConfigurationError, match=r"'upper' requires plugin 'base' <2,>=1: version 2 is there"):
        await manager.reload_plugin("base")
    assert await reasons(manager) == ["1 none", "1 none"] and manager.packages.unmet() == []
    package(tmp_path, "base", "1.5")
    await manager.reload_plugin("base")
    await manager.retired()
    assert sorted(await reasons(manager)) == ["1 none", "1.5 none"]


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_version_that_was_refused_is_taken_up_after_the_one_that_goes_with_it(tmp_path: Path, at_once: bool) -> None:
    manager = await base_and_upper(tmp_path)
    watch = FileWatch(manager, 1, lambda: plugin_files(tmp_path, None))
    package(tmp_path, "base", "2")
    if not at_once:
        await watch.look()
        assert await reasons(manager) == ["1 none", "1 none"]
    package(tmp_path, "upper", "2", more='[requires.plugins]\nbase = ">=1,<3"')
    for _ in range(2):
        await watch.look()
    await manager.retired()
    assert await reasons(manager) == ["2 none", "2 none"] and manager.packages.unmet() == []


async def test_a_new_package_that_was_refused_is_loaded_after_the_one_that_it_requires(tmp_path: Path) -> None:
    manager = manager_of()
    watch = FileWatch(manager, 1, lambda: [replace(file, packages=manager.packages) for file in plugin_files(tmp_path, None)])
    package(tmp_path, "above", more='[requires.plugins]\nbase = ">=1"')
    package(tmp_path, "base")
    for _ in range(2):
        await watch.look()
    assert await reasons(manager) == ["1 none", "1 none"] and manager.packages.unmet() == []


async def test_a_file_that_cannot_be_loaded_is_not_tried_again_and_again(tmp_path: Path) -> None:
    manager = await base_and_upper(tmp_path)
    watch, listener = FileWatch(manager, 1, lambda: plugin_files(tmp_path, None)), Listener()
    manager.observe(listener)
    package(tmp_path, "base", "2")
    (tmp_path / "broken.py").write_text("class Half(")
    for _ in range(5):
        await watch.look()
    assert listener.life == [("broken", "failed"), ("base", "failed")]


async def test_a_new_version_that_requires_what_is_switched_off_leaves_the_old_one(tmp_path: Path) -> None:
    package(tmp_path, "base")
    package(tmp_path, "upper")
    manager = manager_of()
    await load_plugins(manager, PolicySettings(folder=tmp_path, isolation="off"))
    manager.switch_plugins({"base": False})
    package(tmp_path, "upper", "2", more='[requires.plugins]\nbase = ">=1"')
    with pytest.raises(ConfigurationError, match=r"'upper' requires plugin 'base' >=1: it is switched off"):
        await manager.reload_plugin("upper")
    assert await reasons(manager) == ["1 none"]
    manager.switch_plugins({"base": False, "upper": False})
    await manager.reload_plugin("upper")
    manager.switch_plugins({})
    assert sorted(await reasons(manager)) == ["1 none", "2 none"]


@pytest.mark.parametrize("first", ["base", "upper"])
async def test_of_two_new_versions_that_do_not_suit_each_other_one_is_taken_up(tmp_path: Path, first: str) -> None:
    manager = await base_and_upper(tmp_path)
    for name, more in (("base", ""), ("upper", '[requires.plugins]\nbase = ">=1,<3"')):
        package(tmp_path, name, "1.1", more)
        await manager.reload_plugin(name)
    for path in (package(tmp_path, "base", "2"), package(tmp_path, "upper", "2", more='[requires.plugins]\nbase = "<2"')):
        path.write_text(path.read_text().replace("        pass", "        await asyncio.sleep(0.1)", 1))
    second = {"base": "upper", "upper": "base"}[first]
    outcomes = await asyncio.gather(manager.reload_plugin(first), manager.reload_plugin(second), return_exceptions=True)
    assert sum(isinstance(each, ConfigurationError) for each in outcomes) == 1
    await manager.retired()
    assert manager.packages.unmet() == []


async def test_what_a_version_that_was_never_taken_up_requires_counts_for_nothing(tmp_path: Path) -> None:
    manager = await base_and_upper(tmp_path)
    path = package(tmp_path, "upper", "2")
    path.write_text(path.read_text().replace("        pass", "        raise ValueError('no')", 1))
    with pytest.raises(ConfigurationError, match="ValueError: no"):
        await manager.reload_plugin("upper")
    assert manager.packages.requiring("base") == ["upper"]


async def test_a_plugin_whose_file_is_gone_stays_while_another_requires_it(tmp_path: Path) -> None:
    manager = await base_and_upper(tmp_path)
    watch = FileWatch(manager, 1, lambda: plugin_files(tmp_path, None))
    shutil.rmtree(tmp_path / "base")
    for _ in range(3):
        await watch.look()
    assert await reasons(manager) == ["1 none", "1 none"]
    shutil.rmtree(tmp_path / "upper")
    for _ in range(3):
        await watch.look()
    assert await reasons(manager) == []
