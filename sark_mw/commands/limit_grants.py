"""`sark-mw limits top-up` and `override`: change what a limit allows on one scope, for a time."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated

import typer

from sark_mw.commands.limit_options import Actor, Reason, Root, amount_of, load, os_user, print_json
from sark_mw.commands.options import Config, Json, say
from sark_mw.commands.parts import opened
from sark_mw.enforcement.status import LimitStatus
from sark_mw.errors import ConfigurationError
from sark_mw.limit import DEFAULT_ROOT
from sark_mw.limit_answers import StatusAnswer, instant
from sark_mw.window import zone

_UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

OneScope = Annotated[str, typer.Argument(help="One scope that a limit matches: user:alice, also where the limit is on user:*.")]
WhichId = Annotated[str | None, typer.Option("--limit-id", help="Which limit, where several match.")]
WhichUnit = Annotated[str | None, typer.Option("--unit", help="Or its unit …")]
WhichWindow = Annotated[str | None, typer.Option("--window", help="… or its window.")]
EventId = Annotated[str | None, typer.Option(help="An id of your own: the same one counts once, however often it is repeated.")]


def top_up(
    scope: OneScope,
    amount: Annotated[str | None, typer.Argument(help="What to add.")] = None,
    *,
    take: Annotated[str | None, typer.Option(help="What to take away instead.")] = None,
    config: Config = None,
    root: Root = DEFAULT_ROOT,
    limit_id: WhichId = None,
    unit: WhichUnit = None,
    window: WhichWindow = None,
    event_id: EventId = None,
    actor: Actor = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Add to what a limit allows in its present period, or take from it; for good where it has none (a prepaid balance)."""
    value, settings = _change_of(amount, take), load(config)

    async def write() -> LimitStatus:
        async with opened(settings) as parts:
            if settings.ledger.migrate:
                await parts.ledger.migrate()
            return await parts.limits.top_up(
                scope,
                value,
                limit_id=limit_id,
                unit=unit,
                window=window,
                root=root,
                actor=actor or os_user(),
                reason=reason,
                event_id=event_id,
            )

    _say(asyncio.run(write()), as_json=as_json)


def override(
    scope: OneScope,
    amount: Annotated[str | None, typer.Argument(help="What it allows instead of its own amount.")] = None,
    *,
    config: Config = None,
    until: Annotated[str | None, typer.Option(help="Until when: 2026-12-01T00:00, in --timezone.")] = None,
    timezone: Annotated[str, typer.Option(help="IANA name of the zone of --until.")] = "UTC",
    lasting: Annotated[str | None, typer.Option("--for", help="Or for how long: 90s, 30m, 2h, 7d.")] = None,
    end: Annotated[bool, typer.Option("--end", help="End the override in force.")] = False,
    root: Root = DEFAULT_ROOT,
    limit_id: WhichId = None,
    unit: WhichUnit = None,
    window: WhichWindow = None,
    event_id: EventId = None,
    actor: Actor = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Put another amount in the place of a limit's on one scope, until some time."""
    if end != (amount is None) or [end, until is not None, lasting is not None].count(True) != 1:
        raise ConfigurationError("write: override SCOPE AMOUNT with --until or --for, or override SCOPE --end")
    value = None if amount is None else amount_of(amount)
    until_ms = _until_ms(until, timezone) if until is not None else 0
    for_s = _for_s(lasting) if lasting is not None else None
    settings = load(config)

    async def write() -> LimitStatus:
        async with opened(settings) as parts:
            if settings.ledger.migrate:
                await parts.ledger.migrate()
            return await parts.limits.override(
                scope,
                value,
                until_ms,
                for_s=for_s,
                limit_id=limit_id,
                unit=unit,
                window=window,
                root=root,
                actor=actor or os_user(),
                reason=reason,
                event_id=event_id,
            )

    _say(asyncio.run(write()), as_json=as_json)


def _change_of(amount: str | None, take: str | None) -> Decimal:
    if (amount is None) == (take is None):
        raise ConfigurationError("write: top-up SCOPE AMOUNT, or top-up SCOPE --take AMOUNT")
    if take is None:
        return amount_of(amount or "")
    value = amount_of(take)
    if value <= 0:
        raise ConfigurationError(f"--take names what is taken away, more than 0: {take!r}")
    return value.copy_negate()


def _until_ms(text: str, timezone: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--until is written 2026-12-01T00:00: {text!r}") from None
    if at.tzinfo is None:
        at = at.replace(tzinfo=zone(timezone))
    return round(at.timestamp() * 1000)


def _for_s(text: str) -> int:
    found = re.fullmatch("([0-9]{1,6})([smhd])", text)
    if not found or not int(found[1]):
        raise ConfigurationError(f"--for is written 90s, 30m, 2h or 7d: {text!r}")
    return int(found[1]) * _UNIT_S[found[2]]


def _say(status: LimitStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(StatusAnswer.of(status))
        return
    unit = status.limit.unit
    until = instant(status.override_until_ms)
    instead = f" (until {until.isoformat(timespec='seconds')})" if until else ""
    say(
        f"{status.limit.limit_id} allows {status.scope} {status.shown(status.amount):f} {unit}{instead}, "
        f"{status.shown(status.remaining):f} left"
    )
