"""What a `not` may be over in a Rego policy: only what means the same here and on OPA."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sark_mw import ConfigurationError
from sark_mw.policy.rego import RegoPlugin
from sark_mw.policy.rego_negations import check_negations
from tests.rules.opa_server import opa_binary, real_opa
from tests.rules.requests import a_request
from tests.rules.test_opa import asked

ROOT = Path(__file__).parents[2]
HEAD = "package sark\n\nimport rego.v1\n\n"


@pytest.mark.parametrize(
    "negated",
    [
        "small_model",
        "input.x",
        'input.arguments["top p"]',
        "data.denied[principal]",
        "input.a.b[0].c",
        "dear; x == 1",
        "dear } # why",
        'dear with input as {"a": [1]}',
        "dear # > 3",
    ],
)
def test_a_name_may_be_negated(negated: str) -> None:
    check_negations("p", f"a if {{ not {negated}\n}}")


@pytest.mark.parametrize("text", ["# not f(x)\n", 'r := "not (x > 3)"', "a := `\nnot f(x)`", "notable > 3", "a.not > 3", ""])
def test_what_only_looks_like_a_negation_is_none(text: str) -> None:
    check_negations("p", text)


@pytest.mark.parametrize(
    "negated",
    [
        "input.x > 3",
        'startswith(input.x, "a")',
        '"a" in input.tags',
        "f(x)",
        "(input.x)",
        "count(x) > 3",
        "{1} == x",
        "[a | a := input.x[_]] == []",
        "input.x[count(y)]",
        "to_number(m) > 1",
        "every x in y { x }",
        "x ==\n 1",
    ],
)
def test_anything_else_refuses_the_start_with_its_line_and_the_way_out(negated: str) -> None:
    source = f"{HEAD}default decision := false\n\ndecision if {{\n\tnot {negated}\n}}\n"
    with pytest.raises(ConfigurationError, match=r"line 8: `not .* make what is negated a rule of its own"):
        RegoPlugin(source, query="data.sark.decision")


RULES = """
default decision := false
decision if { not many; not convertible; not tagged; not named; not divided; not input.arguments.nothing; not data.nowhere }
many if input.arguments.many > 3
convertible if to_number(input.model) > 1
tagged if "a" in input.arguments.tags
named if startswith(input.arguments.name, "a")
divided if 1 / input.arguments.zero > 1
"""


@pytest.mark.opa
async def test_negated_names_decide_as_on_opa_whatever_is_missing(tmp_path: Path) -> None:
    if opa_binary() is None:
        pytest.skip("no OPA is here: SARK_TEST_OPA names one, or it is on PATH")
    requests = [
        a_request(**arguments)
        for arguments in (
            {},
            {"many": 5},
            {"many": 2, "tags": ["b"], "name": "b", "zero": 0},
            {"tags": ["a"]},
            {"tags": 5},
            {"name": "abc"},
            {"name": 7},
            {"zero": 0},
            {"zero": "z"},
            {"nothing": 1},
            {"nothing": False},
        )
    ]
    rego = RegoPlugin(HEAD + RULES, query="data.sark.decision", deadline_s=5, limits=False)
    await rego.on_load()
    try:
        ours = [(await rego.evaluate(each)).allowed for each in requests]
    finally:
        await rego.on_unload()
    async with real_opa(tmp_path, policy=HEAD + RULES) as opa:
        theirs = [each.allowed for each in await asked(opa, *requests, limits=False)]
    assert ours == theirs
    assert set(ours) == {True, False}


@pytest.mark.opa
def test_the_policies_that_come_along_pass_their_own_tests_on_opa() -> None:
    binary = opa_binary()
    if binary is None:
        pytest.skip("no OPA is here: SARK_TEST_OPA names one, or it is on PATH")
    for words in (["check", "--strict"], ["test"], ["fmt", "--fail", "--list"]):
        done = subprocess.run([binary, *words, ROOT / "plugins" / "rego"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
