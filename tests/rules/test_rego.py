from __future__ import annotations

import asyncio
import os
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from sark_mw import ConfigurationError, PolicyEvaluationError, PolicyPluginManager
from sark_mw.policy.base import Obligation
from sark_mw.policy.rego import RegoPlugin
from tests.rules.processes import children, descriptors, loaded, status, until_new
from tests.rules.rego_cpp import rego
from tests.rules.requests import a_limit, a_request, lending

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the isolation of engines needs Linux"),
    pytest.mark.wall_clock,
]

FOLDER = Path(__file__).parents[2] / "plugins/rego"
SMALL = """
package sark
import rego.v1
default decision := false
decision if input.model == "gpt-4o-mini"
"""
#: Rounds enough for hours.
ENDLESS = """
package sark
import rego.v1
decision if {
    some a in numbers.range(1, 3000)
    some b in numbers.range(1, 3000)
    some c in numbers.range(1, 3000)
    a * b * c == 0
}
"""
SOMETIMES_ENDLESS = ENDLESS.replace("decision if {", 'decision if {\n    input.model == "o1"')
SOMETIMES_ENDLESS += 'decision if input.model == "gpt-4o-mini"'


async def test_a_policy_in_rego_decides_without_a_server():
    async with loaded(RegoPlugin(SMALL)) as plugin:
        assert (await plugin.evaluate(a_request("gpt-4o-mini"))).allowed
        assert not (await plugin.evaluate(a_request("gpt-4o"))).allowed


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"])
async def test_a_policy_may_ask_for_the_time_of_any_zone_though_it_sees_no_file(zone: str):
    source = f'''
package sark
import rego.v1
decision := {{"allow": true, "reason": sprintf("%d:%d", [hour, minute])}} if {{
    [hour, minute, _] := time.clock([0, "{zone}"])
}}
'''
    expected = datetime.fromtimestamp(0, ZoneInfo(zone))
    async with loaded(RegoPlugin(source)) as plugin:
        assert (await plugin.evaluate(a_request())).reason == f"{expected.hour}:{expected.minute}"


async def test_the_cost_policy_that_comes_along_decides_as_on_an_opa_server():
    plugin = RegoPlugin(path=FOLDER / "cost.rego", query="data.sark.cost.decision")
    async with loaded(plugin):
        answers = []
        for spent in (10, 60, 90):
            plugin.bind(lending(a_limit(spent=spent)))
            answers.append(await plugin.evaluate(a_request()))
    assert [each.allowed for each in answers] == [True, True, False]
    assert answers[1].obligations == (Obligation("cap_output_tokens", 500),)
    assert answers[2].reason == "use the small model"


def test_the_cost_policy_denies_a_missing_input():
    whole = {"principal": "user:alice", "model": "gpt-4o-mini", "estimated_usd": 0.1, "limits": [], "scopes": []}
    halves = [{name: whole[name] for name in whole if name != gone} for gone in list(whole)[:4]]
    modules = {"cost.rego": (FOLDER / "cost.rego").read_text()}
    allowed, *denied = rego(modules, "data.sark.cost.decision", [whole, *halves, {}, None])
    assert allowed == [{"allow": True, "obligations": {}}]
    assert denied == [[{"allow": False, "reason": "the input is missing"}]] * 6


async def test_an_undefined_result_denies():
    async with loaded(RegoPlugin(SMALL, query="data.sark.nothing")) as plugin:
        decision = await plugin.evaluate(a_request("gpt-4o-mini"))
    assert (decision.allowed, decision.metadata) == (False, {"undefined": True})


async def test_data_and_several_files_belong_to_a_policy(tmp_path: Path):
    (tmp_path / "a.rego").write_text("package sark\nimport rego.v1\nimport data.names\ndecision if names.known(input.model)")
    (tmp_path / "b.rego").write_text("package names\nimport rego.v1\nknown(name) if name in data.models")
    (tmp_path / "a_test.rego").write_text("package sark\nthis is no rego")
    async with loaded(RegoPlugin(path=tmp_path, data={"models": ["gpt-4o"]})) as plugin:
        assert (await plugin.evaluate(a_request("gpt-4o"))).allowed
        assert not (await plugin.evaluate(a_request("o1"))).allowed


async def test_prompts_do_not_reach_the_policy_unless_they_are_asked_for():
    source = 'package sark\nimport rego.v1\ndecision := {"allow": true, "metadata": {"saw": object.keys(input.arguments)}}'
    for prompts, saw in (([], ["model"]), (["messages"], ["messages", "model"])):
        async with loaded(RegoPlugin(source, prompts=prompts)) as plugin:
            assert (await plugin.evaluate(a_request())).metadata == {"saw": saw}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"source": "package sark\nthis is no rego {"}, "rego"),
        ({"source": SMALL, "path": "x"}, "either"),
        ({"path": "/nowhere/at/all.rego"}, "No such file"),
        ({"source": SMALL, "query": "1 == 1"}, "names a rule"),
        ({"source": SMALL, "deadline_s": 0}, "deadline_s"),
        ({"source": SMALL, "workers": 9}, "workers"),
        ({"source": SMALL, "memory_bytes": 1}, "memory_bytes"),
    ],
)
async def test_what_cannot_be_loaded_is_refused_with_the_reason_and_leaves_nothing(options: dict[str, Any], told: str):
    before = children()
    manager = PolicyPluginManager()
    with pytest.raises(ConfigurationError, match=told):
        await manager.register_plugin(RegoPlugin(**options))
    assert children() == before
    assert manager.list_plugins() == []


async def test_a_policy_that_never_ends_is_killed_and_the_next_request_is_served_by_a_new_process():
    async with loaded(RegoPlugin(SOMETIMES_ENDLESS, deadline_s=0.3)) as plugin:
        assert (await plugin.evaluate(a_request("gpt-4o-mini"))).allowed
        old = plugin.pids
        with pytest.raises(PolicyEvaluationError, match="no answer within"):
            await plugin.evaluate(a_request("o1"))
        new = await until_new(plugin, old)
        assert (await plugin.evaluate(a_request("gpt-4o-mini"))).allowed
        assert not set(old) & children(), "the old one is gone, not left as a zombie"
        assert plugin.pids == new


async def test_a_policy_that_eats_memory_ends_itself_and_not_the_gateway():
    source = """
        package sark
        import rego.v1
        decision if {
            many := [x | some a in numbers.range(1, 2000); some b in numbers.range(1, 2000); x := sprintf("%d-%d", [a, b])]
            count(many) == 0
        }
    """
    async with loaded(RegoPlugin(source, deadline_s=20, memory_bytes=32 << 20)) as plugin:
        old = plugin.pids
        most = 0
        asking = asyncio.ensure_future(plugin.evaluate(a_request()))
        while not asking.done():
            for pid in plugin.pids:
                try:
                    most = max(most, int(status(pid).get("VmRSS", "0").split()[0]))
                except OSError:
                    continue
            await asyncio.sleep(0.01)
        assert asking.exception() is not None or not asking.result().allowed
        assert most < 150_000, "kilobytes: its engine, and what the limit grants"
        del old


@pytest.mark.parametrize(
    "call",
    [
        'http.send({"method": "GET", "url": "http://127.0.0.1:PORT/"}).status_code == 200',
        'net.lookup_ip_addr("localhost") != set()',
        'opa.runtime().env.SARK_SECRET == "leaked"',
        'file.read("/etc/passwd") != ""',
    ],
)
async def test_a_policy_reaches_no_network_no_file_and_no_environment(call: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SARK_SECRET", "leaked")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        source = f"package sark\nimport rego.v1\ndecision if {call.replace('PORT', str(listening.getsockname()[1]))}"
        try:
            async with loaded(RegoPlugin(source, deadline_s=2)) as plugin:
                decision = await plugin.evaluate(a_request())
        except (ConfigurationError, PolicyEvaluationError):
            pass  # not known, or refused when it is called
        else:
            assert not decision.allowed
        with pytest.raises(BlockingIOError):
            listening.accept()


async def test_a_system_that_lacks_a_layer_is_refused_with_its_name_or_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("sark_mw.policy.engines.process._REQUIRED", ("seccomp", "moat"))
    before = children()
    with pytest.raises(ConfigurationError, match="cannot hold a policy's process: moat"):
        await PolicyPluginManager().register_plugin(RegoPlugin(SMALL))
    assert children() == before
    async with loaded(RegoPlugin(SMALL, hardening="best-effort")) as plugin:
        assert (await plugin.evaluate(a_request("gpt-4o-mini"))).allowed
    assert "runs without moat" in caplog.text


async def test_its_process_holds_no_privilege_no_descriptor_and_no_environment_of_the_gateway(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SARK_SECRET", "leaked")
    async with loaded(RegoPlugin(SMALL)) as plugin:
        await plugin.evaluate(a_request())
        (pid,) = plugin.pids
        seen = status(pid)
        assert seen["NoNewPrivs"] == "1"
        assert seen["Seccomp"] == "2"
        assert int(seen["CapEff"], 16) == 0
        if os.getuid() == 0:
            assert set(seen["Uid"].split()) != {"0"}
            names = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
            assert {name for name in names if not name.startswith("socket:")} <= {"/dev/null"}
            assert b"SARK_SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()


async def test_a_process_that_is_killed_from_outside_leaves_nothing_behind():
    before, open_before = children(), descriptors()
    async with loaded(RegoPlugin(SMALL, deadline_s=5)) as plugin:
        for _ in range(5):
            old = plugin.pids
            os.kill(old[0], 9)
            await until_new(plugin, old)
            assert (await plugin.evaluate(a_request("gpt-4o-mini"))).allowed
    assert children() == before
    assert descriptors() == open_before


async def test_a_caller_who_goes_away_takes_no_answer_from_the_next():
    async with loaded(RegoPlugin(SOMETIMES_ENDLESS, deadline_s=0.5)) as plugin:
        gone = asyncio.ensure_future(plugin.evaluate(a_request("o1")))
        await asyncio.sleep(0.1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert (await plugin.evaluate(a_request("gpt-4o-mini"))).allowed


async def test_many_requests_at_once_each_get_their_own_answer():
    async with loaded(RegoPlugin(SMALL, workers=2, deadline_s=10)) as plugin:
        models = ["gpt-4o-mini", "gpt-4o"] * 50
        decisions = await asyncio.gather(*(plugin.evaluate(a_request(model)) for model in models))
    assert [each.allowed for each in decisions] == [True, False] * 50


def test_a_plugin_serves_each_event_loop_with_processes_of_its_own():
    plugin = RegoPlugin(SMALL, deadline_s=5)
    plugin.bind(lending())

    async def first() -> None:
        await plugin.on_load()
        assert (await plugin.evaluate(a_request("gpt-4o-mini"))).allowed

    async def second() -> None:
        assert (await plugin.evaluate(a_request("gpt-4o-mini"))).allowed
        await plugin.on_unload()

    before = children()
    asyncio.run(first())
    asyncio.run(second())
    assert children() == before
