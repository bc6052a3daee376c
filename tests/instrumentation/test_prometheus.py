from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from sark_mw.errors import ConfigurationError
from sark_mw.instrumentation.base import RequestFinished, RequestOutcome, Reserved, Settled
from sark_mw.instrumentation.prometheus import PrometheusInstrumentation
from tests.instrumentation.scraping import scrape


def settled(**fields: object) -> Settled:
    return Settled(**{"outcome": "settled", "kind": "settle", "seconds": 0.002, "provider": "openai", "model": "gpt-4o"} | fields)  # type: ignore[arg-type]


def refused(reason: str) -> RequestFinished:
    return RequestFinished(
        outcome=RequestOutcome.REFUSED_BUDGET, wire="openai", operation="chat", provider="openai", status=402, reason=reason
    )


async def test_a_refused_request_is_counted_by_outcome_and_by_reason() -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.request_finished(refused("usd"))
    got = await scrape(prometheus)
    assert got["sark_requests_total{operation=chat,outcome=refused_budget,provider=openai,status=4xx,wire=openai}"] == 1
    assert got["sark_refusals_total{outcome=refused_budget,reason=usd}"] == 1


async def test_an_admitted_request_is_no_refusal_and_its_added_time_is_observed() -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.request_finished(
        RequestFinished(outcome=RequestOutcome.ADMITTED, wire="openai", operation="chat", status=200, added_seconds=0.004)
    )
    got = await scrape(prometheus)
    assert not [name for name in got if name.startswith("sark_refusals_total{")]
    assert got["sark_added_seconds_bucket{le=0.005,outcome=admitted}"] == 1
    assert got["sark_added_seconds_bucket{le=0.003,outcome=admitted}"] == 0


async def test_what_a_settle_books_is_spend_and_what_exceeds_its_hold_is_overrun() -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.settled(settled(booked=(("usd", 900), ("requests", 1)), overrun=(("usd", 100), ("tokens", 7))))
    got = await scrape(prometheus)
    assert got["sark_spend_nanos_total{model=gpt-4o,provider=openai}"] == 900
    assert got["sark_spend_units_total{provider=openai,unit=requests}"] == 1
    assert got["sark_overrun_nanos_total"] == 100
    assert got["sark_overrun_units_total{unit=tokens}"] == 7


async def test_a_repeated_settle_is_timed_but_books_nothing_again() -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.settled(
        settled(booked=(("usd", 900),), overrun=(("usd", 1),), estimated_nanos=900, actual_nanos=900, repeated=True)
    )
    got = await scrape(prometheus)
    assert got["sark_settle_seconds_count{kind=settle,outcome=settled}"] == 1
    assert got["sark_overrun_nanos_total"] == 0
    assert not [name for name in got if name.startswith(("sark_spend_nanos_total", "sark_estimate_ratio_count"))]


async def test_spend_less_corrections_is_what_the_ledger_says_after_a_late_settle() -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.expiry_booked("openai", "gpt-4o", "usd", 500)
    prometheus.settled(settled(booked=(("usd", -200),), late=True))
    got = await scrape(prometheus)
    spent, corrected = (
        "sark_spend_nanos_total{model=gpt-4o,provider=openai}",
        "sark_spend_corrected_nanos_total{model=gpt-4o,provider=openai}",
    )
    assert (got[spent], got[corrected]) == (500, 200)


@pytest.mark.parametrize(
    ("estimated", "actual", "below", "above"), [(100, 100, 0.99, 1.0), (100, 150, 1.25, 1.5), (1, 10**15, 100.0, "+Inf")]
)
async def test_the_estimate_error_is_actual_by_expected(estimated: int, actual: int, below: object, above: object) -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.settled(settled(estimated_nanos=estimated, actual_nanos=actual))
    got = await scrape(prometheus)
    assert got[f"sark_estimate_ratio_bucket{{le={below},provider=openai}}"] == 0
    assert got[f"sark_estimate_ratio_bucket{{le={above},provider=openai}}"] == 1
    assert got["sark_estimate_ratio_sum{provider=openai}"] <= 1000


@pytest.mark.parametrize(("estimated", "actual"), [(0, 5), (100, None)])
async def test_without_both_figures_there_is_no_estimate_error(estimated: int, actual: int | None) -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.settled(settled(estimated_nanos=estimated, actual_nanos=actual))
    assert not [name for name in await scrape(prometheus) if name.startswith("sark_estimate_ratio_count")]


async def test_gauges_show_the_last_word() -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.held("usd", 1000)
    prometheus.held("usd", -400)
    prometheus.held("concurrency", 1)
    prometheus.backlog_measured(12, 3.5)
    prometheus.drift_measured(3, "usd", -7)
    prometheus.drift_measured(3, "tokens", 2)
    prometheus.breaker_changed("store", 2)
    prometheus.journal_measured(4)
    got = await scrape(prometheus)
    assert (got["sark_held_nanos"], got["sark_held_units{unit=concurrency}"]) == (600, 1)
    assert (got["sark_outbox_entries"], got["sark_outbox_oldest_seconds"]) == (12, 3.5)
    assert (got["sark_drift_nanos{shard=3}"], got["sark_drift_units{shard=3,unit=tokens}"]) == (-7, 2)
    assert (got["sark_breaker_state{breaker=store}"], got["sark_journal_entries"]) == (2, 4)


async def test_counters_that_alerts_watch_are_born_at_zero() -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.plugin_evaluated("hours", "allowed", 0.001)
    got = await scrape(prometheus)
    assert got["sark_store_failures_allowed_total{mode=allow}"] == 0
    assert got["sark_store_failures_allowed_total{mode=leased}"] == 0
    assert got["sark_overrun_nanos_total"] == 0
    assert got["sark_plugin_seconds_count{outcome=failed,plugin=hours}"] == 0
    assert got["sark_plugin_seconds_count{outcome=allowed,plugin=hours}"] == 1


async def test_the_life_of_plugins_is_counted() -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.plugin_loaded("hours", "loaded")
    prometheus.plugin_loaded("hours", "reloaded")
    prometheus.plugin_blocked("hours", 0.7)
    prometheus.plugin_breaker_changed("hours", 1)
    prometheus.policy_isolation(("seccomp", "landlock_fs"))
    got = await scrape(prometheus)
    loads = [got[f"sark_plugin_loads_total{{outcome={outcome},plugin=hours}}"] for outcome in ("loaded", "reloaded", "failed")]
    assert loads == [1, 1, 0]
    assert got["sark_plugin_blocked_seconds_sum{plugin=hours}"] == 0.7
    assert got["sark_plugin_breaker_state{plugin=hours}"] == 1
    assert got["sark_policy_isolation_missing_layers"] == 2


async def test_a_thousand_invented_names_make_a_bounded_number_of_series() -> None:
    prometheus = PrometheusInstrumentation(models=["gpt-4o"], providers=["openai"])
    for n in range(1000):
        name = f"evil-{n}"
        prometheus.settled(
            settled(model=name, provider=name, booked=(("usd", 1), (name, 1)), outcome=name, kind=name, overrun=((name, 1),))
        )
        prometheus.request_finished(
            RequestFinished(outcome=RequestOutcome.INVALID, wire=name, operation="x", provider=name, reason=name)
        )
        prometheus.unknown_model(name, name)
        prometheus.plugin_evaluated(name, name, 0.1)
        prometheus.plugin_loaded(name, name)
        prometheus.plugin_blocked(name, 0.1)
        prometheus.ledger_failed(name)
        prometheus.breaker_changed(name, 2)
        prometheus.plugin_breaker_changed(name, 2)
        prometheus.reserved(Reserved(outcome=name, seconds=0.1))
        prometheus.limit_event(name, name, name, name, name, "{}")
        prometheus.webhook_delivered(name)
    got = await scrape(prometheus)
    assert got["sark_spend_nanos_total{model=other,provider=other}"] == 1000
    assert len({name.partition("{")[0] for name in got}) > 20
    per_metric = [
        sum(1 for name in got if name.startswith(f"sark_{metric}{{"))
        for metric in ("requests_total", "refusals_total", "breaker_state", "limit_events_total", "webhook_deliveries_total")
    ]
    assert max(per_metric) <= 257


async def test_a_name_that_no_encoding_can_write_does_not_take_the_whole_page_down() -> None:
    prometheus = PrometheusInstrumentation()
    prometheus.unknown_model("\ud800", "\ud800")
    prometheus.request_finished(refused('a"b\\c\nd'))
    got = await scrape(prometheus)
    assert got["sark_unknown_models_total{provider=_}"] == 1
    assert got['sark_refusals_total{outcome=refused_budget,reason=a"b\\c_d}'] == 1


async def test_events_of_limits_and_what_became_of_them_are_counted() -> None:
    prometheus = PrometheusInstrumentation()
    assert (await scrape(prometheus))["sark_webhook_deliveries_total{outcome=given_up}"] == 0
    for scope in ("user:al", "user:bo"):
        prometheus.limit_event("threshold", "usd", scope, f"{scope}/usd/day@UTC", "acme", '{"percent":80}')
    prometheus.limit_event("rollover", "", "", "", "acme", "{}")
    prometheus.webhook_delivered("delivered")
    prometheus.request_adapted("clamped")
    prometheus.idempotent_replayed("replayed")
    got = await scrape(prometheus)
    assert got["sark_limit_events_total{kind=threshold,unit=usd}"] == 2
    assert got["sark_limit_events_total{kind=rollover,unit=}"] == 1
    assert got["sark_webhook_deliveries_total{outcome=delivered}"] == 1
    assert got["sark_requests_adapted_total{kind=clamped}"] == 1
    assert got["sark_idempotent_total{outcome=replayed}"] == 1


async def test_two_instances_share_nothing_and_a_given_registry_is_used() -> None:
    registry = CollectorRegistry()
    one, other = PrometheusInstrumentation(registry), PrometheusInstrumentation()
    one.holds_expired(3)
    assert registry.get_sample_value("sark_expired_holds_total") == 3
    assert (await scrape(other))["sark_expired_holds_total"] == 0


def test_importing_the_room_makes_no_metric() -> None:
    code = (
        "import prometheus_client as p; before = set(p.REGISTRY._names_to_collectors)\n"
        "import sark_mw.instrumentation.prometheus, sark_mw.instrumentation.metrics_app, sark_mw.instrumentation.audit\n"
        "assert set(p.REGISTRY._names_to_collectors) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_workers_directory_that_comes_too_late_or_is_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with pytest.raises(ConfigurationError, match="before prometheus_client is imported"):
        PrometheusInstrumentation()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", f"{tmp_path}/missing")
    with pytest.raises(ConfigurationError, match="not a directory"):
        PrometheusInstrumentation()
