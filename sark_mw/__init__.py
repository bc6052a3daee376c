"""Keep AI and API gateways within budget: a pure ASGI middleware and a distributed enforcer."""

from __future__ import annotations

from sark_mw.adapter import CostAwareAdapter, ProtocolAdapter, SARKGateway
from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.asgi.principal import Principal
from sark_mw.attribution import CostAttributionService
from sark_mw.cost_records import BudgetStatus, CostAttributionRecord, CostSummary
from sark_mw.direct import DirectReservation
from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.enforcer import Enforcer, Invocation
from sark_mw.errors import (
    ConfigurationError,
    CostEstimationError,
    InvalidRequestError,
    LedgerError,
    LedgerUnavailableError,
    MoneyError,
    PolicyEvaluationError,
    RefusedError,
    SarkError,
    StoreDataLostError,
    StoreError,
    StoreUnavailableError,
)
from sark_mw.instrumentation.base import Instrumentation, NullInstrumentation
from sark_mw.instrumentation.metrics_app import metrics_app
from sark_mw.limit import Limit, Mode, Unit
from sark_mw.policy.approvals import Approval, ApprovalRequest, Approvals
from sark_mw.policy.base import (
    BudgetReader,
    Obligation,
    ObligationKind,
    PolicyContext,
    PolicyDecision,
    PolicyObserver,
    PolicyOutcome,
    PolicyPlugin,
    PolicyServices,
    RootBudgetReader,
    SharedStore,
)
from sark_mw.policy.builtin import builtin_plugin_path
from sark_mw.policy.history import HourAmount, HourlyAmounts
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.policy.outcomes import Outcomes, RequestEnd
from sark_mw.policy.window import RollingWindow, WindowCount
from sark_mw.pricing.anthropic import AnthropicCostEstimator
from sark_mw.pricing.base import CostEstimate, CostEstimator, InvocationRequest, InvocationResult
from sark_mw.pricing.fixed import FixedCostEstimator, NoCostEstimator
from sark_mw.pricing.gemini import GeminiCostEstimator
from sark_mw.pricing.openai import OpenAICostEstimator
from sark_mw.sark import Sark
from sark_mw.settings import Settings
from sark_mw.tracker import CostTracker
from sark_mw.usage import Usage
from sark_mw.wire.base import Refusal, RefusalKind

__all__ = [
    "Admission",
    "AnthropicCostEstimator",
    "Approval",
    "ApprovalRequest",
    "Approvals",
    "BudgetReader",
    "BudgetStatus",
    "ConfigurationError",
    "CostAttributionRecord",
    "CostAttributionService",
    "CostAwareAdapter",
    "CostEstimate",
    "CostEstimationError",
    "CostEstimator",
    "CostSummary",
    "CostTracker",
    "DirectReservation",
    "Enforcer",
    "FixedCostEstimator",
    "GeminiCostEstimator",
    "HourAmount",
    "HourlyAmounts",
    "Instrumentation",
    "InvalidRequestError",
    "Invocation",
    "InvocationRequest",
    "InvocationResult",
    "LedgerError",
    "LedgerUnavailableError",
    "Limit",
    "Mode",
    "MoneyError",
    "NoCostEstimator",
    "NullInstrumentation",
    "Obligation",
    "ObligationKind",
    "OpenAICostEstimator",
    "Outcomes",
    "PolicyContext",
    "PolicyDecision",
    "PolicyEvaluationError",
    "PolicyObserver",
    "PolicyOutcome",
    "PolicyPlugin",
    "PolicyPluginManager",
    "PolicyServices",
    "Principal",
    "ProtocolAdapter",
    "Refusal",
    "RefusalKind",
    "RefusedError",
    "RequestEnd",
    "RollingWindow",
    "RootBudgetReader",
    "SARKGateway",
    "Sark",
    "SarkError",
    "SarkMiddleware",
    "Settings",
    "SharedStore",
    "Spent",
    "StoreDataLostError",
    "StoreError",
    "StoreUnavailableError",
    "Unit",
    "Usage",
    "WindowCount",
    "builtin_plugin_path",
    "metrics_app",
]
