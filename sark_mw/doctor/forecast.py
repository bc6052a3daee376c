"""What a request of a kind would be charged, against which limits, and whether it would pass; nothing is reserved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

from sark_mw.enforcement.members import with_kind
from sark_mw.enforcement.tables import LimitTables, ServerClock
from sark_mw.enforcer import needs_of
from sark_mw.errors import ConfigurationError, StoreDataLostError
from sark_mw.limit import Limit, Unit
from sark_mw.money import from_nanos
from sark_mw.pricing.base import CostEstimator, Estimate, InvocationRequest, estimate_with
from sark_mw.reservation import UNLIMITED, Balance, Need, lines_for
from sark_mw.settings import Settings
from sark_mw.store.redis_store import RedisStore

#: One token in every vocabulary that is known.
_WORD = "word "


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A kind of request; `input_tokens` is about how long its prompt is, `root` None the configured one."""

    model: str
    principal: str = "user:example"
    scopes: tuple[str, ...] = ()
    root: str | None = None
    input_tokens: int = 1000
    max_tokens: int | None = None
    provider: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastLimit:
    """One limit that the request touches, in dollars or whole units; `verdict` is empty where it has room."""

    limit: str
    scope: str
    unit: str
    amount: Decimal
    spent: Decimal
    held: Decimal
    remaining: Decimal
    needed: Decimal
    enforced: bool
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The answer: what is held, what it will probably cost, and what each limit says."""

    model: str
    provider: str
    principal: str
    scopes: tuple[str, ...]
    root: str
    input_tokens: int
    max_output_tokens: int
    ceiling_usd: Decimal
    expected_usd: Decimal
    passes: bool
    limits: tuple[ForecastLimit, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Lay it out as JSON; amounts are strings, exact."""
        found: dict[str, object] = asdict(self)
        limits = [asdict(each) for each in self.limits]
        for part in (found, *limits):
            part.update({name: f"{value:f}" for name, value in part.items() if isinstance(value, Decimal)})
        return {**found, "limits": limits}


async def forecast(
    question: Question,
    *,
    settings: Settings,
    estimators: Mapping[str, CostEstimator],
    store: RedisStore,
    tables: LimitTables,
    clock: ServerClock,
    known_limits: Sequence[Limit],
) -> Forecast:
    """Answer; raises `ConfigurationError` (unknown provider), `StoreUnavailableError`, or what the estimator raises."""
    estimator = _estimator(question, estimators)
    estimate = await _estimate(question, estimator)
    principal = with_kind(question.principal)
    named = (principal, *question.scopes, *settings.principal.default_scopes)
    scopes = tuple(dict.fromkeys((*named, f"provider:{estimator.provider_name}", f"model:{question.model}")))
    root = question.root or settings.principal.root
    notes = _notes(estimate, settings)
    try:
        layout = await tables.layout(root, scopes)
        balances: Sequence[Balance] = (await store.balance(root, layout.lines)).balances if layout.lines else ()
    except StoreDataLostError:
        own = [limit for limit in known_limits if limit.root == root]
        balances = [Balance(line=line, spent=0, held=0) for line in lines_for(own, scopes, clock.now_ms())]
        memory = " (memory:// keeps it in the gateway's process)" if settings.store.url.startswith("memory:") else ""
        notes.append(f"The store has no data here, so nothing is shown as spent{memory}.")
    limits = tuple(_limit(balance, needs_of(estimate)) for balance in balances)
    denied = estimate.unknown_model and settings.pricing.on_unknown_model == "deny"
    return Forecast(
        model=question.model,
        provider=estimator.provider_name,
        principal=principal,
        scopes=scopes,
        root=root,
        input_tokens=estimate.input_tokens,
        max_output_tokens=estimate.max_output_tokens,
        ceiling_usd=from_nanos(estimate.ceiling_nanos),
        expected_usd=from_nanos(estimate.expected_nanos),
        passes=not denied and not any(each.verdict and each.enforced for each in limits),
        limits=limits,
        notes=tuple(notes),
    )


def _estimator(question: Question, estimators: Mapping[str, CostEstimator]) -> CostEstimator:
    name = question.provider or ("anthropic" if "claude" in question.model.lower() else "openai")
    if name not in estimators:
        raise ConfigurationError(f"there is no estimator for provider {name!r}, only for {', '.join(sorted(estimators))}")
    return estimators[name]


async def _estimate(question: Question, estimator: CostEstimator) -> Estimate:
    arguments: dict[str, object] = {
        "model": question.model,
        "messages": [{"role": "user", "content": _WORD * question.input_tokens}],
    }
    if question.max_tokens is not None:
        arguments["max_tokens"] = question.max_tokens
    request = InvocationRequest("forecast", question.principal, arguments)
    return await estimate_with(estimator, request, {"model": question.model, "provider": estimator.provider_name})


def _notes(estimate: Estimate, settings: Settings) -> list[str]:
    notes = []
    if estimate.unknown_model:
        consequence = "refused" if settings.pricing.on_unknown_model == "deny" else "priced as the provider's dearest"
        notes.append(f"The model is not in the price list: it is {consequence}.")
    if not estimate.output_limited:
        notes.append("It has no output limit of its own, so the most that the model can produce is held.")
    return notes


def _limit(balance: Balance, needs: Sequence[Need]) -> ForecastLimit:
    line = balance.line
    needed = next((need.held for need in needs if need.unit == line.unit), 0)
    remaining = max(line.amount - balance.spent - balance.held, 0)
    over = line.amount != UNLIMITED and balance.spent + balance.held + needed > line.amount
    verdict = ("refuses" if line.enforce else "would refuse (shadow)") if over else ""
    amount, spent, held, left, asked = (
        _shown(line.unit, n) for n in (line.amount, balance.spent, balance.held, remaining, needed)
    )
    return ForecastLimit(
        limit=line.limit.limit_id if line.limit else line.counter,
        scope=line.scope,
        unit=line.unit,
        amount=amount,
        spent=spent,
        held=held,
        remaining=left,
        needed=asked,
        enforced=line.enforce,
        verdict=verdict,
    )


def _shown(unit: str, amount: int) -> Decimal:
    return from_nanos(amount) if unit == Unit.USD else Decimal(amount)
