"""The panels of the dashboard, as data: what is shown, in which unit, by which query."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression and the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel: `kind` is Grafana's panel type, `unit` Grafana's unit id, `width` in 24ths; `states` maps values to names."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    red_above: float | None = None
    states: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A headline and the panels below it."""

    title: str
    panels: tuple[Panel, ...]


def query(expr: str, legend: str = "") -> Query:
    """Restrict every selector of `expr` (written `metric{}`) to the chosen gateways."""
    return Query(expr=expr.replace("{}", '{job=~"$job"}'), legend=legend)


def quantiles(metric: str, by: str = "") -> tuple[Query, ...]:
    """Ask for the median and the 99th percentile of a histogram, per `by` if given."""
    group, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    return tuple(
        query(f"histogram_quantile({q}, sum by ({group}) (rate({metric}_bucket{{}}[$__rate_interval])))", f"{name}{legend}")
        for q, name in ((0.5, "p50"), (0.99, "p99"))
    )


_MONEY = Row(
    title="Money",
    panels=(
        Panel(
            title="Spend per hour",
            description="What is being spent, by provider and model; corrections of estimates taken off.",
            unit="currencyUSD",
            stacked=True,
            queries=(
                query(
                    "sum by (provider, model) (rate(sark_spend_nanos_total{}[$__rate_interval])) * 3600 / 1e9",
                    "{{provider}} {{model}}",
                ),
                query(
                    "-sum by (provider, model) (rate(sark_spend_corrected_nanos_total{}[$__rate_interval])) * 3600 / 1e9",
                    "corrected {{provider}} {{model}}",
                ),
            ),
        ),
        Panel(
            title="Spent in the range",
            description="Cost booked by these gateways in the chosen range. The ledger is the authority: sark-mw report.",
            unit="currencyUSD",
            kind="stat",
            width=4,
            queries=(
                query(
                    "(sum(increase(sark_spend_nanos_total{}[$__range])) "
                    "- (sum(increase(sark_spend_corrected_nanos_total{}[$__range])) or vector(0))) / 1e9",
                ),
            ),
        ),
        Panel(
            title="Overrun in the range",
            description="Cost above its own hold. 0 when every request's output is capped.",
            unit="currencyUSD",
            kind="stat",
            width=4,
            red_above=0.0,
            queries=(query("sum(increase(sark_overrun_nanos_total{}[$__range])) / 1e9"),),
        ),
        Panel(
            title="Held",
            description="Cost that requests in flight may still cause.",
            unit="currencyUSD",
            queries=(query("sum(sark_held_nanos{}) / 1e9", "held"),),
        ),
        Panel(
            title="Estimate error",
            description="Actual cost by expected cost: 1 is perfect, above 1 was estimated too low.",
            unit="none",
            width=6,
            queries=quantiles("sark_estimate_ratio", "provider"),
        ),
        Panel(
            title="Requests and tokens booked",
            description="Per second, by unit.",
            unit="cps",
            width=6,
            queries=(query("sum by (unit) (rate(sark_spend_units_total{}[$__rate_interval]))", "{{unit}}"),),
        ),
        Panel(
            title="Requests and tokens held",
            description="By requests in flight; concurrency is the number of them.",
            width=6,
            queries=(query("sum by (unit) (sark_held_units{})", "{{unit}}"),),
        ),
        Panel(
            title="Requests and tokens overrun",
            description="Booked above their own hold, per second.",
            unit="cps",
            width=6,
            queries=(query("sum by (unit) (rate(sark_overrun_units_total{}[$__rate_interval]))", "{{unit}}"),),
        ),
    ),
)

_REQUESTS = Row(
    title="Requests",
    panels=(
        Panel(
            title="Requests by outcome",
            description="Admitted, refused (budget, rate, policy), invalid, unavailable; passed ones are not metered.",
            unit="reqps",
            stacked=True,
            queries=(query("sum by (outcome) (rate(sark_requests_total{}[$__rate_interval]))", "{{outcome}}"),),
        ),
        Panel(
            title="Refusals by reason",
            description="The unit of the limit, the plugin, or what was unavailable or invalid. Shadow: would have been refused.",
            unit="reqps",
            stacked=True,
            queries=(
                query("sum by (outcome, reason) (rate(sark_refusals_total{}[$__rate_interval]))", "{{outcome}} {{reason}}"),
                query("sum(rate(sark_shadow_refusals_total{}[$__rate_interval]))", "shadow"),
            ),
        ),
        Panel(
            title="Added latency",
            description="Time that sark_mw itself took before the first byte.",
            unit="s",
            queries=quantiles("sark_added_seconds"),
        ),
        Panel(
            title="Plugins by outcome",
            description="Evaluations per second.",
            unit="ops",
            width=6,
            queries=(
                query("sum by (plugin, outcome) (rate(sark_plugin_seconds_count{}[$__rate_interval]))", "{{plugin}} {{outcome}}"),
            ),
        ),
        Panel(
            title="Plugin time",
            description="Per plugin.",
            unit="s",
            width=6,
            queries=quantiles("sark_plugin_seconds", "plugin"),
        ),
        Panel(
            title="Plugin files",
            description="Loaded, loaded anew, unloaded, or failed: then the version before goes on judging.",
            width=6,
            queries=(
                query("sum by (plugin, outcome) (increase(sark_plugin_loads_total{}[$__range]))", "{{plugin}} {{outcome}}"),
            ),
        ),
        Panel(
            title="Event loop blocked by plugins",
            description="How long a plugin in the gateway's process kept it from everything else, each time.",
            unit="s",
            width=6,
            queries=quantiles("sark_plugin_blocked_seconds", "plugin"),
        ),
        Panel(
            title="Breakers of plugins",
            description="An open one keeps requests from an isolated plugin whose workers keep dying: its on_error decides.",
            kind="state-timeline",
            width=6,
            states=((0, "closed", "green"), (1, "half open", "yellow"), (2, "open", "red")),
            queries=(query("max by (instance, plugin) (sark_plugin_breaker_state{})", "{{instance}} {{plugin}}"),),
        ),
        Panel(
            title="Layers of isolation missing",
            description="Layers that isolated plugins run without, by policy.isolation best-effort; 0 is the good value.",
            kind="stat",
            width=6,
            red_above=0.0,
            queries=(query("max(sark_policy_isolation_missing_layers{})"),),
        ),
        Panel(
            title="Estimate time",
            description="Time to price a request in advance.",
            unit="s",
            width=6,
            queries=quantiles("sark_estimate_seconds"),
        ),
        Panel(
            title="Unknown models",
            description="Requests per second at the provider's default price, which is its dearest.",
            unit="reqps",
            width=6,
            queries=(query("sum by (provider) (rate(sark_unknown_models_total{}[$__rate_interval]))", "{{provider}}"),),
        ),
    ),
)

_STORE = Row(
    title="Store",
    panels=(
        Panel(
            title="Reserve time",
            description="The one round trip that a caller waits for. Expected: p99 under 5 ms.",
            unit="s",
            queries=quantiles("sark_reserve_seconds"),
        ),
        Panel(
            title="Settle time",
            description="Off the caller's path.",
            unit="s",
            queries=quantiles("sark_settle_seconds"),
        ),
        Panel(
            title="Store answers",
            description="Reserves and settles per second, by answer.",
            unit="ops",
            queries=(
                query("sum by (outcome) (rate(sark_reserve_seconds_count{}[$__rate_interval]))", "reserve {{outcome}}"),
                query("sum by (kind, outcome) (rate(sark_settle_seconds_count{}[$__rate_interval]))", "{{kind}} {{outcome}}"),
            ),
        ),
        Panel(
            title="Circuit breaker",
            description="The worst of each gateway.",
            kind="state-timeline",
            width=6,
            states=((0, "closed", "green"), (1, "half open", "yellow"), (2, "open", "red")),
            queries=(query("max by (instance, breaker) (sark_breaker_state{})", "{{instance}} {{breaker}}"),),
        ),
        Panel(
            title="Passes without enforcement",
            description="By on_store_failure, per second.",
            unit="reqps",
            width=6,
            queries=(query("sum by (mode) (rate(sark_store_failures_allowed_total{}[$__rate_interval]))", "{{mode}}"),),
        ),
        Panel(
            title="Journal",
            description="Passes without enforcement that wait to be booked.",
            width=6,
            queries=(query("sum(sark_journal_entries{})", "entries"),),
        ),
        Panel(
            title="Expired holds",
            description="Per second: workers that were killed, or requests longer than their lease.",
            unit="ops",
            width=6,
            queries=(query("sum(rate(sark_expired_holds_total{}[$__rate_interval]))", "expired"),),
        ),
    ),
)

_LEDGER = Row(
    title="Ledger",
    panels=(
        Panel(
            title="Backlog",
            description="Ledger entries that are not in the database yet.",
            width=6,
            queries=(query("max(sark_outbox_entries{})", "entries"),),
        ),
        Panel(
            title="Oldest entry",
            description="How long the oldest one waits.",
            unit="s",
            width=6,
            queries=(query("max(sark_outbox_oldest_seconds{})", "oldest"),),
        ),
        Panel(
            title="Flushed rows and failed batches",
            description="Per second.",
            unit="ops",
            width=6,
            queries=(
                query("sum(rate(sark_ledger_rows_total{}[$__rate_interval]))", "rows"),
                query("sum by (reason) (rate(sark_ledger_flush_failures_total{}[$__rate_interval]))", "failed {{reason}}"),
            ),
        ),
        Panel(
            title="Flush time",
            description="Of one committed batch.",
            unit="s",
            width=6,
            queries=quantiles("sark_ledger_flush_seconds"),
        ),
        Panel(
            title="Drift",
            description="Counter minus ledger per shard: 0 is the only good value.",
            width=24,
            height=6,
            red_above=0.0,
            queries=(
                query("max by (shard) (abs(sark_drift_nanos{}))", "shard {{shard}} nanos"),
                query("max by (shard, unit) (abs(sark_drift_units{}))", "shard {{shard}} {{unit}}"),
            ),
        ),
    ),
)

_LIMITS = Row(
    title="Limits",
    panels=(
        Panel(
            title="Events of limits",
            description="Thresholds that fired, rests carried over, what administrators did; whose, says the audit trail.",
            unit="none",
            width=6,
            queries=(query("sum by (kind, unit) (increase(sark_limit_events_total{}[$__rate_interval]))", "{{kind}} {{unit}}"),),
        ),
        Panel(
            title="Webhook deliveries",
            description="Attempts by how they ended; given up: not delivered within three days.",
            unit="none",
            width=6,
            queries=(query("sum by (outcome) (increase(sark_webhook_deliveries_total{}[$__rate_interval]))", "{{outcome}}"),),
        ),
        Panel(
            title="Requests made cheaper",
            description="Per second: output clamped, or sent to a cheaper model, to fit their limits.",
            unit="reqps",
            width=6,
            queries=(query("sum by (kind) (rate(sark_requests_adapted_total{}[$__rate_interval]))", "{{kind}}"),),
        ),
        Panel(
            title="Repeated idempotency keys",
            description="Per second, by how the repeated request was answered.",
            unit="reqps",
            width=6,
            queries=(query("sum by (outcome) (rate(sark_idempotent_total{}[$__rate_interval]))", "{{outcome}}"),),
        ),
    ),
)

ROWS = (_MONEY, _REQUESTS, _STORE, _LEDGER, _LIMITS)
