"""The configuration reference, made from the settings' own schema."""

from __future__ import annotations

import json
from typing import Any

from sark_mw.settings import Settings

_HEAD = """# Configuration

Made from `sark_mw/settings_sections.py` by `sark-mw config --markdown`; do not edit.

Every setting can stand in `sark.toml`, in the environment, or in code (`Settings(...)`); the environment wins. In the
environment a setting is `SARK_`, its table, two underscores, its name: `SARK_STORE__URL`. Lists are JSON there. Unknown keys are
refused at start.
`deploy/sark.toml` is a commented file to begin with.
"""


def settings_reference() -> str:
    """Write one section per table of the settings file."""
    schema: dict[str, Any] = Settings.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    parts = [_HEAD]
    for name, field in schema["properties"].items():
        repeated = field.get("type") == "array"
        reference = (field["items"] if repeated else field)["$ref"]
        parts.append(_section(name, definitions[reference.rpartition("/")[2]], definitions, repeated=repeated))
    return "\n".join(parts).rstrip()


def _section(name: str, model: dict[str, Any], definitions: dict[str, Any], *, repeated: bool) -> str:
    title = f"[[{name}]]" if repeated else f"[{name}]"
    lines = [
        f"## `{title}`",
        "",
        model.get("description", ""),
        "",
        "| setting | type | default | what it does |",
        "|---|---|---|---|",
    ]
    inner: list[str] = []
    required = model.get("required", [])
    for key, field in model["properties"].items():
        items = field.get("items", {})
        if "$ref" in items:
            inner.append(_section(f"{name}.{key}", definitions[items["$ref"].rpartition("/")[2]], definitions, repeated=True))
        cells = (f"`{key}`", _type(field), "required" if key in required else _default(field), field.get("description", ""))
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join([*lines, "", *inner])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return ""
    value = field["default"]
    if value is None:
        return "–"
    if field.get("writeOnly") or field.get("format") == "password":
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        kinds = [each for each in field["anyOf"] if each.get("type") != "null"]
        numbers = [each for each in kinds if each.get("type") in ("number", "integer")]
        return _type((numbers or kinds)[0])
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return "table"
    kind = str(field.get("type", "any"))
    if kind == "array":
        items = field.get("items", {})
        return "list of tables" if "$ref" in items else f"list of {_type(items)}"
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`", "object": "table"}
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field
    ]
    return " ".join([names.get(kind, kind), ", ".join(bounds)]).strip()
