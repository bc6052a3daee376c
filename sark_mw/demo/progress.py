"""The display while budgets are spent: bars on a terminal, a line every two seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from sark_mw.demo.books import Counter
from sark_mw.demo.traffic import Traffic

_LINE_S = 2.0


class Progress:
    """Show how much of each budget is spent and held; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_line = 0.0
        self._started = time.monotonic()
        self._tasks: dict[str, TaskID] = {}
        self._bars = RichProgress(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=40),
            TextColumn("{task.percentage:>4.0f} %  {task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self._bars.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.__exit__(kind, error, trace)

    def show(self, counters: Sequence[Counter], traffic: Traffic) -> None:
        """Show the budgets as they stand."""
        admitted = sum(tally.admitted for tally in traffic.tallies.values())
        refused = sum(tally.refused.total() for tally in traffic.tallies.values())
        note = f"{traffic.in_flight} in flight, {admitted} admitted, {refused} refused"
        if self._console.is_terminal:
            for each in counters:
                self._bar(each["scope"], (each["spent"] + each["held"]) / each["amount"], f"${each['spent'] / 1e9:.4f} spent")
            self._bar("calls", 0.0, note)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_S
            spent = ", ".join(f"{each['scope']} {100 * each['spent'] // each['amount']} %" for each in counters)
            self._console.print(f"{time.monotonic() - self._started:4.0f} s  {note}; {spent}", highlight=False, soft_wrap=True)

    def _bar(self, name: str, share: float, note: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=1.0, note=note)
        self._bars.update(self._tasks[name], completed=share, note=note)
