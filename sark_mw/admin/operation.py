"""What an operation of the admin API is: a method of a path, what it takes and answers, and what it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import BaseModel

from sark_mw.sark import Sark


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, validated: `query` and `body` are what the operation declares, `name` is what its path names."""

    query: BaseModel
    body: BaseModel | None
    name: str
    actor: str
    key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path; a `{name}` in the path may hold slashes. `keyed`: an Idempotency-Key makes it happen once."""

    method: str
    path: str
    summary: str
    query: type[BaseModel]
    body: type[BaseModel] | None = None
    answer: type[BaseModel]
    run: Callable[[Sark, Asked], Awaitable[BaseModel]]
    keyed: bool = False

    @property
    def operation_id(self) -> str:
        """Name it as clients that are generated do."""
        return self.run.__name__
