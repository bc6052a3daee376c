"""What several commands share: their options, and how lines and tables are printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="SARK_CONFIG", help="The settings file; without it, the environment and the defaults."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say(line: str = "") -> None:
    """Print one line of the answer."""
    sys.stdout.write(line + "\n")


def warn(line: str) -> None:
    """Print one line beside the answer."""
    sys.stderr.write(f"sark-mw: {line}\n")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print columns as wide as what is in them; those of the indices `right` to the right."""
    widths = [max(len(row[n]) for row in (heads, *rows)) for n in range(len(heads))]
    for row in (heads, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())
