"""Requests that a policy cannot be shown: denied, whatever its `on_error` says, because the caller made them so."""

from __future__ import annotations

from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.base import PolicyDecision


class UnsendableRequestError(PolicyEvaluationError):
    """A request is too large, too deep, or holds what has no place in what the policy reads."""


def denial(error: UnsendableRequestError) -> PolicyDecision:
    """Deny such a request; the details stay out of the reason."""
    return PolicyDecision(False, "the request cannot be shown to a policy", {"unsendable": str(error)[:300]})
