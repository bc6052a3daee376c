"""What is decided while a process shuts down: nobody who comes then is let past what administrators decided."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.enforcement.grants import Why
from sark_mw.policy.base import PolicyContext, PolicyDecision
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.reservation import Outcome
from sark_mw.sark import Sark
from sark_mw.settings_policy import RuleSettings
from sark_mw.wire.base import Refusal, RefusalKind
from tests.admin.conftest import app
from tests.enforcement.whole import admitted, invocation, refused, settings_for
from tests.policy.samples import Sample

FREEZE = RuleSettings(when='principal != ""', deny="all spending is frozen")
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


class Slow(Sample):
    """Judges when it is let."""

    def __init__(self) -> None:
        super().__init__("slow", self._wait, timeout=60, priority=1)
        self.asking, self.go_on = asyncio.Event(), asyncio.Event()

    async def _wait(self, _: PolicyContext) -> PolicyDecision:
        self.asking.set()
        await self.go_on.wait()
        return PolicyDecision(True, "")


@pytest.fixture
async def sark(tmp_path: Path) -> Sark:
    sark = Sark(settings_for(f"memory://{uuid4().hex}", tmp_path, budget=None), policies=PolicyPluginManager())
    await sark.start()
    return sark


async def test_who_comes_while_it_closes_is_refused_and_who_came_before_is_judged_by_all_rules(sark: Sark) -> None:
    slow, before = Slow(), await admitted(sark, "0.1")
    await sark.policies.register_plugin(slow)
    await sark.shared_policies.set_rule("freeze", FREEZE, Why(actor="cfo"))
    under_way = asyncio.ensure_future(sark.enforcer.admit(invocation("0.1")))
    await slow.asking.wait()
    closing = asyncio.ensure_future(sark.aclose())
    await asyncio.sleep(0)
    for _ in range(20):
        late = await refused(sark, "0.1")
        assert (late.kind, late.reason) == (RefusalKind.UNAVAILABLE, "closing")
        assert not closing.done()
        await asyncio.sleep(0)
    settled = before.release()
    slow.go_on.set()
    judged = await under_way
    assert isinstance(judged, Refusal) and judged.kind is RefusalKind.POLICY
    await closing
    reply = await settled
    assert reply is not None and reply.outcome is Outcome.RELEASED
    assert (await refused(sark, "0.1")).reason == "closing"


async def test_whoever_is_still_undecided_at_the_deadline_is_refused(sark: Sark) -> None:
    slow = Slow()
    await sark.policies.register_plugin(slow)
    under_way = asyncio.ensure_future(sark.enforcer.admit(invocation("0.1")))
    await slow.asking.wait()
    await sark.enforcer.close(0.0)
    slow.go_on.set()
    answer = await under_way
    assert isinstance(answer, Refusal) and answer.reason == "closing"
    await sark.aclose()


async def test_over_http_it_is_503_in_the_callers_dialect(sark: Sark) -> None:
    transport = httpx2.ASGITransport(app=SarkMiddleware(app, sark=sark))  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://sark") as client:
        asked: dict[str, Any] = {"json": BODY, "headers": {"authorization": "Bearer sk-1"}}
        assert (await client.post("/v1/chat/completions", **asked)).status_code == 418
        await sark.enforcer.close(0.0)
        answer = await client.post("/v1/chat/completions", **asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "enforcement_unavailable")
    await sark.aclose()


async def test_a_plugin_that_judges_for_ever_does_not_hold_the_end_up(tmp_path: Path) -> None:
    path = tmp_path / "endless.py"
    path.write_text(
        "import asyncio\nfrom sark_mw import PolicyDecision, PolicyPlugin\n\nclass Endless(PolicyPlugin):\n"
        "    name, version, timeout = 'endless', '1', 40\n\n    async def evaluate(self, context):\n"
        "        await asyncio.sleep(40)\n"
    )
    plugins = [{"path": path, "isolated": False}]
    sark = Sark(settings_for(f"memory://{uuid4().hex}", tmp_path, policy={"plugins": plugins}))
    await sark.start()
    asking = asyncio.ensure_future(sark.policies.evaluate_all(PolicyContext("user:a", "o", "c", "a", {}, {}), timeout=40))
    await asyncio.sleep(0)
    started = time.monotonic()
    await sark.aclose(0.1)
    assert time.monotonic() - started < 20 and sark.policies.list_plugins() == []
    asking.cancel()
    await asyncio.wait([asking])
