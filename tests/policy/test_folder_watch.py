"""What happens to a folder of policies while it is changed: none of them is gone before another has taken its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sark_mw import PolicyPluginManager
from sark_mw.policy.files import PluginFile, plugin_files
from sark_mw.policy.reloading import FileWatch
from tests.policy.samples import a_context
from tests.policy.versions import Listener, write

pytestmark = pytest.mark.wall_clock

MANIFEST = 'name = "versioned"\nversion = "1"\n'
BROKEN = "class Half("


class Folder:
    """A folder with one policy, in a package or a file, and who watches it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = Listener()
        self.manager = PolicyPluginManager(self.listener, isolation="off")

    async def watched(self, *, package: bool) -> Folder:
        if package:
            (self.path / "guard").mkdir()
            (self.path / "guard" / "plugin.toml").write_text(MANIFEST)
        write(self.path / "guard" if package else self.path, file="policy.py")
        for file in self.files():
            await self.manager.load_file(file)
        self.watch = FileWatch(self.manager, 1, self.files)
        return self

    def files(self) -> list[PluginFile]:
        return plugin_files(self.path, None)

    async def looks(self, times: int = 3) -> list[str]:
        for _ in range(times):
            await self.watch.look()
        return [each.reason for each in await self.manager.evaluate_all(a_context())]


def _second_module(guard: Path) -> None:
    (guard / "helper.py").write_text("x = 1")


def _renamed_and_broken(guard: Path) -> None:
    (guard / "policy.py").unlink()
    (guard / "main.py").write_text(BROKEN)


def _no_manifest(guard: Path) -> None:
    (guard / "plugin.toml").rename(guard / "plugin.toml~")


def _all_at_once(guard: Path) -> None:
    _renamed_and_broken(guard)
    _no_manifest(guard)


def _empty(guard: Path) -> None:
    for each in guard.iterdir():
        each.unlink()


@pytest.mark.parametrize("change", [_second_module, _renamed_and_broken, _no_manifest, _all_at_once, _empty])
async def test_a_package_that_cannot_be_loaded_any_more_leaves_the_old_version(
    tmp_path: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = await Folder(tmp_path).watched(package=True)
    change(tmp_path / "guard")
    assert await folder.looks() == ["1 none"]
    (listed,) = folder.manager.list_plugins()
    assert "ConfigurationError" in listed["last_error"]
    assert folder.listener.life == [("versioned", "loaded"), ("versioned", "failed")]  # told once, however often it is looked
    assert "could not be loaded anew" in caplog.text


async def test_a_package_whose_module_has_another_name_is_taken_up_in_its_place(tmp_path: Path) -> None:
    folder = await Folder(tmp_path).watched(package=True)
    _renamed_and_broken(tmp_path / "guard")
    await folder.looks()
    write(tmp_path / "guard", "1", file="main.py", on_load="self.word = 'anew'")
    assert await folder.looks(1) == ["1 anew"]
    assert folder.manager.list_plugins()[0]["source"].endswith("main.py")
    assert ("versioned", "unloaded") not in folder.listener.life


@pytest.mark.parametrize("package", [True, False])
async def test_what_is_wholly_gone_goes_with_the_second_look_and_may_come_back(tmp_path: Path, package: bool) -> None:
    folder = await Folder(tmp_path).watched(package=package)
    place = tmp_path / ("guard" if package else "policy.py")
    for _ in range(2):
        place.rename(tmp_path / "_away")
        assert await folder.looks(1) == ["1 none"]
        (tmp_path / "_away").rename(place)
        assert await folder.looks() == ["1 none"]
    assert folder.listener.life == [("versioned", "loaded")]
    place.rename(tmp_path / "_away")
    assert await folder.looks(2) == []
    (tmp_path / "_away").rename(place)
    assert await folder.looks(1) == ["1 none"]


async def test_a_file_of_another_name_takes_the_place_of_one_that_is_gone(tmp_path: Path) -> None:
    folder = await Folder(tmp_path).watched(package=False)
    write(tmp_path, "2", file="other.py")
    assert await folder.looks() == ["1 none"]  # both are there: the name is taken
    (tmp_path / "policy.py").unlink()
    assert await folder.looks(1) == ["2 none"]
    assert await folder.looks() == ["2 none"]
    assert ("versioned", "unloaded") not in folder.listener.life


async def test_a_file_whose_successor_does_not_load_leaves_its_plugin_until_that_is_mended_or_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = await Folder(tmp_path).watched(package=False)
    (tmp_path / "policy.py").unlink()
    (tmp_path / "other.py").write_text(BROKEN)
    assert await folder.looks(5) == ["1 none"]
    assert caplog.text.count("stays without its file") == 1
    write(tmp_path, "2", file="other.py")
    assert await folder.looks() == ["2 none"]
    assert ("versioned", "unloaded") not in folder.listener.life
    (tmp_path / "other.py").unlink()
    (tmp_path / "third.py").write_text(BROKEN)
    assert await folder.looks(5) == ["2 none"]
    (tmp_path / "third.py").unlink()
    assert await folder.looks() == []


async def test_a_folder_that_cannot_be_read_takes_nothing_away(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    folder = await Folder(tmp_path / "folder").watched(package=True)
    (tmp_path / "folder").rename(tmp_path / "away")
    for _ in range(3):
        with pytest.raises(Exception, match="cannot read the plugin folder"):
            await folder.watch.look()
    assert await folder.looks(0) == ["1 none"]
