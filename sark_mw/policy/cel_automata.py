"""Reckon what RE2 pays for the states of a pattern: it makes them while it reads, and where they are many, one for each byte.

`a[ab]{30}c` has a billion: then every byte costs as much as the pattern is long. Words, their alternatives, and most of what
people write have a few dozen, whatever the text. Which it is, is found by making them all here, as RE2 would: ordered lists of
places in the pattern. What is written in an unusual way is not judged, and counts as one that has too many.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from sark_mw.policy.cel_patterns import ATOM, REPEAT

#: States and program that are looked at; what is beyond them counts as endless.
_MAX_PLACES = 1500
_MAX_UNITS = 150_000
_MAX_BYTES = 1 << 20
#: Making one state, going from one to another, and each place that is looked at, in units of 0.1 µs, measured with
#: cel-expr-python 0.1.3.
_STATE, _STEP, _PLACE = 5, 1.5, 0.1
#: A character beyond ASCII is read byte by byte: how many first bytes lead on where any is read, how many states are in between
#: then, and on the bytes of one.
_LEADS, _BETWEEN, _BETWEEN_ONE = 6, 12, 3
_FLAGS = re.compile(r"\(\?([is]*)\)")
_GROUP = re.compile(r"\((?:\?i?:|\?P?<\w+>)?(?!\?)")
_PLAIN_ESCAPE = re.compile(r"\\(?:[dDwWsSbBAzntrfv]|[^\w\s])", re.ASCII)
#: What Python would read in another way than RE2.
_ODD_CLASS = re.compile(r"\\[^dDwWsSntrf\W_]|.\[|--|&&|~~|\|\||-[^\x00-\x7f]|[^\x00-\x7f]-|-\\", re.DOTALL)
_HEX = re.compile(r"\\(?:x([0-9a-fA-F]{2})|.)", re.DOTALL)
#: Classes with a name, as Python spells them in a class.
_NAMED_CLASS = re.compile(r"\[:(\w+):\]")
_NAMED = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r"\s",
    "word": r"\w",
    "xdigit": "0-9a-fA-F",
}
_FOLDED = {"k": "\u212a", "s": "\u017f"}
_OTHER = "\U000e0001"
_ASSERTIONS = {"^": "begin", "\\A": "begin", "$": "end", "\\z": "end", "\\b": "word", "\\B": "inside"}


class _UnusualError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a pattern: chars (`chars`), assertion (`text`), all (in turn), any, repeat (`least`, `most`; None: any)."""

    kind: str
    parts: tuple[_Part, ...] = ()
    chars: frozenset[str] = frozenset()
    text: str = ""
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class States:
    """What it costs, in units, to make all states of a pattern and all ways between them; the dearest way.

    `between` are the states and ways on the bytes of characters beyond ASCII, which come on top of one for each character.
    """

    made: float
    ways: float
    dearest: float
    between: int

    def units(self, times: int, text: int) -> float:
        """Give what they cost in so many calls that read so many characters together."""
        most = text + self.between * times
        return min(self.made * times, _STATE * most) + min(self.ways * times, self.dearest * most)


@lru_cache(maxsize=4096)
def states_of(pattern: str) -> States | None:
    """Look at the states of a pattern; None where they are too many or nobody here can tell."""
    try:
        reader = _Reader(pattern)
        return _Automaton(reader.whole(), reader.alphabet).states()
    except (_UnusualError, re.error, Warning, RecursionError):
        return None


class _Reader:
    """Read a pattern into parts; raises `_UnusualError` for what it does not know."""

    def __init__(self, pattern: str) -> None:
        flags = _FLAGS.match(pattern)
        self._text = pattern = _HEX.sub(_as_itself, pattern)
        self._at = flags.end() if flags else 0
        # Where only a group is without regard to case, all of it is taken to be: it reads no less.
        self._fold = "(?i:" in pattern or (flags is not None and "i" in flags[1])
        self._flags = re.ASCII | (re.DOTALL if flags and "s" in flags[1] else 0) | (re.IGNORECASE if self._fold else 0)
        own = {char for char in pattern if char > "\x7f"}
        if self._fold:
            own |= {each for char in own for each in (char.lower(), char.upper()) if len(each) == 1}
        self.alphabet = [*map(chr, range(128)), _OTHER, *sorted(own | set(_FOLDED.values() if self._fold else ()))]

    def whole(self) -> _Part:
        part = self._any()
        if self._at < len(self._text):
            raise _UnusualError
        return part

    def _any(self) -> _Part:
        parts = [self._all()]
        while self._text.startswith("|", self._at):
            self._at += 1
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else _Part("any", tuple(parts))

    def _all(self) -> _Part:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated(self._atom()))
        return _Part("all", tuple(parts))

    def _repeated(self, part: _Part) -> _Part:
        while self._at < len(self._text):
            times = REPEAT.match(self._text, self._at)
            simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._text[self._at])
            if times is None and simple is None:
                break
            if simple is not None:
                self._at += 1
                least, most = simple
            elif times is not None:
                self._at = times.end()
                least = int(times[1])
                most = least if times[2] is None else int(times[2]) if times[2] else None
            if self._text.startswith("?", self._at):
                self._at += 1
            part = _Part("repeat", (part,), least=least, most=most)
        return part

    def _atom(self) -> _Part:
        group = _GROUP.match(self._text, self._at)
        if group is not None:
            self._at = group.end()
            part = self._any()
            if not self._text.startswith(")", self._at):
                raise _UnusualError
            self._at += 1
            return part
        atom = ATOM.match(self._text, self._at)
        if atom is None or atom[0][0] in "(*+?":
            raise _UnusualError
        self._at = atom.end()
        if atom[0] in _ASSERTIONS:
            return _Part("assertion", text=_ASSERTIONS[atom[0]])
        return _Part("chars", chars=self._chars(atom[0]))

    def _chars(self, atom: str) -> frozenset[str]:
        escaped, in_class = atom[0] == "\\", len(atom) > 1 and atom[0] == "["
        if in_class:
            atom = _NAMED_CLASS.sub(lambda named: _NAMED.get(named[1], named[0]), atom)
        if (escaped and not _PLAIN_ESCAPE.fullmatch(atom)) or (in_class and _ODD_CLASS.search(atom)):
            raise _UnusualError
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            matches = re.compile(atom if escaped or in_class or atom == "." else re.escape(atom), self._flags).fullmatch
        chars = {char for char in self.alphabet if matches(char)}
        if self._fold:
            chars |= {folded for char, folded in _FOLDED.items() if char in chars}
            chars |= {char for char in self.alphabet if char > "\x7f" and chars & {char.lower(), char.upper()}}
        return frozenset(chars)


def _as_itself(escape: re.Match[str]) -> str:
    if escape[1] is None:
        return escape[0]
    char = chr(int(escape[1], 16))
    return char if char.isalnum() or not char.isprintable() or char > "\x7f" else "\\" + char


class _Automaton:
    """The places of a pattern, numbered, and what follows on each."""

    def __init__(self, part: _Part, alphabet: list[str]) -> None:
        #: chars · assertion with what follows; split with two ways; match.
        self._places: list[tuple[str, frozenset[str] | str, tuple[int, ...]]] = [("match", "", ())]
        self._start = self._add(part, 0)
        sets = {chars for kind, chars, _ in self._places if kind == "chars" and isinstance(chars, frozenset)}
        self._weights = {chars: _ranges(chars) for chars in sets}
        self._wide = {
            at for at, (kind, chars, _) in enumerate(self._places) if kind == "chars" and any(c > "\x7f" for c in chars)
        }
        alike: dict[tuple[bool, ...], str] = {}
        for char in alphabet:
            # What no place tells apart is one letter; a character of several bytes costs more than one.
            alike.setdefault((char > "\x7f", *(char in chars for chars in sets)), char)
        self._letters = list(alike.values())
        self._words = any(what in ("word", "inside") for kind, what, _ in self._places if kind == "assertion")

    def _add(self, part: _Part, then: int) -> int:
        if part.kind == "all":
            for each in reversed(part.parts):
                then = self._add(each, then)
            return then
        if part.kind == "any":
            return self._place("split", "", tuple(self._add(each, then) for each in part.parts))
        if part.kind == "repeat":
            return self._repeat(part, then)
        return self._place(part.kind, part.chars if part.kind == "chars" else part.text, (then,))

    def _repeat(self, part: _Part, then: int) -> int:
        inner = part.parts[0]
        if part.most is None:
            again = self._place("split", "", (then,))
            self._places[again] = ("split", "", (self._add(inner, again), then))
            then = again
        else:
            end = then
            for _ in range(part.most - part.least):
                then = self._place("split", "", (self._add(inner, then), end))
        for _ in range(part.least):
            then = self._add(inner, then)
        return then

    def _place(self, kind: str, what: frozenset[str] | str, then: tuple[int, ...]) -> int:
        if len(self._places) > _MAX_PLACES:
            raise _UnusualError
        self._places.append((kind, what, then))
        return len(self._places) - 1

    def states(self) -> States | None:
        """Make all states; None where they are too many."""
        first = self._reached([self._start], {"begin"})[0]
        known, waiting, wide = {first}, [first], set[tuple[int, ...]]()
        ways, dearest, room, between = 0.0, 0.0, 0, 2
        while waiting:
            state = waiting.pop()
            places = tuple(place for place in state if place in self._wide)
            if places not in wide:
                wide.add(places)
                between += self._between(places)
            room += 16 * len(self._letters) + 8 * len(state) + 100
            for found, way, leads in self._ways(state):
                ways, dearest = ways + way * leads, max(dearest, way)
                if found not in known:
                    known.add(found)
                    waiting.append(found)
            if ways + between * dearest > _MAX_UNITS or room * (1 + between / len(known)) > _MAX_BYTES:
                return None
        return States(_STATE * (len(known) + between), ways + between * dearest, dearest, between)

    def _between(self, places: tuple[int, ...]) -> int:
        """Tell how many states there are at most on the bytes of what is read at these places."""
        sets = [self._places[place][1] for place in places]
        read = [letter for letter in self._letters if letter > "\x7f" and any(letter in chars for chars in sets)]
        return sum(_BETWEEN if letter == _OTHER else _BETWEEN_ONE for letter in read)

    def _ways(self, state: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], float, int]]:
        wide = any(place in self._wide for place in state)
        for letter in self._letters:
            for passing in ({"word"}, {"inside"}) if self._words else ({"inside"},):
                found, visited = self._after(state, letter, passing)
                yield found, _STEP + _PLACE * visited, _LEADS if wide and letter == _OTHER else 1

    def _after(self, state: tuple[int, ...], letter: str, passing: set[str]) -> tuple[tuple[int, ...], int]:
        here, visited = self._reached(list(state), passing) if self._words else (state, 0)
        next_places: list[int] = []
        for place in here:
            kind, what, then = self._places[place]
            if kind == "match":
                break
            if kind == "chars":
                visited += self._weights[what] if isinstance(what, frozenset) else 1
                if letter in what:
                    next_places.extend(then)
        else:
            next_places.append(self._start)  # the match may as well begin here
        found, more = self._reached(next_places, set())
        return found, visited + more + len(here)

    def _reached(self, places: list[int], passing: set[str]) -> tuple[tuple[int, ...], int]:
        """List what is reached from these without reading, in the order of preference, and how many places were visited."""
        found, seen, stack = [], set(), places[::-1]
        while stack:
            place = stack.pop()
            if place in seen:
                continue
            seen.add(place)
            kind, what, then = self._places[place]
            if kind == "split" or (kind == "assertion" and what in passing):
                stack.extend(reversed(then))
            else:
                found.append(place)
        return tuple(found), len(seen)


def _ranges(chars: frozenset[str]) -> int:
    ascii_only = sorted(ord(char) for char in chars if char <= "\x7f")
    runs = sum(1 for at, code in enumerate(ascii_only) if at == 0 or ascii_only[at - 1] != code - 1)
    return max(1, runs) + (_LEADS if _OTHER in chars else 0)
