from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy.queries import DASHBOARD, ROOT, panels

COMMITTED: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
DATASOURCES = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))[
    "datasources"
]


def test_the_committed_dashboard_is_what_the_code_makes() -> None:
    made = subprocess.run([sys.executable, ROOT / "deploy/grafana/build.py", "--print"], check=True, capture_output=True)
    assert DASHBOARD.read_bytes() == made.stdout, "run: python deploy/grafana/build.py"


def test_grafanas_own_model_reads_the_dashboard_and_loses_nothing() -> None:
    read = json.loads(json.dumps(Dashboard.from_json(COMMITTED), cls=JSONEncoder))
    assert read["uid"] == COMMITTED["uid"]
    assert [panel["title"] for panel in read["panels"]] == [panel["title"] for panel in COMMITTED["panels"]]
    for ours, theirs in zip(COMMITTED["panels"], read["panels"], strict=True):
        if ours["type"] != "row":
            assert ours.keys() <= theirs.keys()
            assert theirs["fieldConfig"]["defaults"]["unit"] == ours["fieldConfig"]["defaults"]["unit"]


def test_panel_ids_are_unique_and_no_two_panels_overlap() -> None:
    everything = COMMITTED["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for one, other in combinations((panel["gridPos"] for panel in everything), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in everything)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_asks_the_provisioned_datasource(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    uids = {source["uid"] for source in DATASOURCES}
    assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} <= uids
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)


def test_all_queries_are_restricted_to_the_chosen_gateways() -> None:
    for panel in panels():
        for target in panel["targets"]:  # type: ignore[attr-defined]
            assert target["expr"].count("sark_") == target["expr"].count('{job=~"$job"}')


def test_what_operators_are_promised_is_on_it() -> None:
    text = DASHBOARD.read_text(encoding="utf-8")
    for metric in (
        "spend_nanos_total", "requests_total", "refusals_total", "reserve_seconds_bucket", "settle_seconds_bucket", "held_nanos",
        "outbox_entries", "drift_nanos", "breaker_state", "estimate_ratio_bucket", "overrun_nanos_total", "plugin_seconds_bucket",
    ):  # fmt: skip
        assert f"sark_{metric}" in text
