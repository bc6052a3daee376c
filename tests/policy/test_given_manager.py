"""What the settings say of policies holds for a manager that is given, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sark_mw import ConfigurationError, PolicyPluginManager
from sark_mw.policy.builtin import builtin_plugin_path
from sark_mw.policy.files import PluginFile
from sark_mw.policy.packages import Lock, pin_of
from sark_mw.sark import Sark
from tests.enforcement.whole import settings_for
from tests.policy.versions import write

MINI = "gpt-4o-mini"


def a_sark(folder: Path, manager: PolicyPluginManager, **policy: Any) -> Sark:
    return Sark(settings_for(f"memory://{uuid4().hex}", folder, policy=policy), policies=manager)


@asynccontextmanager
async def started(folder: Path, manager: PolicyPluginManager, **policy: Any) -> AsyncIterator[Sark]:
    sark = a_sark(folder, manager, **policy)
    try:
        await sark.start()
        yield sark
    finally:
        await sark.aclose()


def locked(folder: Path, *paths: Path) -> Path:
    lock = Lock(path=folder / "sark-plugins.lock")
    lock.write(pin_of(lock.key(path), path.stem, "1", PluginFile(path=path).contents()) for path in paths)
    return lock.path


async def test_a_file_that_the_settings_lock_does_not_pin_refuses_the_start(tmp_path: Path) -> None:
    path, lock = write(tmp_path), locked(tmp_path)
    policy = {"lock": lock, "isolation": "off", "plugins": [{"path": path}]}
    with pytest.raises(ConfigurationError, match=r"versioned\.py is refused: it is not in"):
        async with started(tmp_path, PolicyPluginManager(), **policy):
            raise AssertionError("it started")
    locked(tmp_path, path)
    async with started(tmp_path, PolicyPluginManager(), **policy) as sark:
        assert sark.policies.get_plugin("versioned") is not None


async def test_isolation_of_the_settings_is_heeded(tmp_path: Path) -> None:
    async with started(tmp_path, PolicyPluginManager(), isolation="off", plugins=[{"path": write(tmp_path)}]) as sark:
        assert [(each["name"], each["isolated"]) for each in sark.policies.list_plugins()] == [("versioned", False)]


async def test_models_of_the_settings_may_be_obliged_to(tmp_path: Path) -> None:
    rule = {"name": "small", "when": "true", "oblige": {"use_model": MINI}}
    manager = PolicyPluginManager()
    async with started(tmp_path, manager, obligation_models=(MINI,), rules=[rule]):
        assert [each["name"] for each in manager.list_plugins()] == ["small"]


@pytest.mark.parametrize(
    ("made_with", "policy", "complaint"),
    [
        ({"isolation": "off"}, {"isolation": "require"}, "isolation of the settings is 'require'.*given is 'off'"),
        ({"isolation": "best-effort"}, {"isolation": "off"}, "isolation of the settings is 'off'.*given is 'best-effort'"),
        ({"obligation_models": frozenset({"o3"})}, {"obligation_models": (MINI,)}, rf"is \['{MINI}'\].*given is \['o3'\]"),
        ({"lock": Lock(path=Path("one.lock"))}, {"lock": Path("two.lock")}, r"two\.lock'.*given is '.*one\.lock'"),
    ],
)
def test_a_manager_that_says_something_else_is_refused_with_both(
    tmp_path: Path, made_with: dict[str, Any], policy: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        a_sark(tmp_path, PolicyPluginManager(**made_with), **policy)


async def test_what_the_settings_do_not_say_is_as_the_manager_was_made(tmp_path: Path) -> None:
    lock = Lock(path=locked(tmp_path))
    manager = PolicyPluginManager(isolation="best-effort", obligation_models=frozenset({"o3"}), lock=lock)
    async with started(tmp_path, manager):
        assert (manager.isolation, manager.obligation_models, manager.packages.lock) == ("best-effort", {"o3"}, lock)


async def test_what_was_loaded_before_the_start_must_be_as_the_lock_pins_it(tmp_path: Path) -> None:
    path, manager = write(tmp_path), PolicyPluginManager()
    await manager.load_from_file(path, isolated=False)
    await manager.load_from_file(builtin_plugin_path("rate_limit"))
    with pytest.raises(ConfigurationError, match="is refused: it is not in"):
        async with started(tmp_path, manager, lock=locked(tmp_path)):
            raise AssertionError("it started")
    assert manager.packages.lock is None
    write(tmp_path, "2")
    with pytest.raises(ConfigurationError, match=r"was loaded from .* as policy\.lock does not pin it"):
        async with started(tmp_path, manager, lock=locked(tmp_path, path)):
            raise AssertionError("it started")
    write(tmp_path)
    async with started(tmp_path, manager, lock=locked(tmp_path, path)) as sark:
        assert {each["name"] for each in sark.policies.list_plugins()} == {"versioned", "rate_limit"}


async def test_a_manager_that_another_sark_has_is_left_as_it_is(tmp_path: Path) -> None:
    manager = PolicyPluginManager()
    async with started(tmp_path, manager):
        with pytest.raises(ConfigurationError, match="one of its own"):
            async with started(tmp_path, manager, isolation="off"):
                raise AssertionError("it started")
        assert manager.isolation == "require"


async def test_the_next_settings_find_a_manager_as_it_was_made(tmp_path: Path) -> None:
    manager = PolicyPluginManager()
    lock = locked(tmp_path)
    async with started(tmp_path, manager, isolation="off", obligation_models=[MINI], lock=lock):
        assert (manager.isolation, manager.obligation_models) == ("off", {MINI}) and manager.packages.lock is not None
    assert (manager.isolation, manager.obligation_models, manager.packages.lock) == ("require", frozenset(), None)


async def test_a_start_that_fails_leaves_a_manager_as_it_was_made(tmp_path: Path) -> None:
    manager = PolicyPluginManager()
    with pytest.raises(ConfigurationError):
        async with started(tmp_path, manager, isolation="off", plugins=[{"path": tmp_path / "missing.py"}]):
            pass
    assert manager.isolation == "require"
