"""Allow only certain models and tools, to everyone or to certain principals and scopes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sark_mw import ConfigurationError, PolicyContext, PolicyDecision, PolicyPlugin

#: Dialects in which every request has a model: one that names none would get whatever its provider takes.
_OF_MODELS = frozenset({"openai", "anthropic", "gemini"})
#: Types of a tool that say nothing about which one it is.
_PLAIN_TYPES = frozenset({"function", "custom"})
#: Where Gemini's tools declare functions.
_DECLARED = ("functionDeclarations", "function_declarations")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    deny_models: tuple[str, ...]
    tools: tuple[str, ...] | None
    deny_tools: tuple[str, ...]


class AllowListPlugin(PolicyPlugin):
    """Allow `models` and `tools` (patterns: `gpt-4o*`; None allows all) but for `deny_models` and `deny_tools`.

    `rules` add such lists for whoever touches one of their `scopes` (patterns, the principal among them): a request must pass
    each rule that is about it. Tools are those that are called over MCP and those that a request offers to its model; where a
    rule is about tools, one whose name cannot be read is denied. A cheaper
    model that is tried instead is judged anew. Patterns are matched without regard to case; a denied name is denied however it
    is prefixed (`openai/gpt-4o`), an allowed one must be written whole.
    """

    version = "1.0.0"
    description = "Allow only certain models and tools"
    priority = 15

    def __init__(
        self,
        models: Iterable[str] | None = None,
        deny_models: Iterable[str] = (),
        tools: Iterable[str] | None = None,
        deny_tools: Iterable[str] = (),
        rules: Iterable[Mapping[str, Any]] = (),
        *,
        name: str = "allow_list",
    ) -> None:
        self._name = name
        everyone = {"scopes": ["*"], "models": models, "deny_models": deny_models, "tools": tools, "deny_tools": deny_tools}
        self._rules = tuple(_rule(each) for each in (everyone, *rules))

    @property
    def name(self) -> str:
        return self._name

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        touched = [context.principal_id, *context.environment.get("scopes", ())]
        rules = [rule for rule in self._rules if any(fnmatchcase(scope, pattern) for scope in touched for pattern in rule.scopes)]
        # As the gateway read it: Gemini's stands in the path, whatever the body says.
        model = context.environment.get("model") or context.arguments.get("model")
        tools = set(_tools(context))
        for rule in rules:
            if isinstance(model, str):
                if not _passes(model, rule.models, rule.deny_models):
                    return PolicyDecision(False, f"the model {model} is not allowed here", {"allowed": _listed(rule.models)})
            elif rule.models is not None and context.environment.get("wire") in _OF_MODELS:
                return PolicyDecision(False, "the request names no model", {"allowed": _listed(rule.models)})
            for tool in sorted(tools):
                if not tool and (rule.tools is not None or rule.deny_tools):
                    return PolicyDecision(False, "the request offers a tool without a name", {"allowed": _listed(rule.tools)})
                if tool and not _passes(tool, rule.tools, rule.deny_tools):
                    return PolicyDecision(False, f"the tool {tool} is not allowed here", {"allowed": _listed(rule.tools)})
        return PolicyDecision(True, "allowed models and tools only")


def _passes(name: str, allowed: tuple[str, ...] | None, denied: tuple[str, ...]) -> bool:
    whole = name.strip().lower()
    if any(fnmatchcase(each, pattern) for each in (whole, whole.rpartition("/")[2]) for pattern in denied):
        return False
    return allowed is None or any(fnmatchcase(whole, pattern) for pattern in allowed)


def _tools(context: PolicyContext) -> Iterator[str]:
    """Name the tools of a request; "" for one whose name cannot be read."""
    if context.environment.get("wire") == "mcp":
        # The capability is the route's own where it sets one; the scopes name every tool that is called.
        scopes = [str(scope) for scope in context.environment.get("scopes") or ()]
        yield from [scope[5:] for scope in scopes if scope.startswith("tool:")] or [context.capability_id]
        return
    waiting = [each for field in ("tools", "functions") for each in _each(context.arguments.get(field))]
    while waiting:
        tool = waiting.pop()
        if isinstance(tool, dict):
            waiting += _each(tool.get("tools"))  # a namespace of them
            yield from list(_names(tool)) or [""]
        else:
            yield tool if isinstance(tool, str) else ""


def _each(value: object) -> list[Any]:
    """Normalise to a list what may be written as one object."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _names(tool: dict[str, Any]) -> Iterator[str]:
    """Name one tool as OpenAI, Anthropic and Gemini write them: functions by their name, the provider's own by their type."""
    declared = [each for field in _DECLARED for each in _each(tool.get(field))]
    kind = tool.get("type")
    if isinstance(kind, str) and kind not in _PLAIN_TYPES:
        yield kind
    for named in (tool, tool.get("function"), tool.get("custom")):
        if isinstance(named, dict) and isinstance(named.get("name"), str):
            yield named["name"]
    for each in declared:
        name = each.get("name") if isinstance(each, dict) else None
        yield name if isinstance(name, str) else ""
    if not {"type", "name", "function", "custom"} & tool.keys():
        yield from (key for key in tool if key not in _DECLARED)


def _rule(given: Mapping[str, Any]) -> _Rule:
    unknown = set(given) - {"scopes", "models", "deny_models", "tools", "deny_tools"}
    if unknown or "scopes" not in given:
        raise ConfigurationError(
            f"a rule has scopes, and of models, deny_models, tools, deny_tools what it needs: {dict(given)!r}"
        )
    lists = {name: _patterns(name, given.get(name)) for name in ("models", "tools", "deny_models", "deny_tools")}
    return _Rule(
        scopes=tuple(given["scopes"]),
        models=lists["models"],
        tools=lists["tools"],
        deny_models=lists["deny_models"] or (),
        deny_tools=lists["deny_tools"] or (),
    )


def _patterns(field: str, values: Iterable[str] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    if isinstance(values, str):
        raise ConfigurationError(f"{field} must be a list of patterns, not {values!r}")
    return tuple(str(value).strip().lower() for value in values)


def _listed(allowed: tuple[str, ...] | None) -> list[str]:
    return ["*"] if allowed is None else list(allowed)
