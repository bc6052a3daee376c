"""What does not allow denies, however odd the rest of it is: isolated as in the gateway's own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from sark_mw import PolicyPluginManager
from tests.isolation.plugins import asked

_ODD = """
from sark_mw import Obligation, PolicyDecision, PolicyPlugin

class Hidden:
    def __str__(self): raise ValueError("not to be read")

class Mapping(dict):
    def items(self): raise ValueError("not to be read")

class Odd(PolicyPlugin):
    name = "odd"
    on_error = "allow"

    async def evaluate(self, context):
        shown = context.arguments["x"]
        answers = {
            "long tag": PolicyDecision(False, "no", obligations=(Obligation("add_tag", shown * 300),)),
            "no tag": PolicyDecision(False, "no", obligations=(Obligation("add_tag", None),)),
            "unknown": PolicyDecision(False, "no", obligations=(Obligation("become_root", 1),)),
            "many": PolicyDecision(False, "no", obligations=(Obligation("add_tag", shown),) * 17),
            "none": PolicyDecision(False, "no", obligations=5),
            "hidden reason": PolicyDecision(False, Hidden()),
            "hidden metadata": PolicyDecision(False, "no", {"x": Hidden()}),
            "odd metadata": PolicyDecision(False, "no", Mapping(x=1)),
            "hidden key": PolicyDecision(False, "no", {Hidden(): 1}),
            "nearly true": PolicyDecision(1, Hidden(), 5, obligations=5),
        }
        return answers[context.principal_id]
"""
_ANSWERS = [line.split('"')[1] for line in _ODD.splitlines() if line.endswith("),") and '": Policy' in line]


@pytest.mark.parametrize("isolated", [True, False], ids=["isolated", "in process"])
async def test_a_denial_with_an_odd_rest_denies_whatever_on_error_says(tmp_path: Path, isolated: bool) -> None:
    file = tmp_path / "odd.py"
    file.write_text(_ODD)
    manager = PolicyPluginManager()
    await manager.load_from_file(file, isolated=isolated)
    try:
        assert len(_ANSWERS) == 10
        for answer in _ANSWERS:
            (decision,) = await manager.evaluate_all(asked(answer, x="t"))
            assert (decision.allowed, decision.outcome, decision.obligations) == (False, "denied", ()), answer
    finally:
        await manager.unregister_plugin("odd")
