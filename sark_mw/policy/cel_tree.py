"""Read what the CEL compiler made of an expression, so that its cost can be bounded before it ever runs.

The compiler gives its checked tree only as a serialized `cel.expr.CheckedExpr`. Reading it with the protobuf runtime would take
two more dependencies for five messages, so the wire format (varints and length-prefixed fields) is read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: Numbers of the fields in cel.expr.Expr.
_CONST, _IDENT, _SELECT, _CALL, _LIST, _STRUCT, _COMPREHENSION = 3, 4, 5, 6, 7, 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of the tree; of the fields only those of its `kind` are set.

    kinds: const (`text` where it is a string), ident (`name`), select (`name`, `parts[0]` the operand), call (`name`, `parts` the
    target and the arguments), list, struct (`parts`; a message has a `name`), loop (`name` its variable, `parts` range,
    condition, step, result, start; `result` the accumulator's name).
    """

    id: int
    kind: str
    name: str = ""
    text: str | None = None
    parts: tuple[Node, ...] = ()
    result: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """A checked expression: its root, the overloads of each call, and where in the source each node stands."""

    root: Node
    overloads: Mapping[int, tuple[str, ...]]
    positions: Mapping[int, int]
    nodes: tuple[Node, ...] = field(default=())


def read_tree(serialized: bytes) -> Tree:
    """Read a serialized `CheckedExpr` (in its `google.protobuf.Any`)."""
    checked = _Message(_Message(serialized).bytes(2))
    overloads = {}
    for entry in checked.all(2):
        pair = _Message(entry)
        names = tuple(raw.decode() for raw in _Message(pair.bytes(2)).all(3))
        overloads[pair.int(1)] = names
    positions = {}
    for entry in _Message(checked.bytes(5)).all(4):
        pair = _Message(entry)
        positions[pair.int(1)] = pair.int(2)
    root = _node(checked.bytes(4))
    return Tree(root, overloads, positions, tuple(walk(root)))


def walk(node: Node) -> Iterator[Node]:
    """Give a node and everything below it."""
    yield node
    for part in node.parts:
        yield from walk(part)


def path_of(node: Node) -> str | None:
    """Give the dotted name of a chain of selects (`request.model`), None for anything else."""
    if node.kind == "ident":
        return node.name
    if node.kind == "select":
        operand = path_of(node.parts[0])
        return None if operand is None else f"{operand}.{node.name}"
    return None


class _Message:
    """The fields of one protobuf message."""

    def __init__(self, data: bytes) -> None:
        self._fields: dict[int, list[int | bytes]] = {}
        at = 0
        while at < len(data):
            key, at = _varint(data, at)
            number, kind = key >> 3, key & 7
            value: int | bytes
            if kind == _VARINT:
                value, at = _varint(data, at)
            elif kind == _BYTES:
                size, at = _varint(data, at)
                value, at = data[at : at + size], at + size
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
                value, at = data[at : at + size], at + size
            else:
                raise ValueError(f"wire type {kind}")
            self._fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def all(self, number: int) -> list[bytes]:
        return [value for value in self._fields.get(number, ()) if isinstance(value, bytes)]

    def bytes(self, number: int) -> bytes:
        found = self.all(number)
        return found[-1] if found else b""

    def text(self, number: int) -> str:
        return self.bytes(number).decode()

    def int(self, number: int) -> int:
        found = [value for value in self._fields.get(number, ()) if isinstance(value, int)]
        return found[-1] if found else 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _node(data: bytes) -> Node:
    message = _Message(data)
    number = message.int(2)
    if _IDENT in message:
        return Node(id=number, kind="ident", name=_Message(message.bytes(_IDENT)).text(1))
    if _SELECT in message:
        select = _Message(message.bytes(_SELECT))
        return Node(id=number, kind="select", name=select.text(2), parts=(_node(select.bytes(1)),))
    if _CALL in message:
        call = _Message(message.bytes(_CALL))
        parts = [*call.all(1), *call.all(3)]
        return Node(id=number, kind="call", name=call.text(2), parts=tuple(map(_node, parts)))
    if _LIST in message:
        return Node(id=number, kind="list", parts=tuple(map(_node, _Message(message.bytes(_LIST)).all(1))))
    if _STRUCT in message:
        struct = _Message(message.bytes(_STRUCT))
        entries = map(_Message, struct.all(2))
        parts = [part for entry in entries for part in (*entry.all(3), *entry.all(4))]
        return Node(id=number, kind="struct", name=struct.text(1), parts=tuple(map(_node, parts)))
    if _COMPREHENSION in message:
        loop = _Message(message.bytes(_COMPREHENSION))
        parts = [loop.bytes(each) for each in (2, 5, 6, 7, 4)]
        return Node(id=number, kind="loop", name=loop.text(1), parts=tuple(map(_node, parts)), result=loop.text(3))
    const = _Message(message.bytes(_CONST))
    return Node(id=number, kind="const", text=const.text(6) if 6 in const else None)
