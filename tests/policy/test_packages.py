"""Packages of plugins: what a manifest says holds, and a lock lets in what it pins and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from sark_mw import ConfigurationError, PolicyPluginManager
from sark_mw.plugin_loading import load_plugins, make_policies
from sark_mw.policy.builtin import builtin_plugin_path
from sark_mw.policy.files import PluginFile, PluginSource, plugin_files
from sark_mw.policy.packages import Contents, Lock, PinState, pin_of
from sark_mw.policy.reloading import FileWatch
from sark_mw.settings import PolicySettings
from tests.policy.samples import a_context
from tests.policy.versions import write


def package(folder: Path, name: str = "versioned", version: str = "1", more: str = "", said: str | None = None) -> Path:
    """Write a package: its folder, the plugin and the manifest."""
    (folder / name).mkdir(exist_ok=True)
    path = write(folder / name, version, name=name, file=f"{name}.py")
    (folder / name / "plugin.toml").write_text(f'name = "{name}"\nversion = "{said or version}"\n{dedent(more)}')
    return path


def locked(folder: Path, *paths: Path) -> Lock:
    """Pin files as they are now."""
    lock = Lock(path=folder / "sark-plugins.lock")
    lock.write(pin_of(lock.key(path), path.stem, "1", PluginFile(path=path).contents()) for path in paths)
    return lock


def manager_of(lock: Lock | None = None) -> PolicyPluginManager:
    return PolicyPluginManager(isolation="off", lock=lock)


async def reasons(manager: PolicyPluginManager) -> list[str]:
    return [decision.reason for decision in await manager.evaluate_all(a_context())]


# --- manifests -------------------------------------------------------------------------------------------------------


async def test_a_package_is_built_with_its_manifests_class_and_options_and_given_options_win(tmp_path: Path) -> None:
    path = package(tmp_path, more='class = "Versioned"\n[options]\nword = "manifest"')
    path.write_text(path.read_text() + "\nclass Other(Versioned):\n    name = 'other'\n")
    manager = manager_of()
    await manager.load_from_file(path)
    assert await reasons(manager) == ["1 manifest"]
    given = manager_of()
    await given.load_from_file(path, word="given")
    assert await reasons(given) == ["1 given"]


async def test_a_folder_is_loaded_with_the_packages_in_it(tmp_path: Path) -> None:
    package(tmp_path, "inside")
    write(tmp_path, name="flat", file="flat.py")
    (tmp_path / "_hidden").mkdir()
    (tmp_path / "notes").mkdir()
    manager = manager_of()
    settings = PolicySettings(folder=tmp_path, isolation="off")
    assert await load_plugins(manager, settings) == ["flat", "inside"]


async def test_an_isolated_package_honours_its_manifest_too(tmp_path: Path) -> None:
    manager = PolicyPluginManager(isolation="best-effort")
    plugin = await manager.load_from_file(package(tmp_path, more='[options]\nword = "manifest"'))
    try:
        assert plugin.isolated and await reasons(manager) == ["1 manifest"]
    finally:
        await manager.unregister_plugin("versioned")


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ('name = "versioned"', "version: a text is expected"),
        ('name = "versioned"\nversion = "one"', "version: 'one' is none"),
        ('name = "../up"\nversion = "1"', "name: letters"),
        ('name = "versioned"\nversion = "1"\ncolor = "red"', "there is no field color"),
        (
            'name = "versioned"\nversion = "1"\n[requires]\nsark-mw = "newest"',
            "requires.sark-mw: 'newest' does not name versions",
        ),
        ('name = "versioned"\nversion = "1"\n[requires]\npython = ">=3"', "it may name sark-mw and plugins"),
        ('name = "versioned"\nversion = "2"', "is 'versioned' version '1', its manifest says 'versioned' version '2'"),
        ('name = "other"\nversion = "1"', "its manifest says 'other'"),
        ('name = "versioned"\nversion = "1"\n[requires]\nsark-mw = ">=99"', "requires sark-mw >=99, this is"),
        ("name = ", "plugin.toml"),
    ],
)
async def test_a_manifest_with_a_fault_is_refused_with_the_reason(tmp_path: Path, manifest: str, complaint: str) -> None:
    path = package(tmp_path)
    path.with_name("plugin.toml").write_text(manifest)
    manager = manager_of()
    with pytest.raises(ConfigurationError) as refused:
        await manager.load_from_file(path)
    assert complaint in str(refused.value)
    assert manager.list_plugins() == []


async def test_a_manifest_beside_several_files_is_refused_instead_of_guessed(tmp_path: Path) -> None:
    path = package(tmp_path)
    path.rename(path.with_name("a.py"))
    write(path.parent, file="b.py")
    with pytest.raises(ConfigurationError, match="several files lie beside it"):
        await manager_of().load_from_file(path.with_name("a.py"))


async def test_plugins_that_require_each_other_load_in_any_order_and_not_without(tmp_path: Path) -> None:
    package(tmp_path, "first", more='[requires.plugins]\nsecond = ">=2"')
    package(tmp_path, "second", "2")
    settings = PolicySettings(folder=tmp_path, isolation="off")
    assert await load_plugins(manager_of(), settings) == ["first", "second"]
    package(tmp_path, "second", "1.9")
    manager = manager_of()
    with pytest.raises(ConfigurationError, match=r"'first' requires plugin 'second' >=2: version 1\.9 is there"):
        await load_plugins(manager, settings)
    assert manager.list_plugins() == []


async def test_a_new_version_that_requires_what_is_not_there_leaves_the_old_one(tmp_path: Path) -> None:
    path = package(tmp_path)
    manager = manager_of()
    await manager.load_from_file(path)
    package(tmp_path, version="2", more='[requires.plugins]\nabsent = ""')
    with pytest.raises(ConfigurationError, match="requires plugin 'absent' of any version: it is not there"):
        await manager.reload_plugin("versioned")
    assert await reasons(manager) == ["1 none"]


# --- the lock --------------------------------------------------------------------------------------------------------


async def test_what_is_pinned_is_loaded(tmp_path: Path) -> None:
    path = package(tmp_path)
    manager = manager_of(locked(tmp_path, path))
    await manager.load_from_file(path)
    assert await reasons(manager) == ["1 none"]


CHANGES: dict[str, Callable[[Path], object]] = {
    "source": lambda path: path.write_text(path.read_text() + "\n"),
    "manifest": lambda path: path.with_name("plugin.toml").write_text('name = "versioned"\nversion = "1"\n#\n'),
}


@pytest.mark.parametrize("part", CHANGES)
async def test_what_differs_by_a_byte_from_its_pin_is_refused_at_the_start(tmp_path: Path, part: str) -> None:
    path = package(tmp_path)
    lock = locked(tmp_path, path)
    CHANGES[part](path)
    with pytest.raises(ConfigurationError, match=rf"is not what .* pins \(differs in {part}\)"):
        await load_plugins(manager_of(lock), PolicySettings(folder=tmp_path, isolation="off"))


async def test_what_is_not_in_the_lock_is_refused_before_any_of_it_runs(tmp_path: Path) -> None:
    path, ran = tmp_path / "unknown.py", tmp_path / "ran"
    path.write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(ConfigurationError, match="it is not in"):
        await manager_of(locked(tmp_path)).load_from_file(path)
    assert not ran.exists()


async def test_an_options_file_that_appears_beside_a_pinned_plugin_is_a_change(tmp_path: Path) -> None:
    path = write(tmp_path)
    lock = locked(tmp_path, path)
    (tmp_path / "versioned.toml").write_text('word = "slipped in"')
    with pytest.raises(ConfigurationError, match="differs in options"):
        await load_plugins(manager_of(lock), PolicySettings(folder=tmp_path, isolation="off"))


async def test_a_pinned_file_under_another_name_is_not_the_pinned_one(tmp_path: Path) -> None:
    path = write(tmp_path)
    lock = locked(tmp_path, path)
    with pytest.raises(ConfigurationError, match="it is not in"):
        await manager_of(lock).load_from_file(path.rename(tmp_path / "renamed.py"))


async def test_a_changed_file_is_not_taken_up_until_the_lock_pins_it(tmp_path: Path) -> None:
    path = write(tmp_path)
    lock = locked(tmp_path, path)
    manager = manager_of(lock)
    await manager.load_from_file(path)
    watch = FileWatch(manager, 1)
    await watch.look()
    write(tmp_path, "2 and longer")
    await watch.look()
    assert await reasons(manager) == ["1 none"]
    assert "differs in source" in manager.list_plugins()[0]["last_error"]
    locked(tmp_path, path)
    await watch.look()
    await manager.retired()
    assert await reasons(manager) == ["2 and longer none"]


async def test_a_file_that_comes_into_the_folder_waits_for_its_pin(tmp_path: Path) -> None:
    lock = locked(tmp_path)
    settings = PolicySettings(folder=tmp_path, isolation="off", lock=lock.path)
    manager = make_policies(settings)
    from sark_mw.plugin_loading import folder_files

    watch = FileWatch(manager, 1, lambda: folder_files(manager, settings))
    path = write(tmp_path)
    await watch.look()
    assert manager.list_plugins() == []
    lock = locked(tmp_path, path)
    assert lock.state(path, PluginFile(path=path).contents()) is PinState.LOCKED
    await watch.look()
    assert await reasons(manager) == ["1 none"]


async def test_what_comes_with_sark_mw_needs_no_pin(tmp_path: Path) -> None:
    settings = PolicySettings.model_validate({"plugins": [{"name": "allow_list"}], "lock": locked(tmp_path).path})
    assert await load_plugins(make_policies(settings), settings) == ["allow_list"]


async def test_policies_in_webassembly_and_rego_are_pinned_too(tmp_path: Path) -> None:
    (tmp_path / "cost.rego").write_text("package policy\nallow := true\n")
    plugins = [{"name": "rego", "options": {"path": str(tmp_path / "cost.rego"), "query": "data.policy.allow"}}]
    settings = PolicySettings.model_validate({"plugins": plugins, "lock": locked(tmp_path).path})
    with pytest.raises(ConfigurationError, match=r"cost\.rego is refused: it is not in"):
        await load_plugins(make_policies(settings), settings)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "cannot read the plugin lock"),
        ("form = ", "is no plugin lock"),
        ("form = 2", "of form 1"),
        ('form = 1\n[[plugins]]\npath = "a.py"', "lacks something"),
        ('form = 1\n[[plugins]]\npath = "a.py"\nname = "a"\nversion = "1"\nsource = "md5:1"', "is none"),
        ('form = 1\n[[plugins]]\npath = "a.py"\nkey = "a"', "a pin has"),
    ],
)
async def test_a_lock_that_cannot_be_read_lets_nothing_in(tmp_path: Path, text: str | None, complaint: str) -> None:
    lock = Lock(path=tmp_path / "sark-plugins.lock")
    if text is not None:
        lock.path.write_text(text)
    with pytest.raises(ConfigurationError, match=complaint):
        await manager_of(lock).load_from_file(write(tmp_path))


def test_a_lock_reads_what_it_wrote_whatever_the_names(tmp_path: Path) -> None:
    lock = Lock(path=tmp_path / "sark-plugins.lock")
    contents = PluginFile(path=write(tmp_path)).contents()
    pins = [pin_of(path, 'a "name"\\ \n😀', "1", contents) for path in ("ü/x.py", 'q"uote.py')]
    lock.write(pins)
    assert sorted(lock.read().values(), key=lambda pin: pin.path) == sorted(pins, key=lambda pin: pin.path)


def test_a_package_whose_file_is_not_to_be_found_is_listed_and_fails_by_itself(tmp_path: Path) -> None:
    package(tmp_path).unlink()
    (file,) = plugin_files(tmp_path, None)
    with pytest.raises(ConfigurationError, match=r"cannot read the plugin file .*versioned\.py"):
        file.read()


# --- what comes with sark_mw is known by where it is read ------------------------------------------------------------


async def test_a_link_to_what_comes_with_sark_mw_needs_a_pin_like_any_other_file(tmp_path: Path) -> None:
    lock = locked(tmp_path)
    (tmp_path / "plugins").mkdir()
    link = tmp_path / "plugins" / "size_guard.py"
    link.symlink_to(builtin_plugin_path("size_guard"))
    link.with_suffix(".toml").write_text("max_body_bytes = 1")
    for place in ({"folder": tmp_path / "plugins"}, {"plugins": [{"path": link}]}):
        settings = PolicySettings.model_validate({**place, "lock": lock.path})
        with pytest.raises(ConfigurationError, match=r"size_guard\.py is refused: it is not in"):
            await load_plugins(make_policies(settings), settings)
    pinned = locked(tmp_path, link)
    await manager_of(pinned).load_from_file(link)


async def test_a_link_that_leads_elsewhere_once_it_was_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, link, evil = locked(tmp_path), tmp_path / "rate_limit.py", write(tmp_path, file="evil.py")
    link.symlink_to(evil)
    file = PluginFile(path=link, packages=manager_of(lock).packages)
    read = PluginFile.contents

    def flipped(self: PluginFile) -> Contents:
        now = read(self)
        link.unlink()
        link.symlink_to(builtin_plugin_path("rate_limit"))
        return now

    monkeypatch.setattr(PluginFile, "contents", flipped)
    with pytest.raises(ConfigurationError, match="is refused: it is not in"):
        file.read()


async def test_a_link_to_what_comes_with_sark_mw_is_read_from_where_that_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, evil = tmp_path / "rate_limit.py", write(tmp_path, file="evil.py", name="evil")
    link.symlink_to(builtin_plugin_path("rate_limit"))
    manager = PolicyPluginManager()
    read = PluginFile.read

    def flipped(self: PluginFile) -> PluginSource:
        link.unlink(missing_ok=True)
        link.symlink_to(evil)
        return read(self)

    monkeypatch.setattr(PluginFile, "read", flipped)
    plugin = await manager.load_from_file(link)
    assert (plugin.name, plugin.isolated) == ("rate_limit", False)
    await manager.unregister_plugin("rate_limit")
