"""What is looked at in the text of a Rego policy before it is loaded: what would decide otherwise here than on OPA.

rego-cpp takes for undefined, without a word, what it does not know, and `not` of something undefined is true. A policy that
allows by it would let through here what OPA denies. So only what means the same in both is taken: `not` over names, `with` of
literals, and the functions of `FUNCTIONS`, each of which was compared with OPA's on the same arguments (1.10, rego-cpp 1.5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sark_mw.errors import ConfigurationError

FUNCTIONS = frozenset(
    {
        "abs", "array.concat", "array.reverse", "array.slice", "base64.decode", "base64.is_valid", "base64url.decode",
        "bits.and", "bits.lsh", "bits.negate", "bits.or", "bits.rsh", "bits.xor", "ceil", "concat", "contains", "count",
        "endswith", "floor", "glob.match", "glob.quote_meta", "graph.reachable", "hex.decode", "indexof", "indexof_n",
        "intersection", "is_array", "is_boolean", "is_null", "is_number", "is_object", "is_set", "is_string", "json.filter",
        "json.is_valid", "json.marshal", "json.patch", "json.remove", "json.unmarshal", "lower", "max", "min",
        "numbers.range", "numbers.range_step", "object.filter", "object.get", "object.keys", "object.remove",
        "object.subset", "print", "product", "regex.find_all_string_submatch_n", "regex.find_n", "regex.match",
        "regex.replace", "regex.split", "regex.template_match", "replace", "round", "semver.compare", "semver.is_valid",
        "sort", "split", "sprintf", "startswith", "strings.any_prefix_match", "strings.any_suffix_match", "strings.count",
        "strings.replace_n", "substring", "sum", "time.add_date", "time.clock", "time.date", "time.diff", "time.now_ns",
        "time.parse_duration_ns", "time.parse_ns", "time.weekday", "trim", "trim_left", "trim_prefix", "trim_right",
        "trim_space", "trim_suffix", "type_name", "union", "units.parse", "units.parse_bytes", "upper", "urlquery.decode",
        "walk",
    }
)  # fmt: skip
#: Texts, raw ones and comments; words and paths; line ends; all else one by one.
_TOKENS = re.compile(r'"(?:\\.|[^"\\\n])*"|`[^`]*`|#[^\n]*|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|\n|[^\w\n]|\w+')
_WORDS = frozenset({"not", "if", "in", "some", "every", "else", "with", "as", "default", "import", "package", "contains"})
#: What stands for itself: a text, a number, true, false, null, and lists and objects of these.
_LITERAL = re.compile(r'"(?:\\.|[^"\\])*"|`[^`]*`|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|[\[\]{},:\s]')
_KEY = r'\[\s*(?:"(?:\\.|[^"\\])*"|`[^`]*`|\d+|(?P<key%d>[A-Za-z_]\w*))\s*\]'
_PART = re.compile(r"\s*\.\s*[A-Za-z_]\w*|" + _KEY % 0)
#: What RE2 knows and rego-cpp does not: flags and named groups, classes of Unicode, codes, and the ends of the text.
_FOREIGN_PATTERN = re.compile(r"\(\?(?!:)|\\+[pPxAzQC]")
_OPENING, _CLOSING = "([{", ")]}"


def check_modules(name: str, modules: Mapping[str, str]) -> None:
    """Raise `ConfigurationError`, with module and line, for what may decide otherwise here than on OPA."""
    own = {found for source in modules.values() for found in re.findall(r"^([A-Za-z_]\w*)\(", source, re.MULTILINE)}
    for module, source in modules.items():
        _Module(f"{name}: {module}", source, own).check()


class _Module:
    """The text of one module."""

    def __init__(self, name: str, source: str, functions: set[str]) -> None:
        self._name = name
        self._source = source
        self._tokens = [token for token in _TOKENS.finditer(source) if token[0].strip(" \t\r") and token[0][0] != "#"]
        self._functions = functions
        self._imported = set(re.findall(r"^\s*import\s+[\w.\[\]\"]*?(\w+)\s*$", source, re.MULTILINE))
        self._imported |= set(re.findall(r"^\s*import\s+\S+\s+as\s+(\w+)", source, re.MULTILINE))
        # Bound where it is used, and nowhere a rule: a name that is undefined is then undefined in both.
        rules = set(re.findall(r"^(?:default\s+)?([A-Za-z_]\w*)", source, re.MULTILINE))
        bound = {
            each for line in re.findall(r"\b(?:some|every)\s+([\w,\s]+?)\s+in\b", source) for each in re.split(r"[,\s]+", line)
        }
        self._local = (bound | set(re.findall(r"\b([A-Za-z_]\w*)\s*:=", source))) - rules - self._imported

    def check(self) -> None:
        for at, token in enumerate(self._tokens):
            if token[0] == "not":
                self._check_negated(token, "".join(self._statement(at + 1)))
            elif token[0] == "with":
                self._check_with(token, self._statement(at + 1))
            elif self._text(at + 1) == "(" and token[0][0] not in '"`' and (token[0][0].isalpha() or token[0][0] == "_"):
                self._check_call(at, token)

    def _check_negated(self, token: re.Match[str], negated: str) -> None:
        name = negated.partition(" with ")[0].strip()
        rest = re.match(r"[A-Za-z_]\w*", name)
        at = rest.end() if rest else -1
        while rest and at < len(name) and (part := _PART.match(name, at)):
            if part["key0"] is not None and part["key0"] not in self._local:
                break
            at = part.end()
        if at != len(name) or name in _WORDS:
            self._refuse(
                token,
                f"`not {name[:60]}` would be true here where a part of it is missing, on OPA not: make what is negated a rule of "
                "its own (`dear if …`), and write `not dear`",
            )

    def _check_with(self, token: re.Match[str], statement: list[str]) -> None:
        value = "".join(statement).partition(" as ")[2].partition(" with ")[0]
        if _LITERAL.sub("", value):
            self._refuse(
                token, "`with` takes literals only: a value that is missing is passed over here, on OPA the rule does not hold"
            )

    def _check_call(self, at: int, token: re.Match[str]) -> None:
        called = token[0]
        first = called.partition(".")[0]
        ours = (
            first == "data" or (first in self._imported and "." in called) or called in self._functions or called in self._local
        )
        if called in _WORDS - {"contains"} or ours:
            return
        if called not in FUNCTIONS:
            self._refuse(token, f"{called}() is not known here, or means something else than on OPA")
        if called.startswith("regex.") and self._text(at + 2)[:1] in ('"', "`") and _FOREIGN_PATTERN.search(self._text(at + 2)):
            self._refuse(token, f"the pattern {self._text(at + 2)[:60]} has flags, groups or classes that are not known here")

    def _statement(self, at: int) -> list[str]:
        """Give the texts from here to the end of the line or statement."""
        found: list[str] = []
        depth = 0
        for token in self._tokens[at:]:
            text = token[0]
            depth += (text in _OPENING) - (text in _CLOSING)
            if depth < 0 or (depth == 0 and text in ("\n", ";")):
                break
            found.append(f" {text} " if text in ("with", "as") else text)
        return found

    def _text(self, at: int) -> str:
        return self._tokens[at][0] if at < len(self._tokens) else ""

    def _refuse(self, token: re.Match[str], why: str) -> None:
        line = self._source.count("\n", 0, token.start()) + 1
        raise ConfigurationError(f"{self._name}, line {line}: {why}")
