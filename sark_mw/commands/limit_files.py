"""`sark-mw limits import` and `export`: limits that live in a file, and so in git."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from sark_mw.commands.limit_options import (
    Actor,
    DryRun,
    Reason,
    changed_limits,
    load,
    on_registry,
    os_user,
    print_json,
    say_changes,
)
from sark_mw.commands.options import Config, Json
from sark_mw.enforcement.limits import Changes, LimitRegistry
from sark_mw.errors import ConfigurationError
from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.limit_answers import ChangesAnswer
from sark_mw.limit_documents import Form, apply_limits, read_limits, write_limits

_FORMS: dict[str, Form] = {"toml": "toml", "json": "json"}

Format = Annotated[str | None, typer.Option("--format", help="toml or json; by default what the file's name ends with.")]


def import_limits(
    file: Annotated[str, typer.Argument(help="TOML with [[limits]], or JSON with a list `limits`; - reads stdin.")],
    config: Config = None,
    form: Format = None,
    root: Annotated[str | None, typer.Option(help="The root of limits that name none.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Drop what the file does not name, of the roots that it names.")] = False,
    actor: Actor = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Set the limits of a file: all of a root or none. With --dry-run show the difference."""
    chosen = _form(form, file)
    limits = read_limits(_text(file), chosen, root=root)

    async def write(registry: LimitRegistry) -> list[Changes]:
        return await apply_limits(
            registry,
            limits,
            root=root if root is not None or limits else DEFAULT_ROOT,
            prune=prune,
            dry_run=dry_run,
            actor=actor or os_user(),
            reason=reason,
        )

    changes = asyncio.run(changed_limits(load(config), write, dry_run=dry_run))
    if as_json:
        print_json(ChangesAnswer.of(changes, dry_run=dry_run))
    else:
        say_changes(changes)


def export_limits(
    file: Annotated[str, typer.Argument(help="Where to write; - is stdout.")] = "-",
    config: Config = None,
    form: Format = None,
    root: Annotated[list[str] | None, typer.Option(help="Only the limits of this root; repeatable. Default: of all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Write limits as a file that `import` takes back."""
    chosen = _form("json" if as_json else form, file)

    async def read(registry: LimitRegistry) -> list[Limit]:
        return [limit for each in root or await registry.roots() for limit in await registry.list(each)]

    text = write_limits(asyncio.run(on_registry(load(config), read)), chosen)
    if file == "-":
        sys.stdout.write(text)
        return
    try:
        Path(file).write_text(text, "utf-8")
    except OSError as error:
        raise ConfigurationError(f"{file}: {error}") from error


def _form(form: str | None, file: str) -> Form:
    name = form or (Path(file).suffix.removeprefix(".") if file != "-" else "toml")
    if name not in _FORMS:
        raise ConfigurationError(f"write --format toml or --format json: {file!r} is neither by its name")
    return _FORMS[name]


def _text(file: str) -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8") if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: {error}") from error
