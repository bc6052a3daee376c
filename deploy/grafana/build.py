"""Make the Grafana dashboard: `python deploy/grafana/build.py` writes dashboards/sark.json beside this file.

Panels are data: add one in panels.py, run this, commit the JSON. With `--print` it writes to standard output only.
A test holds the committed file to this code and every query to the metrics that exist.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from panels import ROWS, Panel, Row

OUTPUT = Path(__file__).parent / "dashboards" / "sark.json"
DATASOURCE = {"type": "prometheus", "uid": "sark-prometheus"}
_COLUMNS = 24

Json = dict[str, object]


def _field_config(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        # The first amount above the threshold: Grafana's steps begin *at* their value.
        steps.append({"color": "red", "value": panel.red_above + 1e-9})
    defaults: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}, "mappings": []}
    if panel.states:
        options = {str(value): {"text": text, "color": color, "index": value} for value, text, color in panel.states}
        defaults["mappings"] = [{"type": "value", "options": options}]
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        style = {"mode": "off" if panel.red_above is None else "area"}
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacked else 5,
            "stacking": stacking,
            "showPoints": "never",
            "thresholdsStyle": style,
        }
    return {"defaults": defaults, "overrides": []}


def _options(panel: Panel) -> Json:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none",
        }
    if panel.kind == "state-timeline":
        return {
            "showValue": "auto",
            "mergeValues": True,
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
        }
    return {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> Json:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "expr": asked.expr,
            "legendFormat": asked.legend,
            "instant": panel.kind == "stat",
            "range": panel.kind != "stat",
        }
        for index, asked in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": _field_config(panel),
        "options": _options(panel),
        "targets": targets,
    }


def _place(rows: tuple[Row, ...]) -> list[Json]:
    """Lay panels out from left to right, a headline above each row."""
    placed: list[Json] = []
    y = 0
    for row in rows:
        headline = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        placed.append(
            {"id": len(placed) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": headline, "panels": []}
        )
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            placed.append(_panel(panel, len(placed) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return placed


def dashboard() -> Json:
    """Return the dashboard as Grafana imports it."""
    job: Json = {
        "name": "job",
        "label": "Gateway",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": "label_values(sark_overrun_nanos_total, job)", "refId": "job"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": "sark",
        "title": "sark_mw",
        "description": "Budgets, refusals, latency and the books of the gateways behind SarkMiddleware.",
        "tags": ["sark"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [job]},
        "annotations": {"list": []},
        "panels": _place(ROWS),
    }


def render() -> str:
    """Return the file's text."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.buffer.write(render().encode("utf-8"))
    else:
        OUTPUT.write_text(render(), encoding="utf-8")
