"""Reckon what a pattern of `matches` costs, which the engine compiles anew at every call.

RE2 matches in linear time, but makes a program as long as the pattern is when all its repetitions are written out, and about five
hundred steps for each Unicode class. One step is about 1.3 µs of compiling, measured with cel-expr-python 0.1.3.
"""

from __future__ import annotations

import re

_UNICODE_CLASS = 500
ATOM = re.compile(
    r"\\[pP](?:\{[^}]*\}|.)|\\Q.*?(?:\\E|$)|\\.|\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]|\(\?[^:)]*[:)]?|.", re.DOTALL
)
#: Atoms that read any character.
_WIDE = frozenset({".", "\\D", "\\W", "\\S", "\\C"})
#: In a class: ranges whose number is not seen at once.
_ODD = re.compile(r"[^\x00-\x7f]|\\|\[:")
REPEAT = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}")


def pattern_steps(pattern: str) -> int:
    """Return the steps of a pattern, never less than its program has."""
    fold = re.search(r"\(\?[a-zA-Z]*i", pattern) is not None
    #: Steps so far of each group that is open; the last part of each is what a repetition repeats.
    totals, last, at = [0], [0], 0
    while at < len(pattern):
        repeat = REPEAT.match(pattern, at)
        if repeat is not None:
            times = max(int(repeat[1]), int(repeat[2] or 0), 1)
            # Each that may be left out has a step of its own.
            repeated = last[-1] * times + (times - int(repeat[1]) if repeat[2] else repeat[2] is not None)
            totals[-1] += repeated - last[-1]
            last[-1] = repeated
            at = repeat.end()
            continue
        atom = ATOM.match(pattern, at)
        assert atom is not None, "any character is an atom"
        text, at = atom[0], atom.end()
        if text.startswith("(") and not text.endswith(")"):
            totals.append(1)
            last.append(0)
        elif text == ")" and len(totals) > 1:
            whole = totals.pop()
            last.pop()
            totals[-1] += whole
            last[-1] = whole
        elif text in ("*", "+", "?"):
            totals[-1] += 1
            last[-1] += 1
        elif text != "|" and not text.startswith("(?"):
            steps = _steps_of(text, fold)
            totals[-1] += steps
            last[-1] = steps
    return sum(totals)


def _steps_of(atom: str, fold: bool) -> int:
    if atom.startswith("\\Q"):
        return len(atom) * (4 if fold or not atom.isascii() else 1)
    if fold:
        # A letter is a range, in either case; of these two there are others beyond ASCII.
        return (
            4
            if atom in tuple("kKsS")
            else _steps_of(atom, False) * (1 if atom.isascii() and len(atom) == 1 else 2) + 3 * (len(atom) > 2)
        )
    classes = len(re.findall(r"\\[pP]", atom))
    return classes * _UNICODE_CLASS + _ranges_of(atom)


def _ranges_of(atom: str) -> int:
    """Give the ranges of bytes that an atom is made of: several, where characters beyond ASCII may be read."""
    in_class = len(atom) > 1 and atom.startswith("[")
    if not in_class:
        return 1 if atom.isascii() and atom not in _WIDE else 4
    if _ODD.search(atom):
        return 4 + 3 * len(atom)
    own = len(re.sub(r"(?<=.)-.", "", atom[1:-1].removeprefix("^"), flags=re.DOTALL))
    return own + (4 if atom.startswith("[^") else 0)
