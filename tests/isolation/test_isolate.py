"""An isolated plugin is a plugin like any other: its members, its answers, and the reasons why it cannot be had."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path

import pytest

import sark_mw
from sark_mw import PolicyContext, PolicyPluginManager
from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy import base
from sark_mw.policy.isolated import IsolatedPlugin, IsolationOptions, isolate
from tests.isolation.plugins import DOER, asked, loaded

pytestmark = pytest.mark.wall_clock

_HEAD = b"from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin\n"


@pytest.fixture
async def doer() -> AsyncIterator[IsolatedPlugin]:
    """Isolate the plugin that does as told."""
    plugin = await loaded()
    yield plugin
    await plugin.on_unload()


async def test_its_members_are_what_the_plugin_inside_says(doer: IsolatedPlugin) -> None:
    assert (doer.name, doer.version, doer.description, doer.priority) == ("doer", "1.2.3", "does as told", 7)
    assert (doer.timeout, doer.on_error, doer.needs) == (0.5, "skip", {"principal_id", "arguments.text"})
    assert doer.concurrent and doer.isolated


async def test_it_allows_denies_and_obliges(doer: IsolatedPlugin) -> None:
    assert (await doer.evaluate(asked("allow"))).allowed is True
    denied = await doer.evaluate(asked("deny"))
    assert denied.allowed is False and denied.reason == "as told"
    obliging = await doer.evaluate(asked("oblige:blue"))
    assert obliging.obligations == (base.Obligation("add_tag", "tag:blue"),)
    assert obliging.metadata == {"rest": "blue"}


async def test_it_sees_the_request_as_plain_data(doer: IsolatedPlugin) -> None:
    context = PolicyContext(
        "echo:hi", "gpt-4o", "chat", "invoke", {"a": [1, {"b": None}], "price": Decimal("1.5")}, {"scopes": ("user:1",)},
        datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    )  # fmt: skip
    answer = await doer.evaluate(context.view())
    assert answer.metadata["arguments"] == {"a": [1, {"b": None}], "price": "1.5"}
    assert answer.metadata["environment"] == {"scopes": ["user:1"]}
    assert answer.metadata["time"] == "2026-01-02T03:04:00+00:00"


async def test_an_exception_is_a_failed_evaluation_that_says_which(doer: IsolatedPlugin) -> None:
    with pytest.raises(PolicyEvaluationError, match="ValueError: as told") as caught:
        await doer.evaluate(asked("raise"))
    assert caught.value.metadata["error"] == "ValueError"


@pytest.mark.parametrize("value", [object(), "x" * (5 << 20), 10**5000], ids=["no data", "too long", "a number without end"])
async def test_a_request_that_cannot_be_shown_is_denied_even_if_errors_allow(doer: IsolatedPlugin, value: object) -> None:
    answer = await doer.evaluate(asked("allow", it=value))
    assert answer.allowed is False and "unsendable" in answer.metadata


async def test_a_text_that_nobody_can_encode_is_shown_and_a_number_without_end_is_denied(doer: IsolatedPlugin) -> None:
    assert (await doer.evaluate(asked("allow", it=["\ud800"]))).allowed is True
    for endless in (float("nan"), float("inf")):
        denied = await doer.evaluate(asked("allow", it=[endless]))
        assert not denied.allowed and "cannot be written" in denied.metadata["unsendable"]


async def test_a_reason_cannot_break_a_line_or_steer_a_terminal(doer: IsolatedPlugin) -> None:
    assert (await doer.evaluate(asked("echo:a\r\nSet-Cookie: b\x1b[2J"))).reason == "a  Set-Cookie: b [2J"


async def test_a_manager_asks_it_like_any_other_and_its_deadline_is_a_time_out() -> None:
    manager = PolicyPluginManager()
    plugin = await isolate(DOER, "doer.py", None, {"name": "mine"})
    await manager.register_plugin(plugin)
    try:
        allowed, late = [await manager.evaluate_all(asked(word)) for word in ("allow", "hang")]
        assert [each.plugin_name for each in allowed] == ["mine"] and allowed[0].allowed
        assert late[0].metadata["timeout"] is True
    finally:
        await manager.unregister_plugin("mine")


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (date(2026, 12, 24), "2026-12-24"),
        (datetime(2026, 12, 24, 9, 30, tzinfo=UTC), "2026-12-24T09:30:00+00:00"),
        (time(9, 30), "09:30:00"),
    ],
)
async def test_dates_and_times_that_toml_has_reach_it_as_iso_spells_them(given: object, got: str) -> None:
    plugin = await isolate(DOER, "doer.py", None, {"name": given})
    assert plugin.name == got


async def test_a_plugin_that_ships_works_in_there_with_its_time_zones() -> None:
    source = (Path(sark_mw.__file__).parent.parent / "plugins" / "business_hours.py").read_bytes()
    options = {"timezone": "Europe/Berlin", "start_hour": 9, "end_hour": 17}
    plugin = await isolate(source, "business_hours.py", "BusinessHoursPlugin", options)
    await plugin.on_load()
    try:
        for hour, open_ in ((8, True), (17, False)):
            context = PolicyContext("u", "r", "c", "a", {}, {}, datetime(2026, 1, 7, hour, tzinfo=UTC))
            assert (await plugin.evaluate(context)).allowed is open_
    finally:
        await plugin.on_unload()


@pytest.mark.parametrize(
    ("source", "class_name", "options", "reason"),
    [
        (b"def", None, {}, "plugin.py: is not valid Python"),
        (b"1 / 0", None, {}, "failed to run: ZeroDivisionError"),
        (b"x = 1", None, {}, "no usable PolicyPlugin class; it defines none at all"),
        (_HEAD + b"class A(PolicyPlugin):\n    name = 'a'\n", None, {}, "no usable PolicyPlugin class; it defines A"),
        (DOER + b"\nclass More(Doer): pass\n", None, {}, r"several PolicyPlugin classes; name one \(class_name\)"),
        (DOER, "Other", {}, "no usable PolicyPlugin class 'Other'"),
        (DOER.replace(b", **others", b""), None, {"wrong": 1}, r"cannot be built with the options given \(wrong\): TypeError"),
        (DOER, None, {"name": object()}, "plain data"),
        (DOER.replace(b'"skip"', b'"whatever"'), None, {}, "on_error must be"),
        (DOER.replace(b"timeout = 0.5", b"timeout = -1"), None, {}, "timeout must be"),
        (DOER.replace(b"priority = 7", b"priority = True"), None, {}, "priority must be"),
        (b"import sqlite3", None, {}, "ModuleNotFoundError: No module named 'sqlite3'"),
        (b"raise __import__('sark_mw').ConfigurationError('as I say')", None, {}, "as I say"),
    ],
)
async def test_what_cannot_be_loaded_is_refused_with_the_reason(
    source: bytes, class_name: str | None, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        await isolate(source, "plugin.py", class_name, options)


async def test_a_module_beside_the_standard_library_can_be_preloaded() -> None:
    source = _HEAD + b"import idna\n" + DOER
    with pytest.raises(ConfigurationError, match="No module named 'idna'"):
        await isolate(source, "plugin.py", "Doer")
    plugin = await isolate(source, "plugin.py", "Doer", isolation=IsolationOptions(preload=("idna",)))
    assert plugin.name == "doer"


@pytest.mark.parametrize(
    "wrong", [{"mode": "perhaps"}, {"workers": 0}, {"workers": 9}, {"memory_bytes": 0}, {"cpu_s": -1.0}, {"reply_bytes": 2 << 20}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        IsolationOptions(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_what_a_plugin_finds_inside_has_the_members_of_what_is_outside() -> None:
    from sark_mw.policy.isolated.inside import api

    for name in ("PolicyDecision", "Obligation"):
        inside, outside = getattr(api, name), getattr(base, name)
        assert [(each.name, each.default) for each in dataclasses.fields(inside)] == [
            (each.name, each.default) for each in dataclasses.fields(outside)
        ]
    inside, outside = (dataclasses.fields(each) for each in (api.PolicyContext, PolicyContext))
    assert [each.name for each in inside] == [each.name for each in outside]
    assert list(api.ObligationKind) == list(base.ObligationKind)
    assert list(api.PolicyOutcome) == list(base.PolicyOutcome)
    public = {name for name in vars(base.PolicyPlugin) if not name.startswith("_")}
    assert public <= {name for name in vars(api.PolicyPlugin) if not name.startswith("_")}
    assert inspect.iscoroutinefunction(api.PolicyPlugin.on_load)
