"""Text and numbers as rego-cpp takes them: what a policy denies by must match, however it was spelled."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest

from sark_mw import ConfigurationError
from sark_mw.policy.rego import RegoPlugin
from sark_mw.policy.rego_text import spelled
from tests.rules.processes import loaded
from tests.rules.requests import a_request

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the isolation of engines needs Linux")

NAMES = ["user:josé", "user:日本", "😀", "\x7f", "\u2028", "a/b", "${x}", "%s", "user:{{", "'"]
FREE = ["tab\there", "line\nend", "\r", 'a"b', "a\\b", "\\u00e9", "a\\nb"]


def denying(condition: str) -> str:
    head = "package sark\nimport rego.v1\ndefault decision := true\n"
    return head + f'decision := {{"allow": false, "reason": "found"}} if {{ {condition} }}'


@pytest.mark.parametrize("escaped", [True, False], ids=["spelled with escapes", "spelled as it is"])
async def test_a_name_that_is_denied_is_found_however_it_is_spelled(escaped: bool):
    names = ", ".join(json.dumps(name, ensure_ascii=escaped) for name in NAMES)
    async with loaded(RegoPlugin(denying(f"input.principal in {{{names}}}"))) as plugin:
        for name in NAMES:
            decision = await plugin.evaluate(replace(a_request(), principal_id=name))
            assert (decision.allowed, decision.reason) == (False, "found"), ascii(name)
        assert (await plugin.evaluate(a_request())).allowed


async def test_free_text_is_found_by_equality_its_beginning_and_what_it_contains():
    texts = [*NAMES, *FREE]
    found = "input.arguments.x == text; startswith(input.arguments.x, text); contains(input.arguments.x, text)"
    condition = f"some text in data.texts; {found}"
    async with loaded(RegoPlugin(denying(condition), data={"texts": texts})) as plugin:
        for text in texts:
            assert not (await plugin.evaluate(a_request(x=text))).allowed, ascii(text)
        assert (await plugin.evaluate(a_request(x="another"))).allowed


async def test_a_text_has_as_many_characters_as_it_has():
    async with loaded(RegoPlugin(denying("count(input.resource) > 3"))) as plugin:
        assert (await plugin.evaluate(replace(a_request(), resource_id="日本語"))).allowed
        assert not (await plugin.evaluate(replace(a_request(), resource_id="日本語語"))).allowed


@pytest.mark.parametrize("where", ["principal_id", "resource_id", "capability_id", "model", "scopes", "arguments"])
@pytest.mark.parametrize("text", ["\x00", "a\x1b[31m", "\x08", "\ud800"])
async def test_text_that_the_engine_takes_for_another_one_is_denied_whatever_on_error_says(where: str, text: str):
    request = a_request(**{"x": [text]} if where == "arguments" else {})
    if where.endswith("_id"):
        request = replace(request, **{where: text})
    elif where != "arguments":
        request = replace(request, environment={**request.environment, where: (text,) if where == "scopes" else text})
    async with loaded(RegoPlugin(denying("false"), on_error="allow")) as plugin:
        decision = await plugin.evaluate(request)
    assert not decision.allowed and "unsendable" in decision.metadata


@pytest.mark.parametrize("text", FREE[:5])
async def test_a_name_with_a_quote_a_backslash_or_a_line_end_is_denied(text: str):
    async with loaded(RegoPlugin(denying("false"), on_error="allow")) as plugin:
        decision = await plugin.evaluate(replace(a_request(), principal_id=text))
        assert not decision.allowed and "unsendable" in decision.metadata
        assert (await plugin.evaluate(a_request(x=text))).allowed, "in free text it is common"


@pytest.mark.parametrize("number", [5e-324, -5e-324, 1.7e308, 10**400, -(10**400)])
async def test_a_number_that_the_engine_cannot_read_is_denied_whatever_on_error_says(number: float):
    async with loaded(RegoPlugin(denying("input.arguments.n > 5"), on_error="allow")) as plugin:
        decision = await plugin.evaluate(a_request(n=number))
    assert not decision.allowed and "unsendable" in decision.metadata


@pytest.mark.parametrize(
    ("number", "condition"),
    [
        (1e-7, "input.arguments.n < 0.001; input.arguments.n > 0"),
        (2**64 + 1, "input.arguments.n == 18446744073709551617"),
        (9007199254740993, "input.arguments.n == 9007199254740993"),
        (0.1, "input.arguments.n == 0.1"),
        (-1.5e-9, "input.arguments.n < 0"),
        (1e299, "input.arguments.n > 5"),
    ],
)
async def test_numbers_arrive_as_they_are(number: float, condition: str):
    async with loaded(RegoPlugin(denying(condition))) as plugin:
        assert not (await plugin.evaluate(a_request(n=number))).allowed


@pytest.mark.parametrize(
    ("source", "same"),
    [
        (r'x == "\u00e9"', 'x == "é"'),
        (r'x == "\u001B\u000a\/\u0041"', r'x == "\u001b\n/A"'),
        (r"x == `\u00e9`", r"x == `\u00e9`"),
        (r'# "\u00e9', r'# "\u00e9'),
        (r'x == `"` # \u00e9 "' + '\ny == "\\u00e9"', r'x == `"` # \u00e9 "' + '\ny == "é"'),
        (r'regex.match("a\\s", x)', r'regex.match("a\\s", x)'),
        (r'x == "\q"', r'x == "\q"'),
        (r'x == "\ud800"', r'x == "\ud800"'),
    ],
)
def test_literals_are_spelled_as_documents_are_and_nothing_else_is_touched(source: str, same: str):
    assert spelled(source) == same


@pytest.mark.parametrize("data", [{"x": "\ud800"}, {"x": float("nan")}, {"x": object()}, {"x": "a" * (1 << 20)}])
def test_a_base_document_that_cannot_be_written_is_refused(data: dict[str, Any]):
    with pytest.raises(ConfigurationError, match="data"):
        RegoPlugin(denying("false"), data=data)
