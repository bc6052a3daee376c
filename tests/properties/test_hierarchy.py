"""Hierarchies of limits against counts of their own: whoever touches a part touches the whole, and parts never sum up to more."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import event, given, settings
from hypothesis import strategies as st

from sark_mw.enforcement.delegation import check_delegation
from sark_mw.errors import ConfigurationError
from sark_mw.limit import Limit
from sark_mw.limit_index import LimitIndex
from tests.properties.driving import LONG

SCOPES = ("org:a", "team:m", "team:n", "project:p", "user:a", "user:b", "key:k")
PATTERNS = ("team:*", "user:*", "user:a*", "key:*")
EXAMPLES = 20_000 if LONG else 400


@st.composite
def some_limits(draw: st.DrawFn, *, most: int = 9) -> list[Limit]:
    """Limits on few scopes, each perhaps a part of another: circles, dead ends and patterns included."""
    found: dict[str, Limit] = {}
    for _ in range(draw(st.integers(0, most))):
        scope = draw(st.sampled_from((*SCOPES, *PATTERNS)))
        parents = [parent for parent in SCOPES if parent != scope]
        limit = Limit(
            scope=scope,
            unit=draw(st.sampled_from(["usd", "usd", "requests"])),
            window=draw(st.sampled_from(["day", "day", "month"])),
            timezone=draw(st.sampled_from(["UTC", "UTC", "UTC", "Europe/Berlin"])),
            amount=Decimal(draw(st.integers(1, 12))),
            parent=draw(st.sampled_from(["", "", *parents])),
            overcommit=draw(st.sampled_from([False, False, False, True])),
        )
        found[limit.limit_id] = limit
    return [*found.values()]


def is_on(limit: Limit, scope: str) -> bool:
    """Tell whether a limit is about a scope, by its spelling alone."""
    return scope.startswith(limit.scope.removesuffix("*")) if limit.scope.endswith("*") else scope == limit.scope


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    limits=some_limits(),
    scopes=st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3, unique=True),
    asserted=st.lists(st.sampled_from(("end_user:e", "tag:t", "user:b")), max_size=2, unique=True),
)
def test_whoever_touches_a_limit_touches_its_parents_and_nothing_else(
    limits: list[Limit], scopes: list[str], asserted: list[str]
) -> None:
    reached = {*scopes, *asserted}
    for _ in range(len(limits) + 1):  # as many rounds as there are limits reach whatever can be reached
        reached |= {limit.parent for limit in limits if limit.parent and any(is_on(limit, scope) for scope in reached)}
    expected = [limit for limit in limits if any(is_on(limit, scope) for scope in reached)]

    touched = LimitIndex(limits).touch(scopes, asserted)

    assert sorted(limit.limit_id for limit in touched.limits) == sorted(limit.limit_id for limit in expected)
    unknown = {scope for scope in asserted if scope not in scopes and not any(is_on(limit, scope) for limit in limits)}
    assert set(touched.scopes) == reached - unknown
    assert len(touched.scopes) == len(set(touched.scopes))


def graph_of(limits: list[Limit]) -> dict[str, set[str]]:
    """Draw an arrow from every scope to the parents that touching it leads to; to itself leads nothing."""
    names = {limit.scope for limit in limits} | {limit.parent for limit in limits if limit.parent}
    return {
        name: {limit.parent for limit in limits if limit.parent and limit.parent != name and is_on(limit, name)} for name in names
    }


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Name what can be reached from a scope in one step or more."""
    found = set(graph.get(start, ()))
    while more := {far for near in found for far in graph.get(near, ())} - found:
        found |= more
    return found


def fits(limits: list[Limit]) -> bool:
    """Tell whether a set of limits may stand, by going through every pair."""
    graph = graph_of(limits)
    parts = [limit for limit in limits if limit.parent]
    for part in parts:
        above = {part.parent} | reachable(graph, part.parent)
        if part.scope in above or any(scope in reachable(graph, scope) for scope in above):
            return False
        if not any(is_on(limit, part.parent) for limit in limits):
            return False
    for whole in limits:
        for parent in {part.parent for part in parts if is_on(whole, part.parent)}:
            same = [limit for limit in limits if (limit.unit, limit.window) == (whole.unit, whole.window)]
            # An exact limit that counts the same stands in the place of a pattern.
            exact = [limit for limit in same if limit.scope == parent and limit.timezone == whole.timezone]
            stands_in = whole.scope != parent and exact != []
            handed_out = [limit for limit in same if limit.parent == parent]
            if whole.overcommit or stands_in or not handed_out:
                continue
            if any(part.scope.endswith("*") for part in handed_out) or sum(p.amount for p in handed_out) > whole.amount:
                return False
    return True


@settings(max_examples=EXAMPLES, deadline=None)
@given(limits=some_limits(most=6))
def test_a_set_of_limits_is_taken_exactly_if_its_parts_fit_into_their_wholes(limits: list[Limit]) -> None:
    try:
        check_delegation(limits)
        taken = True
    except ConfigurationError:
        taken = False
    event(f"taken: {taken}, with parts: {any(limit.parent for limit in limits)}")
    assert taken == fits(limits), [(limit.limit_id, limit.parent, limit.amount, limit.overcommit) for limit in limits]
