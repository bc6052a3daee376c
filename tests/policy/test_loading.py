from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from sark_mw import ConfigurationError, PolicyPluginManager, builtin_plugin_path
from sark_mw.policy import builtin
from sark_mw.policy.loading import forget_module
from tests.policy.samples import Sample, a_context

ONE = """
    from __future__ import annotations
    from dataclasses import dataclass
    from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin

    class Base(PolicyPlugin):
        pass

    @dataclass
    class Rule:
        model: str = "gpt-4o"

    class OnlyModel(Base):
        name = "only_model"

        def __init__(self, model="gpt-4o"):
            self.rule = Rule(model)

        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            return PolicyDecision(context.arguments["model"] == self.rule.model, "by model")
"""


def modules() -> set[str]:
    return {name for name in sys.modules if "loaded_plugin" in name}


def a_file(folder: Path, source: str, name: str = "policy.py") -> Path:
    path = folder / name
    path.write_text(dedent(source))
    return path


async def test_the_one_plugin_of_a_file_is_built_with_the_options_and_registered(tmp_path: Path) -> None:
    manager, before = PolicyPluginManager(isolation="off"), modules()
    plugin = await manager.load_from_file(str(a_file(tmp_path, ONE)), model="small")
    assert manager.get_plugin("only_model") is plugin
    assert [d.allowed for d in await manager.evaluate_all(a_context())] == [False]
    assert [d.allowed for d in await manager.evaluate_all(a_context(arguments={"model": "small"}))] == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["policy.py"]
    assert len(modules() - before) == 1
    await manager.unregister_plugin("only_model")
    assert modules() == before


async def test_a_file_may_be_loaded_disabled(tmp_path: Path) -> None:
    manager = PolicyPluginManager(isolation="off")
    plugin = await manager.load_from_file(a_file(tmp_path, ONE), enabled=False)
    assert manager.list_plugins()[0]["enabled"] is False
    forget_module(type(plugin))


async def test_the_same_file_in_two_managers_makes_two_modules(tmp_path: Path) -> None:
    path, before = a_file(tmp_path, ONE), modules()
    managers = [PolicyPluginManager(isolation="off"), PolicyPluginManager(isolation="off")]
    plugins = [await manager.load_from_file(path) for manager in managers]
    assert type(plugins[0]) is not type(plugins[1]) and len(modules() - before) == 2
    await managers[0].unregister_plugin("only_model")
    assert [d.allowed for d in await managers[1].evaluate_all(a_context())] == [True]
    await managers[1].unregister_plugin("only_model")
    assert modules() == before


TWO = (
    ONE
    + """
    class Second(OnlyModel):
        name = "second"
"""
)


async def test_of_several_plugins_one_must_be_named(tmp_path: Path) -> None:
    path, manager = a_file(tmp_path, TWO), PolicyPluginManager(isolation="off")
    with pytest.raises(ConfigurationError, match=r"several .*OnlyModel, Second"):
        await manager.load_from_file(path)
    plugin = await manager.load_from_file(path, class_name="Second")
    assert plugin.name == "second"
    await manager.unregister_plugin("second")


@pytest.mark.parametrize(
    ("source", "options", "complaint"),
    [
        ("x = 1", {}, "defines none at all"),
        ("from sark_mw import PolicyPlugin", {}, "defines none at all"),
        ("from sark_mw import PolicyPlugin\nclass Half(PolicyPlugin):\n    name = 'half'", {}, r"Half \(without evaluate\)"),
        ("def broken(:", {}, "not valid Python"),
        ("\0", {}, "not valid Python"),
        ("raise RuntimeError('no licence')", {}, "failed to run: RuntimeError: no licence"),
        ("import sys; sys.exit(3)", {}, "failed to run: SystemExit: 3"),
        (ONE, {"modell": "x"}, r"cannot be built with the options given \(modell\): TypeError"),
        (ONE, {"class_name": "Missing"}, "no usable PolicyPlugin class 'Missing'"),
    ],
)
async def test_a_file_that_cannot_be_loaded_says_why_and_leaves_nothing(
    tmp_path: Path, source: str, options: dict[str, Any], complaint: str
) -> None:
    manager, before, path = PolicyPluginManager(isolation="off"), set(sys.modules), a_file(tmp_path, source)
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        await manager.load_from_file(path, **options)
    assert str(path) in str(raised.value)
    assert set(sys.modules) == before and manager.list_plugins() == []


async def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    manager = PolicyPluginManager(isolation="off")
    with pytest.raises(ConfigurationError, match="cannot read"):
        await manager.load_from_file(tmp_path / "missing.py")
    with pytest.raises(ConfigurationError, match="cannot read"):
        await manager.load_from_file(tmp_path)


async def test_a_loaded_plugin_that_cannot_be_registered_leaves_no_module(tmp_path: Path) -> None:
    manager, before = PolicyPluginManager(isolation="off"), modules()
    await manager.register_plugin(Sample("only_model"))
    with pytest.raises(ValueError, match="already registered"):
        await manager.load_from_file(a_file(tmp_path, ONE))
    failing = ONE + "\n        async def on_load(self):\n            raise OSError('no table')\n"
    with pytest.raises(OSError, match="no table"):
        await PolicyPluginManager(isolation="off").load_from_file(a_file(tmp_path, failing))
    assert modules() == before


@pytest.mark.parametrize("name", builtin.BUILTIN_PLUGINS)
async def test_every_plugin_that_comes_along_loads_with_its_defaults(name: str) -> None:
    manager = PolicyPluginManager(isolation="off")
    plugin = await manager.load_from_file(builtin_plugin_path(name))
    assert plugin.name == name and plugin.description
    await manager.unregister_plugin(name)


def test_the_wheels_folder_goes_before_the_repositorys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sark_mw"
    for folder in (package / "_plugins", tmp_path / "plugins"):
        folder.mkdir(parents=True)
        (folder / "rate_limit.py").touch()
    monkeypatch.setattr(builtin, "_PACKAGE", package)
    assert builtin_plugin_path("rate_limit") == package / "_plugins" / "rate_limit.py"
    (package / "_plugins" / "rate_limit.py").unlink()
    assert builtin_plugin_path("rate_limit") == tmp_path / "plugins" / "rate_limit.py"
    with pytest.raises(ConfigurationError, match="missing from this installation"):
        builtin_plugin_path("cost_aware")
    with pytest.raises(ConfigurationError, match=r"one of .*business_hours, .*rate_limit"):
        builtin_plugin_path("../secrets")
