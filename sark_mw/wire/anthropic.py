"""Anthropic's wire: messages, and count_tokens, which is free."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from sark_mw.usage import Usage
from sark_mw.wire.base import Call, Headers, Operation, Refusal, RefusalKind, Response, UsageTap
from sark_mw.wire.body import (
    check_count,
    check_flag,
    check_kind,
    check_model,
    clean_path,
    count,
    mapping,
    name_or_none,
    objects,
    parse,
    part,
    plain_path,
    read_json,
    read_object,
)
from sark_mw.wire.refusal import details_of, response_of
from sark_mw.wire.rewriting import lowered, with_members, with_model_at
from sark_mw.wire.seen import SeenText
from sark_mw.wire.tap import PassTap, tap_for

# OpenAI's threads end in /messages too, after an id: only bare, after a version or after "anthropic". A segment may hold anything
# but a slash, line ends included.
_PATH = re.compile(r"(?:|.*/v[0-9][a-z0-9]*|.*/anthropic)/messages(?P<count>/count_tokens)?", re.DOTALL)
#: Vertex sells Claude below its own paths, with the model in the path and the method behind it.
_VERTEX = re.compile(r".*/publishers/anthropic/models/([^/]+):(raw|streamraw)predict", re.DOTALL | re.IGNORECASE)
# Its count of tokens has a model of its own.
_VERTEX_COUNT = "count-tokens"
_ERROR_TYPE = {
    RefusalKind.RATE_LIMIT: "rate_limit_error",
    RefusalKind.CONCURRENCY: "rate_limit_error",
    RefusalKind.BUDGET: "billing_error",
    RefusalKind.POLICY: "permission_error",
    RefusalKind.UNAVAILABLE: "api_error",
    RefusalKind.POLICY_UNAVAILABLE: "api_error",
    RefusalKind.TOO_LARGE: "request_too_large",
    RefusalKind.UNAUTHENTICATED: "authentication_error",
}


class AnthropicWire:
    """Anthropic's dialect."""

    name = "anthropic"

    def match(self, method: str, path: str) -> Operation | None:
        """Recognise messages and count_tokens."""
        if method != "POST":
            return None
        if vertex := _VERTEX.fullmatch(plain_path(path)):
            return Operation.COUNT_TOKENS if vertex[1].lower() == _VERTEX_COUNT else Operation.MESSAGES
        if not (match := _PATH.fullmatch(clean_path(path))):
            return None
        return Operation.COUNT_TOKENS if match["count"] else Operation.MESSAGES

    def read(self, operation: Operation, path: str, headers: Headers, body: bytes) -> Call:
        """Read a request; on Vertex its model stands in the path. JSON-RPC to a bare `/messages` is free: it is MCP's."""
        if clean_path(path) == "/messages" and _is_rpc(body):
            return Call(wire="mcp", operation=Operation.OTHER, raw=body)
        parsed = read_object(headers, body)
        vertex = _VERTEX.fullmatch(plain_path(path))
        check_kind(parsed, "messages", (list,), required=True)
        check_kind(parsed, "system", (str, list))
        check_kind(parsed, "tools", (list,))
        check_count(parsed, "max_tokens", 0)
        return Call(
            wire=self.name,
            operation=operation,
            model=check_model(vertex[1] if vertex else parsed.get("model")),
            stream=operation == Operation.MESSAGES and check_flag(parsed, "stream"),
            body=parsed,
            path=path,
            raw=body,
        )

    def request_body(self, call: Call) -> bytes | None:
        """Anthropic's streams always carry usage: nothing to ask for."""
        return call.raw if call.rewritten else None

    def rewrite(self, call: Call, *, model: str | None = None, max_output_tokens: int | None = None) -> Call | None:
        """Set `max_tokens`, unless the budget for thinking would reach it; the model in the body, on Vertex in the path."""
        if call.operation is not Operation.MESSAGES or call.body is None:
            return None
        changes: dict[str, object] = {}
        path = None
        if max_output_tokens is not None:
            thinking = mapping(call.body.get("thinking")).get("budget_tokens")
            limits = lowered(call.body, ("max_tokens",), max_output_tokens)
            if limits is None or (type(thinking) is int and thinking >= limits["max_tokens"]):
                return None
            changes |= limits
        if model is not None:
            vertex = _VERTEX.fullmatch(plain_path(call.path))
            path = with_model_at(call.path, vertex.span(1), model) if vertex else call.path
            if path is None:
                return None
            if not vertex or call.body.get("model") is not None:
                changes["model"] = model
        return with_members(call, changes, model=model, path=path)

    def tap(self, call: Call, status: int, headers: Headers) -> UsageTap:
        """Read usage from a success; errors and counts pass."""
        if status >= 400 or call.operation == Operation.COUNT_TOKENS:
            return PassTap(failed=status >= 400)
        return tap_for(AnthropicReader, headers, stream=call.stream)

    def refuse(self, refusal: Refusal, stream: bool = False, call: Call | None = None) -> Response:
        """Answer `{"type": "error", "error": {"type", "message", "details"}, "request_id"}`."""
        kind = _ERROR_TYPE.get(refusal.kind, "invalid_request_error")
        error = {"type": kind, "message": refusal.message, "details": details_of(refusal)}
        return response_of(refusal, {"type": "error", "error": error, "request_id": refusal.request_id or None})


def _is_rpc(body: bytes) -> bool:
    """Tell whether a body is a message of MCP's older transport, which posts to `/messages` too; with `messages` it never is."""
    if b'"jsonrpc"' not in body:
        return False
    parsed = read_json(body)
    messages = parsed if isinstance(parsed, list) else [parsed]
    return all(isinstance(each, dict) and "jsonrpc" in each and "messages" not in each for each in messages)


class AnthropicReader:
    """Reads messages and their events; usage in later events replaces that of earlier ones."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.text = SeenText()
        self.failed = False
        self.started = False
        self._model: object = None
        self._known: dict[str, Any] = {}
        self._counted = False
        self._valid = True

    def event(self, name: str, data: str) -> bool:
        """Read an event; none is ever taken out."""
        body = mapping(parse(data))
        kind = body.get("type", name)
        if kind == "error":
            self.failed = True
        elif kind == "message_start":
            message = mapping(body.get("message"))
            self._model = message.get("model")
            # Its output_tokens is a placeholder, no count.
            self._merge({**mapping(message.get("usage")), "output_tokens": 0}, complete=False)
        elif kind == "content_block_delta":
            delta = mapping(body.get("delta"))
            self.started = True
            self.text.add(delta.get("text"), delta.get("thinking"), delta.get("partial_json"))
        elif kind == "message_delta":
            usage = mapping(body.get("usage"))
            self._counted = self._counted or usage.get("output_tokens") is not None
            self._merge(usage, complete=self._counted and bool(mapping(body.get("delta")).get("stop_reason")))
        elif kind == "message_stop" and self.usage is not None and self._valid:
            self.usage = replace(self.usage, complete=self._counted)
        return False

    def document(self, body: object) -> None:
        """Read a whole message."""
        whole = mapping(body)
        self.failed = self.failed or whole.get("type") == "error"
        self._model = whole.get("model")
        self._merge(mapping(whole.get("usage")), complete=True)
        for block in objects(whole.get("content")):
            self.text.add(block.get("text"), block.get("thinking"))

    def _merge(self, usage: dict[str, Any], complete: bool) -> None:
        """Take a cumulative usage: what it names overwrites, what it leaves out stands."""
        if not usage:
            return
        self.started = True
        self._known.update({name: value for name, value in usage.items() if value is not None})
        merged = anthropic_usage(self._known, self._model)
        self._valid = merged is not None
        if merged is not None:
            self.usage = replace(merged, complete=complete)
        elif self.usage is not None:
            self.usage = replace(self.usage, complete=False)


def anthropic_usage(usage: dict[str, Any], model: object = None) -> Usage | None:
    """Read a usage object; None where its counts are missing or unreadable.

    `input_tokens` excludes what was read from and written to the cache: both are added. Writes without a breakdown live five
    minutes, the default.
    """
    fresh, output = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    read, written = (count(usage.get(name, 0)) for name in ("cache_read_input_tokens", "cache_creation_input_tokens"))
    if fresh is None or output is None or read is None or written is None:
        return None
    breakdown = mapping(usage.get("cache_creation"))
    hour = count(breakdown.get("ephemeral_1h_input_tokens")) or 0
    minutes = count(breakdown.get("ephemeral_5m_input_tokens")) or 0
    written = max(written, minutes + hour) if "cache_creation_input_tokens" not in usage else written
    hour = min(hour, written)
    return Usage(
        input_tokens=fresh + read + written,
        cache_read_tokens=read,
        cache_write_5m_tokens=written - hour,
        cache_write_1h_tokens=hour,
        output_tokens=output,
        web_searches=count(mapping(usage.get("server_tool_use")).get("web_search_requests")) or 0,
        reasoning_tokens=part(mapping(usage.get("output_tokens_details")).get("thinking_tokens"), output),
        model=name_or_none(model),
        service_tier=name_or_none(usage.get("service_tier")),
    )
