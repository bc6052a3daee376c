"""`python -m benchmarks <name> …`: run, print tables, keep JSON."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Options, clean_start, keep, table

NAMES = (
    *("estimate", "plugin", "plugin_tiers", "plugin_isolation", "reserve", "settle", "summary"),
    *("overhead", "overspend", "replay", "limits", "soak"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks by name; returns 0 whatever the figures say, as machines differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="+", choices=(*NAMES, "all"), metavar="name", help=f"one of {', '.join(NAMES)}, or all")
    parser.add_argument("--quick", action="store_true", help="small numbers: seconds instead of minutes")
    parser.add_argument("--tiny", action="store_true", help="smallest numbers: only to see that it runs")
    parser.add_argument("--json", action="store_true", help="print nothing but where the JSON is")
    parser.add_argument("--rows", type=int, default=1_000_000, help="summary: rows in the ledger")
    parser.add_argument("--path", dest="trace", type=Path, help="replay: a trace of TIMESTAMP, ContextTokens, GeneratedTokens")
    parser.add_argument("--speed", type=float, default=20.0, help="replay: so many times as fast as it was")
    parser.add_argument("--minutes", type=float, default=5.0, help="replay: so much of the trace")
    chosen = parser.parse_args(arguments)
    options = Options(
        quick=chosen.quick, tiny=chosen.tiny, trace=chosen.trace, speed=chosen.speed, minutes=chosen.minutes, rows=chosen.rows
    )
    for name in NAMES if "all" in chosen.names else chosen.names:
        module = importlib.import_module(f"benchmarks.{name}")
        with clean_start():
            figures = asyncio.run(module.run(options))
        words = shlex.join(sys.argv[1:] if arguments is None else arguments)
        path = keep(name, figures, f"python -m benchmarks {words}")
        print(path if chosen.json else table(name, figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
