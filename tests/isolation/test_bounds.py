"""What a caller sends and what a plugin answers is bounded before it costs anybody: no honest worker dies of it."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest

from sark_mw import PolicyPluginManager
from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.context import with_read_bytes
from sark_mw.policy.isolated import IsolationOptions, isolate
from sark_mw.policy.isolated.inside.bounds import has_more_values, is_deeper
from sark_mw.policy.isolated.replies import MalformedReplyError, read_answer
from sark_mw.policy.isolated.requests import written_context
from sark_mw.policy.needs import lens_for
from sark_mw.policy.unsendable import UnsendableRequestError
from tests.isolation.plugins import asked, loaded
from tests.isolation.processes import until

#: Allows whatever goes wrong, copies what it is shown, and may have much to remember.
_LENIENT = b"""
import copy, json
from sark_mw import PolicyDecision, PolicyPlugin

class Lenient(PolicyPlugin):
    name = "lenient"
    on_error = "allow"

    def __init__(self, keeps=0):
        self._kept = bytearray(b"x") * keeps

    async def evaluate(self, context):
        copy.deepcopy(context.arguments), json.dumps(context.arguments)
        return PolicyDecision(context.principal_id == "allow", "asked")
"""


def _nested(levels: int) -> Any:
    nested: Any = 1
    for _ in range(levels):
        nested = {"a": [nested]}
    return nested


async def _answers(arguments: Any, times: int = 1, **options: Any) -> list[str]:
    """Ask through a manager, and tell what came of it; the worker has to be the same to the end."""
    manager = PolicyPluginManager()
    plugin = await isolate(_LENIENT, "lenient.py", None, options, IsolationOptions(timeout_s=20, cpu_s=20))
    await manager.register_plugin(plugin)
    try:
        pids = plugin.pids
        (decisions,) = zip(
            *[await manager.evaluate_all(asked("deny", x=arguments), timeout=20) for _ in range(times)], strict=True
        )
        assert (await manager.evaluate_all(asked("allow")))[0].reason == "asked"
        assert plugin.pids == pids and plugin.figures()[0]["deaths"] == 0
        assert not any(decision.allowed for decision in decisions)
        return [decision.metadata.get("unsendable", decision.reason) for decision in decisions]
    finally:
        await manager.unregister_plugin("lenient")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([[]] * 690_000, "more than 32768 values"),
        ([{}] * 690_000, "more than 32768 values"),
        (_nested(32), "more than 64 levels deep"),
        (_nested(225), "more than 64 levels deep"),
        ("x" * (2 << 20), "2097152 bytes are the most"),
        (json.loads("1e400"), "cannot be written"),
        (json.loads("[NaN]"), "cannot be written"),
    ],
    ids=["lists", "objects", "deep", "as deep as can just be written", "long", "without end", "no number"],
)
async def test_a_request_that_may_not_fit_is_denied_and_kills_no_worker_whatever_on_error_says(arguments: Any, said: str) -> None:
    assert all(said in answer for answer in await _answers(arguments, times=6))


@pytest.mark.parametrize(
    "arguments",
    [
        [{f"\U0001f600{n}": n} for n in range(16_300)],
        {f"{n}": n for n in range(32_700)},
        _nested(30),
        "\U0001f600" + "a" * 2_090_000,
        ["[{,\\\"'" * 100] * 2_500,
    ],
    ids=["objects", "keys", "deep", "wide text", "text that looks like values"],
)
async def test_a_request_at_the_bounds_fits_into_a_worker_that_copies_it(arguments: Any) -> None:
    assert await _answers(arguments) == ["asked"]


@pytest.mark.parametrize("free", [1 << 20, 3 << 20, 6 << 20], ids=["not to be taken", "not to be read", "not to be parsed"])
async def test_a_request_too_large_for_what_an_honest_plugin_left_free_is_denied_by_its_number(free: int) -> None:
    answers = await _answers("\U0001f600" + "a" * 2_090_000, times=6, keeps=(64 << 20) - free)
    assert answers == ["its worker could not read it"] * 6


@pytest.mark.parametrize("free", [1 << 20, 3 << 20, 6 << 20], ids=["not to be taken", "not to be read", "not to be parsed"])
async def test_requests_around_one_that_cannot_be_read_are_answered(free: int) -> None:
    options = IsolationOptions(timeout_s=20, cpu_s=20)
    plugin = await isolate(_LENIENT, "lenient.py", None, {"keeps": (64 << 20) - free}, options)
    await plugin.on_load()
    try:
        pids = plugin.pids
        texts = ["a" * n if n % 7 else "\U0001f600" + "a" * (2_000_000 + n) for n in range(1, 64)]
        answers = await asyncio.gather(*(plugin.evaluate(asked("allow", x=text)) for text in texts))
        assert [answer.allowed for answer in answers] == [len(text) < 64 for text in texts]
        assert plugin.pids == pids and plugin.figures()[0]["deaths"] == 0
    finally:
        await plugin.on_unload()


async def test_a_request_that_could_not_be_read_does_not_close_a_breaker() -> None:
    dies = b'context.principal_id == "exit" and os._exit(3)\n        copy.deepcopy'
    full = _LENIENT.replace(b"copy.deepcopy", dies).replace(b"copy, json", b"copy, json, os")
    options = IsolationOptions(breaker_deaths=1, breaker_s=0.05)
    plugin = await isolate(full, "full.py", None, {"keeps": 60 << 20}, options)
    await plugin.on_load()
    try:
        with pytest.raises(PolicyEvaluationError, match="exited"):
            await plugin.evaluate(asked("exit"))
        await until(lambda: bool(plugin.pids))
        unread = await plugin.evaluate(asked("allow", x="\U0001f600" + "a" * 2_090_000))
        assert unread.allowed is False and plugin.figures()[0]["broken"]
        assert (await plugin.evaluate(asked("allow"))).allowed is True
        assert not plugin.figures()[0]["broken"]
    finally:
        await plugin.on_unload()


class _Witness(Decimal):
    written = False

    def __str__(self) -> str:
        type(self).written = True
        return "1"


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": [0] * 40_000},
        {"x": {str(n): 0 for n in range(40_000)}},
        {"x": ["a" * 1_000] * 2_200},
        {"x": {"a" * 1_000 + str(n): 0 for n in range(2_200)}},
        {"x": ["é" * 1_100_000, {"y": ("é" * 1_100_000,)}]},
        {"x": [{n: [0] * 30 for n in range(1_000)}] * 2},
        {"x": [10**4_000] * 700},
        {"x": {"y": MappingProxyType({"z": {"a" * 2_200_000}})}},
    ],
    ids=["values", "fields", "texts", "keys", "deep texts", "together", "digits", "other containers"],
)
def test_what_is_surely_too_large_is_refused_before_any_of_it_is_written(arguments: Any) -> None:
    with pytest.raises(UnsendableRequestError, match=r"are the most|more than 32768 values"):
        written_context(asked("x", witness=_Witness(), **arguments), 2 << 20, 32_768)
    assert not _Witness.written


_LARGE = pytest.mark.parametrize("arguments", [{"x": [0] * 40_000}, {"x": ["a" * 1_000] * 2_200}], ids=["values", "texts"])


@_LARGE
def test_a_caller_who_says_that_its_body_was_small_is_not_believed(arguments: Any) -> None:
    context = asked("x", witness=_Witness(), **arguments)
    context.environment["body_bytes"] = context.environment["_read_bytes"] = context.arguments["_read_bytes"] = 1
    with pytest.raises(UnsendableRequestError, match=r"are the most|more than 32768 values"):
        written_context(context, 2 << 20, 32_768)
    assert not _Witness.written


@_LARGE
@pytest.mark.parametrize("needs", [None, {"arguments", "environment"}], ids=["all", "needs"])
def test_what_was_read_from_few_bytes_is_bounded_when_it_has_been_written(arguments: Any, needs: Any) -> None:
    lens = lens_for(needs, isolated=True)
    assert lens is not None
    context = lens.show(with_read_bytes(asked("x", witness=_Witness(), **arguments), 1)).view()
    try:
        with pytest.raises(UnsendableRequestError, match=r"are the most|more than 32768 values"):
            written_context(context, 2 << 20, 32_768)
        assert _Witness.written
    finally:
        _Witness.written = False


#: Allows whatever goes wrong, and does with a text what most guards do; `greedy` takes many times what it is shown.
_GUARD = b"""
from sark_mw import PolicyDecision, PolicyPlugin

class Guard(PolicyPlugin):
    name = "guard"
    on_error = "allow"

    async def evaluate(self, context):
        text = context.arguments["x"].lower()
        if context.principal_id == "greedy":
            text = [text.upper() + "x" for _ in range(2000)]
        return PolicyDecision("secret" not in text, "judged")
"""


async def test_the_most_usual_work_on_a_text_at_the_bound_takes_less_than_a_worker_has() -> None:
    plugin = await loaded(_GUARD)
    try:
        pids = plugin.pids
        for _ in range(6):
            answer = await plugin.evaluate(asked("any", x="\U0001f600 SECRET " + "a" * (IsolationOptions().shown_bytes - 1000)))
            assert (answer.allowed, answer.reason) == (False, "judged")
        assert plugin.pids == pids
    finally:
        await plugin.on_unload()


async def test_a_caller_whose_large_request_takes_a_workers_memory_is_denied_and_opens_no_breaker() -> None:
    manager, plugin = PolicyPluginManager(), await isolate(_GUARD, "guard.py", isolation=IsolationOptions(timeout_s=20, cpu_s=20))
    await manager.register_plugin(plugin)
    try:
        for _ in range(7):
            (large,) = await manager.evaluate_all(asked("greedy", x="\U0001f600" + "a" * 70_000))
            assert not large.allowed and "ran out of memory" in large.metadata["unsendable"]
        (secret,) = await manager.evaluate_all(asked("any", x="SECRET"))
        assert (secret.allowed, secret.reason) == (False, "judged")
        assert not plugin.figures()[0]["broken"]
    finally:
        await manager.unregister_plugin("guard")


#: Puts what it is shown into every place of its answer.
_REPEATER = b"""
from sark_mw import ConfigurationError, Obligation, PolicyDecision, PolicyPlugin

class Repeater(PolicyPlugin):
    name = "repeater"

    async def evaluate(self, context):
        shown = context.arguments["x"]
        if context.principal_id == "oblige":
            return PolicyDecision(True, obligations=tuple(Obligation("add_tag", each) for each in shown))
        if context.principal_id == "fail":
            raise ConfigurationError(shown)
        return PolicyDecision(True, str(shown), {str(shown): shown})
"""


@pytest.mark.parametrize("shown", [["x" * 201], ["\ud800"], ["x"] * 17, [1.5], [None], [2**70]])
async def test_a_callers_text_in_an_obligation_fails_that_request_and_kills_no_worker(shown: list[Any]) -> None:
    plugin = await loaded(_REPEATER)
    try:
        pids = plugin.pids
        for _ in range(6):
            with pytest.raises(PolicyEvaluationError, match="ValueError: "):
                await plugin.evaluate(asked("oblige", x=shown))
        (tag,) = (await plugin.evaluate(asked("oblige", x=["blue"]))).obligations
        assert tag.value == "blue" and plugin.pids == pids
    finally:
        await plugin.on_unload()


@pytest.mark.parametrize(
    "shown", ["\ud800" * 600, "\U0001f600" * 30_000, ["[{,"] * 900, list(range(5000)), _nested(25), {"a": "\ud800"}]
)
async def test_whatever_a_plugin_repeats_is_cut_to_what_the_gateway_takes(shown: Any) -> None:
    plugin = await loaded(_REPEATER)
    try:
        pids = plugin.pids
        assert (await plugin.evaluate(asked("tell", x=shown))).allowed is True
        with pytest.raises(PolicyEvaluationError) as caught:
            await plugin.evaluate(asked("fail", x=shown))
        assert caught.value.metadata["error"] == "ConfigurationError"
        assert plugin.pids == pids and plugin.figures()[0]["deaths"] == 0
    finally:
        await plugin.on_unload()


@pytest.mark.parametrize(
    "metadata",
    [
        "[" + ",".join(["[]"] * 20_000) + "]",
        "[" + ",".join(["{}"] * 20_000) + "]",
        "[" + ",".join(["1"] * 30_000) + "]",
        '",' * 30_000,
    ],
    ids=["lists", "objects", "numbers", "no JSON"],
)
def test_a_reply_that_would_hold_up_the_event_loop_is_not_read(metadata: str) -> None:
    reply = '{"id":1,"allowed":true,"reason":"","metadata":{"a":%s},"obligations":[]}' % metadata  # noqa: UP031  # braces
    with pytest.raises(MalformedReplyError, match="more than 1000 values"):
        read_answer(reply.encode())


@pytest.mark.parametrize("number", ["9" * 21, "-" + "9" * 20, "9" * 4_290, str(2**63), str(-(2**63))])
def test_a_number_out_of_bounds_is_not_read(number: str) -> None:
    reply = '{"id":1,"allowed":true,"reason":"","metadata":{"a":[%s]},"obligations":[]}'
    with pytest.raises(MalformedReplyError, match="a number out of bounds"):
        read_answer((reply % ",".join([number] * 14)).encode())
    taken = read_answer((reply % f"{2**63 - 1},{-(2**63) + 1}").encode())
    assert taken.decision is not None and taken.decision.metadata == {"a": [2**63 - 1, 1 - 2**63]}


def test_values_and_depth_are_told_from_the_bytes() -> None:
    for value in ([], [1], {"a": 1}, [[], {}], "[[,", ["\\", '\\"[,', "a,b"], {'"': ['\\"', "\\\\"]}, _nested(5)):
        whole = [value]
        body = json.dumps(whole, separators=(",", ":")).encode()
        marks, depth = _counted(whole), _depth(whole)
        assert has_more_values(body, marks - 1) and not has_more_values(body, marks)
        assert is_deeper(body, depth - 1) and not is_deeper(body, depth)


def _counted(value: Any) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    values = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(len(values) - 1, 0) + sum(map(_counted, values))


def _depth(value: Any) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
