"""`sark-mw reconcile`: compare counters with the ledger, and mend them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sark_mw.commands.limit_options import Actor, Reason, os_user
from sark_mw.commands.options import Config, Json, say, table
from sark_mw.commands.parts import Parts, opened, require_lasting, store_is_shared
from sark_mw.enforcement.grants import Why
from sark_mw.enforcement.rebook import Rebooker
from sark_mw.enforcement.reconcile import Reconciled, Reconciler, Reconciliation
from sark_mw.errors import ConfigurationError
from sark_mw.ledger import Flusher
from sark_mw.limit import from_units
from sark_mw.reservation import Outcome
from sark_mw.settings import Settings
from sark_mw.store.base import OutboxEntry


def reconcile(
    config: Config = None,
    root: Annotated[list[str] | None, typer.Option(help="Only this root; repeatable. Default: every root with limits.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Set what differs to what the ledger says.")] = False,
    drift_only: Annotated[bool, typer.Option("--drift-only", help="List only what differs, or could not be compared.")] = False,
    wait_s: Annotated[float, typer.Option(min=0, help="How long to wait for the ledger to have what the counters have.")] = 30,
    actor: Actor = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Compare every counter with the ledger, while requests go on; exit with 1 if they differ and are not repaired."""
    settings = Settings.load(config)
    if not store_is_shared(settings):
        raise ConfigurationError("memory:// lives in the gateway's process: another one sees nothing of its counters")
    require_lasting(settings, "there is nothing to compare with")
    why = Why(actor=actor or os_user(), reason=reason) if repair else None
    found = asyncio.run(_reconcile(settings, root, why, wait_s))
    if as_json:
        say(json.dumps([_as_json(each) for each in found], indent=2))
    else:
        for each in found:
            _print(each, drift_only=drift_only)
    if not all(each.balanced for each in found):
        sys.exit(1)


async def _reconcile(settings: Settings, roots: Sequence[str] | None, why: Why | None, wait_s: float) -> list[Reconciliation]:
    async with opened(settings) as parts:
        reconciler = Reconciler(
            parts.store,
            parts.ledger,
            limits=parts.limits,
            clock=parts.tables.clock,
            drain=_flusher(parts, settings).flush_once,
            patience_s=wait_s,
        )
        return [await reconciler.run(root, why) for root in roots or await parts.limits.roots()]


def _flusher(parts: Parts, settings: Settings) -> Flusher[OutboxEntry]:
    keeper = Rebooker(parts.store, parts.ledger, parts.recovery)
    return Flusher(parts.store, parts.ledger, batch=settings.ledger.batch, keeper=keeper)


def _print(found: Reconciliation, *, drift_only: bool) -> None:
    rows = []
    for each in found.counters:
        if each.is_open or each.drift or not drift_only:
            unit = each.line.unit
            figures = [f"{from_units(unit, figure):f}" for figure in (each.spent, each.ledger, each.drift)]
            rows.append([_limit_id(each), each.line.scope, each.period, *figures, unit, _verdict(each)])
    say(f"root {found.root}: {len(found.counters)} counters, {sum(each.is_open for each in found.counters)} to look at")
    if rows:
        table(["limit", "scope", "period", "counter", "ledger", "drift", "unit", ""], rows, right=(3, 4, 5))
    for other in found.not_compared:
        many = f" ({other.counters} counters)" if other.counters else ""
        say(f"not compared: {other.limit_id}{many}: {other.why}")


def _limit_id(each: Reconciled) -> str:
    return each.line.limit.limit_id if each.line.limit else ""


def _verdict(each: Reconciled) -> str:
    if not each.settled:
        return "the ledger has not caught up"
    if each.outcome is Outcome.REPAIRED:
        return "repaired"
    if each.outcome is Outcome.STALE:
        return "repaired at this measurement already: run it again after the next booking"
    return "DRIFT" if each.drift else ""


def _as_json(found: Reconciliation) -> dict[str, object]:
    counters = []
    for each in found.counters:
        unit = each.line.unit
        counters.append(
            {
                "limit_id": _limit_id(each),
                "scope": each.line.scope,
                "period": each.period,
                "counter_name": each.line.counter,
                "unit": unit,
                "counter": f"{from_units(unit, each.spent):f}",
                "ledger": f"{from_units(unit, each.ledger):f}",
                "drift": f"{from_units(unit, each.drift):f}",
                "caught_up": each.settled,
                "repair": each.outcome,
            }
        )
    others = [{"limit_id": each.limit_id, "why": each.why, "counters": each.counters} for each in found.not_compared]
    return {"root": found.root, "balanced": found.balanced, "counters": counters, "not_compared": others}
