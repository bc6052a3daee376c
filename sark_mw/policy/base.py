"""What a policy is: a plugin that is asked about a request and answers with a decision.

Plugins that are registered in code run inside the gateway's process and are trusted: they can do whatever the gateway can.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol

from sark_mw.policy.context import PolicyContext
from sark_mw.reservation import Reserve, ReserveReply

__all__ = [
    "BudgetFigures",
    "BudgetReader",
    "LimitVersion",
    "PolicyContext",
    "PolicyDecision",
    "PolicyObserver",
    "PolicyOutcome",
    "PolicyPlugin",
    "PolicyServices",
    "SharedStore",
]


class PolicyOutcome(StrEnum):
    """How an evaluation ended; after `timed_out` and `failed` the plugin's `on_error` decided, not its judgement."""

    ALLOWED = "allowed"
    DENIED = "denied"
    TIMED_OUT = "timed_out"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """What a plugin answered; only `allowed is True` allows.

    `plugin_name`, `outcome` and `duration_ms` are set by the manager. `reason` may reach the client, `metadata` goes into the
    audit trail (`retry_after` in seconds, where waiting helps).
    """

    allowed: bool
    reason: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    plugin_name: str | None = None
    outcome: PolicyOutcome | None = field(default=None, compare=False)
    duration_ms: float = field(default=0.0, compare=False)


class PolicyObserver(Protocol):
    """Told of every decision (any `Instrumentation` fits); must be quick, and what it raises is logged and forgotten."""

    def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
        """Hear the `PolicyOutcome` of one evaluation and the seconds it took."""


class LimitVersion(Protocol):
    """What a reserve must name of the limits in force."""

    @property
    def version(self) -> int: ...
    @property
    def epoch(self) -> str: ...


class SharedStore(Protocol):
    """The part of a `ReservationStore` that plugins use to count together with every other process."""

    async def reserve(self, request: Reserve) -> ReserveReply:
        """Count, or hold, and decide in one step."""

    async def limits(self, root: str) -> LimitVersion:
        """Read the version and epoch of a root's limits, which every reserve names."""


class BudgetFigures(Protocol):
    """The fields of `BudgetStatus` that policies read; None where there is no budget."""

    @property
    def daily_budget(self) -> Decimal | None: ...
    @property
    def monthly_budget(self) -> Decimal | None: ...
    @property
    def daily_spent(self) -> Decimal: ...
    @property
    def monthly_spent(self) -> Decimal: ...


class BudgetReader(Protocol):
    """Whatever can tell how much of its budget a principal has spent."""

    async def get_budget_status(self, principal_id: str) -> BudgetFigures | None:
        """Return the figures, or None for a principal without a budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyServices:
    """What the gateway lends to its plugins through `PolicyPlugin.bind`; None where it has no such thing."""

    store: SharedStore | None = None
    budgets: BudgetReader | None = None


class PolicyPlugin(ABC):
    """A policy: give it a `name` and an `evaluate`; every other member has a default.

    Override a property as a property or as a class attribute. One instance serves every request, many at the same time.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name the plugin; unique within its manager."""

    @abstractmethod
    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        """Judge one request; never block the event loop."""

    @property
    def version(self) -> str:
        """Version, for the audit trail."""
        return "0.0.0"

    @property
    def description(self) -> str:
        """One sentence for people."""
        return ""

    @property
    def priority(self) -> int:
        """Lower runs earlier; equal ones run in the order of registration."""
        return 100

    @property
    def timeout(self) -> float | None:
        """Seconds that one evaluation may take; None leaves it to the manager."""
        return None

    @property
    def on_error(self) -> str:
        """`deny` or `allow`: what an exception or a time-out decides."""
        return "deny"

    def bind(self, services: PolicyServices) -> None:  # noqa: B027  # most plugins need nothing
        """Take what the gateway lends; called before `on_load`, and again when the gateway's services change."""

    async def on_load(self) -> None:  # noqa: B027  # a hook
        """Prepare; an exception refuses the registration."""

    async def on_unload(self) -> None:  # noqa: B027  # a hook
        """Let go of everything."""

    def get_metadata(self) -> dict[str, Any]:
        """Describe the plugin for listings."""
        return {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "priority": self.priority,
            "timeout": self.timeout,
            "on_error": self.on_error,
        }
