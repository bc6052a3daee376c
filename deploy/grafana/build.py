"""Make the Grafana dashboard: `python deploy/grafana/build.py` writes dashboards/sark.json beside this file.

Panels are data: add a `Panel`, run it, commit the JSON. A test holds the committed file to this code and every query to the
metrics that exist.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

OUTPUT = Path(__file__).parent / "dashboards" / "sark.json"
DATASOURCE = {"type": "prometheus", "uid": "sark-prometheus"}
_COLUMNS = 24

Json = dict[str, object]


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
            queries=quantiles("sark_estimate_ratio", "provider"),
        ),
        Panel(
            title="Requests and tokens booked",
            description="Per second, by unit.",
            unit="cps",
            queries=(query("sum by (unit) (rate(sark_spend_units_total{}[$__rate_interval]))", "{{unit}}"),),
        ),
        Panel(
            title="Units held and overrun",
            description="Requests, tokens and concurrency held by requests in flight; what was booked above holds, per second.",
            queries=(
                query("sum by (unit) (sark_held_units{})", "held {{unit}}"),
                query("sum by (unit) (rate(sark_overrun_units_total{}[$__rate_interval]))", "overrun {{unit}}"),
            ),
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
            queries=(
                query("sum by (plugin, outcome) (rate(sark_plugin_seconds_count{}[$__rate_interval]))", "{{plugin}} {{outcome}}"),
            ),
        ),
        Panel(title="Plugin time", description="Per plugin.", unit="s", queries=quantiles("sark_plugin_seconds", "plugin")),
        Panel(
            title="Estimates",
            description="Time to price a request, and models that the price list does not know, per second.",
            unit="s",
            queries=(
                *quantiles("sark_estimate_seconds"),
                query("sum by (provider) (rate(sark_unknown_models_total{}[$__rate_interval]))", "unknown models {{provider}}"),
            ),
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
            states=((0, "closed", "green"), (1, "half open", "yellow"), (2, "open", "red")),
            queries=(query("max by (instance, breaker) (sark_breaker_state{})", "{{instance}} {{breaker}}"),),
        ),
        Panel(
            title="Passes without enforcement",
            description="By on_store_failure, per second; and how many wait in journals to be booked.",
            queries=(
                query("sum by (mode) (rate(sark_store_failures_allowed_total{}[$__rate_interval]))", "{{mode}}"),
                query("sum(sark_journal_entries{})", "in the journal"),
            ),
        ),
        Panel(
            title="Expired holds",
            description="Per second: workers that were killed, or requests longer than their lease.",
            unit="ops",
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
            title="Flushes",
            description="Rows per second and failed batches per second.",
            unit="ops",
            width=6,
            queries=(
                query("sum(rate(sark_ledger_rows_total{}[$__rate_interval]))", "rows"),
                query("sum by (reason) (rate(sark_ledger_flush_failures_total{}[$__rate_interval]))", "failed {{reason}}"),
                query(
                    "histogram_quantile(0.99, sum by (le) (rate(sark_ledger_flush_seconds_bucket{}[$__rate_interval])))", "p99 s"
                ),
            ),
        ),
        Panel(
            title="Drift",
            description="Counter minus ledger per shard: 0 is the only good value.",
            width=6,
            red_above=0.0,
            queries=(
                query("max by (shard) (abs(sark_drift_nanos{}))", "shard {{shard}} nanos"),
                query("max by (shard, unit) (abs(sark_drift_units{}))", "shard {{shard}} {{unit}}"),
            ),
        ),
    ),
)

ROWS = (_MONEY, _REQUESTS, _STORE, _LEDGER)


def _field_config(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        # The first amount above the threshold: Grafana's steps begin *at* their value.
        steps.append({"color": "red", "value": panel.red_above + 1e-9})
    defaults: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}, "mappings": []}
    if panel.states:
        options = {str(value): {"text": text, "color": color, "index": value} for value, text, color in panel.states}
        defaults["mappings"] = [{"type": "value", "options": options}]
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults["custom"] = {"fillOpacity": 20 if panel.stacked else 5, "stacking": stacking, "showPoints": "never"}
    return {"defaults": defaults, "overrides": []}


def _options(panel: Panel) -> Json:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none",
        }
    if panel.kind == "state-timeline":
        return {
            "showValue": "auto",
            "mergeValues": True,
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
        }
    return {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> Json:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "expr": asked.expr,
            "legendFormat": asked.legend,
            "instant": panel.kind == "stat",
            "range": panel.kind != "stat",
        }
        for index, asked in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": _field_config(panel),
        "options": _options(panel),
        "targets": targets,
    }


def _place(rows: tuple[Row, ...]) -> list[Json]:
    """Lay panels out from left to right, a headline above each row."""
    placed: list[Json] = []
    y = 0
    for row in rows:
        headline = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        placed.append(
            {"id": len(placed) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": headline, "panels": []}
        )
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            placed.append(_panel(panel, len(placed) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return placed


def dashboard() -> Json:
    """Return the dashboard as Grafana imports it."""
    job: Json = {
        "name": "job",
        "label": "Gateway",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": "label_values(sark_overrun_nanos_total, job)", "refId": "job"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": "sark",
        "title": "sark_mw",
        "description": "Budgets, refusals, latency and the books of the gateways behind SarkMiddleware.",
        "tags": ["sark"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [job]},
        "annotations": {"list": []},
        "panels": _place(ROWS),
    }


def render() -> str:
    """Return the file's text."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{OUTPUT}\n")
