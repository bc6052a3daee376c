"""From settings to parts: every object of the system is made here, and nowhere at import."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from sark_mw.enforcement.lease_shares import LeaseOptions
from sark_mw.errors import ConfigurationError
from sark_mw.instrumentation.audit import AuditInstrumentation, audit_logger
from sark_mw.instrumentation.base import BreakerState, Composite, Instrumentation, NullInstrumentation
from sark_mw.instrumentation.prometheus import PrometheusInstrumentation
from sark_mw.instrumentation.tracing import TracingInstrumentation
from sark_mw.instrumentation.tracing import is_installed as tracing_is_installed
from sark_mw.ledger import open_ledger
from sark_mw.ledger.base import Ledger
from sark_mw.money import to_nanos
from sark_mw.pricing.base import CostEstimator
from sark_mw.pricing.prices import PriceOverride, PricingOptions
from sark_mw.pricing.registry import builtin_estimators
from sark_mw.settings import LedgerSettings, ObserveSettings, PricingSettings, Settings, StoreSettings
from sark_mw.store.connect import StoreOptions, open_store
from sark_mw.store.redis_store import RedisStore

_BREAKER = {"closed": BreakerState.CLOSED, "half_open": BreakerState.HALF_OPEN, "open": BreakerState.OPEN}


class StoreEvents:
    """Tell an `Instrumentation` what the store's connection does."""

    def __init__(self, instrumentation: Instrumentation) -> None:
        self._instrumentation = instrumentation

    def on_store_call(self, script: str, seconds: float, outcome: str, items: int) -> None:
        """Do nothing: the enforcer tells of reserves and settles, with what they were for."""

    def on_breaker(self, state: str) -> None:
        """Pass the breaker's state on as its gauge knows it."""
        self._instrumentation.breaker_changed("store", _BREAKER[state])


async def make_store(settings: StoreSettings, instrumentation: Instrumentation | None = None) -> RedisStore:
    """Open the store; raises `ConfigurationError`, or `StoreUnavailableError` for an embedded one that does not start."""
    return await open_store(
        settings.url,
        StoreOptions(
            shards=settings.shards,
            prefix=settings.prefix,
            retention_ms=settings.retention_s * 1000,
            deadline_s=settings.deadline_ms / 1000,
            max_connections=settings.max_connections,
            breaker_threshold=settings.breaker_failures,
            breaker_cooldown_s=settings.breaker_cooldown_ms / 1000,
            wait_replicas=settings.wait_replicas,
            wait_timeout_ms=settings.wait_timeout_ms,
            observer=StoreEvents(instrumentation or NullInstrumentation()),
        ),
    )


def make_ledger(settings: LedgerSettings) -> Ledger:
    """Make the ledger; it connects at its first use."""
    return open_ledger(settings.url.get_secret_value(), deadline_s=settings.deadline_ms / 1000)


def make_estimators(settings: PricingSettings, own: Mapping[str, CostEstimator] | None = None) -> dict[str, CostEstimator]:
    """Make the built-in estimators with the settings' prices; `own` are added or replace them."""
    overrides = [
        PriceOverride(
            provider=model.provider,
            model=model.model,
            input_per_1m=model.input_usd_per_million,
            output_per_1m=model.output_usd_per_million,
            cache_read_per_1m=model.cache_read_usd_per_million,
            max_output_tokens=model.max_output_tokens,
        )
        for model in settings.models
    ]
    options = PricingOptions(
        overrides=overrides,
        default_max_output_tokens=settings.default_max_output_tokens,
        max_output_tokens_cap=settings.max_output_tokens_cap,
        opaque_tokens=settings.opaque_tokens,
        default_service_tier=settings.default_service_tier,
        tool_calls=settings.tool_calls,
        tool_fees=_tool_fees(settings),
    )
    return {**builtin_estimators(options), **(own or {})}


def _tool_fees(settings: PricingSettings) -> dict[str, Decimal]:
    fees = {
        "web_search": settings.web_search_usd_per_thousand,
        "file_search": settings.file_search_usd_per_thousand,
        "code_session": settings.code_session_usd_per_thousand,
    }
    return {kind: fee for kind, fee in fees.items() if fee is not None}


def make_prometheus(settings: ObserveSettings) -> PrometheusInstrumentation | None:
    """Make the Prometheus metrics, unless the settings say no."""
    return PrometheusInstrumentation() if settings.metrics else None


def make_instrumentation(
    settings: ObserveSettings,
    prometheus: PrometheusInstrumentation | None,
    own: Instrumentation | None = None,
    *more: Instrumentation,
) -> Instrumentation:
    """Put metrics, audit log, traces, the user's own and `more` together, behind the boundary that catches their faults."""
    parts: list[Instrumentation] = []
    if prometheus is not None:
        parts.append(prometheus)
    if settings.audit_log:
        parts.append(AuditInstrumentation(audit_logger(settings.log_format)))
    if tracing_is_installed():
        parts.append(TracingInstrumentation())
    if own is not None:
        parts.append(own)
    return Composite([*parts, *more])


def lease_options(settings: StoreSettings) -> LeaseOptions | None:
    """Make what a process may lease, None where it leases nothing."""
    if settings.on_store_failure != "leased":
        return None
    return LeaseOptions(
        usd_nanos=to_nanos(settings.lease_usd),
        requests=settings.lease_requests,
        tokens=settings.lease_tokens,
        share=settings.lease_share,
    )


def check_ledger_lasts(settings: Settings) -> None:
    """Refuse a shared store with a ledger that ends with this process; raises `ConfigurationError`.

    It would take into its memory what all have spent, rebuild a lost store with nothing spent, and hear of no rules.
    """
    if not settings.ledger.lasts and not settings.store.url.startswith("memory:"):
        raise ConfigurationError(
            "a store that several processes share needs a ledger that outlives them, the same for all of them, also where "
            "another process flushes it: set ledger.url to sqlite:///sark.db or postgresql://…"
        )
