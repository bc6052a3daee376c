"""The Prometheus metrics by name: what exists, in which unit, with which labels. Alerts and dashboards are tested against it.

Money and counts never share a metric: `_nanos` is nano-dollars, `_units` is the integer of its `unit` label.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_OverWorkers = Literal["livesum", "livemostrecent", "livemax"]

M = TypeVar("M", Counter, Gauge, Histogram)

_STORE_SECONDS = (0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LOCAL_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0)
_PLUGIN_SECONDS = (0.00001, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_FLUSH_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_RATIOS = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0, 1.01, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0, 100.0)


class Family(Generic[M]):
    """A metric with labels that finds the series of label values by one dictionary look-up; `labels` of the client takes 2 µs.

    The values must be bounded before they come here.
    """

    __slots__ = ("_metric", "_series")

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._series: dict[tuple[str, ...], M] = {}

    def __call__(self, *values: str) -> M:
        """Return the series of these label values."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._metric.labels(*values)
        return series


class Metrics:
    """Every metric of one process, in `registry`.

    Gauges over several worker processes: what each has of its own (holds, journal) is summed over the living; what all of them
    measure of the same thing (backlog, drift) is the latest of the living; of the breakers the worst is shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests()
        self._store()
        self._money()
        self._ledger()
        self._limits()
        self._policies()

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"sark_{name}", text, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"sark_{name}", text, buckets=buckets, registry=self._registry)

    def _counters(self, name: str, text: str, *labels: str) -> Family[Counter]:
        return Family(Counter(f"sark_{name}", text, labels, registry=self._registry))

    def _histograms(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Family[Histogram]:
        return Family(Histogram(f"sark_{name}", text, labels, buckets=buckets, registry=self._registry))

    def _gauge(self, name: str, text: str, over_workers: _OverWorkers) -> Gauge:
        return Gauge(f"sark_{name}", text, registry=self._registry, multiprocess_mode=over_workers)

    def _gauges(self, name: str, text: str, over_workers: _OverWorkers, *labels: str) -> Family[Gauge]:
        return Family(Gauge(f"sark_{name}", text, labels, registry=self._registry, multiprocess_mode=over_workers))

    def _requests(self) -> None:
        self.requests = self._counters(
            "requests_total", "HTTP requests by how they ended.", "outcome", "wire", "operation", "provider", "status"
        )
        self.refusals = self._counters("refusals_total", "Refused requests by what refused them.", "outcome", "reason")
        self.added = self._histograms(
            "added_seconds", "Time that sark_mw itself added before the first byte.", _STORE_SECONDS, "outcome"
        )
        self.estimate = self._histograms("estimate_seconds", "Time to price a request in advance.", _LOCAL_SECONDS, "outcome")
        self.unknown_models = self._counters(
            "unknown_models_total", "Requests priced by the provider's default price.", "provider"
        )

    def _store(self) -> None:
        self.reserve = self._histograms("reserve_seconds", "Time of a reserve, batching included.", _STORE_SECONDS, "outcome")
        self.settle = self._histograms("settle_seconds", "Time of a settle or release.", _STORE_SECONDS, "outcome", "kind")
        self.shadowed = self._counter("shadow_refusals_total", "Limits in shadow mode that would have refused.")
        self.breaker = self._gauges(
            "breaker_state", "Circuit breaker before the store: 0 closed, 1 half open, 2 open.", "livemax", "breaker"
        )
        self.failures_allowed = self._counters(
            "store_failures_allowed_total", "Requests that went on without the store's word, by on_store_failure.", "mode"
        )
        self.expired = self._counter("expired_holds_total", "Holds whose lease ended before a settle.")

    def _money(self) -> None:
        self.spend_nanos = self._counters("spend_nanos_total", "Cost booked, in nano-dollars.", "provider", "model")
        self.spend_units = self._counters("spend_units_total", "Requests and tokens booked.", "provider", "unit")
        self.corrected_nanos = self._counters(
            "spend_corrected_nanos_total",
            "Cost booked too high by an expiry and taken back later, in nano-dollars.",
            "provider",
            "model",
        )
        self.held_nanos = self._gauge("held_nanos", "Cost held by requests in flight, in nano-dollars.", "livesum")
        self.held_units = self._gauges(
            "held_units", "Requests, tokens and concurrency held by requests in flight.", "livesum", "unit"
        )
        self.overrun_nanos = self._counter("overrun_nanos_total", "Cost booked above its own hold, in nano-dollars.")
        self.overrun_units = self._counters("overrun_units_total", "Requests and tokens booked above their own hold.", "unit")
        self.ratio = self._histograms("estimate_ratio", "Actual cost divided by expected cost.", _RATIOS, "provider")

    def _ledger(self) -> None:
        self.outbox_entries = self._gauge("outbox_entries", "Ledger entries that are not in the database yet.", "livemostrecent")
        self.outbox_oldest = self._gauge(
            "outbox_oldest_seconds", "Age of the oldest entry that is not in the database yet.", "livemostrecent"
        )
        self.rows = self._counter("ledger_rows_total", "Ledger entries written to the database.")
        self.flush = self._histogram("ledger_flush_seconds", "Time of one committed batch.", _FLUSH_SECONDS)
        self.flush_failures = self._counters("ledger_flush_failures_total", "Batches that could not be committed.", "reason")
        self.drift_nanos = self._gauges(
            "drift_nanos", "Counter minus ledger, in nano-dollars: 0 is the only good value.", "livemostrecent", "shard"
        )
        self.drift_units = self._gauges(
            "drift_units", "Counter minus ledger in requests or tokens.", "livemostrecent", "shard", "unit"
        )
        self.journal = self._gauge("journal_entries", "Fail-open passes that wait to be booked.", "livesum")

    def _limits(self) -> None:
        self.limit_events = self._counters(
            "limit_events_total", "What happened to limits: thresholds, top-ups, ….", "kind", "unit"
        )
        self.webhook_deliveries = self._counters(
            "webhook_deliveries_total", "Attempts to deliver an event to a webhook, by how they ended.", "outcome"
        )
        self.adapted = self._counters("requests_adapted_total", "Requests made cheaper to fit their limits.", "kind")
        self.idempotent = self._counters(
            "idempotent_total", "Requests whose idempotency key was there already, by how they ended.", "outcome"
        )

    def _policies(self) -> None:
        self.plugin = self._histograms(
            "plugin_seconds", "Time and outcome of policy plugins.", _PLUGIN_SECONDS, "plugin", "outcome"
        )
        self.plugin_loads = self._counters(
            "plugin_loads_total", "Files of policy plugins by what became of them.", "plugin", "outcome"
        )
        self.plugin_blocked = self._histograms(
            "plugin_blocked_seconds",
            "Times that a policy plugin kept the event loop from everything else.",
            _PLUGIN_SECONDS,
            "plugin",
        )
        self.plugin_breaker = self._gauges(
            "plugin_breaker_state", "Breaker of an isolated plugin: 0 closed, 1 half open, 2 open.", "livemax", "plugin"
        )
        self.isolation_missing = self._gauge(
            "policy_isolation_missing_layers", "Layers of isolation that plugins run without: 0 is the good value.", "livemax"
        )
