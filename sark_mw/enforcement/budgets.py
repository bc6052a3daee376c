"""What is left of a principal's daily and monthly budget, for policies that ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sark_mw.enforcement.lent import Rebuild, once_rebuilt
from sark_mw.enforcement.tables import LimitTables
from sark_mw.limit import DEFAULT_ROOT, Unit
from sark_mw.money import from_nanos
from sark_mw.reservation import Balance
from sark_mw.store.base import ReservationStore


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFigures:
    """Daily and monthly budget and spend of a principal in dollars; None without such a budget."""

    daily_budget: Decimal | None = None
    monthly_budget: Decimal | None = None
    daily_spent: Decimal = Decimal(0)
    monthly_spent: Decimal = Decimal(0)


class StoreBudgets:
    """Read budgets from the store's counters: what is spent and what is held."""

    def __init__(
        self, store: ReservationStore, tables: LimitTables, rebuild: Rebuild | None = None, root: str = DEFAULT_ROOT
    ) -> None:
        self._store = store
        self._tables = tables
        self._rebuild = rebuild
        self._root = root

    async def get_budget_status(self, principal_id: str) -> BudgetFigures | None:
        """Return the figures, or None for a principal without a daily or monthly budget."""
        return await once_rebuilt(self._again if self._rebuild else None, lambda: self._read(principal_id))

    async def _again(self) -> None:
        assert self._rebuild is not None
        self._tables.forget(self._root)
        await self._rebuild()

    async def _read(self, principal_id: str) -> BudgetFigures | None:
        layout = await self._tables.layout(self._root, (principal_id,))
        # The lines of parents are not the principal's own.
        budgets = [line for line in layout.lines if line.unit == Unit.USD and line.enforce and line.scope == principal_id]
        lines = [line for line in budgets if line.limit is not None and line.limit.window in ("day", "month")]
        if not lines:
            return None
        snapshot = await self._store.balance(self._root, lines)
        day, month = (_tightest(snapshot.balances, window) for window in ("day", "month"))
        return BudgetFigures(
            daily_budget=_amount(day),
            monthly_budget=_amount(month),
            daily_spent=from_nanos(day.spent) if day else Decimal(0),
            monthly_spent=from_nanos(month.spent) if month else Decimal(0),
        )


def _tightest(balances: Sequence[Balance], window: str) -> Balance | None:
    own = [balance for balance in balances if balance.line.limit is not None and balance.line.limit.window == window]
    return min(own, key=lambda balance: balance.remaining or 0, default=None)


def _amount(balance: Balance | None) -> Decimal | None:
    return None if balance is None else from_nanos(balance.line.amount)
