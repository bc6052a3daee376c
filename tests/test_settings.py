"""Settings: from a file, the environment and code; whatever cannot work is refused by name, secrets never repeated."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from sark_mw.errors import ConfigurationError
from sark_mw.sark import Sark
from sark_mw.settings import Settings, as_settings

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a sark.toml and return its path."""

    def written(text: str | bytes) -> Path:
        path = tmp_path / "sark.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return written


def test_without_a_file_there_are_defaults_that_work() -> None:
    settings = Settings.load()
    assert (settings.store.url, settings.store.on_store_failure) == ("memory://", "deny")
    assert settings == as_settings(None)
    assert as_settings(settings) is settings


def test_amounts_are_read_exactly(write: Write) -> None:
    path = write('[[limits]]\nscope = "team:ml"\namount = 0.100000001\n\n[[routes]]\npath = "/x"\nprice_usd = 0.3\n')
    settings = Settings.load(str(path))
    assert settings.limits[0].amount == Decimal("0.100000001")
    assert settings.routes[0].price_usd == Decimal("0.3")


def test_the_environment_wins_over_the_file_and_over_code(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARK_STORE__SHARDS", "8")
    path = write('[store]\nshards = 4\nprefix = "mine"\n')
    assert (Settings.load(path).store.shards, Settings.load(path).store.prefix) == (8, "mine")
    assert Settings(store={"shards": 2}).store.shards == 8


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[stoer]\n", "stoer"),
        ("[store]\nshard = 3\n", "store.shard"),
        ("[store]\nshards = 0\n", "store.shards"),
        ("[store]\nshards = 16385\n", "store.shards"),
        ("[store]\ndeadline_ms = 0\n", "store.deadline_ms"),
        ('[store]\nprefix = "a b"\n', "store.prefix"),
        ('[store]\non_store_failure = "hope"\n', "store.on_store_failure"),
        ("[store]\nretention_s = 1\n", "store.retention_s"),
        ("[reservation]\nlease_s = 86401\n", "reservation.lease_s"),
        ("[http]\nbudget_status = 500\n", "http.budget_status"),
        ('[[limits]]\nscope = "ml"\namount = 1\n', "kind:name"),
        ('[[limits]]\nscope = "team:ml"\namount = -1\n', "limits.0.amount"),
        ('[[limits]]\nscope = "team:ml"\namount = 1\nwindow = "fortnight"\n', "fortnight"),
        ('[[limits]]\nscope = "team:ml"\namount = 1\ntimezone = "Mars/Olympus"\n', "Mars/Olympus"),
        ('[[limits]]\nscope = "team:ml"\namount = 1.5\nunit = "requests"\n', "whole number"),
        ('[[limits]]\nscope = "team:ml"\namount = 99999999999\n', r"limits\[0\]"),
        ('[[limits]]\nscope = "team:ml"\namount = nan\n', "limits.0.amount"),
        ('[[routes]]\npath = "/x"\nfree = true\nignore = true\n', "routes.0"),
        ("[[policy.plugins]]\nenabled = true\n", "policy.plugins.0"),
        ('[[policy.plugins]]\nname = "a"\npath = "b.py"\n', "policy.plugins.0"),
        ("[store\n", "sark.toml"),
        (b"\xff\xfe", "sark.toml"),
    ],
)
def test_what_cannot_work_is_refused_by_name(write: Write, text: str | bytes, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Settings.load(write(text))


def test_a_file_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml"):
        Settings.load(tmp_path / "none.toml")


def test_secrets_appear_neither_in_errors_nor_in_what_is_printed(write: Write) -> None:
    secret = "postgresql://user:hunter2@host/db"
    path = write(f'[ledger]\nurl = "{secret}"\nbatch = 0\n[principal]\nkey_secret = "hunter2"\n')
    with pytest.raises(ConfigurationError) as raised:
        Settings.load(path)
    assert "hunter2" not in str(raised.value)
    assert "ledger.batch" in str(raised.value)
    good = Settings(ledger={"url": secret}, principal={"key_secret": "hunter2"})
    assert "hunter2" not in repr(good)
    assert "hunter2" not in good.model_dump_json()


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.store.shards = 3  # type: ignore[misc]


def test_a_complaint_begins_with_the_place_and_says_nothing_of_pydantic(write: Write) -> None:
    path = write('[[limits]]\nscope = "team:ml"\namount = 1\nwindow = "fortnight"\n')
    with pytest.raises(ConfigurationError) as raised:
        Settings.load(path)
    assert str(raised.value).startswith(f"{path}: limits[0]: unknown window 'fortnight'")
    with pytest.raises(ConfigurationError) as raised:
        Settings.load(write('[[routes]]\npath = "/x"\nfree = true\nignore = true\n'))
    assert str(raised.value).endswith("routes.0: a route has one of price_usd, free, ignore and estimator")


def test_a_mapping_of_sections_is_accepted_as_settings() -> None:
    assert as_settings({"store": {"shards": 4}}) == Settings(store={"shards": 4})
    with pytest.raises(ConfigurationError, match=r"^settings: store\.shards"):
        as_settings({"store": {"shards": 0}})


async def test_what_cannot_be_settings_is_told_what_can() -> None:
    for wrong in (42, b"sark.toml", ["sark.toml"]):
        with pytest.raises(ConfigurationError, match="path of a TOML file, or None"):
            async with Sark.open(wrong):  # type: ignore[arg-type]
                pass
