"""Check the options of a plugin against what it says that they may be, and name the one at fault."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from sark_mw.errors import ConfigurationError


def checked_options(model: Any, options: Mapping[str, Any], plugin: str) -> dict[str, Any]:
    """Return the options to build a plugin with; a pydantic model's are of the types that it declares.

    `model` is a pydantic model, a JSON Schema (a mapping), or None for a plugin that checks for itself. Raises
    `ConfigurationError` naming the option.
    """
    if model is None:
        return dict(options)
    if isinstance(model, Mapping):
        _check_schema(model, options, plugin)
        return dict(options)
    if not hasattr(model, "model_validate"):
        raise ConfigurationError(f"options_model of {plugin} is neither a pydantic model nor a JSON Schema")
    try:
        made = model.model_validate(dict(options))
    except ValueError as error:  # pydantic's own is one
        raise ConfigurationError(f"options of {plugin}: {_pydantic(error)}") from error
    return {name: getattr(made, name) for name in made.model_fields_set}


def declared_schema(source: bytes, class_name: str | None) -> Mapping[str, Any] | None:
    """Read a JSON Schema `options_model` off a plugin's source, which is not run; None where it has none that stands there."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError):
        return None  # whoever runs it will say so
    classes = [node for node in module.body if isinstance(node, ast.ClassDef) and class_name in (None, node.name)]
    found = [value for node in classes if (value := _literal(node)) is not None]
    return found[0] if len(found) == 1 else None


def _literal(node: ast.ClassDef) -> Mapping[str, Any] | None:
    for each in node.body:
        targets = each.targets if isinstance(each, ast.Assign) else [each.target] if isinstance(each, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == "options_model" for target in targets):
            value = getattr(each, "value", None)
            try:
                read = ast.literal_eval(value) if value is not None else None
            except (ValueError, TypeError, RecursionError):
                return None
            return read if isinstance(read, dict) else None
    return None


def _check_schema(schema: Mapping[str, Any], options: Mapping[str, Any], plugin: str) -> None:
    try:
        # Not a dependency of the base: only plugins with a JSON Schema need it.
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
    except ImportError as error:
        raise ConfigurationError(
            f"options of {plugin} cannot be checked against its JSON Schema: pip install 'sark-mw[schema]'"
        ) from error
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ConfigurationError(f"options_model of {plugin} is no JSON Schema: {error.message}") from error
    complaints = [_complaint(each.absolute_path, each.message) for each in kind(schema).iter_errors(dict(options))]
    if complaints:
        raise ConfigurationError(f"options of {plugin}: {'; '.join(sorted(complaints))}")


def _pydantic(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(_complaint(each["loc"], each["msg"].removeprefix("Value error, ")) for each in errors(include_input=False))


def _complaint(path: Iterable[object], message: str) -> str:
    where = ".".join(str(part) for part in path)
    return f"{where}: {message}" if where else message
