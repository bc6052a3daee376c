"""What a policy may ask an administrator for: the word that one request may go on, and the token that carries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequest:
    """A request that waits for an administrator: who wants to do what, for at most how much; nothing of what it says."""

    approval_id: str
    root: str
    principal_id: str
    capability_id: str
    amount_nanos: int
    resource_id: str = ""
    model: str = ""
    request_id: str = ""
    at_ms: int = 0
    until_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What a token that is genuine and in force allows, once: `token_id` is what is used up.

    `epoch` is that of the store's data when it was given: which tokens were used is known of these data alone.
    """

    token_id: str
    approval_id: str
    root: str
    principal_id: str
    capability_id: str
    amount_nanos: int
    until_ms: int
    epoch: str


class Approvals(Protocol):
    """Where requests wait, and where tokens are read."""

    async def ask(self, *, root: str, principal_id: str, capability_id: str, amount_nanos: int, **about: str) -> ApprovalRequest:
        """List a request as waiting; the same one asked again is the same. `about`: `resource_id`, `model`, `request_id`."""

    def read(self, token: str) -> Approval | None:
        """Return what a token allows; None for one that is forged or over. Whether it was used is not known here."""
