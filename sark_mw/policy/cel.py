"""Rules without code: CEL expressions that deny, or oblige the gateway to something.

The engine is cel-expr-python, the C++ implementation of CEL's own authors. Of those on PyPI (benchmarks/plugin_tiers.py measures
them) it alone checks names and types with their position and ends every evaluation after a number of rounds, and it is the
fastest: 4 µs a rule. cel-python never ends on nested loops and takes 160 µs; common-expression-language checks nothing before it
runs, knows no time zones, and takes the process down when a value grows. This one gives errors *as values*, so only `is True`
and `is False` count here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import (
    LimitFigures,
    LimitReader,
    Obligation,
    ObligationKind,
    PolicyContext,
    PolicyDecision,
    PolicyServices,
)
from sark_mw.policy.cel_bounds import MAX_EXPRESSION, CostlyRuleError, check_bounds
from sark_mw.policy.cel_tree import Node, Tree, path_of, read_tree
from sark_mw.policy.cel_values import BUDGET_FIELDS, FROM_LIMITS, VARIABLES, CurrentFigures, values_for
from sark_mw.policy.document import figures_for
from sark_mw.policy.judging import MAX_OBLIGATIONS, wrong_with
from sark_mw.policy.named import NamedPlugin
from sark_mw.policy.unsendable import UnsendableRequestError, denial

MAX_RULES = 1000
_FIELDS = frozenset({"when", "deny", "oblige", "name"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: where `when` is true, the request is denied with `deny`, or allowed with `obligations`."""

    when: str
    deny: str | None = None
    obligations: tuple[Obligation, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class _Compiled:
    rule: Rule
    program: Any
    reads: frozenset[str]
    #: Names of the arguments that it reads; None: it may read any.
    arguments: frozenset[str] | None


class CelPlugin(NamedPlugin):
    """Judge by rules, in their order: the first that denies decides; obligations of all that apply add up.

    Raises `ConfigurationError` for a rule that does not compile, names what is not declared, or may cost too much: with the name,
    line and column. A request that is too large for what the rules read is denied, whatever `on_error` says.
    """

    concurrent = False
    version = "1"

    def __init__(
        self,
        rules: Sequence[Mapping[str, Any] | Rule],
        name: str = "rules",
        *,
        priority: int = 100,
        on_error: str = "deny",
        description: str = "",
    ) -> None:
        if not rules or len(rules) > MAX_RULES:
            raise ConfigurationError(f"{name}: 1 to {MAX_RULES} rules are needed, not {len(rules)}")
        super().__init__(name, priority, on_error)
        self._description = description
        self._current = CurrentFigures()
        self._environment = _environment(self._current)
        self._rules = [_compiled(self._environment, _rule(each, name, at)) for at, each in enumerate(rules, 1)]
        self._reads: frozenset[str] = frozenset().union(*(each.reads for each in self._rules))
        named = [each.arguments for each in self._rules if "request.arguments" in each.reads]
        known = [each for each in named if each is not None]
        self._arguments: frozenset[str] | None = frozenset().union(*known) if len(known) == len(named) else None
        self._limits: LimitReader | None = None

    @property
    def description(self) -> str:
        return self._description or "; ".join(each.rule.when for each in self._rules)[:200]

    @property
    def models(self) -> frozenset[str]:
        """Name the models that the rules oblige to use."""
        obligations = (one for each in self._rules for one in each.rule.obligations)
        return frozenset(str(one.value) for one in obligations if one.kind == ObligationKind.USE_MODEL)

    def bind(self, services: PolicyServices) -> None:
        self._limits = services.limits

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        figures: Sequence[LimitFigures] = ()
        if self._reads & FROM_LIMITS:
            figures = await figures_for(context, self._limits)
        try:
            values = values_for(context, self._reads, self._arguments, figures)
        except UnsendableRequestError as error:
            return denial(error)
        activation = self._environment.Activation(values)
        # From here to the end nothing suspends.
        self._current.take(figures)
        try:
            return self._judge(activation)
        finally:
            self._current.take(())

    def _judge(self, activation: Any) -> PolicyDecision:
        obligations: list[Obligation] = []
        applied = []
        for each in self._rules:
            answer = each.program.eval(activation).value()
            if answer is False:
                continue
            if answer is not True:
                raise PolicyEvaluationError(f"rule {each.rule.name!r}: {str(answer)[:300]}", plugin_name=self._name)
            if each.rule.deny is not None:
                return PolicyDecision(False, each.rule.deny, {"rule": each.rule.name})
            obligations.extend(each.rule.obligations)
            applied.append(each.rule.name)
        metadata = {"rules": applied} if applied else {}
        return PolicyDecision(True, "", metadata, obligations=tuple(obligations))


def _rule(given: Mapping[str, Any] | Rule, plugin: str, at: int) -> Rule:
    if isinstance(given, Rule):
        return given if given.name else replace(given, name=f"{plugin}#{at}")
    name = str(given.get("name") or f"{plugin}#{at}")
    if unknown := set(given) - _FIELDS:
        raise ConfigurationError(f"rule {name!r} knows no {sorted(unknown)[0]!r}: one of {', '.join(sorted(_FIELDS))}")
    when, deny, oblige = given.get("when"), given.get("deny"), given.get("oblige")
    if not isinstance(when, str) or not when.strip():
        raise ConfigurationError(f"rule {name!r} needs `when`, an expression")
    if (deny is None) == (not oblige):
        raise ConfigurationError(f"rule {name!r} has either `deny`, a reason, or `oblige`")
    if deny is not None and (not isinstance(deny, str) or not deny):
        raise ConfigurationError(f"rule {name!r}: `deny` is the reason, in words")
    return Rule(when=when, deny=deny, obligations=obligations_of(oblige or {}, f"rule {name!r}"), name=name)


def obligations_of(oblige: object, what: str) -> tuple[Obligation, ...]:
    """Make obligations of a table of kinds and values; raises `ConfigurationError`."""
    if not isinstance(oblige, Mapping):
        raise ConfigurationError(f"{what}: `oblige` is a table of obligations, not {oblige!r}")
    made = []
    for kind, value in oblige.items():
        if kind not in tuple(ObligationKind):
            raise ConfigurationError(f"{what}: no obligation {kind!r} is known: one of {', '.join(ObligationKind)}")
        values = value if isinstance(value, (list, tuple)) else (value,)
        if not values:
            raise ConfigurationError(f"{what}: {kind} obliges to nothing")
        for each in values:
            if wrong := wrong_with(kind, each):
                raise ConfigurationError(f"{what}: {wrong}, not {each!r:.100}")
            if kind == ObligationKind.REQUIRE_SCOPE and not all(each.partition(":")[::2]):
                raise ConfigurationError(f"{what}: {kind} takes a scope, kind:name, not {each!r}")
            made.append(Obligation(kind, each))
    if len(made) > MAX_OBLIGATIONS:
        raise ConfigurationError(f"{what}: a rule obliges to {MAX_OBLIGATIONS} things at most, not {len(made)}")
    return tuple(made)


def _environment(current: CurrentFigures) -> Any:
    cel = _engine()
    types = {
        "string": cel.Type.STRING,
        "bool": cel.Type.BOOL,
        "int": cel.Type.INT,
        "double": cel.Type.DOUBLE,
        "timestamp": cel.Type.TIMESTAMP,
        "list(string)": cel.Type.List(cel.Type.STRING),
        "map(string, dyn)": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
    }
    figures = cel.Overload(
        "budget_string",
        return_type=cel.Type.Map(cel.Type.STRING, cel.Type.DOUBLE),
        parameters=[cel.Type.STRING],
        impl=current.budget,
    )
    return cel.NewEnv(
        variables={name: types[kind] for name, kind in VARIABLES.items()}, functions=[cel.FunctionDecl("budget", [figures])]
    )


def _engine() -> Any:
    # Both are C++ with the same libraries inside: together in one process they corrupt its memory. Ours runs Rego in another one.
    if "regopy" in sys.modules:
        raise ConfigurationError(
            "regopy is loaded in this process, which cannot hold it and CEL's engine: use sark_mw's RegoPlugin"
        )
    try:
        from cel_expr_python import cel
    except ImportError as missing:
        raise ConfigurationError("rules need the package cel-expr-python: install sark-mw[cel]") from missing
    return cel


def _compiled(environment: Any, rule: Rule) -> _Compiled:
    if len(rule.when) > MAX_EXPRESSION:
        raise ConfigurationError(f"rule {rule.name!r} is longer than {MAX_EXPRESSION} characters")
    tested = re.search(r"\bhas\s*\(\s*([\w.]+)\s*\)", rule.when)
    if tested and tested[1] in VARIABLES:
        raise ConfigurationError(f"rule {rule.name!r}: {tested[1]} is always there: compare it in place of has()")
    try:
        rule.when.encode()
        program = environment.compile(rule.when)
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(f"rule {rule.name!r}{_complaint(str(error))}") from error
    if program.return_type() != _engine().Type.BOOL:
        raise ConfigurationError(f"rule {rule.name!r} is of type {program.return_type().name()}, and must be true or false")
    tree = read_tree(program.serialize())
    try:
        check_bounds(tree)
        reads = _reads(tree)
        _check_words(environment, tree)
    except CostlyRuleError as refused:
        raise ConfigurationError(f"rule {rule.name!r}{_where(rule.when, tree, refused.node)}: {refused}") from refused
    return _Compiled(rule, program, reads, _arguments(tree))


def _reads(tree: Tree) -> frozenset[str]:
    reads = set()
    for node in tree.nodes:
        if node.kind == "call" and node.name == "budget":
            reads.add("budget")
        path = path_of(node)
        if path is not None and path in VARIABLES:
            reads.add(path)
    return frozenset(reads)


def _check_words(environment: Any, tree: Tree) -> None:
    """Try what only fails when it runs: the fields of budget(), time zones, patterns."""
    for node in tree.nodes:
        if node.kind == "select" and node.parts[0].name == "budget" and node.name not in BUDGET_FIELDS:
            raise CostlyRuleError(f"budget() has no {node.name!r}: one of {', '.join(BUDGET_FIELDS)}", node)
        if node.kind != "call" or len(node.parts) < 2 or (text := node.parts[-1].text) is None:
            continue
        quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        if node.name.startswith("get"):
            tried = environment.compile(f"timestamp(0).getHours({quoted}) >= 0").eval().value()
            if tried is not True:
                raise CostlyRuleError(f"no time zone {text!r} is known on this machine", node)
        if node.name == "matches":
            tried = environment.compile(f'"".matches({quoted})').eval().value()
            if not isinstance(tried, bool):
                raise CostlyRuleError(str(tried).partition(": ")[2] or str(tried), node)


def _arguments(tree: Tree) -> frozenset[str] | None:
    found = []
    for node in tree.nodes:
        if not node.parts or path_of(node.parts[0]) != "request.arguments":
            continue
        if node.kind == "select":
            found.append(node.name)
        elif node.kind == "call" and node.name == "_[_]" and node.parts[1].text is not None:
            found.append(node.parts[1].text)
    used = sum(1 for node in tree.nodes if path_of(node) == "request.arguments")
    # Where it is used in any other way, any of them may be read.
    return frozenset(found) if len(found) == used else None


def _where(source: str, tree: Tree, node: Node) -> str:
    before = source[: tree.positions.get(node.id, 0)]
    return f" at line {before.count(chr(10)) + 1}, column {len(before) - (before.rfind(chr(10)) + 1) + 1}"


def _complaint(text: str) -> str:
    found = re.search(r"<input>:(-?\d+):(-?\d+): (.*)", text)
    if found is None:
        return ": " + text.partition(" [")[0][:300]
    line, column, complaint = found.groups()
    complaint = complaint.removesuffix(" (in container '')")[:300]
    hint = " (write amounts as 1.0, not 1)" if re.search(r"'\((double, int|int, double)\)'", complaint) else ""
    return f" at line {line}, column {column}: {complaint}{hint}" if int(line) > 0 else f": {complaint}"
