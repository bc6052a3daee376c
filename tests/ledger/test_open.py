"""Addresses, drivers that are missing, and the migrations that ship."""

from __future__ import annotations

import sys
from datetime import timedelta

import pytest

from sark_mw.errors import ConfigurationError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.open import open_ledger
from sark_mw.ledger.postgres import PostgresLedger
from sark_mw.ledger.schema import migrations
from sark_mw.ledger.sqlite import SqliteLedger


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("sqlite:///:memory:", SqliteLedger),
        ("postgresql://localhost/sark", PostgresLedger),
        ("postgres://localhost/sark", PostgresLedger),
    ],
)
async def test_the_scheme_chooses_the_ledger(url: str, kind: type) -> None:
    ledger = open_ledger(url)  # connects to nothing yet
    assert type(ledger) is kind
    assert isinstance(ledger, Ledger)
    await ledger.aclose()


@pytest.mark.parametrize("url", ["", "mysql://localhost/sark", "postgresql+asyncpg://localhost/sark", "/just/a/path"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://"):
        open_ledger(url)


def test_a_missing_driver_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sark_mw.ledger.postgres")
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'sark-mw\[postgres\]'"):
        open_ledger("postgresql://localhost/sark")


@pytest.mark.parametrize("policies", [{"retention": timedelta(days=35)}, {"compress_after": timedelta()}])
def test_a_retention_that_would_eat_the_daily_sums_is_refused(policies: dict[str, timedelta]) -> None:
    with pytest.raises(ConfigurationError):
        open_ledger("postgresql://localhost/sark", **policies)  # type: ignore[arg-type]


@pytest.mark.parametrize("track", ["sqlite", "postgres", "timescale"])
def test_every_migration_says_what_it_is_for(track: str) -> None:
    for number, migration in enumerate(migrations(track), start=1):
        assert migration.label == f"{track}/{number:04d}_{migration.name}"
        assert migration.description.endswith(".")
        assert migration.sql.count(";") >= 1
        # the simple protocol makes several statements a transaction, which this one must not be in
        assert migration.in_transaction or migration.sql.rstrip().count(";") == 1


def test_unknown_migrations_are_a_broken_installation() -> None:
    with pytest.raises((ConfigurationError, FileNotFoundError)):
        migrations("oracle")
