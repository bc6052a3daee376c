from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.queries import ROOT, RULES, rules

RULE_TESTS = ROOT / "deploy/prometheus/tests/sark_test.yml"
ALERTS = {str(rule["alert"]): rule for rule in rules()}


@pytest.fixture(scope="module")
def promtool() -> str:
    here = ROOT / "var/bin/promtool"
    found = os.environ.get("SARK_PROMTOOL") or shutil.which("promtool") or (str(here) if here.exists() else None)
    if found is None:
        reason = "promtool is not here: deploy/prometheus/get_promtool.sh fetches it, or install Debian's prometheus"
        if os.environ.get("CI") or os.environ.get("SARK_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run(promtool: str, *arguments: str | Path) -> None:
    done = subprocess.run([promtool, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.promtool
def test_promtool_takes_the_rules(promtool: str) -> None:
    run(promtool, "check", "rules", RULES)


@pytest.mark.promtool
def test_promtool_takes_the_configuration(promtool: str) -> None:
    run(promtool, "check", "config", "deploy/prometheus/prometheus.yml")


@pytest.mark.promtool
def test_every_alert_fires_when_it_should_and_stays_quiet_when_not(promtool: str) -> None:
    run(promtool, "test", "rules", RULE_TESTS)


@pytest.mark.promtool
def test_a_rule_that_is_broken_fails_its_test(promtool: str, tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    broken = RULES.read_text(encoding="utf-8").replace("sark_breaker_state) == 2\n", "sark_breaker_state) == 1\n")
    assert broken != RULES.read_text(encoding="utf-8")
    (tmp_path / "rules/sark.yml").write_text(broken, encoding="utf-8")
    shutil.copy(RULE_TESTS, tmp_path / "tests/sark_test.yml")
    done = subprocess.run(
        [promtool, "test", "rules", tmp_path / "tests/sark_test.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "SarkBreakerOpen" in done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_what_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    annotations = rule["annotations"]
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert set(annotations) == {"summary", "description", "runbook_url"}  # type: ignore[call-overload]
    assert annotations["runbook_url"] == f"docs/operations.md#{alert.lower()}"  # type: ignore[index]


def test_the_runbook_has_a_section_for_every_alert_and_no_other() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### (\w+)\n\n\*.+?\n\n- Look at: .+?\n- Do: ", text, flags=re.MULTILINE | re.DOTALL)
    assert sections == re.findall(r"^### (\w+)$", text, flags=re.MULTILINE), (
        "each has its meaning, what to look at and what to do"
    )
    assert set(sections) == set(ALERTS)


def test_the_runbook_links_only_to_sections_that_exist() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= anchors


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    cases = yaml.safe_load(RULE_TESTS.read_text(encoding="utf-8"))["tests"]
    fired = {
        match
        for case in cases
        for check in case.get("promql_expr_test", [])
        for sample in check["exp_samples"]
        for match in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == set(ALERTS)
