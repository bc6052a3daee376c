"""Allow only certain models and tools, to everyone or to certain principals and scopes."""

from __future__ import annotations

import re
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
#: Where a request names models that its provider may take instead of its own: OpenRouter's, Anthropic's and LiteLLM's.
_INSTEAD = ("models", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
#: What is read of every request, by the names of `needs`: an isolated one sees nothing else.
_READ = frozenset({"principal_id", "capability_id", "model", "environment.scopes", "environment.wire", "arguments.tools"})
#: What is read where a rule is about tools; a conversation is among it, since it may bring some along.
_READ_FOR_TOOLS = frozenset(
    f"arguments.{name}" for name in ("functions", "web_search_options", "mcp_servers", "plugins", "input", "messages")
)
#: Items of a Responses conversation that bring tools along.
_BRINGING = ("additional_tools", "tool_search_output")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    deny_models: tuple[str, ...]
    tools: tuple[str, ...] | None
    deny_tools: tuple[str, ...]

    @property
    def about_models(self) -> bool:
        return self.models is not None or bool(self.deny_models)

    @property
    def about_tools(self) -> bool:
        return self.tools is not None or bool(self.deny_tools)


class AllowListPlugin(PolicyPlugin):
    """Allow `models` and `tools` (patterns: `gpt-4o*`; None allows all) but for `deny_models` and `deny_tools`.

    `rules` add such lists for whoever touches one of their `scopes` (patterns, the principal among them, upper and lower case
    apart): a request must pass each rule that is about it. Models are the request's own, those that it names to fall back to, and
    those of its tools; a cheaper one that the gateway tries instead is judged anew. Tools are those that are called (over MCP, or
    as a capability without HTTP) and those that a request offers to its model; where a rule is about tools or models, one whose
    name cannot be read is denied. Patterns of both are matched without regard to case; a denied name is denied however it is
    prefixed (`openai/gpt-4o`), an allowed one must be written whole.
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

    @property
    def needs(self) -> frozenset[str]:
        of_tools = _READ_FOR_TOOLS if any(rule.about_tools for rule in self._rules) else frozenset()
        return _READ | {f"arguments.{name}" for name in _INSTEAD} | of_tools

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        touched = [context.principal_id, *context.environment.get("scopes", ())]
        rules = [rule for rule in self._rules if any(fnmatchcase(scope, pattern) for scope in touched for pattern in rule.scopes)]
        models = list(_models(context)) if any(rule.about_models for rule in rules) else []
        tools = sorted(set(_tools(context))) if any(rule.about_tools for rule in rules) else []
        for rule in rules:
            refused = _refused_model(rule, models, context) or _refused_tool(rule, tools)
            if refused is not None:
                return refused
        return PolicyDecision(True, "allowed models and tools only")


def _refused_model(rule: _Rule, models: list[str], context: PolicyContext) -> PolicyDecision | None:
    if not rule.about_models:
        return None
    allowed = {"allowed": _listed(rule.models)}
    if rule.models is not None and _own_model(context) is None and context.environment.get("wire") in _OF_MODELS:
        return PolicyDecision(False, "the request names no model", allowed)
    for model in models:
        if not model:
            return PolicyDecision(False, "the request names a model that cannot be read", allowed)
        if not _passes(model, rule.models, rule.deny_models):
            return PolicyDecision(False, f"the model {model} is not allowed here", allowed)
    return None


def _refused_tool(rule: _Rule, tools: list[str]) -> PolicyDecision | None:
    if not rule.about_tools:
        return None
    for tool in tools:
        if not tool:
            return PolicyDecision(False, "the request offers a tool without a name", {"allowed": _listed(rule.tools)})
        if not _passes(tool, rule.tools, rule.deny_tools):
            return PolicyDecision(False, f"the tool {tool} is not allowed here", {"allowed": _listed(rule.tools)})
    return None


def _passes(name: str, allowed: tuple[str, ...] | None, denied: tuple[str, ...]) -> bool:
    whole = name.strip().lower()
    if any(fnmatchcase(each, pattern) for each in (whole, whole.rpartition("/")[2]) for pattern in denied):
        return False
    return allowed is None or any(fnmatchcase(whole, pattern) for pattern in allowed)


def _own_model(context: PolicyContext) -> str | None:
    # As the gateway read it: Gemini's stands in the path, whatever the body says. Over MCP the body is the tool's business.
    of_body = None if context.environment.get("wire") == "mcp" else context.arguments.get("model")
    model = context.environment.get("model") or of_body
    return model if isinstance(model, str) else None


def _models(context: PolicyContext) -> Iterator[str]:
    """Name the models that may serve a request, or a tool of it; "" for one whose name cannot be read."""
    own = _own_model(context)
    if own is not None:
        yield own
    if context.environment.get("model") is None:
        # Without HTTP it may stand in the resource's own description: the scopes tell of it, whatever the arguments say.
        yield from _spelt_once(_touched(context, "model"))
    if context.environment.get("wire") == "mcp":
        return
    for field in _INSTEAD:
        named = context.arguments.get(field)
        # Anthropic's word for the provider's own choice.
        yield from [""] if named == "default" else _models_in(named)
    for tool in _each(context.arguments.get("tools")):
        if isinstance(tool, dict):  # of an adviser, of a painter
            having = (each for each in (tool, tool.get("svg")) if isinstance(each, dict) and each.get("model") is not None)
            yield from (_text(each, "model") for each in having)


def _touched(context: PolicyContext, kind: str) -> list[str]:
    """Name what a request touches of a kind of scopes."""
    scopes = [str(scope) for scope in context.environment.get("scopes") or ()]
    return [scope[len(kind) + 1 :] for scope in scopes if scope.startswith(f"{kind}:")]


def _spelt_once(models: list[str]) -> list[str]:
    """Leave out what spells another one again: each is touched in lower case and without its prefix too."""
    again = {(name, short) for name in models for short in (name.strip().lower(), name.strip().lower().rpartition("/")[2])}
    return [model for model in models if not any(short == model != name for name, short in again)]


def _models_in(named: object) -> Iterator[str]:
    """Read a model, or several: as names, as objects with a `model`, or by the model that they stand in for."""
    waiting = [*_each(named)]
    while waiting:
        model = waiting.pop()
        if isinstance(model, dict):
            waiting += _each(model["model"]) if "model" in model else list(model.values())
        elif isinstance(model, list):
            waiting += model
        else:
            yield model if isinstance(model, str) else ""


def _tools(context: PolicyContext) -> Iterator[str]:
    """Name the tools of a request; "" for one whose name cannot be read."""
    # The scopes name every tool that is called, over MCP or without HTTP; the capability is the route's own where it sets one.
    called = _touched(context, "tool")
    yield from called
    if context.environment.get("wire") == "mcp":
        yield from () if called else [context.capability_id]
        return
    yield from _beside(context.arguments)
    waiting = [each for field in ("tools", "functions") for each in _each(context.arguments.get(field))]
    waiting += _brought(context.arguments)
    while waiting:
        tool = waiting.pop()
        if isinstance(tool, dict):
            waiting += _each(tool.get("tools"))  # a namespace of them
            yield from list(_names(tool)) or [""]
        else:
            yield tool if isinstance(tool, str) else ""


def _beside(arguments: dict[str, Any]) -> Iterator[str]:
    """Name what a request offers beside its tools: OpenAI's search, Anthropic's servers of MCP, OpenRouter's plugins."""
    if arguments.get("web_search_options") is not None:
        yield "web_search"
    for server in _each(arguments.get("mcp_servers")):
        yield "mcp"  # since its name is the caller's choice
        yield _text(server, "name")
    for plugin in _each(arguments.get("plugins")):
        yield _text(plugin, "id")


def _brought(arguments: dict[str, Any]) -> Iterator[Any]:
    """Find the tools that a conversation brings along: in items of Responses, and in blocks of Anthropic's messages."""
    for item in _each(arguments.get("input")):
        if isinstance(item, dict) and item.get("type") in _BRINGING:
            yield from _each(item.get("tools"))
    for message in _each(arguments.get("messages")):
        for block in _each(message.get("content")) if isinstance(message, dict) else ():
            tool = block.get("tool") if isinstance(block, dict) and block.get("type") == "tool_addition" else None
            if isinstance(tool, dict) and "definition" in tool:  # else it refers to one that is declared elsewhere
                yield tool["definition"]


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
        yield _text(each, "name")
    if not {"type", "name", "function", "custom"} & tool.keys():
        yield from (_snake(key) for key in tool if key not in _DECLARED)


def _text(value: object, field: str) -> str:
    text = value.get(field) if isinstance(value, dict) else None
    return text if isinstance(text, str) else ""


def _snake(name: str) -> str:
    """Spell as `google_search` what Gemini takes as `googleSearch` too."""
    return _WORDS.sub("_", name).lower()


def _rule(given: Mapping[str, Any]) -> _Rule:
    known = isinstance(given, Mapping) and set(given) <= {"scopes", "models", "deny_models", "tools", "deny_tools"}
    if not known or "scopes" not in given:
        raise ConfigurationError(f"a rule has scopes, and of models, deny_models, tools, deny_tools what it needs: {given!r}")
    lists = {name: _patterns(name, given.get(name)) for name in ("models", "tools", "deny_models", "deny_tools")}
    return _Rule(
        scopes=_scopes(given["scopes"]),
        models=lists["models"],
        tools=lists["tools"],
        deny_models=lists["deny_models"] or (),
        deny_tools=lists["deny_tools"] or (),
    )


def _scopes(values: Iterable[str]) -> tuple[str, ...]:
    scopes = () if isinstance(values, str) else tuple(values)
    if not scopes or not all(isinstance(scope, str) and scope for scope in scopes):
        raise ConfigurationError(f"a rule's scopes must be a list of patterns such as 'team:*', and not empty: {values!r}")
    if any(scope.startswith("run:") for scope in scopes):
        raise ConfigurationError(f"a run is what its caller says, so no rule can be about it: {values!r}")
    return scopes


def _patterns(field: str, values: Iterable[str] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    if isinstance(values, str):
        raise ConfigurationError(f"{field} must be a list of patterns, not {values!r}")
    given = [str(value).strip() for value in values]
    # Gemini's tools go by one of their two spellings: whichever is written here means it.
    other = [_snake(value) for value in given if field.endswith("tools")]
    return tuple(dict.fromkeys((*(value.lower() for value in given), *other)))


def _listed(allowed: tuple[str, ...] | None) -> list[str]:
    return ["*"] if allowed is None else list(allowed)
