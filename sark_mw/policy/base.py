"""What a policy is: a plugin that is asked about a request and answers with a decision.

Plugins that are registered in code run inside the gateway's process and are trusted: they can do whatever the gateway can.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from sark_mw.policy.approvals import Approvals
from sark_mw.policy.context import PolicyContext
from sark_mw.policy.outcomes import Outcomes
from sark_mw.reservation import Reserve, ReserveReply

__all__ = [
    "BudgetFigures",
    "BudgetReader",
    "LimitFigures",
    "LimitReader",
    "LimitVersion",
    "Obligation",
    "ObligationKind",
    "PluginLifeObserver",
    "PolicyContext",
    "PolicyDecision",
    "PolicyObserver",
    "PolicyOutcome",
    "PolicyPlugin",
    "PolicyServices",
    "RootBudgetReader",
    "SharedStore",
]


class PolicyOutcome(StrEnum):
    """How an evaluation ended; after `timed_out` and `failed` the plugin's `on_error` decided, not its judgement.

    `skipped`: it timed out or failed and its `on_error` is `skip`, so it is as if it were not there.
    """

    ALLOWED = "allowed"
    DENIED = "denied"
    TIMED_OUT = "timed_out"
    FAILED = "failed"
    SKIPPED = "skipped"


class ObligationKind(StrEnum):
    """What a decision that allows may oblige the gateway to do."""

    #: The request touches this scope too (`tag:experiment`), for its ledger entry and for limits about it.
    ADD_TAG = "add_tag"
    #: No more output tokens than this.
    CAP_OUTPUT_TOKENS = "cap_output_tokens"
    #: This model instead; only of those that `policy.obligation_models` names.
    USE_MODEL = "use_model"
    #: Denied unless the request touches this scope.
    REQUIRE_SCOPE = "require_scope"


@dataclass(frozen=True, slots=True)
class Obligation:
    """What a decision that allows asks the gateway to do; `kind` is an `ObligationKind`; tokens are a number, the rest names."""

    kind: str
    value: str | int


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """What a plugin answered; only `allowed is True` allows.

    `plugin_name`, `outcome`, `duration_ms` and `plugin_version` are set by the manager. `reason` may reach the client, `metadata`
    is for whoever asks (`retry_after` in seconds, where waiting helps). `obligations` count only where the decision allows.
    """

    allowed: bool
    reason: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    plugin_name: str | None = None
    outcome: PolicyOutcome | None = field(default=None, compare=False)
    duration_ms: float = field(default=0.0, compare=False)
    obligations: tuple[Obligation, ...] = ()
    plugin_version: str = field(default="", compare=False)


class PolicyObserver(Protocol):
    """Told of every decision (any `Instrumentation` fits); must be quick, and what it raises is logged and forgotten."""

    def plugin_evaluated(self, name: str, outcome: str, seconds: float) -> None:
        """Hear the `PolicyOutcome` of one evaluation and the seconds it took."""


@runtime_checkable
class PluginLifeObserver(Protocol):
    """An observer that is told of more than decisions (any `Instrumentation` is one)."""

    def plugin_loaded(self, name: str, outcome: str) -> None:
        """Hear that a plugin was `loaded`, `reloaded`, `unloaded`, or that its new version `failed` and the old one stays."""

    def plugin_blocked(self, name: str, seconds: float) -> None:
        """Hear that a plugin blocked the event loop for so long; once per block."""


@runtime_checkable
class PluginBreakerObserver(Protocol):
    """An observer that is told whether isolated plugins are asked at all (any `Instrumentation` is one)."""

    def plugin_breaker_changed(self, name: str, state: int) -> None:
        """Hear 0: it is asked; 1: one request decides whether it is again; 2: it is not, since its workers keep dying."""


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


@runtime_checkable
class RootBudgetReader(Protocol):
    """A `BudgetReader` that also knows roots apart; the gateway's own does."""

    async def get_budget_status_in(self, root: str, principal_id: str) -> BudgetFigures | None:
        """Return the figures of a principal of this root, or None for one without a budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFigures:
    """Where one limit that a request touches stands. Amounts in the unit's integer (nanos for usd).

    Not `enforced`: in mode `shadow` or `soft`, so that it refuses nothing. `asserted`: the request touches it by nothing but its
    caller's word (its run, end user, tags), which may be another one with every request.
    """

    scope: str
    unit: str
    window: str
    amount: int
    spent: int
    held: int
    enforced: bool = True
    asserted: bool = False

    @property
    def used(self) -> float:
        """Share of the amount that is spent or held; 1 for an amount of 0."""
        return (self.spent + self.held) / self.amount if self.amount > 0 else 1.0


class LimitReader(Protocol):
    """Whatever can tell where the limits stand that requests touch."""

    async def read(self, root: str, scopes: Sequence[str], request_id: str = "") -> Sequence[LimitFigures]:
        """Return the figures of what these scopes touch, parents included; may be a second old.

        With `environment["request_id"]` also of what that request asserts or brings along: its end user, its run's budget.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyServices:
    """What the gateway lends to its plugins through `PolicyPlugin.bind`; None where it has no such thing."""

    store: SharedStore | None = None
    budgets: BudgetReader | None = None
    #: Tells what became of the requests that plugins were asked about.
    outcomes: Outcomes | None = None
    #: Where a plugin asks for an administrator's word, and reads the token that gives it.
    approvals: Approvals | None = None
    limits: LimitReader | None = None


if TYPE_CHECKING:
    default = property
else:

    class default:  # noqa: N801  # it stands where `property` does
        """A member that a subclass overrides as it likes: as a property, an attribute, or on the instance."""

        def __init__(self, get: Callable[[Any], Any]) -> None:
            self._get = get
            self.__doc__ = get.__doc__

        def __get__(self, plugin: Any, owner: type | None = None) -> Any:
            return self if plugin is None else self._get(plugin)


class PolicyPlugin(ABC):
    """A policy: give it a `name` and an `evaluate`; every other member has a default.

    Override a member as a property, as a class attribute, or on the instance. One instance serves every request, many at the same
    time.
    """

    #: What its options may be: a pydantic model or a JSON Schema, against which they are checked before it is built.
    options_model: ClassVar[Any] = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Name the plugin; unique within its manager."""

    @abstractmethod
    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        """Judge one request; never block the event loop."""

    @default
    def version(self) -> str:
        """Version, for the audit trail."""
        return "0.0.0"

    @default
    def description(self) -> str:
        """One sentence for people."""
        return ""

    @default
    def priority(self) -> int:
        """Lower runs earlier; equal ones run in the order of registration."""
        return 100

    @default
    def timeout(self) -> float | None:
        """Seconds that one evaluation may take; None leaves it to the manager."""
        return None

    @default
    def on_error(self) -> str:
        """`deny`, `allow` or `skip`: what an exception or a time-out decides; `skip` goes on as if the plugin were not there."""
        return "deny"

    @default
    def needs(self) -> frozenset[str] | None:
        """What it is to see (`model`, `arguments.messages`, `environment.scopes`); None: all, isolated ones without prompts."""
        return None

    @default
    def concurrent(self) -> bool:
        """Tell whether it may be asked at the same time as others: it waits for something outside, and judges by itself."""
        return False

    @default
    def isolated(self) -> bool:
        """Tell whether it judges in another process, so that prompts leave this one only where `needs` asks for them."""
        return False

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
