"""How large the values of an expression may get: what `cel_values` lets through, and what the expression makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from sark_mw.policy.cel_tree import Node, Tree, path_of

#: What rules may read of a request: characters of text and values in it; elements of a list or map; names in `scopes` and `tags`.
MAX_TEXT = 32_768
MAX_VALUES = 1000
MAX_ELEMENTS = 256
MAX_SCOPES = 64
#: Characters of one name: the model, the provider, the principal, a scope …
MAX_NAME = 1024
_NAMES = frozenset({"request.model", "request.provider", "request.action", "request.capability", "request.resource", "principal"})
_NUMBERS = frozenset({"request.estimated_usd", "request.output_limit", "request.stream", "time", "spend", "remaining"})
#: Numbers and times, written out.
_SHORT = 64
#: A literal of bytes may be as long as an expression.
_LITERAL = 2048
_CONVERSIONS = frozenset({"string", "bytes", "int", "uint", "double", "bool", "timestamp", "duration", "type", "budget"})
_LISTS_ONLY = frozenset({"add_list"})


@dataclass(frozen=True, slots=True)
class Size:
    """The most characters and values in a value, the most elements of it, and the size of one of these (None: its own)."""

    text: int
    values: int = 1
    elements: int = 0
    inner: Size | None = field(default=None)

    @property
    def one(self) -> Size:
        return self.inner or self

    def or_else(self, other: Size) -> Size:
        """Give the size of either."""
        inner = None if self.inner is None and other.inner is None else self.one.or_else(other.one)
        most = max(self.text, other.text), max(self.values, other.values), max(self.elements, other.elements)
        return Size(*most, inner)

    def times(self, rounds: int) -> Size:
        """Give the size of a list of so many."""
        return Size(self.text * rounds, (self.values + 1) * rounds, rounds, self)


_ARGUMENTS = Size(MAX_TEXT, MAX_VALUES, MAX_ELEMENTS)
_NAME = Size(MAX_NAME)
_SCOPES = Size(MAX_TEXT, MAX_SCOPES, MAX_SCOPES, _NAME)
_ANSWER = Size(0)
_KNOWN: Mapping[str | None, Size] = {
    **dict.fromkeys(_NAMES, _NAME),
    **dict.fromkeys(_NUMBERS, Size(_SHORT)),
    **dict.fromkeys(("scopes", "tags"), _SCOPES),
}


class Sizes:
    """Tell the sizes of nodes; the variable of a loop is known while it is bound."""

    def __init__(self, tree: Tree) -> None:
        self._overloads: Mapping[int, tuple[str, ...]] = tree.overloads
        self._bound: dict[str, Size] = {}

    @contextmanager
    def bound(self, loop: Node) -> Iterator[Size]:
        """Bind the variable of a loop, and give the size of what it goes over."""
        over = self.of(loop.parts[0])
        before = dict(self._bound)
        self._bound[loop.name] = over.one
        try:
            yield over
        finally:
            self._bound = before

    def of(self, node: Node) -> Size:
        path = path_of(node)
        if node.kind == "ident" and node.name in self._bound:
            return self._bound[node.name]
        if path in _KNOWN:
            return _KNOWN[path]
        if node.kind == "const":
            return Size(_LITERAL if node.text is None else len(node.text))
        if node.kind == "select":
            return self.of(node.parts[0]).one
        if node.kind in ("list", "struct"):
            return self._made(node)
        if node.kind == "loop":
            return self._loop(node)
        return self._call(node) if node.kind == "call" else _ARGUMENTS

    def _made(self, node: Node) -> Size:
        parts = [self.of(part) for part in node.parts]
        if not parts:
            return Size(0)
        largest = parts[0]
        for part in parts[1:]:
            largest = largest.or_else(part)
        return Size(sum(part.text for part in parts), 1 + sum(part.values for part in parts), len(parts), largest)

    def _loop(self, loop: Node) -> Size:
        start, step = loop.parts[4], loop.parts[2]
        if start.kind != "list":
            return _ANSWER
        with self.bound(loop) as over:
            appended = [node for node in _below(step) if appends(node, loop)]
            made = self.of(appended[0].parts[1].parts[0]) if appended and appended[0].parts[1].parts else _ARGUMENTS
            own = bool(appended) and root_of(appended[0].parts[1].parts[0]) == loop.name
        return Size(over.text, over.values + over.elements, over.elements, made) if own else made.times(over.elements)

    def _call(self, node: Node) -> Size:
        if node.name == "_[_]":
            return self.of(node.parts[0]).one
        if node.name == "_?_:_":
            return self.of(node.parts[1]).or_else(self.of(node.parts[2]))
        if node.name == "_+_" and len(node.parts) == 2:
            return self._sum(node, *(self.of(part) for part in node.parts))
        if node.name in _CONVERSIONS:
            return Size(max([_SHORT, *(self.of(part).text for part in node.parts)]))
        return self.of(node.parts[0]) if node.name == "dyn" else _ANSWER

    def _sum(self, node: Node, left: Size, right: Size) -> Size:
        joined = left.text + right.text, left.values + right.values, left.elements + right.elements
        if set(self._overloads.get(node.id, ())) <= _LISTS_ONLY:
            return Size(*joined, left.one.or_else(right.one))
        either = left.one.or_else(right.one)
        return Size(*joined, Size(joined[0], either.values, either.elements, either.inner))


def appends(node: Node, loop: Node) -> bool:
    """Tell `@result + [x]`, which costs as much as the list is long."""
    if node.kind != "call" or node.name != "_+_" or len(node.parts) != 2:
        return False
    left, right = node.parts
    return left.kind == "ident" and left.name == loop.result and right.kind == "list"


def root_of(node: Node) -> str:
    """Give the variable that a chain of fields and indices begins with, `""` for anything else."""
    while node.kind == "select" or (node.kind == "call" and node.name == "_[_]"):
        node = node.parts[0]
    return node.name if node.kind == "ident" else ""


def _below(node: Node) -> Iterator[Node]:
    yield node
    for part in node.parts:
        yield from _below(part)
