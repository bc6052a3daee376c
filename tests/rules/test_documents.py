"""What may be shown to a policy: bounded, so that no caller can make one late."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from sark_mw import PolicyEvaluationError, PolicyPluginManager
from sark_mw.policy.document import BOUNDS, MAX_DEPTH, REGO_BOUNDS, encode, on_one_line, read_answer
from sark_mw.policy.rego import RegoPlugin
from sark_mw.policy.rego_text import encode_for_rego
from sark_mw.policy.unsendable import UnsendableRequestError
from tests.rules.requests import a_request, lending

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the isolation of engines needs Linux")


def deep(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


LARGEST = {
    "names": {f"a name of number {n}": f"value {n}" for n in range(950)},
    "long names": {f"{n} {'x' * 260}": "y" * 260 for n in range(950)},
    "names with quotes": {f"{n} " + '"' * 250: 1 for n in range(950)},
    "numbers": [1.5] * 1900,
    "lists": [[]] * 1900,
    "deep lists": [deep(29)] * 65,
    "long texts": ['"\\\n' * 40] * 1900,
}


def test_a_document_has_as_many_values_and_levels_as_it_may_and_no_more():
    assert encode({"x": [0] * (BOUNDS.values - 2)})
    assert encode({"x": deep(MAX_DEPTH)})
    for value in ([0] * (BOUNDS.values - 1), deep(MAX_DEPTH + 1), deep(5000), {str(n): n for n in range(BOUNDS.values)}):
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
        'package sark\ndefault decision := true\ndecision := false if input.principal == "user:alice"',
        on_error="allow",
        deadline_s=1,  # the machine may be busy: what they cost is measured by benchmarks/plugin_tiers.py
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
@pytest.mark.parametrize(
    "value",
    [
        [[]] * 20_000,
        [[]] * 300_000,
        deep(500),
        {str(n): 0 for n in range(30_000)},
        {str(n): 0 for n in range(1500)},
        "x" * (1 << 19),
        '"' * (1 << 18),
    ],
)
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


def test_the_name_of_a_field_counts_as_a_value_where_it_costs_as_much():
    assert encode_for_rego({"arguments": {str(n): 0 for n in range(REGO_BOUNDS.values // 2 - 2)}})
    with pytest.raises(UnsendableRequestError, match="values"):
        encode_for_rego({"arguments": {str(n): 0 for n in range(REGO_BOUNDS.values // 2)}})


@pytest.mark.parametrize("text", ["\\b", "\\\\u0001", "\\" * 999 + "n", "\\\n", '\\"b'])
def test_backslashes_before_a_letter_are_no_control_characters(text: str):
    assert json.loads(encode_for_rego({"arguments": {"x": text}})) == {"arguments": {"x": text}}
    for control in "\b\f\x01\x1f":
        with pytest.raises(UnsendableRequestError, match="control"):
            encode_for_rego({"arguments": {"x": text + control}})


FORGED = "a\n2026-01-01 [info] allowed \x1b[31m\x00\x9b\u2028\x7f\r"


def test_a_reason_stays_on_its_line_and_steers_no_terminal():
    decision = read_answer({"allow": False, "reason": FORGED}, "rego")
    assert decision.reason == "a 2026-01-01 [info] allowed  [31m     "
    assert on_one_line("é\ud800") == "é?"
    assert len(read_answer({"allow": False, "reason": "x" * 10_000}, "rego").reason) == 500


@pytest.mark.parametrize(
    "answer",
    [
        {"allow": True, "metadata": {"x": "\ud800"}},
        {"allow": True, "metadata": {"x": float("nan")}},
        {"allow": True, "obligations": {"add_tag": "tag:\udfff"}},
        {"allow": True, "reason": "\ud800"},
    ],
)
def test_an_answer_that_has_no_utf_8_or_no_json_is_an_error(answer: Any):
    with pytest.raises(PolicyEvaluationError):
        read_answer(answer, "opa")


@pytest.mark.parametrize(
    ("rest", "reason", "metadata"),
    [
        ({"reason": ["a", "b"]}, "policy opa says no", {}),
        ({"reason": "\ud800"}, "?", {}),
        ({"reason": "no", "metadata": [1]}, "no", {}),
        ({"reason": "no", "metadata": {"x": "\ud800"}}, "no", {}),
        ({"reason": "no", "metadata": {"x": float("nan")}}, "no", {}),
        ({"reason": "no", "metadata": {"x": deep(5000)}}, "no", {}),
        ({"reason": "no", "metadata": {"x": 1}, "obligations": 7, "more": deep(5000)}, "no", {"x": 1}),
    ],
)
def test_what_does_not_allow_denies_however_odd_the_rest_of_it_is(rest: Any, reason: str, metadata: Any):
    decision = read_answer({"allow": False, **rest}, "opa")
    assert (decision.allowed, decision.reason, decision.metadata, decision.obligations) == (False, reason, metadata, ())
    with pytest.raises(PolicyEvaluationError):
        read_answer({"allow": True, **rest}, "opa")


@pytest.mark.parametrize("answer", [{"allow": 0}, {"allow": ""}, {"allow": None}, {"allow": []}, {}, 0, None, [False]])
def test_what_is_not_exactly_false_is_no_denial_either(answer: Any):
    with pytest.raises(PolicyEvaluationError, match="neither true, false"):
        read_answer(answer, "opa")


@needs_linux
async def test_a_callers_text_in_a_reason_or_an_error_forges_no_line_of_a_log():
    reason = 'package sark\nimport rego.v1\ndecision := {"allow": false, "reason": sprintf("not %v", [input.arguments.x])}'
    other = "package sark\nimport rego.v1\ndecision := input.arguments.x"
    for source in (reason, other):
        plugin = RegoPlugin(source, limits=False, name="rego")
        manager = PolicyPluginManager()
        await manager.register_plugin(plugin)
        (decision,) = await manager.evaluate_all(a_request(x="a\n2026-01-01 [info] allowed\t\r\u2028"))
        assert not decision.allowed
        for text in (decision.reason, str(decision.metadata.get("error", ""))):
            assert "\n" not in text and "\u2028" not in text and "\r" not in text
        await manager.unregister_plugin("rego")
