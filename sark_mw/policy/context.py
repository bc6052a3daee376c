"""What a policy is asked about, and how each plugin gets its own of it without a copy that nobody reads."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from _collections_abc import dict_items, dict_values

#: Containers that parsed JSON and settings are made of; their copies are cheap since scalars are shared.
_PLAIN = (dict, list)
_SCALARS = frozenset({str, int, float, bool, type(None)})
_CONTAINERS = (dict, list, set, tuple, bytearray)
#: No field: nothing that callers, settings or the environment say comes to be under it.
_READ_BYTES = "_read_bytes"


@dataclass
class PolicyContext:
    """One request as policies see it.

    `arguments` is the parsed body, `environment` what the gateway adds (root, scopes, budget, addresses …), `timestamp` an aware
    time (a naive one is read as UTC). Every plugin gets a view of its own: it may change whatever it likes, nobody else sees it.
    Containers are copied when a plugin first reads them; other objects in them are handed on as they are.
    """

    principal_id: str
    resource_id: str
    capability_id: str
    action: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))

    def view(self) -> PolicyContext:
        """Make a context with the same content that shares nothing which a plugin could change."""
        view = object.__new__(PolicyContext)
        own = view.__dict__
        own.update(self.__dict__)
        # Absent attributes end in __getattr__, so a plugin that never reads them never pays for their copies.
        own.pop("arguments", None)
        own.pop("environment", None)
        own["_origin"] = self.__dict__
        return view

    def __getattr__(self, name: str) -> Any:
        origin = self.__dict__.get("_origin")
        while origin is not None and name in ("arguments", "environment"):
            if name in origin:
                value = origin[name]
                own = self.__dict__[name] = _Lent(value) if type(value) is dict else own_copy(value)
                return own
            origin = origin.get("_origin")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def with_read_bytes(context: PolicyContext, size: int | None) -> PolicyContext:
    """Note on a context how many bytes its request was read from, for the gateway itself; None where nobody knows."""
    if size is not None:
        context.__dict__[_READ_BYTES] = size
    return context


def read_bytes(context: PolicyContext) -> int | None:
    """Tell how many bytes a context's request was read from, or a view's; None where nobody knows."""
    size = context.__dict__.get(_READ_BYTES)
    return size if type(size) is int else None


class _Lent(dict[str, Any]):
    """A dict of one's own whose nested containers are copied when they are read: few plugins read a conversation whole."""

    __slots__ = ("_own",)

    def __init__(self, origin: dict[str, Any]) -> None:
        super().__init__(origin)
        #: Keys whose values are this dict's own; None: all of them.
        self._own: set[str] | None = set()

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if type(value) in _SCALARS or self._own is None or key in self._own:
            return value
        value = own_copy(value)
        self[key] = value
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if self._own is not None:
            self._own.add(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401  # this is get

    def __iter__(self) -> Iterator[str]:
        # Overridden so that dict(…) and {**…} ask for each value, and do not take the origin's by the short cut.
        return super().__iter__()

    def _whole(self) -> dict[str, Any]:
        if self._own is not None:
            for key in list(self):
                self[key]  # reading makes it our own
            self._own = None
        return self

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)

    def __or__(self, other: Any) -> Any:
        return dict.__or__(self._whole(), other)

    def __ror__(self, other: Any) -> Any:
        return dict.__ror__(self._whole(), other)

    def __ior__(self, other: Any) -> Self:  # type: ignore[override]  # dict's overloads say the same in more words
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def items(self) -> dict_items[str, Any]:
        return dict.items(self._whole())

    def values(self) -> dict_values[str, Any]:
        return dict.values(self._whole())

    def pop(self, *args: Any) -> Any:
        return dict.pop(self._whole(), *args)

    def popitem(self) -> tuple[str, Any]:
        return dict.popitem(self._whole())

    def setdefault(self, key: str, default: Any = None) -> Any:
        return dict.setdefault(self._whole(), key, default)

    def update(self, *args: Any, **values: Any) -> None:
        dict.update(self._whole(), *args, **values)


def own_copy(root: Any) -> Any:
    """Copy nested containers, share the scalars and objects in them; depth and cycles do no harm."""
    if type(root) not in _PLAIN:
        return copy.deepcopy(root) if isinstance(root, _CONTAINERS) else root
    top = root.copy()
    known = {id(root): top}
    pending = [top]
    while pending:
        target = pending.pop()
        # The shallow copy is at hand already: only the containers in it are replaced, and lists are walked by index.
        for key, value in target.items() if type(target) is dict else enumerate(target):
            kind = type(value)
            if kind in _PLAIN:
                nested = known.get(id(value))
                if nested is None:
                    nested = known[id(value)] = value.copy()
                    pending.append(nested)
                target[key] = nested
            elif isinstance(value, _CONTAINERS):
                target[key] = copy.deepcopy(value)
    return top
