"""The report as a person reads it."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sark_mw.demo.probe import Added
from sark_mw.demo.report import Report
from sark_mw.money import from_nanos


def dollars(nanos: int) -> str:
    """Write nano-dollars as dollars, to the nano, without trailing zeros beyond the cents."""
    return f"${from_nanos(nanos):f}"


def about(nanos: int) -> str:
    """Write nano-dollars as dollars with six decimals, down."""
    return f"${nanos // 1000 / 1_000_000:.6f}" if nanos else "$0"


def print_report(console: Console, report: Report) -> None:
    """Print the tables, the figures and the verdict."""
    console.print(_budgets(report))
    console.print(_money(report))
    console.print(
        f"{report.calls} calls ({report.streams} streams) in {report.seconds:.0f} s, "
        f"at most {report.peak_in_flight} in flight; {report.retried} retries by the clients"
    )
    for name, count in report.errors.items():
        console.print(f"  refused: {count} × {name}, status 402", markup=False, highlight=False)
    console.print("added latency", highlight=False)
    console.print(f"  under this load  {_added(report.loaded)}", highlight=False, soft_wrap=True)
    console.print(f"  when it is calm  {_added(report.calm)}", highlight=False, soft_wrap=True)
    own = report.own_clock
    console.print(
        f"  its own clock    p50 {own['p50_ms']:.1f} ms, p99 {own['p99_ms']:.1f} ms before the gateway's first byte "
        f"({own['requests']} admitted calls)",
        highlight=False,
        soft_wrap=True,
    )
    if report.out_of_time:
        console.print("[yellow]time was up before every budget was spent: give it more with --seconds[/yellow]")
    for failure, count in report.failures.items():
        console.print(f"failed {count} ×: {failure}", style="red", markup=False)
    _line(console, report.overspend == 0, f"overspend {dollars(report.overspend)}")
    _line(console, report.ledger_equals_counters, f"ledger ({report.ledger_rows} entries) = counters, and nothing is held")
    _line(console, report.ledger_equals_bill, "ledger = the provider's own bill, per principal, to the nano-dollar")


def _line(console: Console, good: bool, text: str) -> None:
    console.print(f"[green]ok[/green]  {text}" if good else f"[bold red]NOT OK[/bold red]  {text}")


def _added(added: Added) -> str:
    return (
        f"p50 {added.p50_ms:.1f} ms, p99 {added.p99_ms:.1f} ms "
        f"(bare gateway p50 {added.bare_p50_ms:.1f}, p99 {added.bare_p99_ms:.1f}; {added.pairs} pairs in turn)"
    )


def _budgets(report: Report) -> Table:
    table = Table(title="Budgets", box=SIMPLE_HEAD, title_justify="left", pad_edge=False, collapse_padding=True)
    table.add_column("who", no_wrap=True)
    for name in ("window", "budget", "spent", "held", "admitted", "refused", "overspend"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            row.scope,
            row.window,
            dollars(row.budget),
            about(row.spent),
            about(row.held),
            str(row.admitted),
            str(row.refused),
            dollars(row.overspend),
            style="dim" if row.shared else None,
        )
    return table


def _money(report: Report) -> Table:
    table = Table(title="Money", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("principal", no_wrap=True)
    for name in ("in the ledger", "billed by the provider", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in report.accounts:
        table.add_row(each.principal, dollars(each.ledger), dollars(each.billed), dollars(each.ledger - each.billed))
    return table
