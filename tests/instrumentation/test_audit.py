from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import structlog

from sark_mw.errors import ConfigurationError
from sark_mw.instrumentation.audit import MAX_TEXT_LENGTH, AuditInstrumentation, audit_logger, configure_logging, printable
from sark_mw.instrumentation.base import BreakerState, PolicyDecided, RequestFinished, RequestOutcome, Reserved, Settled
from sark_mw.instrumentation.keys import hash_key

SECRET = b"0123456789abcdef"


class Trail:
    def __init__(self, renderer: str = "json") -> None:
        self.file = io.StringIO()
        self.audit = AuditInstrumentation(audit_logger(renderer, self.file))  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        return self.file.getvalue()

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text.splitlines()]


def refused(**fields: object) -> RequestFinished:
    return RequestFinished(
        **{"outcome": RequestOutcome.REFUSED_BUDGET, "wire": "openai", "operation": "chat", "status": 402} | fields
    )  # type: ignore[arg-type]


def test_a_refusal_says_who_what_and_why() -> None:
    trail = Trail()
    trail.audit.request_finished(
        refused(reason="usd", limit_id="user:alice/usd/day@UTC", principal_id="user:alice", request_id="r1")
    )
    (line,) = trail.lines
    assert (line["event"], line["level"], line["outcome"], line["reason"]) == ("sark.refused", "warning", "refused_budget", "usd")
    assert (line["limit_id"], line["principal_id"], line["request_id"], line["status"]) == (
        "user:alice/usd/day@UTC",
        "user:alice",
        "r1",
        402,
    )
    assert str(line["timestamp"]).endswith("Z")


def test_an_admitted_request_has_its_hold_and_then_its_settle() -> None:
    trail = Trail()
    trail.audit.reserved(Reserved(outcome="held", seconds=0.001, reservation_id="x", held=(("usd", 1000),)))
    trail.audit.settled(
        Settled(
            outcome="settled", kind="settle", seconds=0.001, reservation_id="x", booked=(("usd", 1200),), overrun=(("usd", 200),)
        )
    )
    trail.audit.request_finished(RequestFinished(outcome=RequestOutcome.ADMITTED, wire="openai", operation="chat", status=200))
    admitted, settled = trail.lines
    assert (admitted["event"], admitted["held"], admitted["level"]) == ("sark.admitted", {"usd": 1000}, "info")
    assert (settled["event"], settled["booked"], settled["overrun"], settled["level"]) == (
        "sark.settled",
        {"usd": 1200},
        {"usd": 200},
        "warning",
    )


def test_a_reserve_that_was_refused_is_written_once_as_the_request_ends() -> None:
    trail = Trail()
    trail.audit.reserved(Reserved(outcome="exceeds_limit", seconds=0.001))
    trail.audit.request_finished(refused(reason="usd"))
    assert [line["event"] for line in trail.lines] == ["sark.refused"]


def test_the_other_events_have_their_names() -> None:
    trail = Trail()
    trail.audit.holds_expired(2)
    trail.audit.plugin_evaluated("hours", "denied", 0.1)
    trail.audit.policy_decided(PolicyDecided(plugin="hours", version="1.0", outcome="denied", allowed=False, reason="night"))
    trail.audit.plugin_loaded("hours", "failed")
    trail.audit.plugin_blocked("hours", 1.5)
    trail.audit.plugin_breaker_changed("hours", BreakerState.OPEN)
    trail.audit.policy_isolation(())
    trail.audit.policy_isolation(("seccomp",))
    trail.audit.breaker_changed("store", BreakerState.OPEN)
    trail.audit.store_failure_allowed("allow")
    trail.audit.reserved(Reserved(outcome="unavailable", seconds=0.1))
    trail.audit.ledger_failed("LedgerUnavailableError")
    trail.audit.drift_measured(1, "usd", 5)
    trail.audit.drift_measured(1, "usd", 0)
    trail.audit.unknown_model("openai", "gpt-99")
    assert [line["event"] for line in trail.lines] == [
        "sark.expired", "sark.policy", "sark.plugin", "sark.plugin", "sark.plugin", "sark.plugin", "sark.store", "sark.store",
        "sark.store", "sark.ledger", "sark.ledger", "sark.estimate",
    ]  # fmt: skip
    assert trail.lines[4]["state"] == trail.lines[6]["state"] == "open"


def test_every_decision_is_written_with_plugin_version_reason_and_time() -> None:
    trail = Trail()
    decided = PolicyDecided(
        plugin="hours",
        version="1.2.0",
        outcome="allowed",
        allowed=True,
        reason="open",
        seconds=0.25,
        obligations=("add_tag=night",),
        metadata='{"decision_id":"' + "d" * 300 + '","key":"sk-' + "a" * 40 + '"}',
        request_id="req-1",
        principal_id="user:a",
    )
    trail.audit.policy_decided(decided)
    trail.audit.policy_decided(replace(decided, outcome="skipped", obligations=()))
    first, second = trail.lines
    assert first["event"] == "sark.policy" and (first["level"], second["level"]) == ("info", "warning")
    said = {"plugin": "hours", "version": "1.2.0", "outcome": "allowed", "allowed": True, "reason": "open", "seconds": 0.25}
    assert "d" * 300 in first["metadata"] and "sk-aaaa" not in first["metadata"]
    assert first.items() >= (said | {"obligations": "add_tag=night", "request_id": "req-1", "principal_id": "user:a"}).items()


def test_a_field_that_is_not_allowed_is_not_written() -> None:
    trail = Trail()
    trail.audit._logger.warning(
        "sark.refused", prompt="tell me a secret", authorization="Bearer abc", messages=["hi"], reason="usd"
    )
    (line,) = trail.lines
    assert set(line) == {"event", "level", "timestamp", "reason"}


def test_a_host_logger_with_other_processors_gets_allowed_fields_only() -> None:
    with structlog.testing.capture_logs() as captured:
        audit = AuditInstrumentation(structlog.get_logger())
        audit.request_finished(refused(principal_id="sk-ant-REDACTED" + "x" * 20))
    assert captured[0]["principal_id"] == "[redacted]"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklmnop1234",
        "sk-ant-api03-abcdefghijkl",
        "Bearer abc.def",
        "AIza" + "a" * 35,
        "eyJhbGciOiJIUzI1NiJ9.e30.abc",
    ],
)
def test_what_looks_like_a_key_is_taken_out_even_where_someone_used_it_as_a_name(secret: str) -> None:
    trail = Trail()
    trail.audit.request_finished(refused(principal_id=secret, model="x" * (MAX_TEXT_LENGTH - 6) + " " + secret, reason=secret))
    for part in (secret, secret[:14]):
        assert part not in trail.text


def test_a_hashed_key_is_not_mistaken_for_a_key() -> None:
    scope = f"key:{hash_key(SECRET, 'sk-proj-abc')}"
    assert printable(scope) == scope


@pytest.mark.parametrize("renderer", ["json", "console"])
def test_a_callers_text_can_neither_forge_nor_flood_a_line(renderer: str) -> None:
    trail = Trail(renderer)
    trail.audit.unknown_model("openai", "x\n2026 sark.admitted \x1b[31m" + "y" * 100_000)
    assert trail.text.count("\n") == 1
    assert "\x1b" not in trail.text
    assert len(trail.text) < 600


def test_a_long_tail_of_a_lone_surrogate_is_written() -> None:
    trail = Trail("console")
    trail.audit.unknown_model("openai", "a\ud800")
    trail.text.encode()


def test_importing_and_using_the_trail_leaves_structlog_unconfigured() -> None:
    code = (
        "import structlog; import sark_mw.instrumentation.audit as a; a.AuditInstrumentation().holds_expired(1)\n"
        "assert not structlog.is_configured()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_configure_logging_configures_the_process_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        configure_logging("json")
        structlog.get_logger().info("started", port=8080)
    finally:
        structlog.reset_defaults()
    assert json.loads(capsys.readouterr().err)["port"] == 8080


def test_the_hash_of_a_key_is_stable_keyed_and_does_not_show_the_key() -> None:
    hashed = hash_key(SECRET, "sk-1")
    assert hashed == hash_key(SECRET, "sk-1")
    assert len(hashed) == 32
    assert len({hashed, hash_key(SECRET, "sk-2"), hash_key(b"x" * 16, "sk-1"), hash_key(SECRET, "\ud800")}) == 4


def test_a_short_secret_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="at least 16 bytes"):
        hash_key(b"short", "sk-1")


def test_what_happened_to_a_limit_is_one_line_and_a_threshold_is_a_warning() -> None:
    trail = Trail()
    trail.audit.limit_event("threshold", "usd", "user:al", "user:al/usd/day@UTC", "acme", '{"percent":80}')
    trail.audit.limit_event("top_up", "usd", "user:al", "user:al/usd/day@UTC", "acme", "")
    fired, topped_up = trail.lines
    assert (fired["event"], fired["level"], fired["kind"], fired["unit"]) == ("sark.limit_event", "warning", "threshold", "usd")
    assert (fired["scope"], fired["limit_id"], fired["root"]) == ("user:al", "user:al/usd/day@UTC", "acme")
    assert json.loads(str(fired["detail"])) == {"percent": 80}
    assert (topped_up["level"], topped_up["kind"]) == ("info", "top_up") and "detail" not in topped_up
