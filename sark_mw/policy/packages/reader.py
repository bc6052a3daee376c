"""Read off a plugin's source what it imports, asks for and takes, and judge options by its JSON Schema; none of it is run.

Reading what anyone may have written takes whatever time and memory its author likes, so this very file is the source of an
isolated plugin (`inspection.py`): it imports nothing that a worker does not find. Only trusted code's schema is judged in place.
"""

from __future__ import annotations

import ast
import base64
import json
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from sark_mw.policy.base import PolicyContext, PolicyDecision, PolicyPlugin

_NAMED = ("name", "version", "description")
_MOST_COMPLAINTS, _COMPLAINT_CHARS = 20, 500
#: A reply's texts may not be longer than some 10,000 characters.
_PIECE_CHARS = 8192


class UnusableSchemaError(ValueError):
    """What is no JSON Schema, or refers to what is not in it."""


class Reader(PolicyPlugin):
    """Asked about `source` (base64), `class_name` and `options`; answers in pieces of JSON."""

    name = "plugin_reader"

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        asked = context.arguments
        text = json.dumps(read(base64.b64decode(asked["source"]), asked["class_name"], asked["options"]))
        pieces = [text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS)]
        return PolicyDecision(True, "", {"pieces": pieces})


def read(source: bytes, class_name: str | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Say all that there is to say of a source; with `options` also what its schema has against them."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        return {"invalid": str(error)}
    said = _inspected(module, class_name)
    try:
        said["schema"] = schema = json.loads(json.dumps(_schema(module, class_name)))
    except (ValueError, TypeError, RecursionError) as error:
        return {**said, "unusable": f"{type(error).__name__}: {error}"[:_COMPLAINT_CHARS]}
    if schema is not None and options is not None:
        try:
            said["complaints"] = schema_complaints(schema, options)
        except ImportError:
            said["unchecked"] = True
        except UnusableSchemaError as error:
            said["unusable"] = str(error)[:_COMPLAINT_CHARS]
    return said


def declared_schema(source: bytes, class_name: str | None) -> Mapping[str, Any] | None:
    """Return the JSON Schema `options_model` of a source; None where it has none that stands there as a literal."""
    return _schema(ast.parse(source), class_name)


def schema_complaints(schema: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Say what a JSON Schema has against options, each with the option at fault.

    Nothing outside the schema is looked at: no file, no address. Raises `UnusableSchemaError`, ImportError without `jsonschema`.
    """
    from jsonschema.validators import Draft202012Validator, validator_for
    from jsonschema_specifications import REGISTRY  # without the retrieval that is the default of jsonschema

    try:
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
        found = islice(kind(schema, registry=REGISTRY).iter_errors(dict(options)), _MOST_COMPLAINTS)
        return sorted(complaint(each.absolute_path, each.message) for each in found)
    except Exception as error:  # the plugin boundary: jsonschema, referencing and re raise what they like
        raise UnusableSchemaError(str(getattr(error, "message", "") or error) or type(error).__name__) from error


def complaint(path: Iterable[object], message: str) -> str:
    """Write what is wrong with the option at a path."""
    where = ".".join(str(part) for part in path)
    return (f"{where}: {message}" if where else message)[:_COMPLAINT_CHARS]


def _inspected(module: ast.Module, class_name: str | None) -> dict[str, Any]:
    classes = [node for node in ast.walk(module) if isinstance(node, ast.ClassDef) and _is_plugin(node)]
    chosen = next((node for node in classes if class_name in (None, node.name)), None)
    imports = sorted({name for node in ast.walk(module) for name in _imported(node)})
    said = {} if chosen is None else {name: value for name in _NAMED if isinstance(value := _member(chosen, name), str)}
    return {
        "classes": [node.name for node in classes],
        "imports": imports,
        "foreign": [name for name in imports if name.partition(".")[0] not in (*sys.stdlib_module_names, "sark_mw")],
        "needs": None if chosen is None else _needs(chosen),
        "options": [] if chosen is None else _options(chosen),
        **said,
    }


def _schema(module: ast.Module, class_name: str | None) -> Mapping[str, Any] | None:
    classes = [node for node in module.body if isinstance(node, ast.ClassDef) and class_name in (None, node.name)]
    found = [value for node in classes if isinstance(value := _assigned(node, "options_model"), dict)]
    return found[0] if len(found) == 1 else None


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level + (node.module or "")]
    return []


def _is_plugin(node: ast.ClassDef) -> bool:
    """Tell whether it derives from what is called so; a class between is beyond what reading tells."""
    return any(ast.unparse(base).rpartition(".")[2] == "PolicyPlugin" for base in node.bases)


def _member(node: ast.ClassDef, name: str) -> object:
    """Read a member that is a literal: of an assignment, or what a property returns."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == name and each.body and isinstance(each.body[-1], ast.Return):
            return _literal(each.body[-1].value)
    return _assigned(node, name)


def _assigned(node: ast.ClassDef, name: str) -> object:
    for each in node.body:
        targets = each.targets if isinstance(each, ast.Assign) else [each.target] if isinstance(each, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return _literal(getattr(each, "value", None))
    return None


def _literal(value: ast.expr | None) -> object:
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "frozenset" and not value.keywords:
        value = value.args[0] if value.args else ast.Set(elts=[])
    if value is None:
        return None
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, RecursionError, SyntaxError):
        return None


def _needs(node: ast.ClassDef) -> list[str] | None:
    found = _member(node, "needs")
    return sorted(str(each) for each in found) if isinstance(found, set | frozenset | list | tuple) else None


def _options(node: ast.ClassDef) -> list[str]:
    """Write the parameters of the constructor as they stand there."""
    made = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    if made is None:
        return []
    arguments = made.args
    plain = [*arguments.posonlyargs, *arguments.args][1:]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults) if plain else []
    pairs = [*zip(plain, defaults, strict=False), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [ast.unparse(each) + ("" if default is None else f" = {ast.unparse(default)}") for each, default in pairs]
