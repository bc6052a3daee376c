"""Deny requests that are too large, have too many messages or carry content of kinds that are not wanted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from sark_mw import ConfigurationError, Obligation, PolicyContext, PolicyDecision, PolicyPlugin

KINDS = ("text", "image", "audio", "video", "file", "tool", "other")
#: What the parts of a message are called by OpenAI and Anthropic.
_KIND_OF = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "text", "thinking": "text", "summary_text": "text",
    "reasoning_text": "text", "redacted_thinking": "text", "reasoning": "text", "message": "text", "search_result": "text",
    "image": "image", "image_url": "image", "input_image": "image", "computer_screenshot": "image", "input_audio": "audio",
    "audio": "audio", "audio_url": "audio", "video_url": "video", "file": "file", "input_file": "file", "document": "file",
    "container_upload": "file", "mcp_approval_request": "tool", "mcp_approval_response": "tool", "logs": "text",
}  # fmt: skip
#: What a part or a message holds by its fields, whatever its type says.
_KIND_OF_FIELD = {
    "image_url": "image", "input_image_mask": "image", "input_audio": "audio", "audio": "audio", "audio_url": "audio",
    "video_url": "video", "file": "file", "file_ids": "file", "tool_calls": "tool", "function_call": "tool",
    "functionCall": "tool", "function_response": "tool", "functionResponse": "tool", "executableCode": "tool",
    "executable_code": "tool", "codeExecutionResult": "tool", "code_execution_result": "tool",
    "toolCall": "tool", "tool_call": "tool", "toolResponse": "tool", "tool_response": "tool",
}  # fmt: skip
#: Whose messages are the results of tools.
_TOOL_ROLES = ("tool", "function")
_MEDIA = {"image": "image", "audio": "audio", "video": "video"}
_MESSAGES = ("messages", "input", "contents")
#: What stands beside the messages and is read like one.
_SYSTEM = ("system", "systemInstruction", "system_instruction", "instructions")
#: What the provider's own tools are given.
_GIVEN = ("input_image_mask", "file_ids")
#: Where parts hold other parts.
_NESTED = ("content", "parts", "output", "outputs", "functionResponse", "function_response")
#: Where Gemini's count of tokens holds the request that it is about.
_COUNTED = ("generateContentRequest", "generate_content_request")
#: Fields that limit the output, by wire and operation. Others are passed over: no provider would heed them.
_OUTPUT = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "embeddings": (),
    "anthropic": ("max_tokens",),
    "gemini": (),
}
#: Operations that have no output to limit.
_WITHOUT_OUTPUT = ("embeddings", "count_tokens")
_ANY_OUTPUT = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_CONFIGS = ("generationConfig", "generation_config")
_CONFIG_OUTPUT = ("maxOutputTokens", "max_output_tokens")
_DATA = ("inlineData", "inline_data", "fileData", "file_data")


class SizeGuardPlugin(PolicyPlugin):
    """Deny a body of more than `max_body_bytes`, more than `max_messages`, and content of kinds not among `content_types`.

    Kinds are text, image, audio, video, file, tool (calls and results) and other (anything unknown). A request that asks for more
    than `max_output_tokens`, or names no limit, is denied, or with `cap_output` capped: the gateway lowers its limit. Where there
    is no model (a tool's call over MCP, a plain body that names none) only the length is judged.
    """

    version = "1.0.0"
    description = "Deny requests that are too large or carry unwanted content"
    priority = 12
    # All of a body: its kinds are looked for wherever a dialect has them, and where nobody says how long it is it is measured.
    needs = frozenset({"arguments", "prompts", "environment"})

    def __init__(
        self,
        max_body_bytes: int | None = None,
        max_messages: int | None = None,
        content_types: Iterable[str] | None = None,
        max_output_tokens: int | None = None,
        cap_output: bool = False,
        *,
        name: str = "size_guard",
    ) -> None:
        self._name = name
        self._max_bytes = _count("max_body_bytes", max_body_bytes)
        self._max_messages = _count("max_messages", max_messages)
        self._max_output = _count("max_output_tokens", max_output_tokens)
        self._kinds = None if content_types is None else frozenset(content_types)
        self._cap = cap_output
        if self._kinds is not None and not self._kinds <= set(KINDS):
            raise ConfigurationError(f"content_types must be of {', '.join(KINDS)}, not {sorted(self._kinds - set(KINDS))}")

    @property
    def name(self) -> str:
        return self._name

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        if self._max_bytes is not None:
            length = _length(context)
            if length > self._max_bytes:
                reason = f"the request is {length} bytes long, {self._max_bytes} are allowed"
                return PolicyDecision(False, reason, {"bytes": length})
        if not _of_a_model(context):
            return PolicyDecision(True, "of a size that is allowed")
        return self._judge_content(context.arguments) or self._judge_output(context)

    def _judge_content(self, body: dict[str, Any]) -> PolicyDecision | None:
        if self._max_messages is None and self._kinds is None:
            return None
        bodies = [body, *(body[name] for name in _COUNTED if isinstance(body.get(name), dict))]
        messages = [message for each in bodies for name in _MESSAGES for message in _each(each.get(name))]
        if self._max_messages is not None and len(messages) > self._max_messages:
            reason = f"the request has {len(messages)} messages, {self._max_messages} are allowed"
            return PolicyDecision(False, reason, {"messages": len(messages)})
        if self._kinds is not None:
            kinds = Counter(_kinds([*messages, *(part for each in bodies for part in _beside(each))]))
            unwanted = sorted(set(kinds) - self._kinds)
            if unwanted:
                return PolicyDecision(
                    False, f"content of this kind is not allowed: {', '.join(unwanted)}", {"content": dict(kinds)}
                )
        return None

    def _judge_output(self, context: PolicyContext) -> PolicyDecision:
        most = self._max_output
        if most is None or context.environment.get("operation") in _WITHOUT_OUTPUT:
            return PolicyDecision(True, "of a size that is allowed")
        instead = _limits_of_fallbacks(context.arguments)
        if any(each > most for each in instead):  # which the gateway does not lower
            return PolicyDecision(False, f"a fallback asks for up to {max(instead)} output tokens, {most} are allowed")
        asked = _output_limits(context)
        if asked and all(each <= most for each in asked):
            return PolicyDecision(True, "of a size that is allowed")
        if self._cap:
            return PolicyDecision(
                True, f"capped at {most} output tokens", {"asked": asked}, obligations=(Obligation("cap_output_tokens", most),)
            )
        what = f"asks for up to {max(asked)} output tokens" if asked else "names no limit of output tokens"
        return PolicyDecision(False, f"the request {what}, {most} are allowed", {"asked": asked})


def _length(context: PolicyContext) -> int:
    length = context.environment.get("body_bytes")
    return length if isinstance(length, int) else len(json.dumps(context.arguments, default=str).encode())


def _of_a_model(context: PolicyContext) -> bool:
    """Tell whether the body is a model's: over MCP it is the arguments of a tool, and a plain one without a model anybody's."""
    wire = context.environment.get("wire")
    named = context.environment.get("model") or context.arguments.get("model")
    return wire != "mcp" and (wire != "plain" or isinstance(named, str))


def _beside(body: dict[str, Any]) -> Iterator[Any]:
    """Find what a body carries beside its messages."""
    yield from (body.get(name) for name in _SYSTEM)
    prompt, prediction = body.get("prompt"), body.get("prediction")
    if isinstance(prompt, dict):  # a template at the provider: its variables alone are here
        variables = prompt.get("variables")
        prompt = list(variables.values()) if isinstance(variables, dict) else variables
    yield prompt
    yield prediction.get("content") if isinstance(prediction, dict) else None
    yield from _given_to_tools(body.get("tools"))


def _given_to_tools(tools: object) -> Iterator[dict[str, Any]]:
    """Find what the provider's own tools are given: a mask to paint in, files to compute with."""
    for holder in [each for tool in _each(tools) if isinstance(tool, dict) for each in (tool, tool.get("container"))]:
        given = {name: holder[name] for name in _GIVEN if holder.get(name)} if isinstance(holder, dict) else {}
        if given:
            yield given


def _kinds(parts: Iterable[object]) -> Iterator[str]:
    """Name the kinds of every part, those inside tool results included."""
    waiting = list(parts)
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield "text"
        if isinstance(part, list):
            waiting += part
        if not isinstance(part, dict):
            continue
        nested = [part[name] for name in _NESTED if name in part]
        source = part.get("source")
        if isinstance(source, dict):
            nested.append(source.get("content"))  # a document of Anthropic's that is made of blocks
        waiting += [each for inner in nested for each in _each(inner)]
        waiting += _given_to_tools(part.get("tools"))  # that a conversation brings along
        yield from _kinds_of(part)


def _kinds_of(part: dict[str, Any]) -> set[str]:
    """Name the kinds of one part; none for what only holds others, as a message does."""
    kinds = {kind for name, kind in _KIND_OF_FIELD.items() if part.get(name)}
    for data in (part[name] for name in _DATA if isinstance(part.get(name), dict)):
        kinds |= {_medium(data[name]) for name in ("mimeType", "mime_type") if data.get(name)} or {"file"}
    if part.get("role") in _TOOL_ROLES:
        kinds.add("tool")
    named = part.get("type")
    if isinstance(named, str):
        kinds |= _kinds_of_type(named)
    elif "text" in part:
        kinds.add("text")
    elif not kinds and not part.keys() & {"role", "parts", "content", "response"}:
        kinds.add("other")
    return kinds


def _kinds_of_type(named: str) -> set[str]:
    if named == "image_generation_call":
        return {"tool", "image"}  # with the image that it made
    of_tool = "tool" in named or "_call" in named or named.endswith("_result")
    return {_KIND_OF.get(named) or ("tool" if of_tool else "other")}


def _medium(media_type: object) -> str:
    return _MEDIA.get(str(media_type).strip().lower().partition("/")[0], "file")


def _each(value: object) -> list[Any]:
    """Normalise to a list what may be written as one object or text."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _output_limits(context: PolicyContext) -> list[int]:
    """List the limits that the request's own wire reads; 0 is none."""
    body, wire = context.arguments, context.environment.get("wire")
    names = _OUTPUT.get(_endpoint(context) if wire == "openai" else str(wire), _ANY_OUTPUT)
    found = [body.get(name) for name in names]
    if wire not in ("openai", "anthropic"):
        configs = [body[name] for name in _CONFIGS if isinstance(body.get(name), dict)]
        found += [config.get(name) for config in configs for name in _CONFIG_OUTPUT]
    return _counts(found)


def _limits_of_fallbacks(body: dict[str, Any]) -> list[int]:
    """List the limits that a request sets for the models to fall back to, in place of its own."""
    fallbacks = [each for each in _each(body.get("fallbacks")) if isinstance(each, dict)]
    return _counts(each.get(name) for each in fallbacks for name in _ANY_OUTPUT)


def _counts(values: Iterable[object]) -> list[int]:
    return [each for each in values if isinstance(each, int) and not isinstance(each, bool) and each > 0]


def _endpoint(context: PolicyContext) -> str:
    operation = str(context.environment.get("operation") or "")
    if operation in _OUTPUT:
        return operation
    return next(
        (each for name, each in (("messages", "chat"), ("prompt", "completions")) if name in context.arguments), "responses"
    )


def _count(field: str, value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigurationError(f"{field} must be a whole number from 1, not {value!r}")
    return value
