"""Read off a plugin's source what it imports, asks for and takes, without running any of it."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass

from sark_mw.errors import ConfigurationError

_NAMED = ("name", "version", "description")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What the source says; `needs` None: it names none, or none that stands there as a literal."""

    classes: tuple[str, ...]
    imports: tuple[str, ...]
    #: Imports that are neither of Python's library nor sark_mw.
    foreign: tuple[str, ...]
    needs: tuple[str, ...] | None
    options: tuple[str, ...]
    name: str = ""
    version: str = ""
    description: str = ""


def inspect_source(source: bytes, class_name: str | None = None) -> Inspection:
    """Inspect a plugin's source; raises `ConfigurationError` for what is no Python."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigurationError(f"it is not valid Python: {error}") from error
    classes = [node for node in ast.walk(module) if isinstance(node, ast.ClassDef) and _is_plugin(node)]
    chosen = next((node for node in classes if class_name in (None, node.name)), None)
    imports = sorted({name for node in ast.walk(module) for name in _imported(node)})
    said = {} if chosen is None else {name: value for name in _NAMED if isinstance(value := _member(chosen, name), str)}
    return Inspection(
        classes=tuple(node.name for node in classes),
        imports=tuple(imports),
        foreign=tuple(name for name in imports if name.partition(".")[0] not in (*sys.stdlib_module_names, "sark_mw")),
        needs=None if chosen is None else _needs(chosen),
        options=() if chosen is None else _options(chosen),
        **said,
    )


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
        if isinstance(each, ast.Assign) and any(isinstance(target, ast.Name) and target.id == name for target in each.targets):
            return _literal(each.value)
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.target.id == name:
            return _literal(each.value)
        if isinstance(each, ast.FunctionDef) and each.name == name and each.body and isinstance(each.body[-1], ast.Return):
            return _literal(each.body[-1].value)
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


def _needs(node: ast.ClassDef) -> tuple[str, ...] | None:
    found = _member(node, "needs")
    if not isinstance(found, set | frozenset | list | tuple):
        return None
    return tuple(sorted(str(each) for each in found))


def _options(node: ast.ClassDef) -> tuple[str, ...]:
    """Write the parameters of the constructor as they stand there."""
    made = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    if made is None:
        return ()
    arguments = made.args
    plain = [*arguments.posonlyargs, *arguments.args][1:]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults) if plain else []
    pairs = [*zip(plain, defaults, strict=False), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return tuple(ast.unparse(each) + ("" if default is None else f" = {ast.unparse(default)}") for each, default in pairs)
