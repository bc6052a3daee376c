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
    "redacted_thinking": "text", "reasoning": "text", "message": "text", "image": "image", "image_url": "image",
    "input_image": "image", "input_audio": "audio", "audio": "audio", "video_url": "video", "file": "file", "input_file": "file",
    "document": "file", "container_upload": "file",
}  # fmt: skip
_MEDIA = {"image": "image", "audio": "audio", "video": "video"}
_MESSAGES = ("messages", "input", "contents")
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
        body = context.arguments
        if self._max_bytes is not None:
            length = _length(context)
            if length > self._max_bytes:
                reason = f"the request is {length} bytes long, {self._max_bytes} are allowed"
                return PolicyDecision(False, reason, {"bytes": length})
        if not _of_a_model(context):
            return PolicyDecision(True, "of a size that is allowed")
        messages = [message for name in _MESSAGES for message in _each(body.get(name))]
        if self._max_messages is not None and len(messages) > self._max_messages:
            reason = f"the request has {len(messages)} messages, {self._max_messages} are allowed"
            return PolicyDecision(False, reason, {"messages": len(messages)})
        if self._kinds is not None:
            kinds = Counter(_kinds(messages))
            unwanted = sorted(set(kinds) - self._kinds)
            if unwanted:
                return PolicyDecision(
                    False, f"content of this kind is not allowed: {', '.join(unwanted)}", {"content": dict(kinds)}
                )
        return self._judge_output(context)

    def _judge_output(self, context: PolicyContext) -> PolicyDecision:
        most = self._max_output
        if most is None or context.environment.get("operation") in _WITHOUT_OUTPUT:
            return PolicyDecision(True, "of a size that is allowed")
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


def _kinds(messages: Iterable[object]) -> Iterator[str]:
    """Name the kind of every part, those inside tool results included."""
    waiting = list(messages)
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield "text"
        if isinstance(part, list):
            waiting += part
        if not isinstance(part, dict):
            continue
        nested = [part[name] for name in ("content", "parts", "output", "functionResponse") if name in part]
        source = part.get("source")
        if isinstance(source, dict):
            nested.append(source.get("content"))  # a document of Anthropic's that is made of blocks
        waiting += [each for inner in nested for each in _each(inner)]
        kind = _kind(part)
        if kind is not None:
            yield kind


def _kind(part: dict[str, Any]) -> str | None:
    """Name the kind of one part; None for what only holds others, as a message does."""
    named = part.get("type")
    if isinstance(named, str):
        return _KIND_OF.get(named) or ("tool" if "tool" in named or "_call" in named else "other")
    data = next((part[name] for name in _DATA if isinstance(part.get(name), dict)), None)
    if data is not None:
        media = str(data.get("mimeType") or data.get("mime_type") or "")
        return _MEDIA.get(media.partition("/")[0], "file")
    if "text" in part:
        return "text"
    if "functionCall" in part or "functionResponse" in part:
        return "tool"
    return None if part.keys() & {"role", "parts", "content", "response"} else "other"


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
    return [each for each in found if isinstance(each, int) and not isinstance(each, bool) and each > 0]


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
