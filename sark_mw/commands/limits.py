"""`sark-mw limits`: list, set and drop limits."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from sark_mw.commands.options import Config, Json, say, table, warn
from sark_mw.commands.parts import opened, store_is_shared
from sark_mw.errors import ConfigurationError
from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.settings import Settings

app = typer.Typer(no_args_is_help=True, help="List, set and drop limits.", pretty_exceptions_enable=False, rich_markup_mode=None)

Root = Annotated[str, typer.Option(help="The root whose limits are meant.")]


def _load(config: object) -> Settings:
    settings = Settings.load(config)  # type: ignore[arg-type]
    if not store_is_shared(settings):
        if not settings.ledger.lasts:
            raise ConfigurationError(
                "with memory:// and sqlite:///:memory: limits live in the gateway's process only: write them into its settings"
            )
        warn("memory:// belongs to the gateway's own process: what is set here counts from its next start")
    return settings


@app.command("list")
def list_limits(config: Config = None, root: Root = DEFAULT_ROOT, as_json: Json = False) -> None:
    """List the limits of a root as they are enforced now."""
    settings = _load(config)

    async def read() -> tuple[Limit, ...]:
        async with opened(settings) as parts:
            return await parts.limits.list(root)

    limits = asyncio.run(read())
    if as_json:
        say(json.dumps([_as_json(limit) for limit in limits], indent=2))
        return
    rows = [[limit.limit_id, f"{limit.amount:f}", limit.unit, limit.window, limit.timezone, limit.mode] for limit in limits]
    table(["limit", "amount", "unit", "window", "timezone", "mode"], rows, right=(1,))


@app.command("set")
def set_limit(
    scope: Annotated[str, typer.Argument(help="What is limited: user:alice, team:ml, or user:* for each user.")],
    amount: Annotated[str, typer.Argument(help="Dollars for usd, a whole number otherwise.")],
    config: Config = None,
    unit: Annotated[str, typer.Option(help="usd, requests, tokens, input_tokens, output_tokens or concurrency.")] = "usd",
    window: Annotated[str, typer.Option(help="minute, hour, day, week, month, total or rolling:<seconds>.")] = "day",
    timezone: Annotated[str, typer.Option(help="IANA name of the zone whose days and months count.")] = "UTC",
    mode: Annotated[str, typer.Option(help="enforce, or shadow: count and report only.")] = "enforce",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Set a limit; one that limits the same is replaced and keeps what it has counted."""
    try:
        value = Decimal(amount)
    except InvalidOperation:
        raise ConfigurationError(f"not an amount: {amount!r}") from None
    limit = Limit(scope=scope, amount=value, unit=unit, window=window, timezone=timezone, mode=mode, root=root)
    settings = _load(config)

    async def write() -> None:
        async with opened(settings) as parts:
            if settings.ledger.migrate:
                await parts.ledger.migrate()
            await parts.limits.set(limit)

    asyncio.run(write())
    say(limit.limit_id)


@app.command("drop")
def drop_limit(
    limit_id: Annotated[str, typer.Argument(help="As `limits list` names it: user:alice/usd/day@UTC.")],
    config: Config = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Remove a limit."""
    settings = _load(config)

    async def write() -> Limit | None:
        async with opened(settings) as parts:
            known = {limit.limit_id: limit for limit in await parts.limits.list(root)}
            await parts.limits.drop(root, limit_id)
            return known.get(limit_id)

    dropped = asyncio.run(write())
    if dropped is None:
        raise ConfigurationError(f"there is no limit {limit_id!r} in root {root!r}")
    say(f"dropped {dropped.limit_id}, which was {dropped.amount:f} {dropped.unit} ({dropped.mode})")


def _as_json(limit: Limit) -> dict[str, object]:
    names = ("scope", "unit", "window", "timezone", "mode", "root", "since_ms")
    return {"limit_id": limit.limit_id, "amount": f"{limit.amount:f}", **{name: getattr(limit, name) for name in names}}
