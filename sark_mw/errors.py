"""Every exception of sark_mw, in one tree.

SarkError
├── ConfigurationError        settings, limits or wiring that cannot work; raised at start
│   └── LimitFieldError       a limit that somebody wrote cannot be: names the field at fault
├── MoneyError                an amount that is no amount (also a ValueError)
├── InvalidRequestError       the caller's request is malformed: answered with 400 in its dialect
├── RefusedError              `Sark.reserve` was refused; carries the refusal
├── CostEstimationError       an estimator could not price a request
├── PolicyEvaluationError     a policy could not be evaluated
├── StoreError
│   ├── StoreUnavailableError the store did not answer in time, or the breaker is open
│   │   └── LimitsChangedError others changed the limits at the same time: nothing was changed
│   └── StoreDataLostError    the store answered, but its data is gone and could not be rebuilt yet
└── LedgerError
    └── LedgerUnavailableError the ledger database did not answer

Expected outcomes (a refusal, a repeated settle) are values inside; only `Sark.reserve`, which has nothing to return, raises one.
"""

from __future__ import annotations


class SarkError(Exception):
    """Base of every error that sark_mw raises."""


class ConfigurationError(SarkError):
    """Settings, limits or wiring that cannot work."""


class LimitFieldError(ConfigurationError):
    """A limit, top-up or override that cannot be; `field` is what is at fault, as `limits[2].timezone`."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.complaint = message


class MoneyError(SarkError, ValueError):
    """An amount that is negative, not finite, too large, or not a number."""


class InvalidRequestError(SarkError):
    """A caller's request that cannot be metered; `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RefusedError(SarkError):
    """A reservation outside HTTP was refused; `refusal` says by what, `kind` in one word (`budget`, `rate_limit`, `policy` …)."""

    def __init__(self, message: str, kind: str, refusal: object) -> None:
        super().__init__(message)
        self.kind = kind
        self.refusal = refusal


class CostEstimationError(SarkError):
    """An estimator could not price a request; carries `provider` and free `metadata`."""

    def __init__(self, message: str, provider: str | None = None, **metadata: object) -> None:
        super().__init__(message)
        self.provider = provider
        self.metadata = metadata


class PolicyEvaluationError(SarkError):
    """A policy could not be evaluated; carries `plugin_name` and free `metadata`."""

    def __init__(self, message: str, plugin_name: str | None = None, **metadata: object) -> None:
        super().__init__(message)
        self.plugin_name = plugin_name
        self.metadata = metadata


class StoreError(SarkError):
    """The reservation store failed."""


class StoreUnavailableError(StoreError):
    """The store did not answer within its deadline, refused the connection, or its breaker is open."""


class LimitsChangedError(StoreUnavailableError):
    """Others changed the limits at the same time, again and again: nothing was changed, repeat the call."""


class StoreDataLostError(StoreError):
    """The store has lost its data and has not been rebuilt from the ledger yet."""


class LedgerError(SarkError):
    """The ledger database failed."""


class LedgerUnavailableError(LedgerError):
    """The ledger database did not answer."""
