"""Every alert and every panel asks for metrics and labels that exist, and every metric is shown or watched somewhere."""

from __future__ import annotations

import pytest

from tests.deploy.queries import TARGET_LABELS, Selected, expressions, families, family_of, grouped_by, known_metrics, selected

KNOWN = known_metrics()
ASKED = list(expressions())


@pytest.mark.parametrize(("where", "expr"), ASKED, ids=[where for where, _ in ASKED])
def test_an_expression_asks_for_metrics_and_labels_that_exist(where: str, expr: str) -> None:
    asked = selected(expr)
    assert asked, f"{where} asks for nothing"
    labels = set(TARGET_LABELS)
    for selector in asked:
        if selector.metric == "up":
            continue
        assert selector.metric in KNOWN, f"{where}: no such metric {selector.metric}"
        assert selector.labels <= KNOWN[selector.metric] | TARGET_LABELS, f"{where}: {selector.metric} has no such label"
        labels |= KNOWN[selector.metric]
    assert grouped_by(expr) <= labels, f"{where} groups by a label that none of its metrics has"


def test_the_check_itself_sees_an_unknown_metric_and_a_histogram_without_suffix() -> None:
    (asked,) = selected('sum(rate(sark_reserve_seconds{kind="x"}[$__rate_interval]))')
    assert asked == Selected("sark_reserve_seconds", frozenset({"kind"}))
    assert asked.metric not in KNOWN
    assert KNOWN["sark_reserve_seconds_bucket"] == {"outcome", "le"}
    assert "sark_overrun_nanos_total" in KNOWN
    assert "sark_nothing_total" not in KNOWN


def test_every_metric_is_shown_or_watched_somewhere() -> None:
    shown = {family_of(selector.metric) for _, expr in ASKED for selector in selected(expr)}
    assert families() - shown == set()
