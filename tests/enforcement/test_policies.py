"""Policies around calls without HTTP, and how a `Sark` loads, keeps and lets go of its plugins."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx2
import pytest

from sark_mw import ConfigurationError, Obligation, PolicyContext, PolicyDecision, PolicyPlugin, RefusedError
from sark_mw._memory_store import MemoryStore
from sark_mw.gateway import build_gateway
from sark_mw.instrumentation.base import NullInstrumentation
from sark_mw.policy.isolated import Hardening
from sark_mw.sark import Sark
from sark_mw.settings import Settings
from tests.policy.samples import Sample, a_context
from tests.policy.versions import write


class Obliging(PolicyPlugin):
    name = "obliging"  # type: ignore[assignment]

    def __init__(self, *obligations: Obligation, fails: bool = False) -> None:
        self._obligations = obligations
        self._fails = fails

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        if self._fails:
            raise ValueError("broken")
        return PolicyDecision(True, obligations=self._obligations)


def settings_for(tmp_path: Path, **policy: Any) -> Settings:
    return Settings(
        store={"journal": tmp_path / "journal.jsonl", "deadline_ms": 20_000},
        ledger={"flush": False},
        observe={"metrics": False, "audit_log": False},
        limits=[{"scope": "tag:*", "amount": 1, "unit": "requests"}],
        policy=policy,
        serve={"upstreams": [{"url": "http://127.0.0.1:9"}]},
    )


def opened(tmp_path: Path, **policy: Any) -> Any:
    return Sark.open(settings_for(tmp_path, **policy), store=MemoryStore())


async def refusal(sark: Sark, **words: Any) -> RefusedError:
    with pytest.raises(RefusedError) as raised:
        async with sark.reserve(principal="user:a", **{"estimate": "0.1", **words}):
            raise AssertionError("unreachable")
    return raised.value


async def test_tags_and_required_scopes_apply_without_http(tmp_path: Path) -> None:
    async with opened(tmp_path) as sark:
        await sark.policies.register_plugin(Obliging(Obligation("add_tag", "batch"), Obligation("require_scope", "team:ml")))
        assert "team:ml" in str(await refusal(sark))
        async with sark.reserve(principal="user:a", scopes=["team:ml"], estimate="0.1") as reservation:
            assert [each.kind for each in reservation.obligations] == ["add_tag", "require_scope"]
        async with sark.reserve(principal="user:b", scopes=["team:ml"], estimate="0.1") as reservation:
            assert (await refusal(sark, scopes=["team:ml"])).kind == "rate_limit"
            reservation.settle("0.1")


@pytest.mark.parametrize("obligation", [Obligation("use_model", "small"), Obligation("cap_output_tokens", 10)])
async def test_what_only_the_caller_could_do_denies_unless_it_says_that_it_does(tmp_path: Path, obligation: Obligation) -> None:
    request = {"model": "gpt-4o", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
    async with opened(tmp_path, obligation_models=["small"]) as sark:
        await sark.policies.register_plugin(Obliging(obligation))
        assert (await refusal(sark)).kind == "policy"
        words: dict[str, Any] = {"estimate": None, "provider": "openai", "request": request}
        error = await refusal(sark, **words)
        assert error.kind == "policy" and "which this request cannot be changed to" in str(error)
        async with sark.reserve(principal="user:a", provider="openai", request=request, obeys=[obligation.kind]) as reservation:
            assert reservation.obligations == (obligation,)


async def test_a_policy_that_cannot_be_asked_has_a_kind_of_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as sark:
        await sark.policies.register_plugin(Obliging(fails=True))
        assert (await refusal(sark)).kind == "policy_unavailable"


async def test_a_start_with_a_plugin_that_cannot_be_loaded_is_refused_and_can_be_tried_again(tmp_path: Path) -> None:
    good = write(tmp_path)
    bad = write(tmp_path, name="bad", file="bad.py", on_load="raise OSError('no table')")
    plugins = [{"path": good}, {"path": bad}]
    sark = Sark(settings_for(tmp_path, plugins=plugins, isolation="off"), store=MemoryStore())
    with pytest.raises(ConfigurationError, match=r"bad\.py cannot be loaded: OSError: no table"):
        await sark.start()
    assert sark.policies.list_plugins() == []
    write(tmp_path, name="bad", file="bad.py")
    await sark.start()
    assert [each["name"] for each in sark.policies.list_plugins()] == ["versioned", "bad"]
    await sark.aclose()
    assert sark.policies.list_plugins() == []


@pytest.mark.parametrize(
    ("plugin", "complaint"),
    [
        ({"name": "bussiness_hours"}, "no plugin 'bussiness_hours' comes with sark_mw: one of .*business_hours.*cel"),
        ({"installed": "nothing"}, "no installed package brings a plugin 'nothing'"),
        ({"name": "business_hours", "options": {"start_hours": 3}}, "start_hours"),
        ({"path": "missing.py"}, "cannot read the plugin file missing.py"),
    ],
)
async def test_a_plugin_that_there_is_not_is_named_with_what_there_is(
    tmp_path: Path, plugin: dict[str, Any], complaint: str
) -> None:
    sark = Sark(settings_for(tmp_path, plugins=[plugin]), store=MemoryStore())
    with pytest.raises(ConfigurationError, match=complaint):
        await sark.start()
    await sark.aclose()


async def test_the_plugins_of_a_folder_are_isolated_loaded_and_taken_up_when_they_change(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    write(folder)
    (folder / "versioned.toml").write_text('word = "told"')
    async with opened(tmp_path, folder=folder, reload_s=0.01) as sark:
        (listed,) = sark.policies.list_plugins()
        assert listed["isolated"] is True and listed["source"] == str(folder / "versioned.py") and listed["hardening"]
        assert [each.reason for each in await sark.policies.evaluate_all(a_context())] == ["1 told"]
        write(folder, "2.0")
        write(folder, name="another", file="another.py")

        async def taken_up() -> None:
            while [each.reason for each in await sark.policies.evaluate_all(a_context())] != ["2.0 told", "1 none"]:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(taken_up(), 30)
    assert sark.policies.list_plugins() == []


async def test_a_file_may_be_trusted_to_run_in_this_process(tmp_path: Path) -> None:
    path = tmp_path / "who.py"
    path.write_text(
        dedent("""
        import os
        from sark_mw import PolicyDecision, PolicyPlugin

        class Who(PolicyPlugin):
            name = "who"

            async def evaluate(self, context):
                return PolicyDecision(True, str(os.getpid()))
        """)
    )
    reasons = []
    for isolated in (False, None):
        async with opened(tmp_path, plugins=[{"path": path, "isolated": isolated}]) as sark:
            reasons += [each.reason for each in await sark.policies.evaluate_all(a_context())]
    assert reasons[0] == str(os.getpid()) != reasons[1]


class Weak(Sample):
    """An isolated plugin on a system that lacks a layer."""

    isolated = True  # type: ignore[assignment]
    hardening = Hardening(layers={"no_new_privs": True, "seccomp": "not supported", "rlimits": True})


async def test_less_isolation_than_there_should_be_is_in_the_health_answer_and_told(tmp_path: Path) -> None:
    told: list[tuple[str, ...]] = []

    class Listener(NullInstrumentation):
        def policy_isolation(self, missing: Any) -> None:
            told.append(tuple(missing))

    settings = settings_for(tmp_path, isolation="best-effort")
    sark = Sark(settings, store=MemoryStore(), instrumentation=Listener())
    await sark.policies.register_plugin(Weak("weak"))
    await sark.start()
    app = build_gateway(settings, sark=sark)
    try:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
            said = [(await client.get(page)).json() for page in ("/healthz", "/readyz")]
            assert [each["policy_isolation"] for each in said] == ["degraded", "degraded"]
            assert said[0]["alive"] is True and said[1]["ready"] is True
            await sark.policies.unregister_plugin("weak")
            assert (await client.get("/healthz")).json() == {"alive": True}
    finally:
        await sark.aclose()
    assert "seccomp" in told[0]
