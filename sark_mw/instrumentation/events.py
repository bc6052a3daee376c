"""What `Instrumentation` is told of, where an event has many facts: frozen, and of plain types."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class RequestOutcome(StrEnum):
    """How the middleware ended a request; `passed` was not metered."""

    ADMITTED = "admitted"
    REFUSED_BUDGET = "refused_budget"
    REFUSED_RATE = "refused_rate"
    REFUSED_POLICY = "refused_policy"
    UNAVAILABLE = "unavailable"
    INVALID = "invalid"
    PASSED = "passed"


class PluginOutcome(StrEnum):
    """How one policy plugin answered."""

    ALLOWED = "allowed"
    DENIED = "denied"
    TIMED_OUT = "timed_out"
    FAILED = "failed"
    SKIPPED = "skipped"


class BreakerState(IntEnum):
    """The circuit breaker before the store; the number is the gauge's."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFinished:
    """One request as the client saw it.

    `reason` is what refused, from a small set: the unit of the limit (`usd`, `requests`, …), the plugin's name, or what was
    unavailable or invalid (`store`, `body_too_large`, …). `status` is the HTTP status that was sent, None where none was.
    `added_seconds` is the time that sark_mw itself took before the first byte was passed on, `upstream_seconds` the time until
    the app answered what was passed on, None if it did not.
    """

    outcome: RequestOutcome
    wire: str
    operation: str
    provider: str = ""
    status: int | None = None
    reason: str = ""
    added_seconds: float | None = None
    upstream_seconds: float | None = None
    request_id: str = ""
    root: str = ""
    principal_id: str = ""
    model: str | None = None
    limit_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """One answer (or failure) of the store to a reserve.

    `outcome` is a `sark_mw.reservation.Outcome` or `unavailable`; `held` what is held now: (unit, integer of the unit).
    """

    outcome: str
    seconds: float
    reservation_id: str = ""
    request_id: str = ""
    root: str = ""
    principal_id: str = ""
    provider: str = ""
    model: str | None = None
    held: tuple[tuple[str, int], ...] = ()
    shadowed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """One answer (or failure) of the store to a settle or release.

    `kind` is a `sark_mw.reservation.Resolution`, `outcome` an `Outcome` or `unavailable`. `booked` is signed (a late correction
    may be negative) and empty after a failure; with `repeated` nothing of it is counted again. `overrun` is what was booked
    above the hold. `model` is the price list's own name, None for a model that it does not know. `estimated_nanos` is the
    expected cost, `actual_nanos` None where the true usage is not known.
    """

    outcome: str
    kind: str
    seconds: float
    reservation_id: str = ""
    request_id: str = ""
    root: str = ""
    principal_id: str = ""
    provider: str = ""
    model: str | None = None
    booked: tuple[tuple[str, int], ...] = ()
    overrun: tuple[tuple[str, int], ...] = ()
    estimated_nanos: int = 0
    actual_nanos: int | None = None
    repeated: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDecided:
    """One decision of one policy plugin about one request.

    `outcome` is a `PluginOutcome`, `allowed` what came of it, `reason` the plugin's own, `obligations` what it obliges to
    (`kind=value`), `metadata` what it says besides, as JSON; of one that failed, what it raised.
    """

    plugin: str
    version: str
    outcome: str
    allowed: bool
    reason: str = ""
    seconds: float = 0.0
    obligations: tuple[str, ...] = ()
    metadata: str = ""
    request_id: str = ""
    root: str = ""
    principal_id: str = ""
