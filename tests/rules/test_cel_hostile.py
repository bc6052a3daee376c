"""What somebody may write into a rule, or send to one: refused at the start, or an error within bounds. Each ends by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sark_mw import ConfigurationError
from sark_mw.policy import cel_automata, cel_bounds
from sark_mw.policy.cel import CelPlugin
from sark_mw.policy.cel_automata import states_of
from sark_mw.policy.cel_patterns import pattern_steps
from sark_mw.policy.cel_values import VARIABLES
from tests.rules.requests import a_request

TEN = "[0,1,2,3,4,5,6,7,8,9]"


def nested(depth: int, over: str = TEN, body: str = "true") -> str:
    for at in range(depth):
        body = f"{over}.all(x{at}, {body})"
    return body


@pytest.mark.parametrize(
    ("when", "told"),
    [
        pytest.param(nested(6), "steps", id="loops in loops"),
        pytest.param(nested(9), "steps", id="loops that never end"),
        pytest.param(nested(3, "request.arguments.a"), "steps", id="loops over what the request brings"),
        pytest.param('["aaaaaaaaaa"]' + "".join(f".map(s{i}, s{i}+s{i}+s{i})" for i in range(20)) + ".size() == 1", "put together", id="texts that double"),  # noqa: E501
        pytest.param("[[1]]" + "".join(f".map(s{i}, s{i}+s{i})" for i in range(20)) + ".size() == 1", "put together", id="lists that double"),  # noqa: E501
        pytest.param("[1]" + "".join(f".map(s{i}, [s{i},s{i},s{i}])" for i in range(20)) + ".size() == 1", "put together", id="trees of lists"),  # noqa: E501
        pytest.param('["a"].exists(s, [s+s].exists(t, t == "b"))', "put together", id="growth in the range of a loop"),
        pytest.param("[1].map(x, {x: x}) == []", "put together", id="maps that grow"),
        pytest.param("request.arguments.a.all(x, request.arguments.t.contains('zz'))", "steps", id="a long text looked through again and again"),  # noqa: E501
        pytest.param("request.arguments.a.map(s, request.arguments.t).exists(t, t.matches('a+b'))", "steps", id="a long text, copied"),  # noqa: E501
        pytest.param("(" + "+".join(["request.arguments.a"] * 9) + ").exists(x, scopes.exists(s, x.size() > 9 || s.size() > 9))", "steps", id="long lists"),  # noqa: E501
        pytest.param("[" + "+".join(["scopes"] * 25) + "].exists(l, l.exists(x, x.size() > 999))", "steps", id="hidden"),
        pytest.param("(" + "+".join(["principal"] * 25) + ').matches("a+b") && ' * 10 + "true", "mine", id="long texts"),
        pytest.param('scopes.all(a, scopes.all(b, budget("team").used < 2.0 && budget("team").held < 2.0 && budget("team").spent < 2.0))', "steps", id="calls into Python"),  # noqa: E501
        pytest.param("request.arguments.a.all(x, " + " && ".join(["request.arguments.m == request.arguments.n"] * 8) + ")", "steps", id="large maps, compared"),  # noqa: E501
        pytest.param("request.model.matches(principal)", "written in the rule", id="a pattern from the request"),
        pytest.param('request.model.matches("((a{1,50}){1,50})b")', "repetitions", id="repeated repetitions"),
        pytest.param('request.model.matches(r"(?i)[\\pL\\pN]{200}x")', "repetitions", id="Unicode classes"),
        pytest.param('request.model.matches(r"' + r"\pL" * 80 + '")', "repetitions", id="many Unicode classes"),
        pytest.param("request.arguments.t.matches('a[ab]{30}c')", "anything may be under way", id="a pattern of many states"),
        pytest.param("request.arguments.t.matches('(ignore|disregard).{0,160}(rules|instructions)')", "write .*", id="a wide gap"),  # noqa: E501
        pytest.param(" || ".join(["request.model.matches('a[ab]{450}c')"] * 20), "steps", id="many patterns of many states"),
        pytest.param(" || ".join(["request.arguments.a.contains(request.arguments.b)"] * 9), "steps", id="needles from requests"),
        pytest.param("(" + "+".join(["request.arguments.t"] * 12) + ").contains(" + "+".join(["request.arguments.t"] * 6) + "+'b')", "steps", id="hay and needle of copies"),  # noqa: E501
        pytest.param("request.arguments.a.map(x, request.arguments) == request.arguments.a.map(x, request.arguments)", "steps", id="copies, compared"),  # noqa: E501
        pytest.param('request.arguments.a.exists(x, x.matches("(a?){100}b"))', "steps", id="a costly pattern in a loop"),
        pytest.param(f'request.model.matches("{"a" * 300}")', "characters", id="a long pattern"),
        pytest.param('request.model.matches("(?=a)")', "invalid", id="look-ahead"),
        pytest.param("(" * 500 + "true" + ")" * 500, "recursion", id="deep brackets"),
        pytest.param("[" * 500 + "1" + "]" * 500 + ".size() > 0", "recursion", id="deep lists"),
        pytest.param("true ? true : " * 100 + "true", "recursion", id="deep choices"),
        pytest.param("!" * 5000 + "true", "longer than", id="a long expression"),
        pytest.param("1+" * 900 + "1 > 0", "recursion", id="a long sum"),
        pytest.param("google.protobuf.Timestamp{seconds: 1} == time", "mine", id="messages"),
        pytest.param("true\x00", "mine", id="a zero byte"),
        pytest.param("[request.arguments].exists(request, request.stream)", "may not call", id="a taken name"),
        pytest.param("tru\ud800e", "mine", id="half a character"),
    ],
)  # fmt: skip
def test_what_could_be_costly_is_refused_at_the_start(when: str, told: str):
    with pytest.raises(ConfigurationError, match="mine") as refused:
        CelPlugin([{"when": when, "deny": "no", "name": "mine"}])
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "when",
    [
        'scopes.exists(a, ["team:ml", "team:web"].exists(b, a == b))',
        'request.arguments.a.exists(x, x in ["p", "q"])',
        "scopes.filter(s, s.startsWith('team:')).map(s, s.size()).exists(n, n > 4)",
        'request.arguments.a.all(x, x.matches("^[a-z]{1,32}$") && !x.contains("secret"))',
        '(principal + "/" + request.model).endsWith("o1")',
        "[1, 2, 3].exists(n, n > 4)",
        'request.arguments.a.exists(m, m.matches("(?i)ignore.*instructions"))',
        'request.model.matches("^(ft:)?(gpt-4|o1)[a-z0-9.-]*$") && request.model.contains(principal)',
        r'request.arguments.user.matches("(?i)(ignore|disregard) (all|any|previous).*(rules|instructions)|system prompt")',
        r'request.arguments.user.matches("[\\w.+-]+@[\\w-]+\\.[a-z]{2,}") || request.model.matches("sk-[A-Za-z0-9]{20,}")',
        'scopes.exists(s, request.model.contains(s)) || "(delete|drop)" == request.model',
    ],
)
async def test_what_people_write_is_not_refused(when: str):
    plugin = CelPlugin([{"when": when, "deny": "no"}])
    assert isinstance((await plugin.evaluate(a_request(a=["b", "c"], user="x"))).allowed, bool)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("x" * 40_000, id="a long text"),
        pytest.param(["x" * 300] * 200, id="many texts"),
        pytest.param(list(range(300)), id="a long list"),
        pytest.param([list(range(100))] * 20, id="many values"),
        pytest.param({str(n): n for n in range(300)}, id="a wide object"),
        pytest.param(deep(200), id="a deep value"),
        pytest.param(deep(100_000), id="a very deep value"),
    ],
)
async def test_a_request_too_large_for_rules_is_denied_whatever_on_error_says(value: Any):
    for on_error in ("deny", "allow", "skip"):
        plugin = CelPlugin([{"when": "request.arguments.a == 1", "deny": "no"}], on_error=on_error)
        decision = await plugin.evaluate(a_request(a=value))
        assert not decision.allowed and decision.metadata["unsendable"]
    assert (await CelPlugin([{"when": "request.arguments.b == 1", "deny": "no"}]).evaluate(a_request(a=value, b=2))).allowed, (
        "what a rule does not read is not looked at"
    )


@pytest.mark.parametrize("where", ["model", "principal_id", "scopes"])
async def test_a_name_too_long_for_rules_is_denied_whatever_on_error_says(where: str):
    plugin = CelPlugin([{"when": "request.model == principal || scopes.size() == 99", "deny": "no"}], on_error="allow")
    for length, allowed in ((1024, True), (1025, False)):
        request, name = a_request(), "x" * length
        if where == "principal_id":
            request = replace(request, principal_id=name)
        else:
            request.environment[where] = (name,) if where == "scopes" else name
        assert (await plugin.evaluate(request)).allowed is allowed


@pytest.mark.parametrize(
    ("pattern", "few"),
    [
        ("(delete|drop)_", True),
        ("(?i)ignore.*instructions", True),
        (r"^[a-z]{1,64}$|\d{3}-\d{2}", True),
        (r"\b(foo|bar)\b", True),
        ("日本.é*", True),
        ("a[ab]{12}c", False),
        ("a.{0,40}c", False),
        (r"a\w{20}-", False),
        (r"\pL+", False),
        ("[[:alpha:]]+", True),
        ("[[:^alpha:]]", False),
        ("(?m)^a", False),
        ("(?i:password)|b", True),
        ("(?i)gehälter|straße", True),
        (r"[A-Za-z0-9._%+\-]+@[A-Za-z0-9.\-]+\.[A-Za-z]{2,}", True),
        (r"[^\x00-\x7F]|\x2e|\\x41", True),
    ],
)
def test_patterns_whose_states_are_few_are_told_from_others(pattern: str, few: bool):
    assert (states_of(pattern) is not None) is few


@pytest.mark.parametrize("value", [10**30, -(10**400), float("nan"), float("inf"), None, True, {}, [], "é\ud800", {"": {}}])
async def test_odd_values_reach_rules_without_harm(value: Any):
    plugin = CelPlugin([{"when": "has(request.arguments.a) && request.arguments.a == 12345", "deny": "no"}])
    assert (await plugin.evaluate(a_request(a=value))).allowed


async def test_a_model_that_is_no_text_is_an_empty_one():
    plugin = CelPlugin([{"when": 'request.model == ""', "deny": "no model"}])
    context = a_request()
    context.environment["model"] = None
    context.arguments["model"] = {"a": 1}
    assert (await plugin.evaluate(context)).reason == "no model"


async def test_rules_over_the_largest_request_that_is_let_in_still_end():
    plugin = CelPlugin([{"when": 'request.arguments.a.exists(x, x.matches("(a?){18}b$") || x.contains("zz"))', "deny": "no"}])
    assert (await plugin.evaluate(a_request(a=["a" * 120] * 256))).allowed


@pytest.mark.parametrize(
    ("pattern", "least", "most"),
    [
        ("", 0, 0),
        ("abc", 3, 3),
        ("^(delete|drop)_", 10, 20),
        ("a{3}b{2,5}c{7,}", 19, 19),
        ("a?b*(c+){2}", 10, 10),
        ("(ab){3}", 9, 9),
        ("((a{10}){10}){2}", 200, 250),
        (r"\pL", 500, 501),
        (r"[\pL\pN]{2}", 2000, 2100),
        ("(?i)abc", 3, 4),
        ("(?i)sk", 8, 9),
        ("a.{10}", 41, 41),
        (r"[a-z0-9_-]{2}\W", 10, 14),
        (r"\Qa{9}\E", 4, 10),
        (")(", 1, 3),
        ("{5}", 0, 3),
        ("[]a]{2}", 2, 8),
        (r"\{9}", 1, 9),
    ],
)
def test_the_steps_of_a_pattern_are_counted_with_its_repetitions_written_out(pattern: str, least: int, most: int):
    assert least <= pattern_steps(pattern) <= most


@pytest.mark.parametrize(
    ("wire", "operation", "arguments", "limit"),
    [
        ("openai", "chat", {"max_tokens": 9, "max_completion_tokens": 1}, 9),
        ("openai", "chat", {"max_output_tokens": 1, "generationConfig": {"maxOutputTokens": 1}}, 0),
        ("openai", "completions", {"max_tokens": 9, "max_completion_tokens": 10}, 9),
        ("openai", "responses", {"max_output_tokens": 9, "max_tokens": 1}, 9),
        ("openai", "embeddings", {"max_tokens": 1}, 0),
        ("openai", None, {"max_output_tokens": 1}, 0),
        ("anthropic", "messages", {"max_tokens": 9, "max_completion_tokens": 10}, 9),
        ("gemini", "generate", {"max_tokens": 1}, 0),
        ("gemini", "generate", {"generationConfig": {"maxOutputTokens": 1}, "generation_config": {"max_output_tokens": 9}}, 9),
        (None, None, {"max_tokens": 9, "max_output_tokens": 1}, 9),
        (None, None, {"max_tokens": 2**70, "max_output_tokens": 1}, 2**63 - 1),
    ],
)
async def test_the_output_limit_is_the_largest_that_the_wire_heeds(wire: str, operation: str, arguments: Any, limit: int):
    context = a_request(**arguments)
    context.environment.update(wire=wire, operation=operation)
    plugin = CelPlugin([{"when": f"request.output_limit == {limit}", "deny": "yes"}])
    assert (await plugin.evaluate(context)).reason == "yes"


def test_what_a_loop_may_not_be_called_are_the_variables_of_rules():
    assert {name.partition(".")[0] for name in VARIABLES} == cel_bounds._TAKEN


def test_a_pattern_with_many_states_is_looked_at_no_longer_than_others(monkeypatch: pytest.MonkeyPatch):
    looked_at = 0
    between = cel_automata._Automaton._between

    def counted(automaton: Any, places: Any) -> int:
        nonlocal looked_at
        looked_at += 1
        return between(automaton, places)

    monkeypatch.setattr(cel_automata._Automaton, "_between", counted)
    assert states_of("é[éz]{10}c") is None
    assert 0 < looked_at < 2_000  # once for each state
