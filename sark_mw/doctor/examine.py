"""The round: every check in its order; one that cannot be made is said to be unknown, and the next is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sark_mw.assembly import make_estimators, make_ledger, make_store
from sark_mw.doctor.checks import Check, Status, fail, unknown, warn
from sark_mw.doctor.forecast import Forecast, Question, forecast
from sark_mw.doctor.ledger_checks import check_drift, check_ledger
from sark_mw.doctor.local_checks import check_limits, check_settings
from sark_mw.doctor.start_checks import check_start
from sark_mw.doctor.store_checks import check_store
from sark_mw.enforcement.budgets import StoreBudgets
from sark_mw.enforcement.drift import Drift
from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.errors import CostEstimationError, InvalidRequestError, LedgerError, StoreDataLostError, StoreError
from sark_mw.instrumentation.base import NullInstrumentation
from sark_mw.ledger.base import Ledger
from sark_mw.limit import Limit
from sark_mw.policy.base import PolicyServices
from sark_mw.settings import Settings
from sark_mw.store.redis_store import RedisStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All that was found; `forecast` only where something was asked and could be answered."""

    checks: tuple[Check, ...]
    forecast: Forecast | None = None

    @property
    def failed(self) -> bool:
        """Tell whether anything is broken."""
        return any(check.status is Status.FAIL for check in self.checks)

    def as_json(self) -> dict[str, object]:
        """Lay it out as JSON."""
        answer = None if self.forecast is None else self.forecast.as_json()
        return {"ok": not self.failed, "checks": [asdict(check) for check in self.checks], "forecast": answer}


async def examine(settings: Settings, question: Question | None = None) -> Examination:
    """Examine what the settings name; nothing is reserved, migrated, begun or set. Raises `ConfigurationError`."""
    ledger = make_ledger(settings.ledger)
    try:
        store = await make_store(settings.store)
    except StoreError as error:
        found = [fail("store", str(error)), *await _look_at_ledger(ledger, settings), *check_settings(settings)]
        found += await check_start(settings, make_estimators(settings.pricing), PolicyServices())
        await ledger.aclose()
        return Examination(checks=tuple(found))
    try:
        return await _Round(settings, store, ledger).go(question)
    finally:
        await store.aclose()
        await ledger.aclose()


async def _look_at_ledger(ledger: Ledger, settings: Settings) -> list[Check]:
    try:
        return await check_ledger(ledger, migrates=settings.ledger.migrate, lasts=settings.ledger.lasts)
    except LedgerError as error:
        return [fail("ledger", str(error), "budgets still hold without it; its entries wait in the outbox")]


class _Round:
    """One examination."""

    def __init__(self, settings: Settings, store: RedisStore, ledger: Ledger) -> None:
        self._settings = settings
        self._store = store
        self._ledger = ledger
        self._estimators = make_estimators(settings.pricing)
        self._clock = ServerClock()
        self._tables = LimitTables(store, self._clock)
        self._drift = Drift(store, ledger, tables=self._tables, clock=self._clock, instrumentation=NullInstrumentation())

    async def go(self, question: Question | None) -> Examination:
        checks: list[Check] = []
        try:
            checks += await check_store(self._store, self._settings.store)
        except StoreError as error:
            remedy = (
                f"is it there, does store.url name it, and may it be reached? Until then: {self._settings.store.on_store_failure}"
            )
            checks.append(fail("store", str(error), remedy))
        checks += await _look_at_ledger(self._ledger, self._settings)
        saved = await self._saved()
        checks.append(await self._compare(saved))
        limits = await self._limits(saved)
        checks.append(check_limits(self._settings, limits))
        checks += check_settings(self._settings)
        services = PolicyServices(store=self._store, budgets=StoreBudgets(self._store, self._tables))
        checks += await check_start(self._settings, self._estimators, services)
        answer = None
        if question is not None:
            wanted = [limit.to_limit() for limit in self._settings.limits]
            known = {(limit.root, limit.limit_id): limit for limit in (*limits, *wanted)}
            try:
                answer = await self._ask(question, list(known.values()))
            except (StoreError, CostEstimationError, InvalidRequestError) as error:
                checks.append(fail("forecast", str(error)))
        if answer is not None and not answer.limits:
            checks.append(
                warn(
                    "forecast",
                    f"no limit touches a request of {answer.model} by {answer.principal}",
                    "name one who pays: --principal key:… (`sark-mw hash-key` tells which) or user:…, with --scope for its teams",
                )
            )
        return Examination(checks=tuple(checks), forecast=answer)

    async def _saved(self) -> list[Limit]:
        try:
            return await self._ledger.load_limits()
        except LedgerError:
            return []

    def _roots(self, saved: Sequence[Limit]) -> list[str]:
        principal = self._settings.principal
        named = (principal.root, *(key.root for key in principal.keys), *(limit.root for limit in self._settings.limits))
        return list(dict.fromkeys((*named, *(limit.root for limit in saved))))

    async def _limits(self, saved: Sequence[Limit]) -> list[Limit]:
        """List what is in force: in the store where it has data, else what it would be rebuilt with."""
        found: list[Limit] = []
        for root in self._roots(saved):
            try:
                found += (await self._tables.reload(root)).limits
            except StoreError:
                found += [limit for limit in saved if limit.root == root]
        return found

    async def _compare(self, saved: Sequence[Limit]) -> Check:
        if not self._settings.ledger.lasts:
            return unknown("drift", "the ledger is in the memory of the gateway, so it cannot be compared from here")
        try:
            return await check_drift(self._drift, self._tables, self._roots(saved))
        except StoreDataLostError:
            return unknown("drift", "the store has no data to compare with the ledger")
        except (StoreError, LedgerError) as error:
            return unknown("drift", str(error))

    async def _ask(self, question: Question, known: Sequence[Limit]) -> Forecast:
        return await forecast(
            question,
            settings=self._settings,
            estimators=self._estimators,
            store=self._store,
            tables=self._tables,
            clock=self._clock,
            known_limits=known,
        )
