"""What PromQL expressions ask for, and what metrics there are: every alert and panel is held to the code by these two."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import promql_parser
import yaml

from sark_mw.instrumentation.prometheus import PrometheusInstrumentation

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules/sark.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/sark.json"
#: What Prometheus itself knows of a target.
TARGET_LABELS = frozenset({"job", "instance"})
_GRAFANA_VARIABLE = re.compile(r"\$__(?:rate_interval|range|interval)")


@dataclass(frozen=True, slots=True)
class Selected:
    metric: str
    labels: frozenset[str]


def known_metrics() -> dict[str, frozenset[str]]:
    """Map every sample name that the instrumentation can show to its labels; `le` for buckets."""
    collectors = PrometheusInstrumentation().registry._names_to_collectors
    known = {}
    for name, collector in collectors.items():
        # The bare name of a histogram or counter, and its time of birth, are never samples that one may ask for.
        if name.endswith("_created") or f"{name}_bucket" in collectors or f"{name}_total" in collectors:
            continue
        labels = frozenset(collector._labelnames)  # type: ignore[attr-defined]
        known[name] = labels | {"le"} if name.endswith("_bucket") else labels
    return known


def families() -> frozenset[str]:
    """Name the metrics as documentation does: histograms without their suffixes."""
    return frozenset(family_of(name) for name in known_metrics())


def family_of(name: str) -> str:
    """Return the metric that a sample belongs to."""
    return re.sub(r"_(?:bucket|count|sum)$", "", name)


def selected(expr: str) -> list[Selected]:
    """Parse an expression (Grafana's variables replaced) and list its selectors."""
    found: list[Selected] = []

    def visit(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(Selected(node.name, frozenset(matcher.name for matcher in node.matchers.matchers)))
        return True

    promql_parser.walk(promql_parser.parse(_GRAFANA_VARIABLE.sub("5m", expr)), visit)
    return found


def grouped_by(expr: str) -> set[str]:
    """List the labels of `by (…)` and `on (…)`."""
    return {
        label.strip() for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expr) for label in group.split(",") if label.strip()
    }


def rules() -> list[dict[str, object]]:
    loaded = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, object]]:
    return [panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield (where, expression) of all alerts and panels."""
    for rule in rules():
        yield str(rule["alert"]), str(rule["expr"])
    for panel in panels():
        for target in panel["targets"]:  # type: ignore[attr-defined]
            yield str(panel["title"]), target["expr"]
