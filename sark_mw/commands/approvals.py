"""`sark-mw approvals`: see which requests wait for an administrator's word, and give it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from sark_mw.admin.answers import ApprovalAnswer, GrantedAnswer
from sark_mw.commands.limit_options import Actor, Reason, Root, amount_of, os_user, print_json
from sark_mw.commands.options import Config, Json, say, table
from sark_mw.commands.parts import Parts, opened, store_is_shared
from sark_mw.enforcement.approvals import Granted, StoreApprovals, approval_event, refusal_event
from sark_mw.errors import ConfigurationError
from sark_mw.limit import DEFAULT_ROOT
from sark_mw.money import to_nanos
from sark_mw.policy.approvals import ApprovalRequest
from sark_mw.settings import Settings

Found = TypeVar("Found")

app = typer.Typer(
    no_args_is_help=True, help="Requests that wait for a word.", pretty_exceptions_enable=False, rich_markup_mode=None
)
Id = Annotated[str, typer.Argument(help="As the refusal and `approvals list` name it.")]


@app.command("list")
def list_approvals(config: Config = None, root: Root = DEFAULT_ROOT, as_json: Json = False) -> None:
    """List who waits, the newest first."""

    async def read(approvals: StoreApprovals, parts: Parts) -> list[ApprovalRequest]:
        return await approvals.waiting(root)

    found = [ApprovalAnswer.of(each) for each in _run(config, root, read)]
    if as_json:
        print_json(found)
        return
    rows = [[each.id, each.principal, each.capability, each.model, str(each.amount), str(each.waits_until)] for each in found]
    table(["id", "principal", "capability", "model", "usd", "waits until"], rows, right=(4,))


@app.command()
def approve(
    approval_id: Id,
    config: Config = None,
    root: Root = DEFAULT_ROOT,
    amount: Annotated[str | None, typer.Option(help="Dollars at most, if not what it waits for.")] = None,
    valid_s: Annotated[int, typer.Option("--valid", min=1, max=7 * 86_400, help="Seconds that the token is good for.")] = 3600,
    actor: Actor = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Let a waiting request happen once: prints the token that its caller sends as x-sark-approval."""
    nanos = None if amount is None else to_nanos(_above_0(amount))

    async def grant(approvals: StoreApprovals, parts: Parts) -> Granted:
        granted = await approvals.grant(root, approval_id, valid_s=valid_s, amount_nanos=nanos)
        at_ms = parts.tables.clock.now_ms()
        async with approvals.listed_again_on_failure(granted.asked):
            await parts.limits.record(approval_event(granted, actor=actor or os_user(), reason=reason, at_ms=at_ms))
        return granted

    granted = _run(config, root, grant, writes=True)
    if as_json:
        print_json(GrantedAnswer.of(granted))
        return
    say(granted.token)


@app.command("refuse")
def turn_down(
    approval_id: Id, config: Config = None, root: Root = DEFAULT_ROOT, actor: Actor = None, reason: Reason = ""
) -> None:
    """Turn a waiting request down: it is listed no more."""

    async def drop(approvals: StoreApprovals, parts: Parts) -> ApprovalRequest:
        refused = await approvals.turn_down(root, approval_id)
        at_ms = parts.tables.clock.now_ms()
        async with approvals.listed_again_on_failure(refused):
            await parts.limits.record(refusal_event(refused, actor=actor or os_user(), reason=reason, at_ms=at_ms))
        return refused

    say(f"{_run(config, root, drop, writes=True).principal_id} waits no more for {approval_id}")


def _above_0(text: str) -> Decimal:
    value = amount_of(text)
    if not value > 0:
        raise ConfigurationError(f"--amount is dollars above 0: {text!r}")
    return value


def _run(
    config: Path | None, root: str, work: Callable[[StoreApprovals, Parts], Awaitable[Found]], *, writes: bool = False
) -> Found:
    settings = Settings.load(config)
    if not store_is_shared(settings):
        raise ConfigurationError("with memory:// only the gateway's own process knows who waits: use its admin API")

    async def run() -> Found:
        async with opened(settings) as parts:
            if writes and settings.ledger.migrate:
                await parts.ledger.migrate()
            await parts.limits.list(root)  # it brings the server's time
            approvals = StoreApprovals(parts.store, parts.tables.clock, settings.admin.token.get_secret_value())
            return await work(approvals, parts)

    return asyncio.run(run())
