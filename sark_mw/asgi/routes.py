"""Which requests are metered, by method and path: own rules from the settings first, then what each wire recognises."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from importlib import import_module

from sark_mw.errors import ConfigurationError
from sark_mw.pricing.base import CostEstimator, Meter
from sark_mw.pricing.fixed import FixedCostEstimator, NoCostEstimator
from sark_mw.settings import RouteSettings
from sark_mw.wire import WIRES
from sark_mw.wire.base import Operation, Wire
from sark_mw.wire.body import clean_path
from sark_mw.wire.openai import OpenAIWire
from sark_mw.wire.spending import spends

#: What a wire is taken to speak on a path that is not its own.
_USUAL_OPERATION = {
    "openai": Operation.CHAT,
    "anthropic": Operation.MESSAGES,
    "gemini": Operation.GENERATE,
    "mcp": Operation.TOOL_CALL,
    "plain": Operation.OTHER,
}
_CACHED_PATHS = 4096
#: A longer path is refused where it is metered, and remembered nowhere.
MAX_PATH_CHARS = 2048
_LONGEST_METHOD = 16


class Passes(Enum):
    """What passes unread although nothing else may: a rule, or the provider itself, says that it costs nothing."""

    FREE = "free"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one request is metered.

    `estimator` is None where the wire is known but nobody can price it: such a request is refused, since it would spend unseen.
    `meter` is its fast face, None for a user's own. `per_call`: the price does not depend on usage; `call_price` is that of one
    call, None where the estimator decides. `capability` is the name in ledger and policies where a rule gives one,
    `fallback_capability` that of what has no better name.
    """

    wire: Wire
    operation: Operation
    estimator: CostEstimator | None
    meter: Meter | None
    per_call: bool
    call_price: Decimal | None = None
    capability: str | None = None
    fallback_capability: str


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule of the settings, compiled. `wire` and `estimator` None: it only renames what a wire recognises."""

    pattern: re.Pattern[str]
    methods: frozenset[str]
    ignore: bool
    wire: Wire | None
    estimator: CostEstimator | None
    price: Decimal | None
    capability: str | None


class Router:
    """Match requests to routes; raises `ConfigurationError` for a rule that can never work."""

    def __init__(
        self, rules: Sequence[RouteSettings], estimators: Mapping[str, CostEstimator], *, inject_stream_usage: bool = True
    ) -> None:
        self._wires = {**WIRES, "openai": OpenAIWire(inject_usage=inject_stream_usage)}
        self._estimators = estimators
        self._rules = tuple(self._compile(rule) for rule in rules)
        # A miss costs a few regular expressions; a flood of new paths only pushes others out.
        self._cached = lru_cache(maxsize=_CACHED_PATHS)(self._match)

    def match(self, method: str, path: str, root_path: str = "") -> Route | Passes | None:
        """Find how a request is metered, by its path with and without the mount's `root_path`; None where nothing meters it."""
        # Methods are case-sensitive, but what is behind us may not know that.
        method = method.upper()
        short = len(path) + len(root_path) <= MAX_PATH_CHARS and len(method) <= _LONGEST_METHOD
        return (self._cached if short else self._match)(method, path, root_path)

    def _match(self, method: str, path: str, root_path: str) -> Route | Passes | None:
        spellings = _spellings(path, root_path)
        for rule in self._rules:
            if method not in rule.methods and "*" not in rule.methods:
                continue
            for spelt in spellings:
                if not rule.pattern.fullmatch(clean_path(spelt)):
                    continue
                if rule.ignore:
                    return Passes.FREE
                route = self._ruled(rule, method, spelt)
                if route is not None:
                    return route
        for spelt in spellings:
            for name, wire in self._wires.items():
                if operation := wire.match(method, spelt):
                    return self._builtin(name, wire, operation)
            if dialect := spends(method, spelt):
                return self._unpriced(self._wires[dialect], spelt)
        return None

    def _unpriced(self, wire: Wire, path: str) -> Route:
        return Route(
            wire=wire, operation=Operation.OTHER, estimator=None, meter=None, per_call=False, fallback_capability=path[:200]
        )

    def _builtin(self, name: str, wire: Wire, operation: Operation) -> Route | Passes:
        if operation is Operation.COUNT_TOKENS:
            return Passes.FREE  # free of charge everywhere, so there is nothing to read
        # Tools cost nothing unless a rule says so, but their calls count against limits of requests and concurrency.
        estimator = self._estimators.get("free" if name == "mcp" else name)
        return Route(
            wire=wire,
            operation=operation,
            estimator=estimator,
            meter=_meter(estimator),
            per_call=_is_per_call(estimator),
            fallback_capability=operation.value,
        )

    def _ruled(self, rule: _Rule, method: str, path: str) -> Route | None:
        wire, operation = rule.wire, None
        for each in (wire,) if wire else self._wires.values():
            if operation := each.match(method, path):
                wire = each
                break
        if wire is None:
            if rule.estimator is None:
                return None  # it only renames what a wire recognises
            wire = self._wires["plain"]
        estimator = rule.estimator or self._estimators.get("free" if wire.name == "mcp" else wire.name)
        return Route(
            wire=wire,
            operation=operation or _USUAL_OPERATION[wire.name],
            estimator=estimator,
            meter=_meter(estimator),
            per_call=_is_per_call(estimator),
            call_price=rule.price,
            capability=rule.capability,
            fallback_capability=path[:200],
        )

    def _compile(self, rule: RouteSettings) -> _Rule:
        wire = self._wires[rule.wire] if rule.wire else None
        estimator = self._estimator_of(rule)
        pattern = _pattern(rule.path)
        if not rule.ignore and estimator is None:
            self._check_priced(rule, wire)
        return _Rule(
            pattern=pattern,
            methods=frozenset(method.upper() for method in rule.methods),
            ignore=rule.ignore,
            wire=wire,
            estimator=estimator,
            price=rule.price_usd,
            capability=rule.capability,
        )

    def _check_priced(self, rule: RouteSettings, wire: Wire | None) -> None:
        known = {*self._estimators, "mcp"}
        if wire is not None and wire.name not in known:
            raise ConfigurationError(f"route {rule.path}: nobody prices {wire.name}: give it price_usd, free or an estimator")
        if wire is None and "*" not in rule.path:
            method = "POST" if "*" in rule.methods else rule.methods[0]
            if not any(each.match(method, rule.path) for each in self._wires.values()):
                raise ConfigurationError(f"route {rule.path}: give it a wire, provider, price_usd, free, ignore or estimator")

    def _estimator_of(self, rule: RouteSettings) -> CostEstimator | None:
        if rule.free:
            return NoCostEstimator(rule.provider or "free")
        if rule.price_usd is not None:
            return FixedCostEstimator(rule.price_usd, rule.provider or "fixed")
        if rule.estimator is not None:
            return load_estimator(rule.estimator)
        if rule.provider is None:
            return None
        if rule.provider not in self._estimators:
            names = ", ".join(sorted(self._estimators))
            raise ConfigurationError(f"route {rule.path}: there is no estimator for provider {rule.provider!r}, only for {names}")
        return self._estimators[rule.provider]


def _meter(estimator: CostEstimator | None) -> Meter | None:
    # Once per path and not per request: the check of a Protocol takes some 20 µs.
    return estimator if isinstance(estimator, Meter) else None


def _is_per_call(estimator: CostEstimator | None) -> bool:
    return isinstance(estimator, FixedCostEstimator)


def _pattern(path: str) -> re.Pattern[str]:
    """Compile `*` (within a segment) and `**` (over segments); paths are compared as `clean_path` spells them."""
    if not path.startswith("/"):
        raise ConfigurationError(f"route {path}: a path pattern begins with /")
    pieces = re.split(r"(\*\*|\*)", clean_path(path))
    wild = {"**": ".*", "*": "[^/]*"}
    # DOTALL: a path may hold anything, %0A included.
    return re.compile("".join(wild.get(piece) or re.escape(piece) for piece in pieces), re.DOTALL)


def _spellings(path: str, root_path: str) -> tuple[str, ...]:
    """Spell a path as it came, without the mount's prefix, and with it: servers differ in what they put into `path`."""
    root = root_path.rstrip("/")
    if not root:
        return (path,)
    if path.startswith(root + "/"):
        return (path, path[len(root) :])
    return (path, root + path)


def load_estimator(name: str) -> CostEstimator:
    """Import `package.module:name`: an estimator, or a class of one that is made without arguments."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigurationError(f"an own estimator is written package.module:name, not {name!r}")
    try:
        found = getattr(import_module(module), attribute)
        estimator = found() if isinstance(found, type) else found
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"estimator {name}: {error}") from error
    if not isinstance(estimator, CostEstimator):
        raise ConfigurationError(f"estimator {name}: is no CostEstimator")
    return estimator
