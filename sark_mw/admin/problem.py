"""What goes wrong in the admin API, told as problem details (RFC 9457) that name the field at fault."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from sark_mw.errors import ConfigurationError, LedgerError, LimitFieldError, LimitsChangedError, MoneyError, SarkError, StoreError

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """Problem details; `field` is what is at fault: `limits[2].timezone`, `amount`, `root`."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = Field(None, description="The field, parameter or header at fault.")


class ProblemError(Exception):
    """Ends a request with a problem."""

    def __init__(self, status: int, detail: str, field: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})


def answer_problem(error: ProblemError) -> Response:
    """Make the response."""
    problem = Problem(title=HTTPStatus(error.status).phrase, status=error.status, detail=error.detail, field=error.field)
    body = json.dumps(problem.model_dump(exclude_none=True), separators=(",", ":"))
    headers = {"cache-control": "no-store", **error.headers}
    return Response(body, status_code=error.status, headers=headers, media_type=MEDIA_TYPE)


def problem_of(error: SarkError) -> ProblemError:
    """Tell whose fault an error is: the caller's, or that of what is away for the moment."""
    if isinstance(error, LimitFieldError):
        return ProblemError(422, error.complaint, error.field)
    if isinstance(error, (ConfigurationError, MoneyError)):
        return ProblemError(422, str(error), "amount" if isinstance(error, MoneyError) else None)
    if isinstance(error, LimitsChangedError):
        return ProblemError(409, str(error))
    if isinstance(error, StoreError):
        return ProblemError(503, f"The store does not answer: {error}", headers={"retry-after": "1"})
    assert isinstance(error, LedgerError), error
    return ProblemError(503, f"The ledger does not answer: {error}", headers={"retry-after": "1"})


def invalid(error: ValidationError) -> ProblemError:
    """Name the first field that does not fit its declaration; what stands in it is not repeated."""
    first = error.errors(include_input=False, include_url=False)[0]
    message = "There is no such field." if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return ProblemError(422, message, field_at(first["loc"]) or None)


def field_at(location: tuple[int | str, ...]) -> str:
    """Write a place in a body: `limits[2].amount`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
