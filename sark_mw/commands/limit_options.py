"""What the commands about limits share: their options, their registry, and how changes are printed."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel

from sark_mw.assembly import make_ledger
from sark_mw.commands.options import say, warn
from sark_mw.commands.parts import opened, store_is_shared
from sark_mw.enforcement.limits import Changes, LimitRegistry
from sark_mw.errors import ConfigurationError
from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.money import to_decimal
from sark_mw.settings import LedgerSettings, Settings, StoreSettings

Found = TypeVar("Found")

Root = Annotated[str, typer.Option(help="The root whose limits are meant.")]


def os_user() -> str:
    """Name who runs this command: what is recorded as the actor unless another is named."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id that has no name, as in many containers
        return f"uid {os.getuid()}"


Actor = Annotated[str | None, typer.Option(help="Who does this, for the record (default: you).")]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; show what would be changed.")]
LimitId = Annotated[str, typer.Argument(help="As `limits list` names it: user:alice/usd/day@UTC.")]


def load(config: Path | None) -> Settings:
    """Read the settings; say what a store in memory means for limits, or refuse where nothing would be kept."""
    settings = Settings.load(config)
    if not store_is_shared(settings):
        if not settings.ledger.lasts:
            raise ConfigurationError(
                "with memory:// and sqlite:///:memory: limits live in the gateway's process only: write them into its settings"
            )
        warn("memory:// belongs to the gateway's own process: what is set here counts from its next start")
    return settings


async def on_registry(settings: Settings, work: Callable[[LimitRegistry], Awaitable[Found]], *, migrate: bool = False) -> Found:
    """Open the registry for a piece of work; `migrate` where it writes."""
    async with opened(settings) as parts:
        if migrate and settings.ledger.migrate:
            await parts.ledger.migrate()
        return await work(parts.limits)


async def changed_limits(
    settings: Settings, work: Callable[[LimitRegistry], Awaitable[list[Changes]]], *, dry_run: bool
) -> list[Changes]:
    """Open the registry for what changes limits; a dry run makes no schema, and without one looks at no limits at all."""
    if not dry_run:
        return await on_registry(settings, work, migrate=True)
    if await _has_schema(settings.ledger):
        return await on_registry(settings, work)
    nothing = {"store": StoreSettings(), "ledger": LedgerSettings()}
    return await on_registry(settings.model_copy(update=nothing), work, migrate=True)


def _is_no_file(url: str) -> bool:
    scheme, _, path = url.partition(":///")
    return scheme == "sqlite" and not Path(path).exists()


async def _has_schema(settings: LedgerSettings) -> bool:
    if _is_no_file(settings.url.get_secret_value()):
        return False  # to look into it would make it
    ledger = make_ledger(settings)
    try:
        return (await ledger.schema_version())[0] > 0
    finally:
        await ledger.aclose()


def amount_of(text: str) -> Decimal:
    """Read an amount of the command line."""
    return to_decimal(text)


def print_json(answer: BaseModel | Sequence[BaseModel]) -> None:
    """Print an answer, or a list of them."""
    if isinstance(answer, BaseModel):
        say(json.dumps(answer.model_dump(mode="json"), indent=2))
    else:
        say(json.dumps([each.model_dump(mode="json") for each in answer], indent=2))


def say_changes(several: Sequence[Changes]) -> None:
    """Print a line for each limit that is added (+), replaced (~) or dropped (-), and how many."""
    for changes in several:
        for line in _lines(changes):
            say(line)
    put, replaced, dropped, unchanged = (
        sum(len(getattr(changes, name)) for changes in several) for name in ("put", "replaced", "drop", "unchanged")
    )
    say(f"{put - replaced} added, {replaced} changed, {dropped} dropped, {unchanged} unchanged")


def _lines(changes: Changes) -> Iterator[str]:
    before = {limit.limit_id: limit for limit in changes.replaced}
    for limit in changes.put:
        if old := before.get(limit.limit_id):
            yield f"~ {_named(limit)} {', '.join(_differences(old, limit))}"
        else:
            yield f"+ {_named(limit)} {limit.amount:f} {limit.unit} ({limit.mode})"
    for limit in changes.drop:
        yield f"- {_named(limit)} {limit.amount:f} {limit.unit} ({limit.mode})"


def _named(limit: Limit) -> str:
    return limit.limit_id if limit.root == DEFAULT_ROOT else f"{limit.root}: {limit.limit_id}"


def _differences(old: Limit, new: Limit) -> Iterator[str]:
    for each in fields(Limit):
        before, after = getattr(old, each.name), getattr(new, each.name)
        if before != after and each.init and each.name not in ("since_ms", "carries_since_ms"):
            yield f"{each.name} {_shown(before)} -> {_shown(after)}"


def _shown(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value) or "none"
