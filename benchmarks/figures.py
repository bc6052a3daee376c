"""What a benchmark measures: figures with a target where there is one, as a table and as JSON."""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says. `quick`: small numbers, to see that it runs; `tiny`: smaller still, for tests."""

    quick: bool = False
    tiny: bool = False
    trace: Path | None = None
    speed: float = 20.0
    minutes: float = 5.0
    rows: int = 1_000_000

    def count(self, usual: int) -> int:
        """Scale a number of repetitions."""
        return max(3, usual // 100) if self.tiny else max(10, usual // 8) if self.quick else usual


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure. `most` or `least` is the target; None where there is none."""

    name: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Tell whether the target is met, None without one."""
        if self.most is None and self.least is None:
            return None
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    @property
    def target(self) -> str:
        """Spell the target."""
        if self.most is not None and self.most == self.least:
            return f"= {self.most:g}"
        return f"≤ {self.most:g}" if self.most is not None else f"≥ {self.least:g}" if self.least is not None else ""


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile by interpolation."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return quantiles(values, n=1000, method="inclusive")[round(percent * 10) - 1]


def p50_p99(
    name: str, seconds: Sequence[float], *, unit: str = "µs", most_p99: float | None = None, note: str = ""
) -> list[Figure]:
    """Make two figures of a list of durations."""
    scale = {"µs": 1e6, "ms": 1e3}[unit]
    return [
        Figure(name=f"{name}, p50", value=percentile(seconds, 50) * scale, unit=unit, note=note),
        Figure(name=f"{name}, p99", value=percentile(seconds, 99) * scale, unit=unit, most=most_p99, note=f"n = {len(seconds)}"),
    ]


def time_calls(call: Callable[[], object], times: int) -> list[float]:
    """Time each of so many calls; the garbage collector is left on, as it is in a gateway."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return took


@contextmanager
def clean_start() -> Iterator[None]:
    """Leave no garbage of an earlier benchmark to be collected in this one."""
    gc.collect()
    yield


def table(name: str, figures: Sequence[Figure]) -> str:
    """Lay figures out as a Markdown table."""
    rows = [("figure", "value", "target", "", "note")]
    for each in figures:
        verdict = {True: "met", False: "MISSED", None: ""}[each.met]
        rows.append(
            (
                each.name,
                f"{each.value:,.4g} {each.unit}" if each.value < 1000 else f"{each.value:,.0f} {each.unit}",
                each.target,
                verdict,
                each.note,
            )
        )
    widths = [max(len(row[n]) for row in rows) for n in range(5)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([f"### {name}", "", lines[0], rule, *lines[1:], ""])


def keep(name: str, figures: Sequence[Figure], command: str) -> Path:
    """Write figures to results/<name>.json with the machine, the date and the command."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "system": platform.platform(), "load": os.getloadavg()}
    body = {
        "benchmark": name,
        "command": command,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "machine": machine,
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
    }
    path.write_text(json.dumps(body, indent=2) + "\n", "utf-8")
    return path
