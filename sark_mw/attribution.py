"""Budgets and costs by principal, as SARK's guides call them: a thin face over `Sark`, which keeps the only books there are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from sark_mw.cost_records import (
    BudgetStatus,
    CostAttributionRecord,
    CostSummary,
    Dollars,
    by_group,
    ceil_ms,
    dollars,
    expense_of,
    floor_ms,
    scope_of,
    text_or_none,
)
from sark_mw.enforcement.expense import Expense, ExpenseBooks
from sark_mw.errors import ConfigurationError, LedgerError
from sark_mw.ledger.base import CostFilter, CostTotal
from sark_mw.limit import Limit, Mode, Unit
from sark_mw.money import from_nanos, to_nanos
from sark_mw.reservation import Balance
from sark_mw.sark import Sark
from sark_mw.settings import AnySettings, as_settings
from sark_mw.window import period_of
from sark_mw.window_words import per

_log = logging.getLogger(__name__)

#: How long a report waits for costs that another process has in hand on their way into the ledger.
_FLUSH_S = 5.0
_ATTEMPTS = 3
_NAMES = {"day": "Daily", "month": "Monthly"}


class CostAttributionService:
    """Set budgets, check them, record costs, report: over a given `Sark`, or one that it opens from settings at its first use.

    A bare principal `alice` is the middleware's `user:alice`. Days and months are those of `timezone`. Every method may raise
    `StoreUnavailableError` or `LedgerUnavailableError`. Close it, or use it as an asynchronous context manager.
    """

    def __init__(self, sark: Sark | None = None, *, settings: AnySettings = None, timezone: str = "UTC") -> None:
        if sark is not None and settings is not None:
            raise ConfigurationError("a Sark that is given has its settings already")
        period_of("day", timezone, 0)  # raises for an unknown zone
        self._timezone = timezone
        self._given = sark
        self._own: Sark | None = None
        self._settings = as_settings(settings) if sark is None else sark.settings
        self._root = self._settings.principal.root
        self._closed = False

    @property
    def sark(self) -> Sark:
        """The system that it works over, perhaps not started yet."""
        if self._given is not None:
            return self._given
        if self._own is None:
            self._own = Sark(self._settings)
        return self._own

    async def opened(self) -> Sark:
        """Start what it works over, once for all who call; raises `ConfigurationError` after `aclose`."""
        if self._closed:
            raise ConfigurationError("this cost attribution service is closed")
        if not self.sark.started:
            await self.sark.start()
        return self.sark

    async def aclose(self) -> None:
        """Settle, flush and close what it opened itself; a `Sark` that was given stays as it is."""
        self._closed = True
        if self._own is not None:
            await self._own.aclose()

    async def __aenter__(self) -> Self:
        await self.opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def set_budget(
        self,
        principal_id: str,
        daily_budget: Dollars | None = None,
        monthly_budget: Dollars | None = None,
        currency: str = "USD",
    ) -> BudgetStatus:
        """Set both budgets, in force with the next call of any process; None removes one, with what it has counted.

        A changed budget keeps what it has counted. Raises `MoneyError` for a negative amount, and `ConfigurationError` for a
        currency other than USD.
        """
        if currency.upper() != "USD":
            raise ConfigurationError(f"a budget in {currency} needs a rate, and the settings have none: give it in USD")
        scope = scope_of(principal_id)
        given = {"day": dollars("daily_budget", daily_budget), "month": dollars("monthly_budget", monthly_budget)}
        sark = await self.opened()
        own = (limit for limit in await sark.limits.list(self._root) if _is_own(limit, scope))
        before = {limit.limit_id: limit for limit in own if limit.timezone == self._timezone}
        wanted = []
        for window, amount in given.items():
            if amount is not None:
                new = Limit(scope=scope, amount=amount, window=window, timezone=self._timezone, root=self._root)
                # What an administrator has set besides the amount stays.
                wanted.append(replace(before.get(new.limit_id, new), amount=amount))
        gone = sorted(before.keys() - {limit.limit_id for limit in wanted})
        if wanted or gone:
            await sark.limits.change(self._root, wanted, gone)
        return await self.get_budget_status(principal_id) or BudgetStatus(principal_id=principal_id)

    async def check_budget(self, principal_id: str, estimated_cost: Dollars) -> tuple[bool, str | None]:
        """Tell whether a cost would fit now, and if not, why; nothing is held, so only a reservation can promise it.

        What is spent counts, and what requests in flight hold; equal to the limit is allowed. Of several the daily budget is
        named first, then the monthly one, then any other that the principal touches.
        """
        needed = to_nanos(estimated_cost)
        scope = scope_of(principal_id)
        balances = await self._balances(await self.opened(), (scope, *self._settings.principal.default_scopes))
        for balance in sorted(balances, key=lambda each: _rank(each, scope)):
            if balance.remaining is not None and needed > max(balance.remaining, 0):
                return False, _sentence(balance, needed, scope)
        return True, None

    async def get_budget_status(self, principal_id: str) -> BudgetStatus | None:
        """Return budgets and spend; None for a principal that has neither a budget nor a cost this month."""
        scope = scope_of(principal_id)
        sark = await self.opened()
        balances = await self._balances(sark, (scope,))
        day, month = (_tightest(balances, scope, window) for window in _NAMES)
        uncounted = [window for window, each in (("day", day), ("month", month)) if each is None]
        totals = await self._totals(sark, scope, uncounted) if uncounted else {}
        if day is None and month is None and not any(total.rows for total in totals.values()):
            return None
        spent = {window: total.cost_nanos for window, total in totals.items()}
        return BudgetStatus(
            principal_id=principal_id,
            daily_budget=from_nanos(day.line.amount) if day else None,
            monthly_budget=from_nanos(month.line.amount) if month else None,
            daily_spent=from_nanos(day.spent if day else spent.get("day", 0)),
            monthly_spent=from_nanos(month.spent if month else spent.get("month", 0)),
            daily_remaining=from_nanos(day.remaining or 0) if day else None,
            monthly_remaining=from_nanos(month.remaining or 0) if month else None,
            daily_percent_used=_percent(day),
            monthly_percent_used=_percent(month),
        )

    async def record_cost(
        self,
        principal_id: str,
        resource_id: str,
        capability_id: str,
        estimated_cost: Dollars | None = None,
        actual_cost: Dollars | None = None,
        metadata: Mapping[str, object] | None = None,
        *,
        record_id: str | None = None,
    ) -> CostAttributionRecord:
        """Book a cost that was made already, in full, beyond a budget too; the actual one if it is known, be it 0.

        With only an estimate the entry is flagged as estimated. `metadata` may say `provider`, `model` and `breakdown`. The same
        `record_id` (else `record_id`, `invocation_id` or `request_id` of the metadata) of the same principal, resource and
        capability counts once, the first one. While the store is out of reach it waits in the journal. Raises `MoneyError`.
        """
        notes = dict(metadata or {})
        breakdown = notes.get("breakdown")
        record = CostAttributionRecord(
            timestamp=datetime.now(UTC),
            principal_id=principal_id,
            resource_id=resource_id,
            capability_id=capability_id,
            estimated_cost=dollars("estimated_cost", estimated_cost),
            actual_cost=dollars("actual_cost", actual_cost),
            provider=text_or_none(notes.get("provider")),
            model=text_or_none(notes.get("model")),
            breakdown=dict(breakdown) if isinstance(breakdown, Mapping) else {},
            metadata=notes,
        )
        expense, once = expense_of(record, self._root, self._settings.principal.default_scopes, record_id)
        sark = await self.opened()
        if once and await self._is_known(sark, expense):
            return record
        books = ExpenseBooks(
            sark.store,
            tables=sark.tables,
            clock=sark.clock,
            settler=sark.settler,
            rebuild=sark.recovery.ensure,
            lease_ms=sark.enforcer.options.lease_ms,
        )
        booked = await books.book(expense)
        return replace(record, timestamp=datetime.fromtimestamp(booked.made_ms / 1000, UTC))

    async def get_cost_summary(
        self,
        principal_id: str | None = None,
        resource_id: str | None = None,
        capability_id: str | None = None,
        period_start: datetime | None = None,
        period_end: datetime | None = None,
    ) -> CostSummary:
        """Sum what was recorded, the last record included: `period_start <= t < period_end`, naive times are UTC.

        What was given back, having cost nothing, is no record.
        """
        query = CostFilter(
            principal_id=None if principal_id is None else scope_of(principal_id),
            resource_id=resource_id,
            capability_id=capability_id,
            root=self._root,
            from_ms=None if period_start is None else floor_ms(period_start),
            until_ms=None if period_end is None else ceil_ms(period_end),
        )
        sark = await self.opened()
        await self._flush(sark)
        by_provider = await sark.ledger.total(query, "provider")
        by_model = await sark.ledger.total(query, "model")
        return CostSummary(
            total_cost=from_nanos(by_provider.cost_nanos),
            record_count=by_provider.requests,
            principal_id=principal_id,
            resource_id=resource_id,
            capability_id=capability_id,
            period_start=period_start,
            period_end=period_end,
            breakdown={"by_provider": by_group(by_provider), "by_model": by_group(by_model)},
        )

    async def _balances(self, sark: Sark, scopes: tuple[str, ...]) -> Sequence[Balance]:
        """Read every enforced budget that these scopes touch, as it stands by the store's clock."""
        balances: Sequence[Balance] = ()
        for _ in range(_ATTEMPTS):
            # Read anew: another process may have changed the limits, and only a reserve is told so.
            await sark.limits.list(self._root)
            layout = await sark.tables.layout(self._root, scopes)
            lines = [line for line in layout.lines if line.unit == Unit.USD and line.enforce]
            if not lines:
                return ()
            snapshot = await sark.store.balance(self._root, lines)
            sark.clock.heard(snapshot.at_ms)
            balances = snapshot.balances
            if all(not line.ends_ms or snapshot.at_ms < line.ends_ms for line in lines):
                break
        return balances

    async def _totals(self, sark: Sark, scope: str, windows: Sequence[str]) -> dict[str, CostTotal]:
        """Sum what the ledger has of the current periods without a budget; nothing depends on it, so it may fail."""
        try:
            await self._flush(sark)
            return {
                window: await sark.ledger.total(
                    CostFilter(
                        scope=scope,
                        root=self._root,
                        from_ms=period_of(window, self._timezone, sark.clock.now_ms()).starts_ms,
                    )
                )
                for window in windows
            }
        except LedgerError as error:
            _log.warning("what was spent without a budget cannot be told: %s", error)
            return {}

    async def _flush(self, sark: Sark) -> None:
        """Bring into the ledger whatever has been booked by now."""
        shard = sark.store.shard_of(self._root)
        position = await sark.store.position(shard)
        try:
            async with asyncio.timeout(_FLUSH_S):
                while True:
                    while await sark.flusher.flush_once():
                        pass
                    if not position.seq or await sark.ledger.complete_up_to(shard, position.epoch, position.seq):
                        return
                    await asyncio.sleep(0.01)
        except TimeoutError:
            _log.warning("another process has costs in hand that are not in the ledger yet: a report may lack them")

    async def _is_known(self, sark: Sark, expense: Expense) -> bool:
        """Ask the ledger about a record that the store may have forgotten by now; it remembers the last hour by itself."""
        try:
            return await sark.ledger.has(expense.reservation_id)
        except LedgerError as error:
            _log.warning("whether a cost was recorded long ago cannot be told: %s", error)
            return False


def _is_own(limit: Limit, scope: str) -> bool:
    return limit.scope == scope and limit.unit == Unit.USD and limit.window in _NAMES and limit.mode == Mode.ENFORCE


def _window(balance: Balance, scope: str) -> str | None:
    """Name the window of a principal's own budget, None for any other."""
    limit = balance.line.limit
    return limit.window if limit is not None and balance.line.scope == scope and limit.window in _NAMES else None


def _rank(balance: Balance, scope: str) -> int:
    window = _window(balance, scope)
    return len(_NAMES) if window is None else [*_NAMES].index(window)


def _tightest(balances: Sequence[Balance], scope: str, window: str) -> Balance | None:
    own = [balance for balance in balances if _window(balance, scope) == window]
    return min(own, key=lambda balance: balance.remaining or 0, default=None)


def _percent(balance: Balance | None) -> float:
    if balance is None:
        return 0.0
    # Of a budget of 0 everything is used.
    return balance.spent * 100 / balance.line.amount if balance.line.amount else 100.0


def _sentence(balance: Balance, needed: int, scope: str) -> str:
    window, line = _window(balance, scope), balance.line
    how_long = per(line.limit.window) if line.limit is not None else ""
    name = f"{_NAMES[window]} budget" if window else " ".join(filter(None, ("Budget of", line.scope, how_long)))
    amount, spent, held, need = (f"{from_nanos(n):f}" for n in (line.amount, balance.spent, balance.held, needed))
    return f"{name} exceeded (limit: {amount} USD): {spent} spent, {held} held by requests in flight, {need} needed"
