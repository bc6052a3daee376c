"""Reckon what a pattern of `matches` costs, which the engine compiles anew at every call.

RE2 matches in linear time, but makes a program as long as the pattern is when all its repetitions are written out, and about five
hundred steps for each Unicode class. One step is about 2 µs of compiling, measured with cel-expr-python 0.1.3.
"""

from __future__ import annotations

import re

_UNICODE_CLASS = 500
_ATOM = re.compile(
    r"\\[pP](?:\{[^}]*\}|.)|\\Q.*?(?:\\E|$)|\\.|\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]|\(\?[^:)]*[:)]?|.", re.DOTALL
)
_REPEAT = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}")


def pattern_steps(pattern: str) -> int:
    """Return the steps of a pattern, never less than its program has."""
    fold = 2 if re.search(r"\(\?[a-zA-Z]*i", pattern) else 1
    #: Steps so far of each group that is open; the last part of each is what a repetition repeats.
    totals, last, at = [0], [0], 0
    while at < len(pattern):
        repeat = _REPEAT.match(pattern, at)
        if repeat is not None:
            times = max(int(repeat[1]), int(repeat[2] or 0), 1)
            totals[-1] += last[-1] * (times - 1)
            last[-1] *= times
            at = repeat.end()
            continue
        atom = _ATOM.match(pattern, at)
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
        elif text not in ("*", "+", "?", "|"):
            steps = _steps_of(text)
            totals[-1] += steps
            last[-1] = steps
    return sum(totals) * fold


def _steps_of(atom: str) -> int:
    if atom.startswith("\\Q"):
        return len(atom)
    classes = len(re.findall(r"\\[pP]", atom))
    # Characters beyond ASCII are several bytes, and so is what a negated class lets through.
    plain = atom.isascii() and "[^" not in atom and not (atom.startswith("[") and "\\" in atom)
    return classes * _UNICODE_CLASS + (1 if plain else 4)
