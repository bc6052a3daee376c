"""Lint lua/: syntax, undeclared and unused names, includes that touch KEYS or ARGV, lines over 150 characters."""

from __future__ import annotations

import sys
from pathlib import Path

from luaparser import ast, astnodes

LUA = Path(__file__).parent.parent / "lua"
GLOBALS = {"redis", "KEYS", "ARGV", "cjson", "math", "string", "table", "tonumber", "ipairs", "next", "pairs", "unpack"}


def names(node: astnodes.Node) -> list[astnodes.Name]:
    """List the names that are read as variables, not as fields."""
    fields = {id(n.idx) for n in ast.walk(node) if isinstance(n, astnodes.Index) and n.notation == astnodes.IndexNotation.DOT}
    fields |= {id(n.key) for n in ast.walk(node) if isinstance(n, astnodes.Field) and not n.between_brackets}
    return [n for n in ast.walk(node) if isinstance(n, astnodes.Name) and id(n) not in fields]


def declared(tree: astnodes.Node) -> list[str]:
    """List every local, parameter and loop variable."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, astnodes.LocalAssign):
            found += [target.id for target in node.targets]
        elif isinstance(node, astnodes.LocalFunction):
            found += [node.name.id, *(arg.id for arg in node.args if isinstance(arg, astnodes.Name))]
        elif isinstance(node, astnodes.Forin):
            found += [target.id for target in node.targets]
        elif isinstance(node, astnodes.Fornum):
            found.append(node.target.id)
    return found


def lint(path: Path, source: str, *, include: bool) -> list[str]:
    """Return what is wrong with one file; `source` has its includes in place."""
    lines = enumerate(path.read_text().splitlines(), 1)
    found = [f"{path.name}:{n}: over 150 characters" for n, line in lines if len(line) > 150]
    try:
        tree = ast.parse(source)
    except ast.SyntaxException as error:
        return [*found, f"{path.name}: {error}"]
    known = declared(tree)
    used = [name.id for name in names(tree)]
    # A name is declared once and must be read at least once more. Functions of includes may stay unused in a script.
    own = declared(ast.parse(path.read_text()))
    found += [f"{path.name}: global {name!r}" for name in sorted(set(used) - set(known) - GLOBALS)] if not include else []
    if not include:
        found += [f"{path.name}: {name!r} is never used" for name in sorted(set(own)) if name != "_" and used.count(name) < 2]
    elif {"KEYS", "ARGV"} & set(used):
        found.append(f"{path.name}: an include must take KEYS and ARGV as parameters")
    return found


def main() -> int:
    """Lint all scripts; return the exit code."""
    sys.path.insert(0, str(LUA.parent))
    from sark_mw.store.scripts import load_script

    found: list[str] = []
    for path in sorted(LUA.glob("*.lua")):
        found += lint(path, load_script(path.stem).source, include=False)
    for path in sorted((LUA / "include").glob("*.lua")):
        found += lint(path, path.read_text(), include=True)
    print("\n".join(found) or f"lua: {len(list(LUA.rglob('*.lua')))} files, nothing to say")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
