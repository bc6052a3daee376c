"""Who belongs to what: a user to a team, a team to an organisation, so that whoever touches the one touches the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sark_mw.errors import ConfigurationError

MAX_SCOPES = 32
MAX_NAME_CHARS = 256


class Memberships:
    """The scopes that each scope belongs to, over any number of steps; raises `ConfigurationError` if one belongs to itself."""

    def __init__(self, members: Mapping[str, Sequence[str]]) -> None:
        for scope in (*members, *(above for listed in members.values() for above in listed)):
            checked_scope(scope)
        self._above = {scope: _all_above(scope, members) for scope in members}

    def of(self, scopes: Iterable[str]) -> tuple[str, ...]:
        """List scopes, each once, and behind them all that they belong to."""
        named = tuple(dict.fromkeys(scopes))
        if not self._above:
            return named
        return tuple(dict.fromkeys((*named, *(above for scope in named for above in self._above.get(scope, ())))))


def _all_above(scope: str, members: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    found = dict.fromkeys(members[scope])
    left = [*found]
    for each in left:
        new = [further for further in members.get(each, ()) if further not in found]
        found |= dict.fromkeys(new)
        left += new
    if scope in found:
        raise ConfigurationError(f"principal.members: {scope!r} belongs to itself")
    if len(found) >= MAX_SCOPES:
        raise ConfigurationError(f"principal.members: {scope!r} belongs to {MAX_SCOPES} scopes or more")
    return tuple(found)


def with_kind(name: str) -> str:
    """Make a scope of a principal's bare name: `alice` is `user:alice`."""
    return name if ":" in name else f"user:{name}"


def checked_scope(scope: str) -> str:
    """Return a scope that may be touched; raises `ConfigurationError` for any other text."""
    kind, _, name = scope.partition(":")
    if not kind or not name or len(scope) > MAX_NAME_CHARS or not scope.isprintable():
        raise ConfigurationError(f"A scope must read kind:name, in at most {MAX_NAME_CHARS} printable characters.")
    return scope
