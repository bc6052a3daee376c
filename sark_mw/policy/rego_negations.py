"""What is looked at in the text of a Rego policy before it is loaded: what would decide otherwise here than on OPA.

In OPA `not startswith(input.tool, "x")` is undefined where `input.tool` is missing, so that the rule around it does not hold; in
rego-cpp it is true. A policy that allows by it would let through here what lacks the field. `not` over a name means the same in
both, so that is all that is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sark_mw.errors import ConfigurationError

#: Comments, texts (which may stand in a path: `input["a"]`), words, and all else one by one.
_TOKENS = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|`[^`]*`|\w+|\n|[^\w\n]""")
#: A rule, or a path: `small_model`, `input.arguments["top_p"]`, `data.lists.denied[principal]`.
_NAME = re.compile(r"""[A-Za-z_]\w*(?:\s*\.\s*[A-Za-z_]\w*|\s*\[\s*(?:"(?:\\.|[^"\\])*"|`[^`]*`|\w+)\s*\])*""")
_OPENING, _CLOSING = "([{", ")]}"


def check_negations(name: str, source: str) -> None:
    """Raise `ConfigurationError`, with the line, for a `not` over anything but a name."""
    for line, negated in _negations(source):
        if not _NAME.fullmatch(negated.partition(" with ")[0].strip()):
            raise ConfigurationError(
                f"{name}, line {line}: `not {negated.strip()[:60]}` would be true here where a field in it is missing, on OPA "
                "not: make what is negated a rule of its own (`dear if …`), and write `not dear`"
            )


def _negations(source: str) -> Iterator[tuple[int, str]]:
    """Give the line of each `not`, and what it is over: up to the end of its line or statement."""
    tokens = [*_TOKENS.finditer(source)]
    for at, token in enumerate(tokens):
        before = tokens[at - 1][0] if at else ""
        if token[0] != "not" or before == ".":
            continue
        negated, depth = "", 0
        for following in tokens[at + 1 :]:
            text = following[0]
            depth += (text in _OPENING) - (text in _CLOSING)
            if depth < 0 or (depth == 0 and text in "\n;") or text.startswith("#"):
                break
            negated += " " if text == "\n" else text
        yield source.count("\n", 0, token.start()) + 1, negated
