"""What may be shown to a policy: bounded, so that no caller can make one late."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from sark_mw import PolicyPluginManager
from sark_mw.policy.document import MAX_DEPTH, MAX_VALUES, encode
from sark_mw.policy.rego import RegoPlugin
from sark_mw.policy.unsendable import UnsendableRequestError
from tests.rules.requests import a_request, lending

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the isolation of engines needs Linux")


def deep(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


LARGEST = {
    "names": {f"a name of number {n}": f"value {n}" for n in range(1900)},
    "numbers": [1.5] * 1900,
    "lists": [[]] * 1900,
    "deep lists": [deep(29)] * 65,
    "long texts": ['"\\\n' * 80] * 1900,
}


def test_a_document_has_as_many_values_and_levels_as_it_may_and_no_more():
    assert encode({"x": [0] * (MAX_VALUES - 2)})
    assert encode({"x": deep(MAX_DEPTH)})
    for value in ([0] * (MAX_VALUES - 1), deep(MAX_DEPTH + 1), deep(5000), {str(n): n for n in range(MAX_VALUES)}):
        with pytest.raises(UnsendableRequestError, match="values"):
            encode({"x": value})


@pytest.mark.parametrize("text", ["é", "日本", "\x7f", "\u2028", "a\nb"])
def test_text_is_written_as_utf_8(text: str):
    assert json.loads(encode({"x": text})) == {"x": text}
    assert encode({"x": "é"}) == '{"x":"é"}'.encode()


def test_a_lone_surrogate_is_shown_to_nobody():
    for value in ({"x": "\ud800"}, {"\udfff": 1}):
        with pytest.raises(UnsendableRequestError):
            encode(value)


@needs_linux
@pytest.mark.parametrize("value", LARGEST.values(), ids=LARGEST)
async def test_the_largest_document_does_not_make_a_rego_policy_late(value: Any):
    manager = PolicyPluginManager()
    plugin = RegoPlugin(
        'package sark\ndefault decision := true\ndecision := false if input.principal == "user:alice"', on_error="allow"
    )
    await manager.register_plugin(plugin)
    manager.bind(lending())
    pids = plugin.pids
    for _ in range(3):
        (decision,) = await manager.evaluate_all(a_request(x=value))
        assert (decision.allowed, decision.outcome) == (False, "denied")
    assert plugin.pids == pids
    await manager.unregister_plugin("rego")


@needs_linux
@pytest.mark.parametrize("value", [[[]] * 20_000, [[]] * 300_000, deep(500), {str(n): 0 for n in range(30_000)}])
async def test_a_larger_one_is_denied_whatever_on_error_says_and_costs_nobody_a_process(value: Any):
    manager = PolicyPluginManager()
    plugin = RegoPlugin("package sark\ndecision := true", on_error="allow", limits=False)
    await manager.register_plugin(plugin)
    pids = plugin.pids
    (decision,) = await manager.evaluate_all(a_request(x=value))
    assert not decision.allowed and "unsendable" in decision.metadata
    (innocent,) = await manager.evaluate_all(a_request())
    assert innocent.allowed and plugin.pids == pids
    await manager.unregister_plugin("rego")
