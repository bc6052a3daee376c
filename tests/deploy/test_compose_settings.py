"""The configuration that docker-compose.yml mounts, read as the gateway reads it."""

from __future__ import annotations

import re

import pytest

from sark_mw.settings import Settings
from tests.deploy.queries import ROOT
from tests.deploy.test_compose import SERVICES

PATH = ROOT / "deploy/compose/sark.toml"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in SERVICES["gateway"]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{[^}]+\}", "0123456789abcdef", str(value)))
    return Settings.load(PATH)


def test_store_ledger_and_key_secret_come_from_the_environment(settings: Settings) -> None:
    assert settings.store.url == "redis://:0123456789abcdef@redis:6379/0"
    assert settings.ledger.url.get_secret_value() == "postgresql://sark:0123456789abcdef@timescaledb:5432/sark"
    assert settings.principal.key_secret.get_secret_value() == "0123456789abcdef"


def test_the_gateway_listens_where_compose_and_prometheus_look_for_it(settings: Settings) -> None:
    assert (settings.serve.host, settings.serve.port) == ("0.0.0.0", 8080)
    assert settings.observe.metrics


def test_the_upstream_is_the_fake_provider_on_its_port(settings: Settings) -> None:
    command = SERVICES["fake-provider"]["command"]
    port = command[command.index("--port") + 1]
    assert [upstream.url for upstream in settings.serve.upstreams] == [f"http://fake-provider:{port}"]


def test_the_journal_lies_on_a_volume(settings: Settings) -> None:
    assert any(str(settings.store.journal.parent) == volume.split(":")[1] for volume in SERVICES["gateway"]["volumes"])


def test_money_is_limited_from_the_start_and_failing_open_is_not_the_default(settings: Settings) -> None:
    assert settings.limits
    assert settings.store.on_store_failure == "deny"


def test_the_migration_has_a_service_of_its_own(settings: Settings) -> None:
    assert settings.ledger.migrate is False
    assert SERVICES["migrate"]["command"][0] == "migrate"
    assert "migrate" in SERVICES["gateway"]["depends_on"]
