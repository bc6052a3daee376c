"""From what a plugin did to a decision: its own judgement where it gave one, else what its `on_error` says."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from time import perf_counter
from typing import Any

from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.base import Obligation, ObligationKind, PolicyDecision, PolicyOutcome
from sark_mw.policy.deadline import DeadlineExceededError
from sark_mw.policy.entries import Entry

logger = logging.getLogger(__name__)

#: What one decision may oblige to, and how long a name in it may be.
MAX_OBLIGATIONS = 16
MAX_NAME_CHARS = 200
_MAX_TOKENS = 2**31


def judgement(answer: object, entry: Entry, started: float, models: AbstractSet[str]) -> PolicyDecision:
    """Make the decision of an answer; raises `PolicyEvaluationError` for one that is none, or obliges to what may not be.

    What does not allow denies, however odd the rest of it is.
    """
    if not isinstance(answer, PolicyDecision):
        raise PolicyEvaluationError(
            f"evaluate() must return a PolicyDecision, not {type(answer).__name__}", plugin_name=entry.name
        )
    allowed = answer.allowed is True
    given = answer.obligations
    try:
        reason, metadata = str(answer.reason), dict(answer.metadata or {})
    except Exception:
        if allowed:
            raise
        reason, metadata = "no reason that can be read", {}
    return PolicyDecision(
        allowed,
        reason,
        metadata,
        entry.name,
        PolicyOutcome.ALLOWED if allowed else PolicyOutcome.DENIED,
        (perf_counter() - started) * 1000,
        _obligations(given, models) if given and allowed else (),
        entry.version,
    )


def timed_out(entry: Entry, late: DeadlineExceededError, seconds: float, started: float) -> PolicyDecision:
    """Decide for a plugin that took too long."""
    entry.abandoned += late.abandoned
    if late.stuck:
        entry.stuck.append(late.stuck)
    metadata = {"timeout": True, "timeout_seconds": seconds, "abandoned": late.abandoned}
    return _by_on_error(entry, f"plugin {entry.name!r} timed out", metadata, PolicyOutcome.TIMED_OUT, started)


def failed(entry: Entry, error: BaseException, started: float) -> PolicyDecision:
    """Decide for a plugin that raised."""
    entry.failures += 1
    text = _text(error)
    entry.last_error = f"{type(error).__name__}: {text}"[:MAX_NAME_CHARS]
    # Every 1st, 2nd, 4th, 8th … with its traceback: whoever makes a plugin fail must not fill the log.
    if entry.failures & (entry.failures - 1) == 0:
        logger.warning("policy plugin %r failed (%d times so far)", entry.name, entry.failures, exc_info=error)
    metadata = {"error": text, "error_type": type(error).__name__}
    # The exception's text stays out of the reason, which may reach the client.
    return _by_on_error(entry, f"plugin {entry.name!r} evaluation failed", metadata, PolicyOutcome.FAILED, started)


def _by_on_error(entry: Entry, reason: str, metadata: dict[str, Any], outcome: PolicyOutcome, started: float) -> PolicyDecision:
    on_error = "deny"
    try:
        on_error = entry.plugin.on_error
    except Exception:  # noqa: BLE001  # the plugin's own property: no answer denies
        logger.warning("policy plugin %r has no readable on_error: deny", entry.name)
    if on_error == "skip":
        outcome = PolicyOutcome.SKIPPED
    duration_ms = (perf_counter() - started) * 1000
    allowed = on_error in ("allow", "skip")
    return PolicyDecision(allowed, reason, metadata, entry.name, outcome, duration_ms, (), entry.version)


def _text(error: BaseException) -> str:
    try:
        # It may hold what the caller wrote, and goes where only UTF-8 does.
        return str(error).encode(errors="replace").decode() or type(error).__name__
    except Exception:  # noqa: BLE001  # the plugin's own __str__
        return type(error).__name__


def _obligations(given: object, models: AbstractSet[str]) -> tuple[Obligation, ...]:
    if not isinstance(given, (tuple, list)) or len(given) > MAX_OBLIGATIONS:
        raise PolicyEvaluationError(f"obligations are a tuple of at most {MAX_OBLIGATIONS}, not {type(given).__name__}")
    return tuple(_obligation(each, models) for each in given)


def _obligation(given: object, models: AbstractSet[str]) -> Obligation:
    if not isinstance(given, Obligation):
        raise PolicyEvaluationError(f"an obligation is an Obligation, not {type(given).__name__}")
    if wrong := wrong_with(given.kind, given.value):
        raise PolicyEvaluationError(wrong)
    if given.kind == ObligationKind.USE_MODEL and given.value not in models:
        raise PolicyEvaluationError(f"model {given.value!r} is none of those that policy.obligation_models allows")
    return given


def wrong_with(kind: object, value: object) -> str:
    """Say why this cannot be an obligation, whichever models there are; empty if it can."""
    if kind not in tuple(ObligationKind):
        return f"no obligation of kind {str(kind)[:40]!r} is known: one of {', '.join(ObligationKind)}"
    if kind == ObligationKind.CAP_OUTPUT_TOKENS:
        fits = type(value) is int and 1 <= value <= _MAX_TOKENS
        return "" if fits else f"cap_output_tokens takes a whole number from 1 to {_MAX_TOKENS}"
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS or not value.isprintable():
        return f"{kind} takes a name of 1 to {MAX_NAME_CHARS} printable characters"
    return ""
