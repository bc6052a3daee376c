"""Bound what a CEL expression can cost, from its checked tree, before it is ever evaluated (as Kubernetes does for its rules).

The engine itself bounds the depth of an expression and the rounds of its loops, and its regular expressions are linear. It does
not bound values that grow (`[s].map(t, t + t)…` fills the memory in few rounds), costly calls inside loops, and patterns of the
request's making. Those are refused here. What is left takes at most about `MAX_UNITS` × 0.1 µs on the inputs that `cel_values`
lets through, and no more memory than a few times these inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

from sark_mw.policy.cel_patterns import pattern_steps
from sark_mw.policy.cel_tree import Node, Tree, path_of, walk

#: Longest expression, in characters.
MAX_EXPRESSION = 2048
#: Elements of one list or map of the request, names in `scopes` and `tags`: see `cel_values`.
MAX_ELEMENTS = 256
MAX_SCOPES = 64
#: One unit is a node that is visited, about 0.1 µs; all together about 50 ms.
MAX_UNITS = 500_000
MAX_PATTERN = 256
MAX_PATTERN_STEPS = 1000

#: What a call costs on the longest text that a request may bring, measured with cel-expr-python 0.1.3.
_ON_TEXT = {"matches": 5000, "contains": 2500, "endsWith": 20, "startsWith": 20, "size": 400, "_+_": 100, "@in": 400}
_COMPARISONS = frozenset({"_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_"})
_CONVERSIONS = frozenset({"string", "bytes", "int", "uint", "double", "bool", "timestamp", "duration"})
_GROWING = frozenset({"add_string", "add_list", "add_bytes"})
#: What is known to be called: a new function of the engine must be looked at before it is let in.
_PLAIN = frozenset(
    {"_&&_", "_||_", "!_", "-_", "_-_", "_*_", "_/_", "_%_", "_?_:_", "_[_]", "@not_strictly_false", "dyn", "type", "budget"}
    | {"getFullYear", "getMonth", "getDayOfYear", "getDayOfMonth", "getDate", "getDayOfWeek"}
    | {"getHours", "getMinutes", "getSeconds", "getMilliseconds"}
)
#: A text that belongs to one element of a list is looked at once per round; all together are no longer than the longest.
_OWN_TEXT = 20
#: Two values of the request may be all that it may bring; a name alone is a text, or one element of several.
_COMPARED, _NAME_COMPARED = 250, 100
#: A call into Python, and a map made of what it returns.
_BUDGET = 60
#: Making a pattern, at every call, and each step of it.
_PATTERN = 50
_PATTERN_STEP = 20


class CostlyRuleError(Exception):
    """What is refused, and the node that is to blame."""

    def __init__(self, reason: str, node: Node) -> None:
        super().__init__(reason)
        self.node = node


def check_bounds(tree: Tree) -> int:
    """Return the units that an evaluation may take at most; raises `CostlyRuleError`."""
    for node in tree.nodes:
        if node.kind == "call" and node.name not in _PLAIN | _COMPARISONS | _CONVERSIONS | _ON_TEXT.keys():
            raise CostlyRuleError(f"the function {node.name} is not for rules", node)
        if node.kind == "struct" and node.name:
            raise CostlyRuleError("messages are not for rules", node)
        if node.kind == "call" and node.name == "matches":
            _check_pattern(node)
        if node.kind == "loop":
            _check_growth(node, tree)
    units = _Units(_growth(tree)).of(tree.root, None)
    if units > MAX_UNITS:
        raise CostlyRuleError(
            f"it may take {units:,} steps, more than the {MAX_UNITS:,} allowed: nest fewer exists, all, filter and matches",
            tree.root,
        )
    return units


def _check_pattern(node: Node) -> None:
    pattern = node.parts[-1].text
    if pattern is None:
        raise CostlyRuleError("the pattern of matches() must be written in the rule", node)
    if len(pattern) > MAX_PATTERN or pattern_steps(pattern) > MAX_PATTERN_STEPS:
        raise CostlyRuleError(
            f"a pattern may have {MAX_PATTERN} characters and {MAX_PATTERN_STEPS:,} steps, repetitions written out, at most", node
        )


def _check_growth(loop: Node, tree: Tree) -> None:
    for part in loop.parts[1:4]:
        for node in _own_nodes(part, loop):
            grows = node.kind == "call" and _GROWING & set(tree.overloads.get(node.id, ()))
            made = node.kind in ("list", "struct") and any(part.kind != "const" for part in node.parts)
            if grows or made:
                raise CostlyRuleError("within exists, all, filter and map nothing may be put together with +, [ ] or { }", node)


def _own_nodes(node: Node, loop: Node) -> Iterator[Node]:
    """Give the nodes that the rule's author wrote: not the list that `filter` and `map` append with."""
    if _appends(node, loop):
        yield from (below for appended in node.parts[1].parts for below in walk(appended))
        return
    yield node
    for part in node.parts:
        yield from _own_nodes(part, loop)


def _appends(node: Node, loop: Node) -> bool:
    """Tell `@result + [x]`, which costs as much as the list is long."""
    if node.kind != "call" or node.name != "_+_" or len(node.parts) != 2:
        return False
    left, right = node.parts
    return left.kind == "ident" and left.name == loop.result and right.kind == "list"


def _growth(tree: Tree) -> int:
    """Tell how many times as long as what the request brings a text or list may get: each `+` of theirs adds one at most."""
    appended = {node.id for loop in tree.nodes if loop.kind == "loop" for node in walk(loop.parts[2]) if _appends(node, loop)}
    added = (node for node in tree.nodes if node.kind == "call" and node.id not in appended)
    return 1 + sum(1 for node in added if _GROWING & set(tree.overloads.get(node.id, ())))


class _Units:
    """Add up the most that a tree may cost, where texts and lists may be `growth` times as long."""

    def __init__(self, growth: int) -> None:
        self._growth = growth
        #: Of the loop that is looked at: what all its rounds together cost once.
        self._once = [0]

    def of(self, node: Node, loop: Node | None) -> int:
        if node.kind == "loop":
            return self._loop(node, loop)
        if loop is not None and _appends(node, loop):
            return MAX_ELEMENTS * self._growth + sum(self.of(part, loop) for part in node.parts[1].parts)
        return 1 + sum(self.of(part, loop) for part in node.parts) + self._call(node, loop)

    def _loop(self, node: Node, outer: Node | None) -> int:
        over, *rounds, start = node.parts
        cost = self.of(over, outer) + self.of(start, outer)
        self._once.append(0)
        each = sum(self.of(part, node) for part in rounds)
        return int(1 + cost + elements_of(over) * self._growth * each + self._once.pop())

    def _call(self, node: Node, loop: Node | None) -> int:
        if node.kind != "call":
            return 0
        made = _PATTERN + _PATTERN_STEP * pattern_steps(node.parts[-1].text or "") if node.name == "matches" else 0
        cost = _ON_TEXT.get(node.name, 0) * self._growth
        if node.name in _COMPARISONS or node.name in _CONVERSIONS:
            cost = 4 if any(part.kind == "const" for part in node.parts) else _compared(node) * self._growth
        if node.name == "budget":
            cost = _BUDGET
        if cost > _OWN_TEXT and loop is not None and _root_of(loop.parts[0]) and _root_of(node.parts[0]) == loop.name:
            self._once[-1] += cost
            return made + _OWN_TEXT
        return made + cost


def _compared(node: Node) -> int:
    return _NAME_COMPARED if any(part.kind == "ident" for part in node.parts) else _COMPARED


def elements_of(over: Node) -> int:
    """Give the most elements that a loop may go over."""
    if over.kind in ("list", "struct"):
        return len(over.parts)
    if over.kind == "loop":
        return elements_of(over.parts[0])
    return MAX_SCOPES if path_of(over) in ("scopes", "tags") else MAX_ELEMENTS


def _root_of(node: Node) -> str:
    while node.kind == "select" or (node.kind == "call" and node.name == "_[_]"):
        node = node.parts[0]
    return node.name if node.kind == "ident" else ""
