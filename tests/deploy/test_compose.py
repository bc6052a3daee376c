from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from tests.deploy.queries import ROOT

TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
_SECRET_NAME = re.compile(r"(?i)(password|secret|token|auth)$")
_REQUIRED = re.compile(r"^\$\{[A-Z_]+:\?[^}]+\}$")


def one_shot(service: dict[str, Any]) -> bool:
    return service.get("restart") == "no"


def test_the_compose_specification_takes_the_file() -> None:
    read = compose_spec.PyOptions(apply_merge=True).from_yaml(TEXT)
    read.validate()
    assert set(read.service_names()) == {"gateway", "migrate", "fake-provider", "redis", "timescaledb", "prometheus", "grafana"}


def test_the_specification_check_itself_refuses_a_wrong_key() -> None:
    with pytest.raises(ValueError, match="healthchek"):
        compose_spec.PyCompose.from_yaml("services: {a: {image: 'redis:8', healthchek: {}}}").validate()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_a_pinned_image(name: str) -> None:
    image = SERVICES[name]["image"]
    built = image == "sark-mw:local" and SERVICES[name]["build"] == "."
    assert built or re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", image), image


@pytest.mark.parametrize("base", re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE))
def test_the_image_is_built_on_a_pinned_one(base: str) -> None:
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base), base


@pytest.mark.parametrize("name", [name for name in SERVICES if not one_shot(SERVICES[name])])
def test_a_service_that_stays_has_a_health_check_and_comes_back(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_who_needs_another_waits_until_it_is_healthy_or_done() -> None:
    for service in SERVICES.values():
        for other, wanted in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if one_shot(SERVICES[other]) else "service_healthy"
            assert wanted["condition"] == expected


def test_no_secret_is_written_in_the_file() -> None:
    named = [(name, str(value)) for service in SERVICES.values() for name, value in service.get("environment", {}).items()]
    secrets = [(name, value) for name, value in named if _SECRET_NAME.search(name)]
    assert len(secrets) >= 5
    for name, value in secrets:
        assert _REQUIRED.match(value), f"{name} must come from the environment and be required"
    passwords = re.findall(r"://[^\s@/:]*:(\$\{[^}]*\}|[^@\s]*)@", TEXT)
    assert len(passwords) == 2
    for password in passwords:
        assert _REQUIRED.match(password), "a URL's password must come from the environment"


def test_the_example_environment_names_every_variable_and_holds_no_value() -> None:
    lines = [
        line for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", TEXT))
    assert {line.partition("=")[0] for line in lines} == asked
    assert all(line.endswith("=") for line in lines)


def test_every_file_that_is_mounted_exists() -> None:
    mounts = [volume for service in SERVICES.values() for volume in service.get("volumes", [])]
    sources = [Path(volume.split(":")[0]) for volume in mounts if volume.startswith("./")]
    assert len(sources) >= 5
    for source in sources:
        assert (ROOT / source).exists(), source


def test_redis_forgets_nothing_by_design() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_ports_are_open_to_this_host_only_and_the_books_to_no_host() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert COMPOSE["networks"]["books"]["internal"] is True
    for name in ("redis", "timescaledb"):
        assert SERVICES[name]["networks"] == ["books"]
        assert "ports" not in SERVICES[name]


def test_prometheus_scrapes_the_gateway_where_it_listens_and_grafana_asks_prometheus_where_it_is() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    targets = {config["job_name"]: config["static_configs"][0]["targets"] for config in scraped}
    assert targets["sark"] == ["gateway:8080"]
    assert SERVICES["gateway"]["ports"] == ["127.0.0.1:8080:8080"]
    assert {"gateway", "prometheus", "grafana"} == {name for name, service in SERVICES.items() if "watch" in service["networks"]}


def test_the_image_runs_as_nobody_in_particular_and_the_metrics_directory_is_its_own() -> None:
    user = re.search(r"useradd --uid (\d+)", DOCKERFILE)
    assert user is not None
    assert re.search(r"^USER sark$", DOCKERFILE, flags=re.MULTILINE)
    (metrics,) = [
        mount
        for mount in SERVICES["gateway"]["tmpfs"]
        if mount.startswith(SERVICES["gateway"]["environment"]["PROMETHEUS_MULTIPROC_DIR"])
    ]
    assert f"uid={user[1]}" in metrics


def test_only_what_the_image_copies_goes_into_the_build() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    copied = {
        source.removeprefix("./")
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied <= allowed
    assert ".env" not in allowed
