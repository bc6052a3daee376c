"""What is written about the settings is what the settings are."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sark_mw.commands.markdown import settings_reference
from sark_mw.limit import Mode, Unit
from sark_mw.settings import Settings
from tests.cli.running import printed, sark

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "sark.toml"


def uncommented() -> str:
    """The example with every setting in force: prose has a space behind its `#`."""
    return re.sub(r"(?m)^#(?! )", "", EXAMPLE.read_text("utf-8"))


def names(schema: dict[str, Any], model: dict[str, Any], path: str = "") -> set[str]:
    """Every setting there is, by its path; tables inside lists included."""
    found = set()
    for name, field in model["properties"].items():
        reference = field.get("$ref") or field.get("items", {}).get("$ref")
        if reference:
            found |= names(schema, schema["$defs"][reference.rpartition("/")[2]], f"{path}{name}.")
        else:
            found.add(path + name)
    return found


def written(values: Any, path: str = "") -> set[str]:
    """Every setting that a file sets."""
    found = set()
    for name, value in values.items():
        if isinstance(value, dict) and name not in ("options", "members", "oblige"):
            found |= written(value, f"{path}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for each in value:
                found |= written(each, f"{path}{name}.")
        else:
            found.add(path + name)
    return found


def test_the_committed_reference_is_the_one_that_the_settings_make() -> None:
    committed = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert committed == settings_reference() + "\n", "run: sark-mw config --markdown > docs/configuration.md"
    assert sark("config", "--markdown").stdout == committed


def test_the_reference_names_every_setting() -> None:
    schema = Settings.model_json_schema()
    text = settings_reference()
    for name in names(schema, schema):
        table, _, key = name.rpartition(".")
        section = re.split(rf"(?m)^## `\[+{re.escape(table)}\]+`$", text)[1].split("\n## ")[0]
        assert f"| `{key}` |" in section, name


def test_no_field_of_any_section_lacks_a_description() -> None:
    schema = Settings.model_json_schema()
    sections = {name: model for name, model in schema["$defs"].items() if "properties" in model}
    assert {"LimitSettings", "ModelPriceSettings", "PluginSettings", "ServeSettings"} <= sections.keys()
    lacking = [
        f"{n}.{key}" for n, m in sections.items() for key, field in m["properties"].items() if not field.get("description")
    ]
    assert lacking == [] and all(model.get("description") for model in sections.values())


def test_the_reference_tells_what_a_limit_may_be() -> None:
    section = settings_reference().split("## `[[limits]]`")[1]
    for allowed in (*Unit, *Mode, "minute", "hour", "day", "week", "month", "total", "rolling:<seconds>"):
        assert f"`{allowed}`" in section, allowed


def test_the_reference_shows_no_default_of_a_secret() -> None:
    assert "| `key_secret` | text |  |" in settings_reference()


def test_the_example_file_loads_as_it_is_and_with_every_setting_in_force(tmp_path: Path) -> None:
    settings = Settings.load(EXAMPLE)
    assert [str(upstream.url) for upstream in settings.serve.upstreams] == ["https://api.openai.com", "https://api.anthropic.com"]
    full = tmp_path / "full.toml"
    full.write_text(uncommented())
    assert Settings.load(full).principal.keys[0].principal == "user:alice"


def test_what_is_spent_with_the_example_file_outlives_the_gateway() -> None:
    assert Settings.load(EXAMPLE).ledger.lasts


def test_the_example_file_names_every_setting_and_no_other() -> None:
    schema = Settings.model_json_schema()
    assert written(tomllib.loads(uncommented())) == names(schema, schema)


@pytest.mark.parametrize("table", ["store", "ledger", "reservation", "http", "observe", "policy"])
def test_what_the_example_shows_as_a_default_is_the_default(table: str, tmp_path: Path) -> None:
    shown = tomllib.loads(uncommented(), parse_float=Decimal)[table]
    full = tmp_path / "full.toml"
    full.write_text(uncommented())
    loaded, default = Settings.load(full), Settings()
    chosen = tomllib.loads(EXAMPLE.read_text("utf-8"), parse_float=Decimal).get(table, {})
    for name in shown:
        if name not in ("plugins", "rules", "folder", "lock") and name not in chosen:
            assert getattr(getattr(loaded, table), name) == getattr(getattr(default, table), name), name


def test_the_schema_is_printed_as_json() -> None:
    assert printed("config", "--schema")["properties"].keys() == Settings.model_fields.keys()
