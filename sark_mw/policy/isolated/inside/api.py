"""What a plugin gets from `from sark_mw import …` in here: the same names and members as outside, and nothing behind them."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sark_mw import errors

__all__ = [
    "Obligation",
    "ObligationKind",
    "PolicyContext",
    "PolicyDecision",
    "PolicyOutcome",
    "PolicyPlugin",
    "PolicyServices",
]


class PolicyOutcome(StrEnum):
    """How an evaluation ended."""

    ALLOWED = "allowed"
    DENIED = "denied"
    TIMED_OUT = "timed_out"
    FAILED = "failed"
    SKIPPED = "skipped"


class ObligationKind(StrEnum):
    """What a decision that allows may oblige the gateway to do."""

    ADD_TAG = "add_tag"
    CAP_OUTPUT_TOKENS = "cap_output_tokens"
    USE_MODEL = "use_model"
    REQUIRE_SCOPE = "require_scope"


@dataclass(frozen=True, slots=True)
class Obligation:
    """What a decision that allows asks the gateway to do."""

    kind: str
    value: str | int


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """What a plugin answers."""

    allowed: bool
    reason: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    plugin_name: str | None = None
    outcome: PolicyOutcome | None = field(default=None, compare=False)
    duration_ms: float = field(default=0.0, compare=False)
    obligations: tuple[Obligation, ...] = ()
    plugin_version: str = field(default="", compare=False)


@dataclass
class PolicyContext:
    """One request, as far as the plugin's `needs` show it."""

    principal_id: str
    resource_id: str
    capability_id: str
    action: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyServices:
    """What a gateway lends to plugins in its own process: nothing of it reaches this one."""

    store: None = None
    budgets: None = None


class PolicyPlugin(ABC):
    """A policy: a `name` and an `evaluate`; every other member has a default."""

    options_model: ClassVar[Any] = None
    version: Any = "0.0.0"
    description: Any = ""
    priority: Any = 100
    timeout: Any = None
    on_error: Any = "deny"
    needs: Any = None
    concurrent: Any = True
    isolated: Any = True

    @property
    @abstractmethod
    def name(self) -> str:
        """Name the plugin."""

    @abstractmethod
    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        """Judge one request."""

    def bind(self, services: PolicyServices) -> None:  # noqa: B027  # a hook
        """Take what the gateway lends: never called in here."""

    async def on_load(self) -> None:  # noqa: B027  # a hook
        """Prepare; an exception refuses the plugin."""

    async def on_unload(self) -> None:  # noqa: B027  # a hook
        """Let go: never called in here, the process ends instead."""

    def get_metadata(self) -> dict[str, Any]:
        """Describe the plugin."""
        members = ("name", "version", "description", "priority", "timeout", "on_error")
        return {member: getattr(self, member) for member in members}


def install() -> None:
    """Make this what `sark_mw` and its policy modules are in this process."""
    here = sys.modules[__name__]
    package = sys.modules["sark_mw"]
    for name in __all__:
        setattr(package, name, getattr(here, name))
    for name in ("ConfigurationError", "PolicyEvaluationError", "SarkError"):
        setattr(package, name, getattr(errors, name))
    policy = sys.modules["sark_mw.policy"]
    for name in ("base", "context"):
        setattr(policy, name, here)
        sys.modules[f"sark_mw.policy.{name}"] = here
