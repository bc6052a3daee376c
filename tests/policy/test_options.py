"""Options are checked by the plugin's own word on them before it is built, and the one at fault is named."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from sark_mw import ConfigurationError, PolicyContext, PolicyDecision, PolicyPluginManager
from sark_mw.policy import installed
from sark_mw.policy.installed import installed_plugin, installed_plugins
from sark_mw.policy.packages.reader import declared_schema
from tests.policy.samples import Sample, a_context

MODELLED = """
    from pydantic import BaseModel, ConfigDict, Field
    from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        hours: list[int] = [9, 17]
        rate: float = Field(1.0, gt=0)

    class Modelled(PolicyPlugin):
        name = "modelled"
        options_model = Options

        def __init__(self, **options):
            self.options = options

        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            return PolicyDecision(True, repr(sorted(self.options.items())))
"""
SCHEMA = {
    "type": "object",
    "properties": {"hours": {"type": "array", "items": {"type": "integer"}}, "rate": {"type": "number", "exclusiveMinimum": 0}},
    "additionalProperties": False,
}
DESCRIBED = MODELLED.replace("options_model = Options", f"options_model = {SCHEMA!r}")


def a_file(folder: Path, source: str) -> Path:
    path = folder / "policy.py"
    path.write_text(dedent(source))
    return path


@pytest.mark.parametrize(
    ("options", "named"), [({"hours": [1, "x"]}, r"hours\.1"), ({"rate": -1}, "rate"), ({"hour": [1]}, "hour")]
)
@pytest.mark.parametrize("source", [MODELLED, DESCRIBED])
async def test_the_option_at_fault_is_named_with_the_file(
    tmp_path: Path, source: str, options: dict[str, Any], named: str
) -> None:
    path, manager = a_file(tmp_path, source), PolicyPluginManager(isolation="off")
    with pytest.raises(ConfigurationError, match=rf"options of Modelled of .*policy\.py: .*{named}"):
        await manager.load_from_file(path, **options)
    assert manager.list_plugins() == []


async def test_a_pydantic_model_gives_the_options_their_types(tmp_path: Path) -> None:
    manager = PolicyPluginManager(isolation="off")
    await manager.load_from_file(a_file(tmp_path, MODELLED), hours=["8", 18], rate="0.5")
    (decision,) = await manager.evaluate_all(a_context())
    assert decision.reason == "[('hours', [8, 18]), ('rate', 0.5)]"
    await manager.unregister_plugin("modelled")


@pytest.mark.parametrize(
    ("parameters", "options", "built_with"),
    [
        ("hours, rate", {}, {"hours": [9, 17], "rate": 1.0}),
        ("hours, *, rate", {"rate": "0.5"}, {"hours": [9, 17], "rate": 0.5}),
        ("hours", {}, {"hours": [9, 17]}),
        ("hours=None, rate=2.0", {}, {"hours": None, "rate": 2.0}),
        ("hours=None, rate=2.0", {"hours": ["8"]}, {"hours": [8], "rate": 2.0}),
    ],
)
async def test_the_models_defaults_fill_in_what_the_constructor_cannot_do_without(
    tmp_path: Path, parameters: str, options: dict[str, Any], built_with: dict[str, Any]
) -> None:
    source = MODELLED.replace("**options", parameters).replace(
        "= options\n", "= {k: v for k, v in locals().items() if k != 'self'}\n"
    )
    manager = PolicyPluginManager(isolation="off")
    await manager.load_from_file(a_file(tmp_path, source), **options)
    (decision,) = await manager.evaluate_all(a_context())
    assert decision.reason == repr(sorted(built_with.items()))


@pytest.mark.parametrize("model", ["'a word'", "{'type': 'nonsense'}"])
async def test_a_model_that_is_none_is_the_plugins_fault(tmp_path: Path, model: str) -> None:
    source = MODELLED.replace("options_model = Options", f"options_model = {model}")
    with pytest.raises(ConfigurationError, match="options_model of Modelled"):
        await PolicyPluginManager(isolation="off").load_from_file(a_file(tmp_path, source))


@pytest.mark.parametrize(
    ("source", "class_name", "found"),
    [
        (DESCRIBED, None, True),
        (DESCRIBED, "Modelled", True),
        (DESCRIBED, "Another", False),
        (MODELLED, None, False),
        ("class A:\n    options_model: dict = {'type': 'object'}\nclass B:\n    options_model = {}", None, False),
        ("class A:\n    options_model = __import__('os').environ", None, False),
    ],
)
def test_a_schema_is_read_off_a_source_that_is_not_run(source: str, class_name: str | None, found: bool) -> None:
    assert (declared_schema(dedent(source).encode(), class_name) is not None) is found


class Brought(Sample):
    """What an installed package would bring."""

    def __init__(self, limit: int = 3) -> None:
        super().__init__("brought", self._judged)
        self.limit = limit

    async def _judged(self, context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(True, str(self.limit))


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    here = "tests.policy.test_options"
    named = {"brought": f"{here}:Brought", "missing": f"{here}:Nothing", "no_plugin": f"{here}:SCHEMA"}
    found = EntryPoints(EntryPoint(name, value, installed.GROUP) for name, value in named.items())
    twice = EntryPoints(EntryPoint("twice", value, installed.GROUP) for value in ("one:A", "two:B"))
    monkeypatch.setattr(installed, "entry_points", lambda group: EntryPoints((*found, *twice)).select(group=group))


@pytest.mark.usefixtures("packages")
def test_a_plugin_of_an_installed_package_is_found_by_its_entry_point_and_built() -> None:
    plugin, origin = installed_plugin("brought", {"limit": 5})
    assert isinstance(plugin, Brought) and plugin.limit == 5 and "test_options:Brought" in origin
    assert set(installed_plugins()) == {"brought", "missing", "no_plugin", "twice"}


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("unknown", {}, "there are: brought, missing, no_plugin, twice"),
        ("twice", {}, "several installed packages"),
        ("missing", {}, "cannot be imported: AttributeError"),
        ("no_plugin", {}, "no usable PolicyPlugin class"),
        ("brought", {"limits": 5}, r"cannot be built with the options given \(limits\)"),
    ],
)
def test_an_installed_plugin_that_cannot_be_had_says_why(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        installed_plugin(name, options)
