"""What is left of a principal's daily and monthly budget, for policies that ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from sark_mw.enforcement.lent import Rebuild, once_rebuilt
from sark_mw.enforcement.members import with_kind
from sark_mw.enforcement.tables import LimitTables
from sark_mw.limit import DEFAULT_ROOT, Unit
from sark_mw.money import from_nanos
from sark_mw.reservation import Balance, Line
from sark_mw.store.base import ReservationStore


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFigures:
    """Daily and monthly budget and spend of a principal in dollars; None without such a budget."""

    daily_budget: Decimal | None = None
    monthly_budget: Decimal | None = None
    daily_spent: Decimal = Decimal(0)
    monthly_spent: Decimal = Decimal(0)


class StoreBudgets:
    """Read budgets from the store's counters; a bare name is that of a user. `root` is that of whoever names none."""

    def __init__(
        self, store: ReservationStore, tables: LimitTables, rebuild: Rebuild | None = None, root: str = DEFAULT_ROOT
    ) -> None:
        self._store = store
        self._tables = tables
        self._rebuild = rebuild
        self._root = root

    async def get_budget_status(self, principal_id: str) -> BudgetFigures | None:
        """Return the figures, or None for a principal without a daily or monthly budget."""
        return await self.get_budget_status_in(self._root, principal_id)

    async def get_budget_status_in(self, root: str, principal_id: str) -> BudgetFigures | None:
        """Do it for a principal of this root."""
        scope = with_kind(principal_id)
        return await once_rebuilt((lambda: self._again(root)) if self._rebuild else None, lambda: self._read(root, scope))

    async def _again(self, root: str) -> None:
        assert self._rebuild is not None
        self._tables.forget(root)
        await self._rebuild()

    async def _read(self, root: str, scope: str) -> BudgetFigures | None:
        layout = await self._tables.layout(root, (scope,))
        # The lines of parents are not the principal's own.
        budgets = [line for line in layout.lines if line.unit == Unit.USD and line.enforce and line.scope == scope]
        lines = [line for line in budgets if _kind(line) in ("day", "month")]
        if not lines:
            return None
        snapshot = await self._store.balance(root, lines)
        day, month = (_tightest(snapshot.balances, window) for window in ("day", "month"))
        return BudgetFigures(
            daily_budget=_amount(day),
            monthly_budget=_amount(month),
            daily_spent=from_nanos(day.spent) if day else Decimal(0),
            monthly_spent=from_nanos(month.spent) if month else Decimal(0),
        )


def _kind(line: Line) -> str:
    """Tell `month` of `month:15` too: the day on which it begins makes it no other budget."""
    return "" if line.limit is None else line.limit.window.partition(":")[0]


def _tightest(balances: Sequence[Balance], window: str) -> Balance | None:
    own = [balance for balance in balances if _kind(balance.line) == window]
    return max(own, key=_used, default=None)


def _used(balance: Balance) -> Fraction:
    """Tell the share that is spent; of an amount of 0 everything is."""
    amount = balance.line.amount
    return Fraction(balance.spent, amount) if amount > 0 else Fraction(max(balance.spent, 1))


def _amount(balance: Balance | None) -> Decimal | None:
    return None if balance is None else from_nanos(balance.line.amount)
