"""Checks of the ledger and of its agreement with the counters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sark_mw.doctor.checks import Check, clock, fail, ok, unknown, warn
from sark_mw.enforcement.drift import Drift
from sark_mw.enforcement.tables import LimitTables
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.inspect import DatabaseFacts, database_facts
from sark_mw.limit import Unit
from sark_mw.money import from_nanos


async def check_ledger(ledger: Ledger, *, migrates: bool, lasts: bool = True) -> list[Check]:
    """Look at the database; `migrates`: a gateway does that at start; `lasts`: it outlives the gateway.

    Raises `LedgerError` if it does not answer.
    """
    facts = await database_facts(ledger)
    if not lasts:
        said = f"{facts.name} {facts.version} in memory: a restart forgets what was spent, and no report can be made"
        return [warn("ledger", said, "set ledger.url to sqlite:///sark.db or postgresql://…")]
    installed, newest = await ledger.schema_version()
    found = [ok("ledger", f"{facts.name} {facts.version} answers")]
    if installed < newest:
        said = f"{installed} of {newest} are installed"
        at_start = warn("migrations", said, "a gateway installs the rest when it starts (ledger.migrate), or run sark-mw migrate")
        found.append(at_start if migrates else fail("migrations", said, "run sark-mw migrate"))
    elif installed > newest:
        found.append(
            warn("migrations", f"{installed} are installed, {newest} are known here: the database is newer than this program")
        )
    else:
        found.append(ok("migrations", f"all {newest} are installed"))
    found += database_checks(facts)
    return found


def database_checks(facts: DatabaseFacts) -> Iterator[Check]:
    """Judge what the database tells of itself."""
    if facts.name == "PostgreSQL":
        yield _timescale(facts)
    if facts.now_ms is not None:
        yield clock("database clock", facts.now_ms - facts.asked_ms)
    if facts.rejected:
        remedy = "look into the table ledger_rejected: the entries are there whole, with the reason"
        yield fail("rejected entries", f"{facts.rejected} entries do not fit the ledger, so reports lack them", remedy)


def _timescale(facts: DatabaseFacts) -> Check:
    name = "TimescaleDB"
    if facts.timescale is None:
        return ok(name, "not installed: plain tables with the same answers, without compression")
    said = f"{facts.timescale_version} under its {facts.timescale} licence"
    if not facts.hypertable:
        return warn(name, f"{said}, but cost_tracking is no hypertable", "run sark-mw migrate")
    return ok(name, f"{said}; hypertable, policies: {', '.join(facts.policies) or 'none'}")


async def check_drift(drift: Drift, tables: LimitTables, roots: Sequence[str]) -> Check:
    """Compare every exact counter of the roots with the ledger; raises `StoreError` or `LedgerError`."""
    compared, behind, wrong = 0, 0, []
    for root in roots:
        table = await tables.reload(root)
        for each in await drift.compare(root, table.limits):
            compared += 1
            behind += not each.settled
            if each.settled and each.drift:
                line = each.balance.line
                amount = f"${from_nanos(each.drift):f}" if line.unit == Unit.USD else f"{each.drift} {line.unit}"
                wrong.append(f"{line.scope} by {amount}")
    name = "drift"
    if wrong:
        return fail(name, f"counters and ledger disagree: {'; '.join(wrong[:5])}", "see SarkDrift in docs/operations.md")
    if behind:
        return unknown(
            name,
            f"{behind} of {compared} counters are ahead of a ledger that is still catching up",
            "ask again when the outbox is empty",
        )
    return ok(name, f"{compared} counters agree with the ledger" if compared else "nothing to compare yet")
