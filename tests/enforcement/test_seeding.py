"""Limits that stand in the settings file, over restarts: the file's changes are applied, and nobody's work is undone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sark_mw.errors import ConfigurationError
from sark_mw.ledger.events import EventFilter
from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.sark import Sark
from tests.enforcement.whole import settings_for

ML = {"scope": "team:ml", "amount": "1", "window": "total"}
OPS = {"scope": "team:ops", "amount": "5"}
OPS_ID = "team:ops/usd/day@UTC"

Start = Callable[..., AbstractAsyncContextManager[Sark]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a process on the same ledger with such limits in its settings; its store is lost with it."""

    def one(*limits: dict[str, Any]) -> AbstractAsyncContextManager[Sark]:
        return Sark.open(settings_for(f"memory://{uuid4().hex}", tmp_path, limits=list(limits)))

    return one


async def amounts(sark: Sark) -> dict[str, Decimal]:
    return {limit.scope: limit.amount for limit in await sark.limits.list()}


def ml(amount: str, **options: Any) -> Limit:
    return Limit(**{"scope": "team:ml", "amount": Decimal(amount), "window": "total", **options})


async def test_what_administrators_did_stands_after_a_restart_with_the_same_file(start: Start) -> None:
    async with start(ML, OPS) as sark:
        assert await amounts(sark) == {"team:ml": 1, "team:ops": 5}
        await sark.limits.set(ml("0.5"), actor="ann", reason="incident")
        await sark.limits.drop(DEFAULT_ROOT, OPS_ID, actor="ann")
    for _ in range(2):
        async with start(ML, {**OPS, "amount": "5.00"}) as sark:
            assert await amounts(sark) == {"team:ml": Decimal("0.5")}
            assert len(await sark.limits.history(EventFilter(actor="settings"))) == 2


async def test_only_what_the_file_changed_since_is_applied_over_administrators(start: Start) -> None:
    async with start(ML, OPS) as sark:
        await sark.limits.set(ml("0.5"), actor="ann")
        await sark.limits.drop(DEFAULT_ROOT, OPS_ID, actor="ann")
    async with start(ML, {**OPS, "amount": "6"}, {"scope": "team:new", "amount": "1"}) as sark:
        assert await amounts(sark) == {"team:ml": Decimal("0.5"), "team:ops": 6, "team:new": 1}
        found = await sark.limits.history(EventFilter(actor="settings", kinds=("set",)))
        assert [each.event.scope for each in found] == ["team:new", "team:ops", "team:ops", "team:ml"]


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "shadow"},
        {"overcommit": True},
        {"thresholds": [80]},
        {"parent": "team:ops"},
        {"window": "day", "rollover": "0.5"},
        {"amount": "2"},
    ],
)
async def test_every_part_of_a_limits_rule_is_a_change_of_the_file(start: Start, change: dict[str, Any]) -> None:
    ops = {**OPS, "overcommit": True}
    before = {**ML, "window": change.get("window", "total")}
    async with start(ops, before) as sark:
        await sark.limits.set(ml("0.25", **({"window": "day"} if "window" in change else {})), actor="ann")
    async with start(ops, {**before, **change}) as sark:
        (limit,) = [limit for limit in await sark.limits.list() if limit.scope == "team:ml"]
        assert limit.amount == Decimal(change.get("amount", "1"))
        assert Limit(**{**before, **change, "since_ms": limit.since_ms, "carries_since_ms": limit.carries_since_ms}) == limit


async def test_a_file_that_followed_an_administrator_counts_as_applied(start: Start) -> None:
    async with start(ML) as sark:
        await sark.limits.set(ml("2"), actor="ann")
    async with start({**ML, "amount": "2"}) as sark:
        await sark.limits.set(ml("3"), actor="ann")
    async with start({**ML, "amount": "2"}) as sark:
        assert await amounts(sark) == {"team:ml": 3}


async def test_the_latest_of_many_changes_of_the_file_is_what_counts(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sark_mw.enforcement.limits._PAGE", 2)
    for amount in ("1", "2", "3"):
        async with start({**ML, "amount": amount}, {**OPS, "amount": amount}, {"scope": "team:a", "amount": "1"}) as sark:
            assert (await amounts(sark))["team:ml"] == int(amount)
            await sark.limits.set(ml("9"), actor="ann")
    async with start({**ML, "amount": "3"}, {**OPS, "amount": "3"}, {"scope": "team:a", "amount": "1"}) as sark:
        assert await amounts(sark) == {"team:ml": 9, "team:ops": 3, "team:a": 1}


async def test_a_limit_named_twice_in_the_file_is_refused_at_every_start(start: Start) -> None:
    async with start(ML):
        pass
    with pytest.raises(ConfigurationError, match="twice"):
        async with start(ML, ML):
            pass
