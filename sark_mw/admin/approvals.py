"""Requests that wait for an administrator: listed, approved with a token, or turned down."""

from __future__ import annotations

from sark_mw.admin import inputs
from sark_mw.admin.answers import ApprovalAnswer, ApprovalsAnswer, GrantedAnswer, TurnedDownAnswer
from sark_mw.admin.operation import Asked, Operation
from sark_mw.admin.problem import ProblemError
from sark_mw.enforcement.approvals import NotWaitingError, StoreApprovals, approval_event, refusal_event
from sark_mw.money import to_nanos
from sark_mw.sark import Sark


def _approvals(sark: Sark) -> StoreApprovals:
    if not sark.approvals.usable:
        raise ProblemError(409, "This store does not keep who waits for an approval.")
    return sark.approvals


async def list_approvals(sark: Sark, asked: Asked) -> ApprovalsAnswer:
    """List who waits."""
    assert isinstance(asked.query, inputs.ListQuery)
    found = (await _approvals(sark).waiting(asked.query.root))[: asked.query.most]
    return ApprovalsAnswer(root=asked.query.root, approvals=tuple(ApprovalAnswer.of(each) for each in found))


async def approve(sark: Sark, asked: Asked) -> GrantedAnswer:
    """Let a waiting request happen once."""
    assert isinstance(asked.query, inputs.RootQuery) and isinstance(asked.body, inputs.ApproveBody)
    body, root = asked.body, asked.query.root
    nanos = None if body.amount is None else to_nanos(body.amount)
    try:
        granted = await _approvals(sark).grant(root, asked.name, valid_s=body.valid_s, amount_nanos=nanos)
    except NotWaitingError as error:
        raise ProblemError(404, str(error), "id") from error
    # Before the token is told: nothing is approved of which nobody can tell who did it.
    async with sark.approvals.listed_again_on_failure(granted.asked):
        await sark.limits.record(approval_event(granted, actor=asked.actor, reason=body.reason, at_ms=sark.clock.now_ms()))
    return GrantedAnswer.of(granted)


async def turn_down(sark: Sark, asked: Asked) -> TurnedDownAnswer:
    """Take a request off the list."""
    assert isinstance(asked.query, inputs.ReleaseQuery)
    try:
        refused = await _approvals(sark).turn_down(asked.query.root, asked.name)
    except NotWaitingError as error:
        raise ProblemError(404, str(error), "id") from error
    at_ms = sark.clock.now_ms()
    async with sark.approvals.listed_again_on_failure(refused):
        await sark.limits.record(refusal_event(refused, actor=asked.actor, reason=asked.query.reason, at_ms=at_ms))
    return TurnedDownAnswer(turned_down=ApprovalAnswer.of(refused))


APPROVALS = (
    Operation(
        method="GET",
        path="/approvals",
        summary="List the requests that a policy lets wait for an administrator's word.",
        query=inputs.ListQuery,
        answer=ApprovalsAnswer,
        run=list_approvals,
    ),
    Operation(
        method="POST",
        path="/approvals/{id}",
        summary="Let a waiting request happen once: answers the token that its caller sends along.",
        query=inputs.RootQuery,
        body=inputs.ApproveBody,
        answer=GrantedAnswer,
        run=approve,
    ),
    Operation(
        method="DELETE",
        path="/approvals/{id}",
        summary="Turn a waiting request down: it is listed no more.",
        query=inputs.ReleaseQuery,
        answer=TurnedDownAnswer,
        run=turn_down,
    ),
)
