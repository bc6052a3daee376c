"""`sark-mw limits`: set, list and drop limits, and look at where they stand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated

import typer

from sark_mw.commands import limit_files, limit_grants
from sark_mw.commands.limit_options import (
    Actor,
    DryRun,
    LimitId,
    Reason,
    Root,
    amount_of,
    changed_limits,
    load,
    on_registry,
    os_user,
    print_json,
    say_changes,
)
from sark_mw.commands.options import Config, Json, say, table
from sark_mw.enforcement.limits import Changes, LimitRegistry
from sark_mw.enforcement.status import LimitStatus
from sark_mw.errors import ConfigurationError
from sark_mw.ledger.events import EventFilter, EventKind, LimitEvent, RecordedEvent
from sark_mw.limit import DEFAULT_ROOT, Limit, from_units
from sark_mw.limit_answers import ChangesAnswer, EventAnswer, LimitAnswer, StatusAnswer, instant
from sark_mw.limit_documents import apply_limits, limit_of_fields

app = typer.Typer(
    no_args_is_help=True, help="Set limits, and see where they stand.", pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.command("list")
def list_limits(config: Config = None, root: Root = DEFAULT_ROOT, as_json: Json = False) -> None:
    """List the limits of a root as they are enforced now."""
    limits = asyncio.run(on_registry(load(config), lambda registry: registry.list(root)))
    if as_json:
        print_json([LimitAnswer.of(limit) for limit in limits])
        return
    rows = [
        [each.limit_id, f"{each.amount:f}", each.unit, each.window, each.timezone, each.mode, _options(each)] for each in limits
    ]
    table(["limit", "amount", "unit", "window", "timezone", "mode", ""], rows, right=(1,))


def _options(limit: Limit) -> str:
    words = [f"part of {limit.parent}"] if limit.parent else []
    words += ["overcommits"] if limit.overcommit else []
    words += [f"tells at {', '.join(map(str, limit.thresholds))} %"] if limit.thresholds else []
    words += [f"carries up to {limit.rollover:f}"] if limit.rollover else []
    return "; ".join(words)


@app.command("set")
def set_limit(
    scope: Annotated[str, typer.Argument(help="What is limited: user:alice, team:ml, or user:* for each user.")],
    amount: Annotated[str, typer.Argument(help="Dollars for usd, a whole number otherwise.")],
    *,
    config: Config = None,
    unit: Annotated[str, typer.Option(help="usd, requests, tokens, input_tokens, output_tokens or concurrency.")] = "usd",
    window: Annotated[
        str,
        typer.Option(
            help="minute, hour, day, week[:sunday], month[:15], quarter[:02-01], year[:04-06], total, rolling:24h or idle:1h."
        ),
    ] = "day",
    timezone: Annotated[str, typer.Option(help="IANA name of the zone whose days and months count.")] = "UTC",
    mode: Annotated[str, typer.Option(help="enforce; shadow: count and report only; soft: only tell of thresholds.")] = "enforce",
    root: Root = DEFAULT_ROOT,
    parent: Annotated[str, typer.Option(help="The scope of which it is a part: team:ml.")] = "",
    overcommit: Annotated[bool, typer.Option("--overcommit", help="Its parts may sum up to more.")] = False,
    threshold: Annotated[list[int] | None, typer.Option(help="A percent at which to tell once a period; repeatable.")] = None,
    rollover: Annotated[str, typer.Option(help="The most of what was not spent that is carried over.")] = "0",
    actor: Actor = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Set a limit; one that limits the same is replaced and keeps what it has counted."""
    fields = {
        "scope": scope,
        "amount": amount_of(amount),
        "unit": unit,
        "window": window,
        "timezone": timezone,
        "mode": mode,
        "root": root,
        "parent": parent,
        "overcommit": overcommit,
        "thresholds": tuple(threshold or ()),
        "rollover": amount_of(rollover),
    }
    limit = limit_of_fields(fields, "")

    async def write(registry: LimitRegistry) -> list[Changes]:
        return await apply_limits(registry, [limit], dry_run=dry_run, actor=actor or os_user(), reason=reason)

    changes = asyncio.run(changed_limits(load(config), write, dry_run=dry_run))
    if as_json:
        print_json(ChangesAnswer.of(changes, dry_run=dry_run))
    elif dry_run:
        say_changes(changes)
    else:
        say(limit.limit_id)


@app.command("get")
def get_limits(
    scope: Annotated[list[str], typer.Argument(help="user:alice; several as one request would touch them.")],
    config: Config = None,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Show every limit that these scopes touch, parents included: what is allowed now, spent, held and left."""

    async def read(registry: LimitRegistry) -> tuple[LimitStatus, ...]:
        return await registry.status(root, scope)

    say_statuses(asyncio.run(on_registry(load(config), read)), as_json=as_json)


def say_statuses(statuses: Sequence[LimitStatus], *, as_json: bool) -> None:
    """Print where limits stand."""
    if as_json:
        print_json([StatusAnswer.of(each) for each in statuses])
        return
    rows = []
    for each in statuses:
        figures = (each.amount, each.spent, each.held, each.remaining)
        resets = instant(each.resets_at_ms)
        shown = [f"{each.shown(figure):f}" for figure in figures]
        rows.append([each.limit.limit_id, each.scope, *shown, each.limit.mode, resets.isoformat() if resets else "never"])
    table(["limit", "scope", "amount", "spent", "held", "left", "mode", "resets"], rows, right=(2, 3, 4, 5))


@app.command("drop", hidden=True)
@app.command("delete")
def delete_limit(
    limit_id: LimitId,
    config: Config = None,
    root: Root = DEFAULT_ROOT,
    actor: Actor = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove a limit; also called drop."""

    async def write(registry: LimitRegistry) -> Limit:
        known = {limit.limit_id: limit for limit in await registry.list(root)}
        if limit_id not in known:
            raise ConfigurationError(f"there is no limit {limit_id!r} in root {root!r}")
        if not dry_run:
            await registry.drop(root, limit_id, actor=actor or os_user(), reason=reason)
        return known[limit_id]

    dropped = asyncio.run(on_registry(load(config), write))
    changes = [Changes(put=(), replaced=(), drop=(dropped,), unchanged=())]
    if as_json:
        print_json(ChangesAnswer.of(changes, dry_run=dry_run))
    elif dry_run:
        say_changes(changes)
    else:
        say(f"dropped {dropped.limit_id}, which was {dropped.amount:f} {dropped.unit} ({dropped.mode})")


@app.command("history")
def history(
    config: Config = None,
    root: Annotated[str | None, typer.Option(help="Only of this root.")] = None,
    limit_id: Annotated[str | None, typer.Option(help="Only of this limit.")] = None,
    scope: Annotated[str | None, typer.Option(help="Only of this scope.")] = None,
    kind: Annotated[list[EventKind] | None, typer.Option(help="Only such events; repeatable.")] = None,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """Tell what happened to limits: who changed them and why, which thresholds fired, what was carried over."""
    query = EventFilter(root=root, limit_id=limit_id, scope=scope, kinds=tuple(kind or ()))

    async def read(registry: LimitRegistry) -> Sequence[RecordedEvent]:
        return await registry.history(query, most)

    found = asyncio.run(on_registry(load(config), read))
    if as_json:
        print_json([EventAnswer.of(each) for each in found])
        return
    rows = []
    for each in found:
        event = each.event
        at = instant(event.at_ms)
        amount = "" if event.amount is None else f"{from_units(event.unit, event.amount):f} {event.unit}"
        when = at.isoformat(timespec="seconds") if at else ""
        about = event.limit_id or _policy_of(event) or event.scope
        rows.append([when, event.kind, about, event.scope, amount, event.actor, event.reason])
    table(["at", "event", "limit", "scope", "amount", "actor", "reason"], rows, right=(4,))


def _policy_of(event: LimitEvent) -> str:
    """Say which plugin or rule an event is about, and what was done."""
    detail = json.loads(event.detail_json)
    if event.kind == EventKind.RULE:
        return f"{detail.get('rule')} {'set' if detail.get('set') else 'dropped'}"
    if event.kind == EventKind.PLUGIN:
        return f"{detail.get('plugin')} {detail.get('action')}{' refused' if 'refused' in detail else ''}"
    return ""


app.command("top-up")(limit_grants.top_up)
app.command("override")(limit_grants.override)
app.command("import")(limit_files.import_limits)
app.command("export")(limit_files.export_limits)
