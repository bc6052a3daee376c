"""Prometheus: turn events into metrics, in one process or over several workers.

With `PROMETHEUS_MULTIPROC_DIR` set before Python starts, the values of all workers are kept in files of that directory (empty it
when the gateway starts, share it only among the workers of one host) and any worker answers for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import prometheus_client.values
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from sark_mw.errors import ConfigurationError
from sark_mw.instrumentation.base import PluginOutcome, PolicyDecided, RequestFinished, RequestOutcome, Reserved, Settled
from sark_mw.instrumentation.labels import BoundedLabel, status_class
from sark_mw.instrumentation.metrics import Metrics
from sark_mw.limit import Unit

_ENVIRONMENT = "PROMETHEUS_MULTIPROC_DIR"
_REFUSALS = frozenset(RequestOutcome) - {RequestOutcome.ADMITTED, RequestOutcome.PASSED}
#: An estimate of next to nothing must not make the histogram's sum meaningless.
_MAX_RATIO = 1000.0


def _multiprocess_directory() -> str | None:
    """Return the workers' directory, or None; raise `ConfigurationError` where counting would go nowhere."""
    path = os.environ.get(_ENVIRONMENT)
    if not path:
        return None
    if not Path(path).is_dir():
        raise ConfigurationError(f"{_ENVIRONMENT} is not a directory: {path}")
    if prometheus_client.values.ValueClass is prometheus_client.values.MutexValue:
        raise ConfigurationError(f"{_ENVIRONMENT} must be set before prometheus_client is imported")
    return path


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def forget_dead_workers(directory: str) -> None:
    """Drop the live gauges of workers that are gone: one killed by SIGKILL holds nothing any more, and no server hook tells."""
    if os.name != "posix":
        return  # elsewhere there is no harmless way to ask whether a process lives
    stems = {path.stem.rpartition("_")[2] for path in Path(directory).glob("gauge_live*.db")}
    for pid in stems:
        if pid.isdigit() and not _is_alive(int(pid)):
            # Another scrape may be at the same file.
            with suppress(FileNotFoundError):
                mark_process_dead(int(pid), directory)  # type: ignore[no-untyped-call]


class PrometheusInstrumentation:
    """Count, time and gauge every event; make one per process.

    `registry` None makes an own one: nothing leaks into the process-wide default. `models` and `providers` are the names that
    always get their own label; others share at most `other_names` places (None: none when names are given, else 50).
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        providers: Iterable[str] = (),
        models: Iterable[str] = (),
        other_names: int | None = None,
    ) -> None:
        self._directory = _multiprocess_directory()
        self.registry = registry if registry is not None else CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self._provider = BoundedLabel(allowed=providers, limit=other_names)
        self._model = BoundedLabel(allowed=models, limit=other_names)
        self._wire, self._operation, self._reason = BoundedLabel(limit=30), BoundedLabel(limit=50), BoundedLabel(limit=50)
        self._plugin, self._failure = BoundedLabel(limit=50), BoundedLabel(limit=50)
        # Outcomes are enums, but the label must stay bounded whatever a custom store answers.
        self._outcome, self._unit, self._breaker = BoundedLabel(limit=64), BoundedLabel(limit=20), BoundedLabel(limit=256)
        self._shard = BoundedLabel(limit=1024)
        self._event = BoundedLabel(limit=20)
        self._plugins: set[str] = set()
        # Alerts look at increases: a counter that is born at 1 has none, so these are born at 0.
        for mode in ("allow", "leased"):
            self.metrics.failures_allowed(mode)
        for outcome in ("delivered", "failed", "given_up"):
            self.metrics.webhook_deliveries(outcome)

    def scrape_registry(self) -> CollectorRegistry:
        """Return what `/metrics` shows: this process, or all workers of the host."""
        if self._directory is None:
            return self.registry
        forget_dead_workers(self._directory)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone, self._directory)  # type: ignore[no-untyped-call]
        return everyone

    def request_finished(self, event: RequestFinished) -> None:
        """Count the request, its refusal's reason and the time it cost."""
        outcome = self._outcome(event.outcome)
        self.metrics.requests(
            outcome,
            self._wire(event.wire),
            self._operation(event.operation),
            self._provider(event.provider),
            status_class(event.status),
        ).inc()
        if event.outcome in _REFUSALS:
            self.metrics.refusals(outcome, self._reason(event.reason)).inc()
        if event.added_seconds is not None:
            self.metrics.added(outcome).observe(event.added_seconds)

    def reserved(self, event: Reserved) -> None:
        """Time the reserve and count the shadow limits that would have refused."""
        self.metrics.reserve(self._outcome(event.outcome)).observe(event.seconds)
        if event.shadowed:
            self.metrics.shadowed.inc(event.shadowed)

    def settled(self, event: Settled) -> None:
        """Time the settle; count what it booked, what it overran and how good the estimate was."""
        self.metrics.settle(self._outcome(event.outcome), self._outcome(event.kind)).observe(event.seconds)
        for unit, amount in () if event.repeated else event.booked:
            self._booked(event.provider, event.model, unit, amount)
        for unit, amount in () if event.repeated else event.overrun:
            if unit == Unit.USD:
                self.metrics.overrun_nanos.inc(amount)
            else:
                self.metrics.overrun_units(self._unit(unit)).inc(amount)
        if event.actual_nanos is not None and event.estimated_nanos > 0 and not event.repeated:
            ratio = max(event.actual_nanos, 0) / event.estimated_nanos
            self.metrics.ratio(self._provider(event.provider)).observe(min(ratio, _MAX_RATIO))

    def _booked(self, provider: str, model: str | None, unit: str, amount: int) -> None:
        if unit == Unit.USD:
            # Counters only rise, so money taken back has its own: spend − corrected is the net.
            counter = self.metrics.spend_nanos if amount >= 0 else self.metrics.corrected_nanos
            counter(self._provider(provider), self._model(model)).inc(abs(amount))
        elif amount > 0:
            self.metrics.spend_units(self._provider(provider), self._unit(unit)).inc(amount)

    def held(self, unit: str, change: int) -> None:
        """Move the gauge of what this process holds."""
        gauge = self.metrics.held_nanos if unit == Unit.USD else self.metrics.held_units(self._unit(unit))
        gauge.inc(change)

    def estimated(self, outcome: str, seconds: float) -> None:
        """Time the estimate."""
        self.metrics.estimate(self._outcome(outcome)).observe(seconds)

    def unknown_model(self, provider: str, model: str) -> None:
        """Count it by provider; the model is the caller's word, so it is no label (the audit trail names it)."""
        self.metrics.unknown_models(self._provider(provider)).inc()

    def store_failure_allowed(self, mode: str) -> None:
        """Count the pass."""
        self.metrics.failures_allowed(self._outcome(mode)).inc()

    def breaker_changed(self, name: str, state: int) -> None:
        """Show the state."""
        self.metrics.breaker(self._breaker(name)).set(state)

    def holds_expired(self, count: int) -> None:
        """Count them."""
        self.metrics.expired.inc(count)

    def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
        """Time the plugin by outcome."""
        plugin = self._plugin(name)
        if plugin not in self._plugins:
            self._plugins.add(plugin)
            for known in PluginOutcome:
                self.metrics.plugin(plugin, known.value)
        self.metrics.plugin(plugin, self._outcome(outcome)).observe(seconds)

    def policy_decided(self, event: PolicyDecided) -> None:
        """Do nothing: `plugin_evaluated` has counted it."""

    def plugin_loaded(self, name: str, outcome: str) -> None:
        """Count it."""
        plugin = self._plugin(name)
        if outcome != "failed":
            self.metrics.plugin_loads(plugin, "failed")
        self.metrics.plugin_loads(plugin, self._outcome(outcome)).inc()

    def plugin_blocked(self, name: str, seconds: float) -> None:
        """Time the block."""
        self.metrics.plugin_blocked(self._plugin(name)).observe(seconds)

    def plugin_breaker_changed(self, name: str, state: int) -> None:
        """Show the state."""
        self.metrics.plugin_breaker(self._plugin(name)).set(state)

    def policy_isolation(self, missing: Sequence[str]) -> None:
        """Show how many layers are missing."""
        self.metrics.isolation_missing.set(len(missing))

    def backlog_measured(self, entries: int, oldest_seconds: float) -> None:
        """Show the backlog's size and age."""
        self.metrics.outbox_entries.set(entries)
        self.metrics.outbox_oldest.set(oldest_seconds)

    def ledger_flushed(self, rows: int, seconds: float) -> None:
        """Count rows, time the batch."""
        self.metrics.rows.inc(rows)
        self.metrics.flush.observe(seconds)

    def ledger_failed(self, reason: str) -> None:
        """Count the failed batch."""
        self.metrics.flush_failures(self._failure(reason)).inc()

    def expiry_booked(self, provider: str, model: str | None, unit: str, amount: int) -> None:
        """Count it as spend like a settle's."""
        self._booked(provider, model, unit, amount)

    def drift_measured(self, shard: int, unit: str, amount: int) -> None:
        """Show the drift of one shard."""
        label = self._shard(str(shard))
        if unit == Unit.USD:
            self.metrics.drift_nanos(label).set(amount)
        else:
            self.metrics.drift_units(label, self._unit(unit)).set(amount)

    def journal_measured(self, entries: int) -> None:
        """Show how many wait."""
        self.metrics.journal.set(entries)

    def limit_event(self, kind: str, unit: str, scope: str, limit_id: str, root: str, detail: str) -> None:
        """Count it by kind and unit; whose limit it is, the audit trail says."""
        self.metrics.limit_events(self._event(kind), self._unit(unit)).inc()

    def webhook_delivered(self, outcome: str) -> None:
        """Count the attempt."""
        self.metrics.webhook_deliveries(self._outcome(outcome)).inc()

    def request_adapted(self, kind: str) -> None:
        """Count it."""
        self.metrics.adapted(self._outcome(kind)).inc()

    def idempotent_replayed(self, outcome: str) -> None:
        """Count it."""
        self.metrics.idempotent(self._outcome(outcome)).inc()
