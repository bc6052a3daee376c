"""What is told to whoever watches: one Protocol, one method per event.

The middleware and the enforcer hand over a frozen dataclass where an event has many facts. The rooms beside this one
(store, policy, ledger) may not import it: their events take plain arguments, so each of them declares a Protocol with the
one or two methods that it calls, and any `Instrumentation` fits. Nothing here awaits and nothing here may raise into a request:
`Composite` is the boundary that holds this.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sark_mw.instrumentation.events import (
    BreakerState,
    PluginOutcome,
    PolicyDecided,
    RequestFinished,
    RequestOutcome,
    Reserved,
    Settled,
)

__all__ = [
    "BreakerState",
    "Composite",
    "Instrumentation",
    "NullInstrumentation",
    "PluginOutcome",
    "PolicyDecided",
    "RequestFinished",
    "RequestOutcome",
    "Reserved",
    "Settled",
]

_log = logging.getLogger(__name__)


@runtime_checkable
class Instrumentation(Protocol):
    """Hear what happened; every method returns at once, does not block and does not raise."""

    def request_finished(self, event: RequestFinished) -> None:
        """Hear of a request's end: the middleware, once per HTTP request."""

    def reserved(self, event: Reserved) -> None:
        """Hear of a reserve: the enforcer, once per call to the store."""

    def settled(self, event: Settled) -> None:
        """Hear of a settle, partial settle or release: the enforcer, once per call to the store."""

    def held(self, unit: str, change: int) -> None:
        """Hear that this process holds `change` more (or, negative, less) of a unit: the enforcer, at every change."""

    def estimated(self, outcome: str, seconds: float) -> None:
        """Hear of an estimate: `priced`, `unknown_model`, `invalid` or `failed`."""

    def unknown_model(self, provider: str, model: str) -> None:
        """Hear that a model was priced by the provider's default: `model` is the caller's own word."""

    def store_failure_allowed(self, mode: str) -> None:
        """Hear that a request went on without the store's word, by `on_store_failure`: `allow` or `leased`."""

    def breaker_changed(self, name: str, state: int) -> None:
        """Hear a `BreakerState` of the breaker `name` (`store`, or a shard's)."""

    def holds_expired(self, count: int) -> None:
        """Hear that a script call of this process swept `count` holds whose lease had ended."""

    def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
        """Hear a `PluginOutcome`: the policy manager, once per plugin and request."""

    def policy_decided(self, event: PolicyDecided) -> None:
        """Hear of a decision with all that belongs to it: the enforcer, once per plugin and request."""

    def plugin_loaded(self, name: str, outcome: str) -> None:
        """Hear what became of a plugin's file: `loaded`, `reloaded`, `unloaded`, or `failed` and the old version stays."""

    def plugin_blocked(self, name: str, seconds: float) -> None:
        """Hear that a plugin in this process kept the event loop from everything else: once per block."""

    def plugin_breaker_changed(self, name: str, state: int) -> None:
        """Hear a `BreakerState` of an isolated plugin's breaker: an open one keeps requests from it, `on_error` decides."""

    def policy_isolation(self, missing: Sequence[str]) -> None:
        """Hear which layers of isolation the system lacks while plugins run all the same; none is the good answer."""

    def backlog_measured(self, entries: int, oldest_seconds: float) -> None:
        """Hear how many ledger entries are not in the database yet and how old the oldest is (0 when there is none)."""

    def ledger_flushed(self, rows: int, seconds: float) -> None:
        """Hear that a batch was committed: `rows` new ones, 0 where all had been there."""

    def ledger_failed(self, reason: str) -> None:
        """Hear that a batch could not be committed; `reason` is the exception's class name, never its text."""

    def expiry_booked(self, provider: str, model: str | None, unit: str, amount: int) -> None:
        """Hear what an expired hold was booked at: the flusher, for entries of kind `expire`, since nobody settles those."""

    def drift_measured(self, shard: int, unit: str, amount: int) -> None:
        """Hear counter minus ledger of one shard, in the unit's integer; 0 is the only good value."""

    def journal_measured(self, entries: int) -> None:
        """Hear how many fail-open passes wait in this process's journal to be booked."""

    def limit_event(self, kind: str, unit: str, scope: str, limit_id: str, root: str, detail: str) -> None:
        """Hear what happened to a limit (`threshold`, `top_up`, …): the flusher, or who changed it; `detail` is a JSON object."""

    def webhook_delivered(self, outcome: str) -> None:
        """Hear how an attempt to deliver an event to a webhook ended: `delivered`, `failed`, or `given_up` after the last one."""

    def request_adapted(self, kind: str) -> None:
        """Hear that a request was made cheaper to fit its limits: `clamped` (its output) or `downgraded` (its model)."""

    def idempotent_replayed(self, outcome: str) -> None:
        """Hear how a request whose idempotency key was there already ended: `replayed`, `in_flight`, `done` or `reused`."""


class NullInstrumentation:
    """Hear everything and do nothing; the base for an instrumentation that cares about a few events only."""

    def request_finished(self, event: RequestFinished) -> None:
        """Do nothing."""

    def reserved(self, event: Reserved) -> None:
        """Do nothing."""

    def settled(self, event: Settled) -> None:
        """Do nothing."""

    def held(self, unit: str, change: int) -> None:
        """Do nothing."""

    def estimated(self, outcome: str, seconds: float) -> None:
        """Do nothing."""

    def unknown_model(self, provider: str, model: str) -> None:
        """Do nothing."""

    def store_failure_allowed(self, mode: str) -> None:
        """Do nothing."""

    def breaker_changed(self, name: str, state: int) -> None:
        """Do nothing."""

    def holds_expired(self, count: int) -> None:
        """Do nothing."""

    def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
        """Do nothing."""

    def policy_decided(self, event: PolicyDecided) -> None:
        """Do nothing."""

    def plugin_loaded(self, name: str, outcome: str) -> None:
        """Do nothing."""

    def plugin_blocked(self, name: str, seconds: float) -> None:
        """Do nothing."""

    def plugin_breaker_changed(self, name: str, state: int) -> None:
        """Do nothing."""

    def policy_isolation(self, missing: Sequence[str]) -> None:
        """Do nothing."""

    def backlog_measured(self, entries: int, oldest_seconds: float) -> None:
        """Do nothing."""

    def ledger_flushed(self, rows: int, seconds: float) -> None:
        """Do nothing."""

    def ledger_failed(self, reason: str) -> None:
        """Do nothing."""

    def expiry_booked(self, provider: str, model: str | None, unit: str, amount: int) -> None:
        """Do nothing."""

    def drift_measured(self, shard: int, unit: str, amount: int) -> None:
        """Do nothing."""

    def journal_measured(self, entries: int) -> None:
        """Do nothing."""

    def limit_event(self, kind: str, unit: str, scope: str, limit_id: str, root: str, detail: str) -> None:
        """Do nothing."""

    def webhook_delivered(self, outcome: str) -> None:
        """Do nothing."""

    def request_adapted(self, kind: str) -> None:
        """Do nothing."""

    def idempotent_replayed(self, outcome: str) -> None:
        """Do nothing."""


class Composite:
    """Tell several, in order; one that raises is logged once per event and never stops the request or the others."""

    def __init__(self, parts: Sequence[Instrumentation]) -> None:
        self.parts = tuple(parts)
        self._reported: set[tuple[int, str]] = set()

    def _tell(self, event: str, *arguments: object) -> None:
        for index, part in enumerate(self.parts):
            try:
                getattr(part, event)(*arguments)
            except Exception:  # noqa: BLE001 the hook boundary: a user's instrumentation must not refuse a request
                self._report(index, event)

    def _report(self, index: int, event: str) -> None:
        if (index, event) not in self._reported:
            self._reported.add((index, event))
            _log.exception(
                "instrumentation %s failed in %s; later failures are not logged", type(self.parts[index]).__name__, event
            )

    def request_finished(self, event: RequestFinished) -> None:
        """Tell all."""
        self._tell("request_finished", event)

    def reserved(self, event: Reserved) -> None:
        """Tell all."""
        self._tell("reserved", event)

    def settled(self, event: Settled) -> None:
        """Tell all."""
        self._tell("settled", event)

    def held(self, unit: str, change: int) -> None:
        """Tell all."""
        self._tell("held", unit, change)

    def estimated(self, outcome: str, seconds: float) -> None:
        """Tell all."""
        self._tell("estimated", outcome, seconds)

    def unknown_model(self, provider: str, model: str) -> None:
        """Tell all."""
        self._tell("unknown_model", provider, model)

    def store_failure_allowed(self, mode: str) -> None:
        """Tell all."""
        self._tell("store_failure_allowed", mode)

    def breaker_changed(self, name: str, state: int) -> None:
        """Tell all."""
        self._tell("breaker_changed", name, state)

    def holds_expired(self, count: int) -> None:
        """Tell all."""
        self._tell("holds_expired", count)

    def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
        """Tell all."""
        self._tell("plugin_evaluated", name, outcome, seconds)

    def policy_decided(self, event: PolicyDecided) -> None:
        """Tell all."""
        self._tell("policy_decided", event)

    def plugin_loaded(self, name: str, outcome: str) -> None:
        """Tell all."""
        self._tell("plugin_loaded", name, outcome)

    def plugin_blocked(self, name: str, seconds: float) -> None:
        """Tell all."""
        self._tell("plugin_blocked", name, seconds)

    def plugin_breaker_changed(self, name: str, state: int) -> None:
        """Tell all."""
        self._tell("plugin_breaker_changed", name, state)

    def policy_isolation(self, missing: Sequence[str]) -> None:
        """Tell all."""
        self._tell("policy_isolation", missing)

    def backlog_measured(self, entries: int, oldest_seconds: float) -> None:
        """Tell all."""
        self._tell("backlog_measured", entries, oldest_seconds)

    def ledger_flushed(self, rows: int, seconds: float) -> None:
        """Tell all."""
        self._tell("ledger_flushed", rows, seconds)

    def ledger_failed(self, reason: str) -> None:
        """Tell all."""
        self._tell("ledger_failed", reason)

    def expiry_booked(self, provider: str, model: str | None, unit: str, amount: int) -> None:
        """Tell all."""
        self._tell("expiry_booked", provider, model, unit, amount)

    def drift_measured(self, shard: int, unit: str, amount: int) -> None:
        """Tell all."""
        self._tell("drift_measured", shard, unit, amount)

    def journal_measured(self, entries: int) -> None:
        """Tell all."""
        self._tell("journal_measured", entries)

    def limit_event(self, kind: str, unit: str, scope: str, limit_id: str, root: str, detail: str) -> None:
        """Tell all."""
        self._tell("limit_event", kind, unit, scope, limit_id, root, detail)

    def webhook_delivered(self, outcome: str) -> None:
        """Tell all."""
        self._tell("webhook_delivered", outcome)

    def request_adapted(self, kind: str) -> None:
        """Tell all."""
        self._tell("request_adapted", kind)

    def idempotent_replayed(self, outcome: str) -> None:
        """Tell all."""
        self._tell("idempotent_replayed", outcome)
