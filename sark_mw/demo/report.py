"""What came of it: a row per principal and team, the three sums that must be one, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from sark_mw.demo.books import Books, OwnClock
from sark_mw.demo.cast import BYPASS_KEY, CALLERS, PROBE, Caller
from sark_mw.demo.probe import Added
from sark_mw.demo.traffic import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One budget. Money in nano-dollars; `peak` is the most that was ever seen spent and held together."""

    scope: str
    window: str
    shared: bool
    budget: int
    spent: int
    held: int
    admitted: int
    refused: int
    peak: int
    drift: int

    @property
    def overspend(self) -> int:
        """Nano-dollars above the budget, at the end or when it was looked at meanwhile."""
        return max(self.spent + self.held - self.budget, self.peak - self.budget, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One principal's money three times: by the ledger, by the provider's bill; and calls admitted against calls billed."""

    principal: str
    ledger: int
    billed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole run."""

    rows: tuple[Row, ...]
    accounts: tuple[Account, ...]
    loaded: Added
    calm: Added
    own_clock: OwnClock
    calls: int
    streams: int
    peak_in_flight: int
    seconds: float
    ledger_rows: int
    unflushed: bool
    retried: int
    out_of_time: bool
    failures: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)

    @property
    def overspend(self) -> int:
        """Nano-dollars above any budget, all together."""
        return sum(row.overspend for row in self.rows)

    @property
    def ledger_equals_counters(self) -> bool:
        """Tell whether each counter is what the ledger's entries add up to, and nothing is held any more."""
        return not self.unflushed and all(row.drift == 0 and row.held == 0 for row in self.rows)

    @property
    def ledger_equals_bill(self) -> bool:
        """Tell whether the provider's own bill is the ledger's, per principal, to the nano-dollar."""
        return all(account.ledger == account.billed for account in self.accounts)

    @property
    def good(self) -> bool:
        """Tell whether the demo showed what it says."""
        spent = sum(account.ledger for account in self.accounts)
        refused = sum(row.refused for row in self.rows)
        books = self.ledger_equals_counters and self.ledger_equals_bill
        return self.overspend == 0 and books and not self.failures and not self.retried and spent > 0 and refused > 0

    def to_json(self) -> dict[str, object]:
        """Lay the report out for `--json`."""
        body = asdict(self)
        body["rows"] = [{**asdict(row), "overspend": row.overspend} for row in self.rows]
        verdict = {"overspend": self.overspend, "good": self.good}
        books = {"ledger_equals_counters": self.ledger_equals_counters, "ledger_equals_bill": self.ledger_equals_bill}
        return {**verdict, **books, **body}


def make_rows(books: Books, tallies: Mapping[str, Tally], peaks: Mapping[str, int]) -> tuple[Row, ...]:
    """Put counters and what the callers saw side by side; a shared budget has the calls of all its members."""
    rows = []
    for counter in books["counters"]:
        scope = counter["scope"]
        members = [caller for caller in CALLERS if scope in (caller.name, caller.team, "org:acme")]
        rows.append(
            Row(
                scope=scope,
                window=counter["window"],
                shared=not scope.startswith("user:"),
                budget=counter["amount"],
                spent=counter["spent"],
                held=counter["held"],
                admitted=sum(tallies[caller.name].admitted for caller in members),
                refused=sum(tallies[caller.name].refused.total() for caller in members),
                peak=peaks.get(scope, 0),
                drift=counter["drift"],
            )
        )
    order = [caller.name for caller in CALLERS]
    return tuple(sorted(rows, key=lambda row: (row.shared, order.index(row.scope) if row.scope in order else 0, row.budget)))


def make_accounts(books: Books, bill: Mapping[str, Mapping[str, int]]) -> tuple[Account, ...]:
    """Put the ledger beside the provider's bill, for each key that either of them knows."""
    everybody: Sequence[Caller] = (*CALLERS, PROBE)
    known = {BYPASS_KEY, *(caller.key for caller in everybody)}
    accounts = [
        Account(
            principal=caller.name,
            ledger=books["ledger"].get(caller.name, 0),
            billed=bill.get(caller.key, {}).get("nanos", 0),
        )
        for caller in everybody
    ]
    stray = sum(entry["nanos"] for key, entry in bill.items() if key not in known)
    return (*accounts, Account(principal="(nobody)", ledger=0, billed=stray)) if stray else tuple(accounts)
