from __future__ import annotations

import asyncio
import gzip
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from sark_mw import ConfigurationError, PolicyEvaluationError, PolicyPluginManager
from sark_mw.policy.base import Obligation, PolicyContext, PolicyDecision
from sark_mw.policy.opa import OpaPlugin
from tests.rules.opa_server import OpaServer, RealOpa, Serving, opa_binary, opa_server, real_opa, serving
from tests.rules.requests import a_limit, a_request, lending

pytestmark = pytest.mark.wall_clock

POLICY = """
package sark

import rego.v1

decision := {"allow": true, "obligations": {"cap_output_tokens": 100}, "metadata": {"seen": input.principal}} if {
    input.model == "gpt-4o-mini"
}

decision := {"allow": false, "reason": concat(" ", ["not", input.model, "at", sprintf("%v", [input.limits[0].used])])} if {
    input.model == "gpt-4o"
}

plain if input.model == "gpt-4o-mini"
plain := false if input.model == "gpt-4o"
number := 1
"""
COST = (Path(__file__).parents[2] / "plugins/rego/cost.rego").read_text()


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.opa)])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Serving:
    """Run OPA's data API with policies: the stand-in, and a real OPA."""
    return serving(request.param, tmp_path)


async def asked(
    opa: OpaServer | RealOpa, *models: str | PolicyContext, decision: str = "sark/decision", **options: Any
) -> list[PolicyDecision]:
    plugin = OpaPlugin(opa.url, decision, **{"timeout": 5, **options})
    plugin.bind(lending(a_limit(spent=50)))
    await plugin.on_load()
    try:
        return [await plugin.evaluate(a_request(each) if isinstance(each, str) else each) for each in models]
    finally:
        await plugin.on_unload()


async def test_the_rule_decides_with_reason_metadata_and_obligations(serve: Serving):
    async with serve(policy=POLICY) as opa:
        small, dear = await asked(opa, "gpt-4o-mini", "gpt-4o")
    assert small.allowed
    assert small.obligations == (Obligation("cap_output_tokens", 100),)
    assert small.metadata["seen"] == "user:alice"
    assert (dear.allowed, dear.reason) == (False, "not gpt-4o at 0.5")


async def test_a_rule_may_be_true_or_false_alone_and_its_path_may_have_dots(serve: Serving):
    async with serve(policy=POLICY) as opa:
        assert [each.allowed for each in await asked(opa, "gpt-4o-mini", "gpt-4o", decision="data.sark.plain")] == [True, False]


async def test_an_undefined_result_denies(serve: Serving):
    async with serve(policy=POLICY) as opa:
        decisions = [*await asked(opa, "claude"), *await asked(opa, "gpt-4o-mini", decision="sark/nothing/here")]
    assert [(each.allowed, each.metadata["undefined"]) for each in decisions] == [(False, True), (False, True)]


async def test_the_input_is_what_the_documentation_says_without_prompts():
    async with opa_server(policy=POLICY) as opa:
        await asked(opa, "gpt-4o", token="secret")
    path, headers, body = opa.requests[0]
    assert path == "/v1/data/sark/decision"
    assert headers["authorization"] == "Bearer secret"
    assert headers["content-type"] == "application/json"
    assert set(body) == {"input"}
    assert set(body["input"]) == {
        "principal", "action", "capability", "resource", "model", "provider", "root", "scopes", "estimated_usd", "output_limit",
        "stream", "arguments", "environment", "limits", "time",
    }  # fmt: skip
    assert body["input"]["estimated_usd"] == 0.2
    assert body["input"]["limits"] == [
        {"scope": "team:ml", "unit": "usd", "window": "day", "amount": 100.0, "spent": 50.0, "held": 0.0, "remaining": 50.0, "used": 0.5, "enforced": True, "asserted": False}  # noqa: E501
    ]  # fmt: skip
    assert "SECRET-PROMPT" not in json.dumps(body)


async def test_prompts_are_sent_where_they_are_asked_for_by_name():
    async with opa_server(policy=POLICY) as opa:
        await asked(opa, "gpt-4o", prompts=["messages"])
    assert opa.requests[0][2]["input"]["arguments"]["messages"] == [{"role": "user", "content": "SECRET-PROMPT"}]


async def test_one_connection_serves_many_requests():
    async with opa_server(policy=POLICY) as opa:
        await asked(opa, *["gpt-4o"] * 10)
        assert opa.connections <= 1


async def test_the_decision_id_is_kept_for_the_audit_trail_also_where_the_answer_is_none(serve: Serving):
    async with serve(policy=POLICY) as opa:
        (decision,) = await asked(opa, "gpt-4o")
        with pytest.raises(PolicyEvaluationError, match=r"decision [0-9a-f-]{36}"):
            await asked(opa, "gpt-4o", decision="sark/number")
        if isinstance(opa, RealOpa):
            assert decision.metadata["decision_id"] in opa.log.read_text()
    assert re.fullmatch("[0-9a-f-]{36}", decision.metadata["decision_id"])


async def test_after_a_burst_of_time_outs_the_next_request_is_answered(serve: Serving):
    async with serve(policy=POLICY) as opa:
        manager = PolicyPluginManager(services=lending(a_limit(spent=50)))
        await manager.register_plugin(OpaPlugin(opa.url, timeout=0.2))
        small = a_request("gpt-4o-mini")
        for _ in range(3):
            if isinstance(opa, RealOpa):
                opa.process.send_signal(signal.SIGSTOP)
            else:
                awake = asyncio.Event()
                opa.misbehave = lambda writer, awake=awake: awake.wait()
            late = await asyncio.gather(*(manager.evaluate_all(small) for _ in range(300)))
            assert not any(each.allowed for (each,) in late)
            if isinstance(opa, RealOpa):
                opa.process.send_signal(signal.SIGCONT)
            else:
                opa.misbehave = None
                awake.set()
            async with asyncio.timeout(90):
                while not (await manager.evaluate_all(small))[0].allowed:
                    await asyncio.sleep(0.01)
        await manager.unregister_plugin("opa")


@pytest.mark.opa
async def test_a_real_server_lets_in_who_has_the_token(tmp_path: Path):
    authorization = """
    package system.authz
    import rego.v1
    default allow := false
    allow if input.identity == "secret"
    """
    if opa_binary() is None:
        pytest.skip("no OPA is here: SARK_TEST_OPA names one, or it is on PATH")
    options = ("--authentication=token", "--authorization=basic")
    async with real_opa(tmp_path, *options, policy=POLICY, authorization=authorization) as opa:
        assert (await asked(opa, "gpt-4o-mini", token="secret\n"))[0].allowed
        for wrong in ("", "another"):
            with pytest.raises(PolicyEvaluationError, match="status 401"):
                await asked(opa, "gpt-4o-mini", token=wrong)


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def dead(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 65_536 + b"\r\n")
        await writer.drain()


async def packed(writer: asyncio.StreamWriter) -> None:
    body = gzip.compress(b'{"result": true}' + b" " * 10_000_000)
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


def saying(body: Any, status: str = "200 OK") -> Any:
    return lambda writer: OpaServer.answer(writer, body, status)


@pytest.mark.parametrize(
    "misbehave",
    [
        pytest.param(dead, id="a connection that breaks"),
        pytest.param(saying({"code": "internal_error", "message": "boom"}, "500 Internal Server Error"), id="an error"),
        pytest.param(saying({"result": True}, "404 Not Found"), id="an answer with the wrong status"),
        pytest.param(saying({"result": True}, "302 Found"), id="a redirect"),
        pytest.param(packed, id="a packed answer"),
        pytest.param(saying(b"true"), id="no object"),
        pytest.param(saying(b"{'result': true}"), id="no json"),
        pytest.param(saying(b"[" * 60_000), id="deep json"),
        pytest.param(saying({"result": "true"}), id="a text that says true"),
        pytest.param(saying({"result": 1}), id="a number"),
        pytest.param(saying({"result": {"allow": "yes"}}), id="an allow that is no truth"),
        pytest.param(saying({"result": {"allowed": True}}), id="a field of another name"),
        pytest.param(saying({"result": {"allow": True, "reason": 1}}), id="a reason that is no text"),
        pytest.param(saying({"result": {"allow": True, "obligations": {"add_tag": {}}}}), id="an obligation that is none"),
        pytest.param(saying({"result": [True]}), id="a list"),
        pytest.param(saying({"result": None}), id="null"),
    ],
)
async def test_what_is_no_decision_is_an_error_and_never_allows(misbehave: Any):
    async with opa_server(policy=POLICY) as opa:
        opa.misbehave = misbehave
        with pytest.raises(PolicyEvaluationError):
            await asked(opa, "gpt-4o-mini")


@pytest.mark.parametrize(
    "misbehave",
    [
        pytest.param(endless, id="without end"),
        pytest.param(saying({"result": {"allow": False, "reason": "no " + "x" * 70_000}}), id="a denial that repeats a text"),
    ],
)
async def test_an_answer_that_is_too_long_denies_whatever_on_error_says(misbehave: Any):
    async with opa_server(policy=POLICY) as opa:
        opa.misbehave = misbehave
        manager = PolicyPluginManager(services=lending())
        await manager.register_plugin(OpaPlugin(opa.url, timeout=20, on_error="allow"))
        (decision,) = await manager.evaluate_all(a_request("gpt-4o-mini"))
        assert (decision.allowed, decision.outcome, decision.metadata["too_long"]) == (False, "denied", True)
        await manager.unregister_plugin("opa")


@pytest.mark.parametrize(("on_error", "allowed"), [("deny", False), ("allow", True), ("skip", True)])
async def test_a_server_that_is_late_or_away_is_decided_by_on_error(on_error: str, allowed: bool):
    async with opa_server(policy=POLICY) as opa:
        opa.misbehave = silent
        manager = PolicyPluginManager(services=lending())
        await manager.register_plugin(OpaPlugin(opa.url, timeout=0.05, on_error=on_error, name="late"))
        await manager.register_plugin(OpaPlugin("http://127.0.0.1:9", timeout=5, on_error=on_error, name="away"))
        decisions = await manager.evaluate_all(a_request())
        assert [each.allowed for each in decisions] == [allowed] * len(decisions)
        assert decisions[0].plugin_name == "late"
        assert decisions[0].metadata["timeout"] is True
        for name in ("late", "away"):
            await manager.unregister_plugin(name)


async def test_the_cost_policy_that_comes_along_decides_by_budgets(serve: Serving):
    async with serve(cost=COST) as opa:
        plugin = OpaPlugin(opa.url, "sark/cost/decision", timeout=5)
        await plugin.on_load()
        answers = {}
        for spent in (10, 60, 90):
            plugin.bind(lending(a_limit(spent=spent)))
            for model in ("gpt-4o", "gpt-4o-mini"):
                answers[spent, model] = await plugin.evaluate(a_request(model))
        await plugin.on_unload()
    assert {key: each.allowed for key, each in answers.items()} == {
        (10, "gpt-4o"): True,
        (10, "gpt-4o-mini"): True,
        (60, "gpt-4o"): True,
        (60, "gpt-4o-mini"): True,
        (90, "gpt-4o"): False,
        (90, "gpt-4o-mini"): True,
    }
    assert answers[90, "gpt-4o"].reason == "use the small model"
    assert answers[10, "gpt-4o"].obligations == ()
    assert answers[60, "gpt-4o"].obligations == (Obligation("cap_output_tokens", 500),)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "opa:8181"},
        {"url": "ftp://opa"},
        {"url": "http://opa?pretty"},
        {"url": "http://opa", "decision": "/"},
        {"url": "http://opa", "timeout": 0},
        {"url": "http://opa", "token": "schlüssel"},
        {"url": "http://opa", "token": "two\nlines"},
        {"url": "http://opa", "token": "secret", "headers": {"Authorization": "Bearer other"}},
        {"url": "http://opa", "headers": {"x-a": "é"}},
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigurationError):
        OpaPlugin(**options)


async def test_certificates_that_cannot_be_read_are_refused_when_it_is_loaded(tmp_path: Path):
    (tmp_path / "ca.pem").write_text("no certificate")
    for path in (tmp_path / "ca.pem", tmp_path / "nothing.pem"):
        with pytest.raises(ConfigurationError, match="no certificates"):
            await OpaPlugin("https://opa", ca_file=path).on_load()


@pytest.mark.parametrize("value", ["y" * (1 << 20), float("nan"), 10**5000], ids=["long", "no number", "many digits"])
async def test_a_request_that_cannot_be_sent_is_denied_whatever_on_error_says(value: Any):
    for on_error in ("deny", "allow", "skip"):
        plugin = OpaPlugin("http://127.0.0.1:9", on_error=on_error, limits=False)
        decision = await plugin.evaluate(a_request(x=value))
        assert not decision.allowed and decision.metadata["unsendable"]
