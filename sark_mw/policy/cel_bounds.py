"""Bound what a CEL expression can cost, from its checked tree, before it is ever evaluated (as Kubernetes does for its rules).

The engine itself bounds the depth of an expression and the rounds of its loops, and its regular expressions are linear. It does
not bound values that grow (`[s].map(t, t + t)…` fills the memory in few rounds), costly calls inside loops, and patterns of the
request's making. Those are refused here. What is left takes at most about `MAX_UNITS` × 0.1 µs on the inputs that `cel_values`
lets through, and no more memory than a few times these inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sark_mw.policy.cel_automata import States, states_of
from sark_mw.policy.cel_patterns import pattern_steps
from sark_mw.policy.cel_sizes import MAX_TEXT, Size, Sizes, appends, root_of
from sark_mw.policy.cel_tree import Node, Tree, walk

#: Longest expression, in characters.
MAX_EXPRESSION = 2048
#: One unit is a node that is visited, about 0.1 µs; all together about 50 ms.
MAX_UNITS = 500_000
MAX_PATTERN = 256
MAX_PATTERN_STEPS = 1000

# What calls cost, in units, measured with cel-expr-python 0.1.3 on the worst texts that were found; a character may be 4 bytes.
_COMPARISONS = frozenset({"_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_"})
_CONVERSIONS = frozenset({"string", "bytes", "int", "uint", "double", "bool", "timestamp", "duration"})
_ON_TEXT = frozenset({"matches", "contains", "endsWith", "startsWith", "size", "_+_", "@in"})
_GROWING = frozenset({"add_string", "add_list", "add_bytes"})
#: What is known to be called: a new function of the engine must be looked at before it is let in.
_PLAIN = frozenset(
    {"_&&_", "_||_", "!_", "-_", "_-_", "_*_", "_/_", "_%_", "_?_:_", "_[_]", "@not_strictly_false", "dyn", "type", "budget"}
    | {"getFullYear", "getMonth", "getDayOfYear", "getDayOfMonth", "getDate", "getDayOfWeek"}
    | {"getHours", "getMinutes", "getSeconds", "getMilliseconds"}
)
#: What a loop may not call its variable.
_TAKEN = frozenset({"request", "principal", "scopes", "tags", "time", "spend", "remaining"})
#: A call into Python, and a map made of what it returns.
_BUDGET = 60
#: Making a pattern, at every call, and each step of it; several times that for Unicode classes.
_PATTERN, _PATTERN_STEP, _UNICODE = 100, 13, 4
#: Reading a character where the states of a pattern are few; where they are not, and each step of it that may be under way there.
_READ = 0.2
_READ_ANEW, _READ_STEP = 15, 0.2
#: Looking for the beginning of a needle at one character, and comparing it with one of its bytes.
_SOUGHT, _SOUGHT_BYTE = 0.12, 0.00025
#: A character that is copied, counted, converted, compared.
_COPIED, _COUNTED, _CONVERTED, _COMPARED = 0.04, 0.05, 0.08, 0.004
#: A value that is compared, an element that is copied.
_VALUE, _ELEMENT = 3, 0.5
_CALL = 4


class CostlyRuleError(Exception):
    """What is refused, and the node that is to blame."""

    def __init__(self, reason: str, node: Node) -> None:
        super().__init__(reason)
        self.node = node


def check_bounds(tree: Tree) -> int:
    """Return the units that an evaluation may take at most; raises `CostlyRuleError`."""
    for node in tree.nodes:
        if node.kind == "call" and node.name not in _PLAIN | _COMPARISONS | _CONVERSIONS | _ON_TEXT:
            raise CostlyRuleError(f"the function {node.name} is not for rules", node)
        if node.kind == "struct" and node.name:
            raise CostlyRuleError("messages are not for rules", node)
        if node.kind == "call" and node.name == "matches":
            _check_pattern(node)
        if node.kind == "loop":
            _check_growth(node, tree)
    units = _Units(tree).of(tree.root, None)
    if units > MAX_UNITS:
        raise CostlyRuleError(
            f"it may take {units:,} steps, more than the {MAX_UNITS:,} allowed: {_advice(tree)}",
            tree.root,
        )
    return units


def _advice(tree: Tree) -> str:
    endless = next((node.parts[-1].text for node in tree.nodes if node.name == "matches" and _states(node) is None), None)
    if endless is not None:
        return (
            f"while the pattern {endless!r:.60} is sought anything may be under way; write .* for .{{0,n}}, fewer counted"
            " repetitions, or begin it with ^ (and plainly: flags within, \\p and the like cannot be judged)"
        )
    return "nest fewer exists, all and filter, and seek fewer patterns and texts in long ones"


def _states(node: Node) -> States | None:
    return states_of(node.parts[-1].text or "")


def _check_pattern(node: Node) -> None:
    pattern = node.parts[-1].text
    if pattern is None:
        raise CostlyRuleError("the pattern of matches() must be written in the rule", node)
    if len(pattern) > MAX_PATTERN or pattern_steps(pattern) > MAX_PATTERN_STEPS:
        raise CostlyRuleError(
            f"a pattern may have {MAX_PATTERN} characters and {MAX_PATTERN_STEPS:,} steps, repetitions written out, at most", node
        )


def _check_growth(loop: Node, tree: Tree) -> None:
    if loop.name in _TAKEN:  # it would stand for another value than is reckoned with
        raise CostlyRuleError(f"a loop may not call its variable {loop.name!r}: it is one of a rule's own", loop)
    for part in loop.parts[1:4]:
        for node in _own_nodes(part, loop):
            grows = node.kind == "call" and _GROWING & set(tree.overloads.get(node.id, ()))
            made = node.kind in ("list", "struct") and any(part.kind != "const" for part in node.parts)
            if grows or made:
                raise CostlyRuleError("within exists, all, filter and map nothing may be put together with +, [ ] or { }", node)


def _own_nodes(node: Node, loop: Node) -> Iterator[Node]:
    """Give the nodes that the rule's author wrote: not the list that `filter` and `map` append with."""
    if appends(node, loop):
        yield from (below for appended in node.parts[1].parts for below in walk(appended))
        return
    yield node
    for part in node.parts:
        yield from _own_nodes(part, loop)


@dataclass(frozen=True, slots=True)
class _Round:
    """The loop that is looked at: its variable, what it goes over, and what all its rounds together cost once."""

    name: str
    over: Size
    once: list[float]


class _Units:
    """Add up the most that a tree may cost."""

    def __init__(self, tree: Tree) -> None:
        self._overloads = tree.overloads
        self._sizes = Sizes(tree)

    def of(self, node: Node, loop: tuple[Node, _Round] | None) -> int:
        if node.kind == "loop":
            return self._loop(node, loop)
        if loop is not None and appends(node, loop[0]):
            return loop[1].over.elements + sum(self.of(part, loop) for part in node.parts[1].parts)
        return 1 + sum(self.of(part, loop) for part in node.parts) + self._call(node, loop)

    def _loop(self, node: Node, outer: tuple[Node, _Round] | None) -> int:
        over, *rounds, start = node.parts
        cost = self.of(over, outer) + self.of(start, outer)
        with self._sizes.bound(node) as size:
            inner = _Round(node.name, size, [])
            each = sum(self.of(part, (node, inner)) for part in rounds)
        return int(1 + cost + size.elements * each + sum(inner.once))

    def _call(self, node: Node, loop: tuple[Node, _Round] | None) -> int:
        if node.kind != "call":
            return 0
        if loop is not None and any(root_of(part) == loop[1].name for part in node.parts):
            # Its texts belong to one element each: all together are no longer than what the loop goes over.
            loop[1].once.append(self._price(node, loop[1]))
            return 0
        return int(self._price(node, None))

    def _price(self, node: Node, loop: _Round | None) -> float:  # noqa: PLR0911  # a price for each call
        """Give what a call costs, or all calls of a loop."""
        times = 1 if loop is None else loop.over.elements
        sizes = [self._sizes.of(part) if loop is None else self._in_all(part, loop) for part in node.parts]
        text, values = sum(size.text for size in sizes), sum(size.values for size in sizes)
        if node.name == "matches":
            return _matching(node, sizes[0].text, times)
        if node.name == "budget":
            return _BUDGET * times
        if node.name == "contains":
            return _SOUGHT * sizes[0].text + _SOUGHT_BYTE * self._compared(node, loop) + _CALL * times
        if node.name in ("startsWith", "endsWith"):
            return _CALL * times + _COMPARED * min(size.text for size in sizes)
        if node.name == "size":
            return _CALL * times + _COUNTED * text
        if node.name == "_+_":
            grows = _GROWING & set(self._overloads.get(node.id, ()))
            return (_COPIED * text + _ELEMENT * sum(size.elements for size in sizes)) if grows else 0
        if node.name in _CONVERSIONS:
            return _CALL * times + _CONVERTED * text
        if node.name in _COMPARISONS:
            either = [min(size.text for size in sizes), min(size.values for size in sizes)]
            return _CALL * times + _COMPARED * either[0] + _VALUE * (either[1] - times)
        return _CALL * times + _COMPARED * text + _VALUE * values if node.name == "@in" else 0

    def _in_all(self, part: Node, loop: _Round) -> Size:
        """Give the size of a part in all rounds together."""
        if root_of(part) == loop.name:
            return Size(loop.over.text, loop.over.values)
        return self._sizes.of(part).times(loop.over.elements)

    def _compared(self, node: Node, loop: _Round | None) -> float:
        """Give the bytes of a needle that are compared at all places where it is sought, in all rounds."""
        hay, needle = node.parts
        if needle.text is not None:
            sought = self._sizes.of(hay).text if loop is None else self._in_all(hay, loop).text
            return sought * len(needle.text.encode())
        long, short = self._sizes.of(hay).text, self._sizes.of(needle).text
        if loop is None:
            short = min(short, long // 2)
            most, shared = (long - short) * short, MAX_TEXT**2 / 8
        else:
            most, shared = min(self._in_all(hay, loop).text * short, self._in_all(needle, loop).text * long), MAX_TEXT**2 / 4
        # Two texts of one request share what it may bring.
        own = root_of(hay) and root_of(needle) and max(long, short, loop.over.text if loop else 0) <= MAX_TEXT
        return 4 * (min(most, shared) if own else most)


def _matching(node: Node, text: int, times: int) -> float:
    pattern = node.parts[-1].text or ""
    steps, states = pattern_steps(pattern), states_of(pattern)
    made = _PATTERN + _PATTERN_STEP * steps * (_UNICODE if "\\p" in pattern.lower() else 1)
    worst = (_READ_ANEW + _READ_STEP * steps) * text
    return made * times + (worst if states is None else min(worst, _READ * text + states.units(times, text)))
