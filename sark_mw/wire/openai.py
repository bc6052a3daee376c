"""OpenAI's wire: chat completions, completions, responses, embeddings, under any prefix (Azure deployments, proxies)."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    read_object,
    with_member,
)
from sark_mw.wire.refusal import CODE, details_of, response_of
from sark_mw.wire.rewriting import lowered, with_members, with_model_at
from sark_mw.wire.seen import SeenText
from sark_mw.wire.tap import PassTap, tap_for

_MAX_CHOICES = 1024
# /responses, /embeddings and /completions are common words: only bare, after a version, or in an OpenAI-like prefix.
_PATH = re.compile(
    r"(?:.*/(?P<chat>chat/completions)|(?:|.*/v[0-9][a-z0-9]*|.*/openai|.*/(?:deployments|engines)/[^/]+)/"
    r"(?P<plain>completions|responses|embeddings))",
    re.DOTALL,
)
_DEPLOYMENT = re.compile(
    r".*/(?:deployments|engines)/([^/]+)/(?:extensions/)?(?:chat/completions|completions|responses|embeddings)",
    re.DOTALL | re.IGNORECASE,
)
_OPERATIONS = {
    "chat/completions": Operation.CHAT,
    "completions": Operation.COMPLETIONS,
    "responses": Operation.RESPONSES,
    "embeddings": Operation.EMBEDDINGS,
}
_INPUTS = {
    Operation.CHAT: ("messages", (list,), True),
    Operation.COMPLETIONS: ("prompt", (str, list), False),
    Operation.RESPONSES: ("input", (str, list), False),
    Operation.EMBEDDINGS: ("input", (str, list), True),
}
#: Where an output limit stands; the first is set where the caller has set none.
_LIMITS = {
    Operation.CHAT: ("max_completion_tokens", "max_tokens"),
    Operation.COMPLETIONS: ("max_tokens",),
    Operation.RESPONSES: ("max_output_tokens",),
}
_ERROR_TYPE = {
    RefusalKind.RATE_LIMIT: "rate_limit_error",
    RefusalKind.CONCURRENCY: "rate_limit_error",
    RefusalKind.BUDGET: "insufficient_quota",
    RefusalKind.POLICY: "permission_error",
    RefusalKind.UNAVAILABLE: "server_error",
    RefusalKind.POLICY_UNAVAILABLE: "server_error",
    RefusalKind.UNAUTHENTICATED: "authentication_error",
}
_INCLUDE_USAGE = b'"stream_options":{"include_usage":true},'


class OpenAIWire:
    """OpenAI's dialect; `inject_usage=False` leaves streams alone, for upstreams that refuse `stream_options`."""

    name = "openai"

    def __init__(self, *, inject_usage: bool = True) -> None:
        self._inject_usage = inject_usage

    def match(self, method: str, path: str) -> Operation | None:
        """Recognise the four endpoints."""
        if method != "POST" or not (match := _PATH.fullmatch(clean_path(path))):
            return None
        return _OPERATIONS[match["chat"] or match["plain"]]

    def read(self, operation: Operation, path: str, headers: Headers, body: bytes) -> Call:
        """Read a request; the model is Azure's deployment where the path names one, whatever the body says."""
        parsed = read_object(headers, body)
        name, kinds, required = _INPUTS[operation]
        check_kind(parsed, name, kinds, required)
        for limit in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            check_count(parsed, limit, 0)
        for choices in ("n", "best_of"):
            check_count(parsed, choices, 1, _MAX_CHOICES)
        check_kind(parsed, "stream_options", (dict,))
        stream = operation != Operation.EMBEDDINGS and check_flag(parsed, "stream")
        inject = stream and self._inject_usage and operation in (Operation.CHAT, Operation.COMPLETIONS)
        inject = inject and not check_flag(mapping(parsed.get("stream_options")), "include_usage")
        model = check_model(parsed.get("model"))
        if deployment := _DEPLOYMENT.fullmatch(plain_path(path)):
            model = check_model(deployment[1])
        return Call(
            wire=self.name,
            operation=operation,
            model=model,
            stream=stream,
            body=parsed,
            usage_injected=inject,
            strip_accept_encoding=inject,
            path=path,
            raw=body,
        )

    def request_body(self, call: Call) -> bytes | None:
        """Ask for usage: spliced into the caller's own bytes, so that nothing else of them changes."""
        if not call.usage_injected or call.body is None:
            return call.raw if call.rewritten else None
        if "stream_options" not in call.body:
            start = call.raw.index(b"{") + 1
            return call.raw[:start] + _INCLUDE_USAGE + call.raw[start:]
        options = {**mapping(call.body["stream_options"]), "include_usage": True}
        return with_member(call.raw, "stream_options", options)

    def rewrite(self, call: Call, *, model: str | None = None, max_output_tokens: int | None = None) -> Call | None:
        """Set the limit under the name that the caller used; the model in the body, and in the path of an Azure deployment."""
        changes: dict[str, object] = {}
        path = None
        if max_output_tokens is not None:
            limits = lowered(call.body or {}, _LIMITS.get(call.operation, ()), max_output_tokens)
            if limits is None:
                return None
            changes |= limits
        if model is not None:
            deployment = _DEPLOYMENT.fullmatch(plain_path(call.path))
            path = with_model_at(call.path, deployment.span(1), model) if deployment else call.path
            if path is None:
                return None
            if not deployment or mapping(call.body).get("model") is not None:
                changes["model"] = model
        return with_members(call, changes, model=model, path=path)

    def tap(self, call: Call, status: int, headers: Headers) -> UsageTap:
        """Read usage from a success; an error passes."""
        if status >= 400:
            return PassTap(failed=True)
        embeddings = call.operation == Operation.EMBEDDINGS
        return tap_for(lambda: OpenAIReader(call), headers, stream=call.stream, drop=call.usage_injected, tail_only=embeddings)

    def refuse(self, refusal: Refusal, stream: bool = False, call: Call | None = None) -> Response:
        """Answer `{"error": {"message", "type", "code", "param", "details"}}`."""
        error = {
            "message": refusal.message,
            "type": _ERROR_TYPE.get(refusal.kind, "invalid_request_error"),
            "code": CODE[refusal.kind],
            "param": refusal.param,
            "details": details_of(refusal),
        }
        return response_of(refusal, {"error": error})


class OpenAIReader:
    """Reads OpenAI's responses, chunks and Responses API events."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.usage: Usage | None = None
        self.text = SeenText()
        self.failed = False
        self.started = False

    def event(self, name: str, data: str) -> bool:
        """Read a chunk; True for the usage chunk that only we asked for."""
        if data.startswith("[DONE]"):
            self._complete()
            return False
        chunk = mapping(parse(data))
        if chunk.get("error") or name == "error" or chunk.get("type") == "error":
            self.failed = True
            return False
        if not chunk:
            return False
        self.started = True
        if self._call.operation == Operation.RESPONSES:
            self._response_event(chunk)
            return False
        return self._chat_chunk(chunk)

    def document(self, body: object) -> None:
        """Read a whole JSON response."""
        whole = mapping(body)
        self.failed = self.failed or bool(whole.get("error")) or whole.get("status") == "failed"
        self._take(whole)
        for choice in objects(whole.get("choices")):
            self.text.add(choice.get("text"), *_message_texts(mapping(choice.get("message"))))
        for item in objects(whole.get("output")):
            self.text.add(item.get("arguments"))
            self.text.add(*(piece.get("text") for piece in objects(item.get("content"))))

    def _chat_chunk(self, chunk: dict[str, Any]) -> bool:
        choices = chunk.get("choices")
        finished = choices == []
        for choice in objects(choices):
            self.text.add(choice.get("text"), *_message_texts(mapping(choice.get("delta"))))
            finished = finished or bool(choice.get("finish_reason"))
        self._take(chunk, complete=finished)
        return self._call.usage_injected and choices == [] and isinstance(chunk.get("usage"), dict)

    def _response_event(self, chunk: dict[str, Any]) -> None:
        kind = chunk.get("type")
        if isinstance(kind, str) and kind.endswith(".delta"):
            self.text.add(chunk.get("delta"))
        if kind == "response.failed":
            self.failed = True
        self._take(mapping(chunk.get("response")))

    def _take(self, body: dict[str, Any], complete: bool = True) -> None:
        usage = openai_usage(body, needs_output=self._call.operation != Operation.EMBEDDINGS)
        if usage is not None:
            self.usage = replace(usage, complete=complete)

    def _complete(self) -> None:
        if self.usage is not None:
            self.usage = replace(self.usage, complete=True)


def _message_texts(message: dict[str, Any]) -> Iterator[object]:
    yield from (message.get(name) for name in ("content", "reasoning_content", "reasoning", "refusal"))
    yield mapping(message.get("function_call")).get("arguments")
    for tool in objects(message.get("tool_calls")):
        function = mapping(tool.get("function"))
        yield from (function.get("name"), function.get("arguments"))


def _is_search(item: dict[str, Any]) -> bool:
    # Opening a page that was found, or looking for something in it, is free.
    return item.get("type") == "web_search_call" and mapping(item.get("action")).get("type", "search") == "search"


def openai_usage(body: dict[str, Any], needs_output: bool = True) -> Usage | None:
    """Read the `usage` of a response or chunk; None where it is missing or its totals are unreadable.

    The input includes cached and cache-writing tokens, the output includes reasoning and rejected predictions. Calls of OpenAI's
    own tools are not in the usage, but among the items of the response.
    """
    usage = mapping(body.get("usage"))
    given = count(usage.get("prompt_tokens", usage.get("input_tokens")))
    made = usage.get("completion_tokens", usage.get("output_tokens"))
    output = 0 if made is None and not needs_output else count(made)
    if given is None or output is None:
        return None
    reads = mapping(usage.get("prompt_tokens_details", usage.get("input_tokens_details")))
    makes = mapping(usage.get("completion_tokens_details", usage.get("output_tokens_details")))
    items = list(objects(body.get("output")))
    cached = part(reads.get("cached_tokens", usage.get("prompt_cache_hit_tokens")), given)
    written = part(reads.get("cache_write_tokens"), given - cached)
    long_lived = part(mapping(reads.get("cache_write_tokens_details")).get("ttl_12h_tokens"), written)
    return Usage(
        input_tokens=given,
        cache_read_tokens=cached,
        cache_write_5m_tokens=written - long_lived,
        cache_write_1h_tokens=long_lived,
        input_audio_tokens=part(reads.get("audio_tokens"), given),
        output_tokens=output,
        reasoning_tokens=part(makes.get("reasoning_tokens"), output),
        output_audio_tokens=part(makes.get("audio_tokens"), output),
        web_searches=sum(_is_search(item) for item in items),
        file_searches=sum(item.get("type") == "file_search_call" for item in items),
        code_sessions=len({str(item.get("container_id")) for item in items if item.get("type") == "code_interpreter_call"}),
        model=name_or_none(body.get("model")),
        service_tier=name_or_none(body.get("service_tier")),
    )
