"""What of Rego is taken: only what means the same here and on OPA."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from sark_mw import ConfigurationError
from sark_mw.policy.rego import RegoPlugin
from sark_mw.policy.rego_subset import FUNCTIONS, check_modules
from tests.rules.opa_server import opa_binary, real_opa
from tests.rules.rego_cpp import rego
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
    check_modules("p", {"m": f"{HEAD}a if {{ some principal in input.scopes\nnot {negated}\n}}"})


@pytest.mark.parametrize("text", ["# not f(x)\n", 'r := "not (x > 3)"', "a := `\nnot f(x)`", "notable > 3", "a.not > 3", ""])
def test_what_only_looks_like_a_negation_is_none(text: str) -> None:
    check_modules("p", {"m": HEAD + text})


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


@pytest.mark.parametrize(
    "text",
    [
        "f(x) := x + 1\na if f(input.b) > 3",
        "import data.lib\na if lib.f(1)",
        "a if data.lib.f(1)",
        'deny contains "x" if input.b',
        'a if regex.match("^(?:a|b)$", input.b)',
        "a if regex.match(`^[a-z]+\\d$`, input.b)",
        "a if { (input.b + 1) > 2 }",
        "a if every x in input.xs { x > 1 }",
        'a if { k := "b"; not input.x[k] }',
        'a if count(input.b) > 3 # http.send("x")',
        'a if small with input as {"a": [1, true, null, -2.5]}',
    ],
)
def test_what_means_the_same_is_taken(text: str) -> None:
    check_modules("p", {"m": HEAD + text})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("who := input.user\na if not denied[who]", "make what is negated"),
        ("import input.arguments.user as who\na if not denied[who]", "make what is negated"),
        ("a if not banned[input_model][team]", "make what is negated"),
        ("a if not denied[input.x]", "make what is negated"),
        ("a if not dear with input.price as input.cost", "literals only"),
        ("a if small with input.estimated_usd as input.arguments.max_price", "literals only"),
        ('a if small with input as object.get(input, "x", 1)', "literals only"),
        ('a if net.cidr_contains("203.0.113.0/24", input.environment.client)', "net.cidr_contains"),
        ('a if time.parse_rfc3339_ns("2020-01-01T00:00:00Z") < time.now_ns()', "time.parse_rfc3339_ns"),
        ("a := object.union({}, {})", "object.union"),
        ("a if to_number(input.b) > 1", "to_number"),
        ('a if http.send({"url": "x"}).status == 200', "http.send"),
        ("a if rego.metadata.rule().b", "rego.metadata.rule"),
        ('a if regex.match("(?i)abc", input.b)', "the pattern"),
        ("a if regex.match(`\\p{L}`, input.b)", "the pattern"),
    ],
)
def test_what_does_not_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=r"m, line \d+: .*" + re.escape(told)):
        check_modules("p", {"m": HEAD + text})


@pytest.mark.opa
def test_each_function_that_is_taken_answers_as_opas(tmp_path: Path) -> None:
    binary = opa_binary()
    if binary is None:
        pytest.skip("no OPA is here: SARK_TEST_OPA names one, or it is on PATH")
    asked = [line for line in CALLS.splitlines() if line]
    assert {line.partition("(")[0] for line in asked} == FUNCTIONS - {"print", "time.now_ns", "walk"}
    module = f"{HEAD}answers := [" + ", ".join(f'{{"v": [v | v := {call}]}}' for call in asked) + "]"
    (ours,) = rego({"m.rego": module}, "data.sark.answers", [{}])
    (tmp_path / "m.rego").write_text(module)
    words = [binary, "eval", "--format", "raw", "--data", str(tmp_path / "m.rego"), "data.sark.answers"]
    theirs = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    differ = [(call, a, b) for call, a, b in zip(asked, ours[0], theirs, strict=True) if a != b]
    assert differ == []


#: One call of each function that is taken; what is a set is listed.
CALLS = """
abs(-2)
array.concat([1], [2])
array.reverse([1, 2])
array.slice([1, 2, 3], 0, 2)
base64.decode("YQ==")
base64.is_valid("a,b")
base64url.decode("YQ==")
bits.and(6, 3)
bits.lsh(1, 2)
bits.negate(1)
bits.or(6, 3)
bits.rsh(8, 2)
bits.xor(6, 3)
ceil(1.5)
concat(",", ["a", "b"])
contains("abc", "d")
count("abc")
endswith("abc", "bc")
floor(1.5)
glob.match("a:*:c", [":"], "a:b:c")
glob.quote_meta("a*b")
graph.reachable({"a": ["b"], "b": []}, {"a"})
hex.decode("61")
indexof("abc", "c")
indexof_n("abca", "a")
intersection({{1, 2}, {2}})
is_array("a")
is_boolean(true)
is_null(null)
is_number("1")
is_object({})
is_set({1})
is_string(1)
json.filter({"a": {"b": 1, "c": 2}}, ["a/b"])
json.is_valid("{")
json.marshal({"a": [1, true]})
json.patch({"a": 1}, [{"op": "replace", "path": "/a", "value": 2}])
json.remove({"a": {"b": 1, "c": 2}}, ["a/b"])
json.unmarshal("[1]")
lower("ABC")
max([1, 3, 2])
min([3, 1, 2])
numbers.range(1, 3)
numbers.range_step(1, 5, 2)
object.filter({"a": 1, "b": 2}, ["a"])
object.get({"a": {"b": 1}}, ["a", "c"], 5)
object.keys({"a": 1})
object.remove({"a": 1, "b": 2}, ["a"])
object.subset({"a": 1, "b": 2}, {"a": 1})
product([2, 3])
regex.find_all_string_submatch_n("a(b)", "abab", -1)
regex.find_n("[a-z]+", "ab 1 cd", 2)
regex.match("^(?:ab)+$", "abab")
regex.replace("a1b2", "[0-9]", "x")
regex.split("[,;]", "a,b;c")
regex.template_match("urn:{.*}", "urn:a:b", "{", "}")
replace("abab", "a", "c")
round(2.5)
semver.compare("1.0.0", "2.0.0")
semver.is_valid("1.0.0")
sort([3, 1, 2])
split("a,b", ",")
sprintf("%d %s %v", [1, "a", true])
startswith("abc", "b")
strings.any_prefix_match("abc", ["x", "a"])
strings.any_suffix_match("abc", ["x", "a"])
strings.count("abab", "a")
strings.replace_n({"a": "b"}, "aa")
substring("abc", 1, -1)
sum([1, 2.5])
time.add_date(0, 1, 2, 3)
time.clock([0, "Europe/Berlin"])
time.date([0, "Europe/Berlin"])
time.diff(0, 1000000000000)
time.parse_duration_ns("1h")
time.parse_ns("2006-01-02", "2020-01-02")
time.weekday(0)
trim("xax", "x")
trim_left("xax", "x")
trim_prefix("xax", "x")
trim_right("xax", "x")
trim_space(" a ")
trim_suffix("xax", "x")
type_name(1)
union({{1}, {2}})
units.parse("1K")
units.parse_bytes("1KB")
upper("abc")
urlquery.decode("a%20b")
"""


RULES = """
default decision := false
decision if { not many; not convertible; not tagged; not named; not divided; not input.arguments.nothing; not data.nowhere }
many if input.arguments.many > 3
convertible if count(input.model) > 99
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
