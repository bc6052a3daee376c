"""Commands about the ledger: migrate it, flush into it, report from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from sark_mw.assembly import make_instrumentation, make_ledger, make_prometheus
from sark_mw.commands.options import Config, Json, say, table
from sark_mw.commands.parts import opened, require_lasting, store_is_shared
from sark_mw.enforcement.rebook import Rebooker
from sark_mw.errors import ConfigurationError, LedgerError
from sark_mw.instrumentation.metrics_app import metrics_app
from sark_mw.instrumentation.prometheus import PrometheusInstrumentation
from sark_mw.ledger import Flusher
from sark_mw.ledger.base import CostFilter, CostTotal, Ledger
from sark_mw.money import from_nanos
from sark_mw.settings import Settings
from sark_mw.store.base import OutboxEntry
from sark_mw.window import period_of

_MOST_DAYS = 366
_DRAIN_S = 20.0


def migrate(config: Config = None) -> None:
    """Bring the ledger's schema up to date; may be run by several processes at once."""
    settings = Settings.load(config)
    require_lasting(settings, "there is nothing to migrate")

    async def run() -> list[str]:
        ledger = make_ledger(settings.ledger)
        try:
            return await ledger.migrate()
        finally:
            await ledger.aclose()

    for line in asyncio.run(run()) or ["nothing to do: the schema is up to date"]:
        say(line)


def flush(
    config: Config = None,
    metrics_port: Annotated[int, typer.Option(min=0, max=65_535, help="Serve /metrics here (backlog, flushes); 0: not.")] = 0,
    metrics_host: Annotated[str, typer.Option(help="Address of /metrics.")] = "127.0.0.1",
    once: Annotated[bool, typer.Option("--once", help="Move what is there, then end.")] = False,
) -> None:
    """Move ledger entries from the store into the database, in a process of its own; SIGTERM drains first."""
    settings = Settings.load(config)
    if not store_is_shared(settings):
        raise ConfigurationError(
            "memory:// lives in the gateway's process, which flushes by itself: another one sees nothing of it"
        )
    require_lasting(settings, "what is flushed into it here is lost when this process ends")
    asyncio.run(_flush(settings, once=once, metrics=(metrics_host, metrics_port)))


async def _flush(settings: Settings, *, once: bool, metrics: tuple[str, int]) -> None:
    prometheus = make_prometheus(settings.observe)
    events = make_instrumentation(settings.observe, prometheus)
    async with opened(settings) as parts:
        flusher: Flusher[OutboxEntry] = Flusher(
            parts.store,
            parts.ledger,
            batch=settings.ledger.batch,
            interval_s=settings.ledger.flush_interval_ms / 1000,
            events=events,
            keeper=Rebooker(parts.store, parts.ledger, parts.recovery),
        )
        if not once:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, flusher.stop)
            async with _metrics_server(prometheus, *metrics):
                await flusher.run()
        report = await flusher.drain(_DRAIN_S)
    say(f"{report.flushed} entries flushed, {report.new_rows} of them new, {report.rejected} rejected, {report.backlog} left")
    if report.last_error is not None:
        raise LedgerError(f"not everything could be flushed, the rest stays in the outbox: {report.last_error}")


@contextlib.asynccontextmanager
async def _metrics_server(prometheus: PrometheusInstrumentation | None, host: str, port: int) -> AsyncIterator[None]:
    if not port or prometheus is None:
        yield
        return
    import uvicorn

    config = uvicorn.Config(metrics_app(prometheus), host=host, port=port, access_log=False, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # the signals are the flusher's
    task = asyncio.ensure_future(server.serve())
    try:
        yield
    finally:
        server.should_exit = True
        await task


class GroupBy(StrEnum):
    """What a report adds up by."""

    PRINCIPAL = "principal"
    MODEL = "model"
    PROVIDER = "provider"
    CAPABILITY = "capability"
    RESOURCE = "resource"
    DAY = "day"


def report(
    config: Config = None,
    by: Annotated[GroupBy, typer.Option(help="What to add up by.")] = GroupBy.PRINCIPAL,
    since: Annotated[str | None, typer.Option(help="First day, 2026-11-01 (default: 30 days ago).")] = None,
    until: Annotated[str | None, typer.Option(help="Last day (default: today).")] = None,
    timezone: Annotated[str, typer.Option(help="IANA name of the zone whose days count.")] = "UTC",
    principal: Annotated[str | None, typer.Option(help="Only what this principal paid for.")] = None,
    scope: Annotated[str | None, typer.Option(help="Only what touched this scope: team:ml.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    as_json: Json = False,
) -> None:
    """Add up what was spent, from the ledger."""
    settings = Settings.load(config)
    first, last = _span(since, until, timezone)
    days = _days(first, last, timezone)
    require_lasting(settings, "there is nothing to report from")
    query = CostFilter(principal_id=principal, scope=scope, model=model, from_ms=days[0][1], until_ms=days[-1][2])

    async def run() -> tuple[CostTotal, list[tuple[str, int]]]:
        ledger = make_ledger(settings.ledger)
        try:
            return await _total(ledger, query, by, days)
        finally:
            await ledger.aclose()

    total, groups = asyncio.run(run())
    if as_json:
        say(json.dumps(_as_json(total, groups, by, first, last, timezone), indent=2))
        return
    rows = [[name or "(none)", _usd(nanos)] for name, nanos in groups]
    table([by.value, "usd"], [*rows, ["total", _usd(total.cost_nanos)]], right=(1,))
    say(f"{total.requests} requests, {total.tokens} tokens, {first} to {last} {timezone}")


async def _total(
    ledger: Ledger, query: CostFilter, by: GroupBy, days: list[tuple[str, int, int]]
) -> tuple[CostTotal, list[tuple[str, int]]]:
    if by is not GroupBy.DAY:
        column = by.value if by in (GroupBy.MODEL, GroupBy.PROVIDER) else f"{by.value}_id"
        total = await ledger.total(query, column)
        return total, list(total.groups)
    groups = [
        (name, (await ledger.total(replace(query, from_ms=starts, until_ms=ends))).cost_nanos) for name, starts, ends in days
    ]
    return await ledger.total(query), [(name, nanos) for name, nanos in groups if nanos]


def _span(since: str | None, until: str | None, timezone: str) -> tuple[str, str]:
    try:
        today = datetime.now(UTC).astimezone(ZoneInfo(timezone)).date()
        last = datetime.strptime(until, "%Y-%m-%d").date() if until else today
        first = datetime.strptime(since, "%Y-%m-%d").date() if since else last - timedelta(days=29)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigurationError(f"days are written 2026-11-01, zones Europe/Berlin: {error}") from error
    if not timedelta() <= last - first < timedelta(days=_MOST_DAYS):
        raise ConfigurationError(f"a report spans 1 to {_MOST_DAYS} days, in order: {first} to {last}")
    return first.isoformat(), last.isoformat()


def _days(first: str, last: str, timezone: str) -> list[tuple[str, int, int]]:
    """List (day, starts_ms, ends_ms); days are those of the budgets, 23 or 25 hours long where clocks change."""
    noon = datetime.fromisoformat(first).replace(hour=12, tzinfo=ZoneInfo(timezone))
    found = []
    while (name := noon.date().isoformat()) <= last:
        period = period_of("day", timezone, round(noon.timestamp() * 1000))
        found.append((name, period.starts_ms, period.ends_ms))
        noon += timedelta(days=1)
    return found


def _usd(nanos: int) -> str:
    amount = from_nanos(nanos)
    return f"{amount:f}" if amount.as_tuple().exponent != -2 else f"{amount:.2f}"


def _as_json(
    total: CostTotal, groups: list[tuple[str, int]], by: GroupBy, first: str, last: str, timezone: str
) -> dict[str, object]:
    return {
        "from": first,
        "to": last,
        "timezone": timezone,
        "by": by.value,
        "groups": [{by.value: name, "usd": _usd(nanos)} for name, nanos in groups],
        "usd": _usd(total.cost_nanos),
        "requests": total.requests,
        "tokens": total.tokens,
        "entries": total.rows,
    }
