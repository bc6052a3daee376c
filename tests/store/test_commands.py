"""What one call to the server says when it fails: how it was refused, however its last try ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, ReadOnlyError

from sark_mw.errors import StoreUnavailableError
from sark_mw.store.breaker import Breaker
from sark_mw.store.commands import Commands


def commands(deadline_s: float) -> Commands:
    return Commands(None, deadline_s=deadline_s, breaker=Breaker(threshold=5, cooldown_s=1.0))


def failing(*errors: Exception) -> tuple[list[int], Callable[[], Awaitable[str]]]:
    """Make a call that fails with each error in turn and then never answers; its tries are counted."""
    tries: list[int] = []

    async def call() -> str:
        tries.append(len(tries))
        if len(tries) <= len(errors):
            raise errors[len(tries) - 1]
        await asyncio.Event().wait()
        return "never"

    return tries, call


async def test_a_deadline_that_ends_in_a_repetition_says_what_the_store_had_said_last() -> None:
    tries, call = failing(BusyLoadingError("loading"), ReadOnlyError("a replica"))
    with pytest.raises(StoreUnavailableError, match=r"^the store did not answer reserve within 1\.0 s; .*: a replica$"):
        await commands(1.0).run("reserve", call)
    assert len(tries) > 2


async def test_a_store_that_never_said_a_word_is_quoted_nothing() -> None:
    _, call = failing()
    with pytest.raises(StoreUnavailableError, match=r"^the store did not answer settle within 0\.2 s$"):
        await commands(0.2).run("settle", call)


@pytest.mark.parametrize("error", [AuthenticationError("who are you?"), AuthorizationError("not you")], ids=["user", "rights"])
async def test_whom_the_store_refuses_does_not_ask_again(error: Exception) -> None:
    tries, call = failing(error)
    with pytest.raises(StoreUnavailableError, match="you"):
        await asyncio.wait_for(commands(36_000.0).run("limits", call), 60)
    assert len(tries) == 1
