"""Limits as every ledger keeps them, so that a store that lost its data gets them back."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from sark_mw.errors import LedgerError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.open import open_ledger
from sark_mw.ledger.schema import migrations
from sark_mw.limit import Limit
from tests.ledger.books import limit_event
from tests.ledger.conftest import run_sql

LIMIT = Limit(
    scope="team:ml", unit="usd", amount=Decimal("12.345678901"), window="day", timezone="Europe/Berlin", root="acme", since_ms=17
)


async def test_limits_come_back_as_they_were_saved(ledger: Ledger) -> None:
    others = [Limit(scope="user:*", unit="requests", amount=Decimal(60), window="rolling:60", mode="shadow", root="acme")]
    await ledger.save_limits([LIMIT, *others], [])
    loaded = await ledger.load_limits()
    assert sorted(loaded, key=lambda limit: limit.scope) == [LIMIT, *others]
    assert str(next(limit.amount for limit in loaded if limit.unit == "usd")) == "12.345678901"


async def test_a_limit_is_replaced_dropped_and_set_again(ledger: Ledger, rows: Any) -> None:
    await ledger.save_limits([LIMIT], [])
    dearer = Limit(
        scope="team:ml", unit="usd", amount=Decimal(50), window="day", timezone="Europe/Berlin", root="acme", since_ms=18
    )
    await ledger.save_limits([dearer], [])
    assert await ledger.load_limits() == [dearer]
    await ledger.save_limits([], [("acme", LIMIT.limit_id), ("nobody", "nothing")])
    assert await ledger.load_limits() == []
    (row,) = await rows("select amount, deleted_at from principal_budgets")
    assert row["deleted_at"] is not None
    await ledger.save_limits([LIMIT], [("acme", LIMIT.limit_id)])  # dropped and put in one call: it is put
    assert await ledger.load_limits() == [LIMIT]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"parent": "org:acme", "overcommit": True},
    {"mode": "soft"},
    {"mode": "soft", "thresholds": (10, 1000)},
    {"rollover": Decimal("0.000000001"), "thresholds": (1, 80, 100)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
async def test_a_limit_comes_back_with_its_options_and_loses_those_that_are_taken_away(
    ledger: Ledger, options: dict[str, Any]
) -> None:
    await ledger.save_limits([replace(LIMIT, **options)], [])
    assert await ledger.load_limits() == [replace(LIMIT, **options)]
    await ledger.save_limits([LIMIT], [])
    assert await ledger.load_limits() == [LIMIT]


async def test_limits_of_a_database_from_before_there_were_options_are_read_as_they_were(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_ledger(ledger_url)
    with monkeypatch.context() as patched:
        for track, module in (("sqlite", "sqlite"), ("postgres", "postgres_schema")):
            old = {
                name: migrations(name)[:5] if name == track else migrations(name) for name in ("sqlite", "postgres", "timescale")
            }
            patched.setattr(f"sark_mw.ledger.{module}.migrations", old.__getitem__)
        await before.migrate()
        assert (await before.schema_version())[0] in (5, 9)
    with pytest.raises(LedgerError, match="sark-mw migrate"):
        await before.load_limits()
    await run_sql(
        ledger_url,
        "insert into principal_budgets (limit_id, root, scope, unit, amount, limit_window, timezone, mode, since_ms) "
        "values ('team:ml/usd/day@Europe/Berlin', 'acme', 'team:ml', 'usd', 12.345678901, 'day', 'Europe/Berlin', 'enforce', 17)",
    )
    assert len(await before.migrate()) == 3
    assert await before.load_limits() == [LIMIT]
    assert await before.record_events([limit_event(1)]) == 1
    await before.aclose()
