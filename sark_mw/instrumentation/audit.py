"""The audit trail: one structured line per decision about money, without secrets and without prompts.

Only the fields of `FIELDS` can appear, whatever is passed; strings are cut and made printable, so that a caller's model name can
neither flood nor forge a line. Nothing here touches structlog's global configuration unless `configure_logging` is called.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from sark_mw.instrumentation.base import (
    BreakerState,
    NullInstrumentation,
    PluginOutcome,
    PolicyDecided,
    RequestFinished,
    RequestOutcome,
    Reserved,
    Settled,
)

Renderer = Literal["json", "console"]
MAX_TEXT_LENGTH = 200
#: What a policy says besides its reason may be longer: OPA's decision id, what is usual, what was raised.
MAX_METADATA_LENGTH = 1000

#: Everything that an audit line may say. Arguments, prompts, bodies, headers and keys are not in it and so cannot be said.
FIELDS = frozenset(
    {
        "actual_nanos", "allowed", "amount", "booked", "breaker", "count", "detail", "entries", "estimated_nanos", "held",
        "kind", "late", "limit_id", "metadata", "mode", "model", "obligations", "oldest_seconds", "operation", "outcome",
        "overrun", "plugin", "principal_id", "provider", "reason", "request_id", "reservation_id", "root", "rows", "scope",
        "seconds", "shadowed", "shard", "state", "status", "unit", "version", "wire",
    }
)  # fmt: skip
_STRUCTURAL = frozenset({"event", "level", "timestamp"})

# A second net: a key that someone configured as a name (of a principal, of a model) is not written out either.
_KEY_LIKE = re.compile(
    r"(?i)\b(?:bearer\s+\S+|(?:sk|pk|rk|ghp|gho|xox[a-z])[-_][\w-]{12,}|AIza[\w-]{20,}|eyJ[\w-]{10,}\.[\w.-]+)"
)
_ADMITTED = frozenset({"held", "booked"})
_SILENT = frozenset({RequestOutcome.ADMITTED, RequestOutcome.PASSED})


def printable(text: str, most: int = MAX_TEXT_LENGTH) -> str:
    """Cut a text to 200 characters (or `most`), take out what looks like a key, and replace what is not printable."""
    # Redact before the cut: a key of which only the head is left would no longer look like one.
    safe = _KEY_LIKE.sub("[redacted]", text[: 4 * most])[:most]
    return safe if safe.isprintable() else "".join(c if c.isprintable() else "_" for c in safe)


def _value(value: object, name: str = "") -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, tuple | dict):
        return {printable(str(unit)): int(amount) for unit, amount in dict(value).items()}
    return printable(str(value), MAX_METADATA_LENGTH if name == "metadata" else MAX_TEXT_LENGTH)


def keep_allowed_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Drop every field that is not in `FIELDS` and bound those that are: a structlog processor."""
    return {
        name: value if name in _STRUCTURAL else _value(value, name)
        for name, value in event.items()
        if name in FIELDS or name in _STRUCTURAL
    }


def _processors(renderer: Renderer) -> list[Processor]:
    last: Processor = structlog.processors.JSONRenderer() if renderer == "json" else structlog.dev.ConsoleRenderer(colors=False)
    return [
        structlog.processors.add_log_level,
        keep_allowed_fields,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        last,
    ]


def audit_logger(renderer: Renderer = "json", file: TextIO | None = None) -> FilteringBoundLogger:
    """Make a logger of its own that writes lines to `file` (None: standard error)."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(file if file is not None else sys.stderr),
        processors=_processors(renderer),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    return logger


def configure_logging(renderer: Renderer = "json", level: int = logging.INFO) -> None:
    """Configure structlog for the whole process, as the command line does; a host application keeps its own."""
    last: Processor = structlog.processors.JSONRenderer() if renderer == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


class AuditInstrumentation(NullInstrumentation):
    """Write `sark.admitted`, `.refused`, `.settled`, `.expired`, `.policy`, `.plugin`, `.store`, `.ledger`, `.estimate`,
    `.limit_event`.

    A logger passed in keeps its own processors; the fields are filtered here as well.
    """

    def __init__(self, logger: FilteringBoundLogger | None = None) -> None:
        self._logger = logger if logger is not None else audit_logger()

    def _write(self, level: int, event: str, **fields: Any) -> None:
        kept = {name: _value(value, name) for name, value in fields.items() if name in FIELDS and value not in (None, "", ())}
        self._logger.log(level, event, **kept)

    def request_finished(self, event: RequestFinished) -> None:
        """Write `sark.refused` for every request that was not let through."""
        if event.outcome in _SILENT:
            return
        self._write(
            logging.WARNING,
            "sark.refused",
            outcome=event.outcome,
            reason=event.reason,
            limit_id=event.limit_id,
            principal_id=event.principal_id,
            root=event.root,
            request_id=event.request_id,
            wire=event.wire,
            operation=event.operation,
            provider=event.provider,
            model=event.model,
            status=event.status,
        )

    def reserved(self, event: Reserved) -> None:
        """Write `sark.admitted` for a hold, `sark.store` for a failure; a refusal is written when the request ends."""
        if event.outcome in _ADMITTED:
            self._write(
                logging.INFO,
                "sark.admitted",
                reservation_id=event.reservation_id,
                request_id=event.request_id,
                principal_id=event.principal_id,
                root=event.root,
                provider=event.provider,
                model=event.model,
                held=event.held,
                shadowed=event.shadowed,
            )
        elif event.outcome == "unavailable":
            self._write(logging.ERROR, "sark.store", outcome="reserve_unavailable", request_id=event.request_id, root=event.root)

    def settled(self, event: Settled) -> None:
        """Write `sark.settled` for what was booked, released or could not be."""
        fine = event.outcome in ("settled", "released", "held") and not event.overrun
        self._write(
            logging.INFO if fine else logging.WARNING,
            "sark.settled",
            outcome=event.outcome,
            kind=event.kind,
            reservation_id=event.reservation_id,
            request_id=event.request_id,
            principal_id=event.principal_id,
            root=event.root,
            provider=event.provider,
            model=event.model,
            booked=event.booked,
            overrun=event.overrun,
            estimated_nanos=event.estimated_nanos,
            actual_nanos=event.actual_nanos,
            late=event.late,
        )

    def unknown_model(self, provider: str, model: str) -> None:
        """Write which model the price list lacks."""
        self._write(logging.WARNING, "sark.estimate", outcome="unknown_model", provider=provider, model=model)

    def store_failure_allowed(self, mode: str) -> None:
        """Write that a request went on unenforced."""
        self._write(logging.ERROR, "sark.store", outcome="failure_allowed", mode=mode)

    def breaker_changed(self, name: str, state: int) -> None:
        """Write the breaker's new state by name."""
        level = logging.INFO if state == BreakerState.CLOSED else logging.ERROR
        self._write(level, "sark.store", outcome="breaker", breaker=name, state=BreakerState(state).name.lower())

    def holds_expired(self, count: int) -> None:
        """Write how many holds went by themselves."""
        self._write(logging.WARNING, "sark.expired", count=count)

    def policy_decided(self, event: PolicyDecided) -> None:
        """Write every decision; those that did not allow are warnings."""
        self._write(
            logging.INFO if event.outcome == PluginOutcome.ALLOWED else logging.WARNING,
            "sark.policy",
            plugin=event.plugin,
            version=event.version,
            outcome=event.outcome,
            allowed=event.allowed,
            reason=event.reason,
            seconds=round(event.seconds, 6),
            obligations=", ".join(event.obligations),
            metadata=event.metadata,
            request_id=event.request_id,
            root=event.root,
            principal_id=event.principal_id,
        )

    def plugin_loaded(self, name: str, outcome: str) -> None:
        """Write it; that a new version failed is an error."""
        self._write(logging.ERROR if outcome == "failed" else logging.INFO, "sark.plugin", plugin=name, outcome=outcome)

    def plugin_blocked(self, name: str, seconds: float) -> None:
        """Write who blocked the gateway."""
        self._write(logging.ERROR, "sark.plugin", plugin=name, outcome="blocked", seconds=round(seconds, 3))

    def plugin_breaker_changed(self, name: str, state: int) -> None:
        """Write whether the plugin is asked; that it is not is an error."""
        level = logging.ERROR if state == BreakerState.OPEN else logging.INFO
        self._write(level, "sark.plugin", plugin=name, outcome="breaker", state=BreakerState(state).name.lower())

    def policy_isolation(self, missing: Sequence[str]) -> None:
        """Write which layers are missing."""
        if missing:
            self._write(logging.ERROR, "sark.plugin", outcome="isolation_degraded", reason=", ".join(missing))

    def ledger_failed(self, reason: str) -> None:
        """Write that a batch waits."""
        self._write(logging.ERROR, "sark.ledger", outcome="flush_failed", reason=reason)

    def drift_measured(self, shard: int, unit: str, amount: int) -> None:
        """Write a drift that is not 0."""
        if amount:
            self._write(logging.ERROR, "sark.ledger", outcome="drift", shard=shard, unit=unit, amount=amount)

    def limit_event(self, kind: str, unit: str, scope: str, limit_id: str, root: str, detail: str) -> None:
        """Write what happened to a limit; a threshold that fired is a warning."""
        level = logging.WARNING if kind == "threshold" else logging.INFO
        self._write(level, "sark.limit_event", kind=kind, unit=unit, scope=scope, limit_id=limit_id, root=root, detail=detail)
