from __future__ import annotations

import copy
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sark_mw import PolicyContext, PolicyPluginManager
from tests.policy.samples import Sample, a_context, allow

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def vandalise(value: Any) -> None:
    """Change every container in reach, through whatever way it is read."""
    if isinstance(value, dict):
        for nested in list(value.values()):
            vandalise(nested)
        value["vandal"] = True
    elif isinstance(value, list):
        for nested in value:
            vandalise(nested)
        value.append("vandal")


READERS: dict[str, Callable[[Any], list[Any]]] = {
    "index": lambda d: [d[key] for key in d],
    "get": lambda d: [d.get(key) for key in d],
    "values": lambda d: list(d.values()),
    "items": lambda d: [value for _, value in d.items()],
    "dict": lambda d: list(dict(d).values()),
    "unpack": lambda d: list({**d}.values()),
    "keywords": lambda d: list(dict(**d).values()),
    "copy": lambda d: list(d.copy().values()),
    "shallow": lambda d: list(copy.copy(d).values()),
    "or": lambda d: list((d | {}).values()),
    "ror": lambda d: list(({} | d).values()),
    "pop": lambda d: [d.pop(key) for key in list(d)],
    "popitem": lambda d: [d.popitem()[1] for _ in range(len(d))],
    "setdefault": lambda d: [d.setdefault(key) for key in list(d)],
    "update": lambda d: [other.update(d) or list(other.values()) for other in [{}]],
    "reversed": lambda d: [d[key] for key in reversed(d)],
}


@given(arguments=st.dictionaries(st.text(max_size=5), JSON, max_size=4), reader=st.sampled_from(sorted(READERS)))
def test_whatever_a_plugin_does_to_its_arguments_nobody_else_sees_it(arguments: dict[str, Any], reader: str) -> None:
    context = a_context(arguments=arguments, environment={"deep": arguments})
    before = copy.deepcopy(arguments)
    mine, other = context.view(), context.view()
    for value in READERS[reader](mine.arguments):
        vandalise(value)
    vandalise(mine.environment)
    mine.arguments["vandal"] = True
    assert context.arguments == before
    assert other.arguments == before
    assert other.environment == {"deep": before}


@given(arguments=st.dictionaries(st.text(max_size=5), JSON, max_size=4), reader=st.sampled_from(sorted(READERS)))
def test_a_view_reads_like_the_original(arguments: dict[str, Any], reader: str) -> None:
    view = a_context(arguments=arguments).view()
    assert json.dumps(view.arguments) == json.dumps(arguments)
    assert copy.deepcopy(view.arguments) == arguments
    assert pickle.loads(pickle.dumps(view.arguments)) == arguments
    assert READERS[reader](a_context(arguments=arguments).view().arguments) == READERS[reader](dict(arguments))


def test_what_a_plugin_changes_it_reads_again_itself() -> None:
    view = a_context().view()
    mine: list[str] = []
    view.arguments["messages"][0]["content"] = "changed"
    view.arguments["mine"] = mine
    view.arguments |= {"also": mine}
    mine.append("x")
    assert view.arguments["messages"] == [{"role": "user", "content": "changed"}]
    assert view.arguments["mine"] is mine and view.arguments["also"] is mine
    view.principal_id = "user:mallory"
    assert view.principal_id == "user:mallory"


async def test_a_plugin_that_changes_its_context_does_not_change_the_next_ones() -> None:
    async def vandal(context: PolicyContext) -> Any:
        context.principal_id = "user:mallory"
        context.arguments["messages"][0]["content"] = "stolen"
        context.environment.clear()
        return await allow(context)

    manager, second = PolicyPluginManager(), Sample("second", priority=2)
    await manager.register_plugin(Sample("vandal", vandal, priority=1))
    await manager.register_plugin(second)
    context = a_context()
    await manager.evaluate_all(context)
    assert second.asked[0] == context == a_context(timestamp=context.timestamp)
    assert second.asked[0].principal_id == "user:alice"


def test_a_view_of_a_view_hands_on_what_the_view_had_changed() -> None:
    view = a_context().view()
    untouched = view.view()
    view.arguments["model"] = "small"
    assert view.view().arguments["model"] == "small"
    assert untouched.arguments["messages"] == a_context().arguments["messages"]


def test_deep_nesting_cycles_tuples_sets_and_subclasses_are_copied() -> None:
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    odd = {"deep": deep, "cycle": cycle, "tuple": ([1],), "set": {1}, "ordered": OrderedDict(a=[1]), "bytes": bytearray(b"a")}
    view = a_context(arguments=odd).view()
    assert view.arguments["cycle"]["self"] is view.arguments["cycle"] is not cycle
    view.arguments["deep"][0].append(1)
    view.arguments["tuple"][0].append(2)
    view.arguments["set"].add(2)
    view.arguments["ordered"]["a"].append(2)
    view.arguments["bytes"].append(2)
    assert len(deep[0]) == 1
    assert (odd["tuple"], odd["set"], odd["ordered"], odd["bytes"]) == (([1],), {1}, OrderedDict(a=[1]), b"a")


def test_objects_that_are_no_containers_are_handed_on_as_they_are() -> None:
    connection = object()
    assert a_context(environment={"connection": connection}).view().environment["connection"] is connection


def test_the_timestamp_is_now_in_utc() -> None:
    assert abs(a_context().timestamp - datetime.now(UTC)) < timedelta(minutes=1)
    assert a_context().timestamp.tzinfo is UTC


def test_a_missing_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'user'"):
        _ = a_context().view().user
    assert copy.copy(a_context().view()).arguments["model"] == "gpt-4o"
