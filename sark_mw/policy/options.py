"""Check the options of a trusted plugin against what it says that they may be, and name the one at fault.

What an isolated one says is judged in a process of its own: `packages/inspection.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sark_mw.errors import ConfigurationError
from sark_mw.policy.packages.reader import UnusableSchemaError, complaint, schema_complaints


def checked_options(model: Any, options: Mapping[str, Any], plugin: str, required: Collection[str] = ()) -> dict[str, Any]:
    """Return the options to build a plugin with; a pydantic model's are of the types that it declares.

    `model` is a pydantic model, a JSON Schema (a mapping), or None for a plugin that checks for itself. Of what is not given the
    model's defaults fill in the `required` ones: to others the plugin has defaults of its own, or does not take them at all.
    Raises `ConfigurationError` naming the option.
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
    filled_in = set(required) & type(made).model_fields.keys()
    return {name: getattr(made, name) for name in made.model_fields_set | filled_in}


def _check_schema(schema: Mapping[str, Any], options: Mapping[str, Any], plugin: str) -> None:
    try:
        complaints = schema_complaints(schema, options)
    except ImportError as error:
        # Not a dependency of the base: only plugins with a JSON Schema need it.
        raise ConfigurationError(
            f"options of {plugin} cannot be checked against its JSON Schema: pip install 'sark-mw[schema]'"
        ) from error
    except UnusableSchemaError as error:
        raise ConfigurationError(f"options_model of {plugin} is no JSON Schema that can be used: {error}") from error
    if complaints:
        raise ConfigurationError(f"options of {plugin}: {'; '.join(complaints)}")


def _pydantic(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(complaint(each["loc"], each["msg"].removeprefix("Value error, ")) for each in errors(include_input=False))
