"""Gemini's wire: generateContent and streamGenerateContent (AI Studio and Vertex paths), and countTokens, which is free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sark_mw.errors import InvalidRequestError
from sark_mw.usage import Usage
from sark_mw.wire.base import Call, Headers, Operation, Refusal, RefusalKind, Response, UsageTap
from sark_mw.wire.body import (
    check_count,
    check_kind,
    check_model,
    count,
    mapping,
    name_or_none,
    objects,
    parse,
    part,
    plain_path,
    read_object,
)
from sark_mw.wire.refusal import CODE, details_of, response_of, status_of
from sark_mw.wire.rewriting import lowered, with_members, with_model_at
from sark_mw.wire.seen import SeenText
from sark_mw.wire.tap import PassTap, tap_for

_MAX_CANDIDATES = 1024
# The API takes every name in both spellings.
_CONFIGS = ("generationConfig", "generation_config")
_LIMITS = ("maxOutputTokens", "max_output_tokens")
# Whatever stands before it: `models/`, `tunedModels/`, `endpoints/`. Vertex also takes a publisher's own dialect as it is.
_PATH = re.compile(
    r"(?:.*/)?([^/]*)/([^/]+):(generatecontent|streamgeneratecontent|counttokens|rawpredict|streamrawpredict)",
    re.DOTALL | re.IGNORECASE,
)
_OPERATIONS = {
    "generatecontent": Operation.GENERATE,
    "streamgeneratecontent": Operation.GENERATE,
    "counttokens": Operation.COUNT_TOKENS,
    "rawpredict": Operation.GENERATE,
    "streamrawpredict": Operation.GENERATE,
}
_STATUS_NAME = {
    RefusalKind.RATE_LIMIT: "RESOURCE_EXHAUSTED",
    RefusalKind.CONCURRENCY: "RESOURCE_EXHAUSTED",
    RefusalKind.BUDGET: "RESOURCE_EXHAUSTED",
    RefusalKind.POLICY: "PERMISSION_DENIED",
    RefusalKind.UNAVAILABLE: "UNAVAILABLE",
    RefusalKind.POLICY_UNAVAILABLE: "UNAVAILABLE",
    RefusalKind.IN_FLIGHT: "ABORTED",
    RefusalKind.ALREADY_DONE: "ALREADY_EXISTS",
    RefusalKind.UNAUTHENTICATED: "UNAUTHENTICATED",
}


class GeminiWire:
    """Gemini's dialect; a stream is either server-sent events (`alt=sse`) or one JSON array that grows."""

    name = "gemini"

    def match(self, method: str, path: str) -> Operation | None:
        """Recognise the methods of a model, a tuned model or an endpoint, Vertex's raw ones included."""
        match = _PATH.fullmatch(plain_path(path)) if method == "POST" else None
        return _OPERATIONS[match[3].lower()] if match else None

    def read(self, operation: Operation, path: str, headers: Headers, body: bytes) -> Call:
        """Read a request; model and streaming come from the path. Raw requests, in dialects unknown here, are refused."""
        match = _PATH.fullmatch(plain_path(path))
        if match is not None and match[3].lower().endswith("rawpredict"):
            message = "rawPredict has no price here for this publisher: give its path a route with wire = 'plain' and a price."
            raise InvalidRequestError(message)
        parsed = read_object(headers, body)
        check_kind(parsed, "contents", (list, dict, str))
        check_kind(parsed, "tools", (list,))
        for name in _CONFIGS:
            check_kind(parsed, name, (dict,))
            config = mapping(parsed.get(name))
            for limit in _LIMITS:
                check_count(config, limit, 0)
            for choices in ("candidateCount", "candidate_count"):
                check_count(config, choices, 1, _MAX_CANDIDATES)
        return Call(
            wire=self.name,
            operation=operation,
            model=check_model(_model_of(match) if match else None),
            stream=match is not None and match[3].lower() == "streamgeneratecontent",
            body=parsed,
            path=path,
            raw=body,
        )

    def request_body(self, call: Call) -> bytes | None:
        """Gemini always reports usage: nothing to ask for."""
        return call.raw if call.rewritten else None

    def rewrite(self, call: Call, *, model: str | None = None, max_output_tokens: int | None = None) -> Call | None:
        """Set the limit in the configuration as the caller spelt both; the model in the path, unless it is a tuned one."""
        if call.operation is not Operation.GENERATE or call.body is None:
            return None
        changes: dict[str, object] = {}
        path = None
        if max_output_tokens is not None:
            if max_output_tokens < 1:
                return None
            changes |= _limited(call.body, max_output_tokens)
        if model is not None:
            match = _PATH.fullmatch(plain_path(call.path))
            if match is None or match[1].lower() not in ("", "models"):
                return None
            path = with_model_at(call.path, match.span(2), model)
            if path is None:
                return None
        return with_members(call, changes, model=model, path=path)

    def tap(self, call: Call, status: int, headers: Headers) -> UsageTap:
        """Read usage from a success; errors and counts pass."""
        if status >= 400 or call.operation == Operation.COUNT_TOKENS:
            return PassTap(failed=status >= 400)
        return tap_for(GeminiReader, headers, stream=call.stream)

    def refuse(self, refusal: Refusal, stream: bool = False, call: Call | None = None) -> Response:
        """Answer a google.rpc.Status with an ErrorInfo, whose metadata are strings."""
        metadata = {name: str(value) for name, value in details_of(refusal).items()}
        error = {
            "code": status_of(refusal),
            "message": refusal.message,
            "status": _STATUS_NAME.get(refusal.kind, "INVALID_ARGUMENT"),
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": CODE[refusal.kind].upper(),
                    "domain": "sark-mw",
                    "metadata": metadata,
                }
            ],
        }
        return response_of(refusal, {"error": error})


def _model_of(match: re.Match[str]) -> str:
    """Name the model; one that its owner named after a cheap model must not be taken for that."""
    collection, name = match[1], match[2]
    return name if collection.lower() in ("", "models") else f"{collection}:{name}"


def _limited(body: dict[str, Any], most: int) -> dict[str, object]:
    """Return the members of the body that bound its output, in every spelling that the caller has used."""
    given = [name for name in _CONFIGS if isinstance(body.get(name), dict)] or [_CONFIGS[0]]
    bounded = [name for name in given if any(mapping(body.get(name)).get(limit) for limit in _LIMITS)] or given[:1]
    changed: dict[str, object] = {}
    for name in bounded:
        config = mapping(body.get(name))
        names = _LIMITS if name == _CONFIGS[0] else _LIMITS[::-1]
        changed[name] = {**config, **(lowered(config, names, most) or {})}
    return changed


class GeminiReader:
    """Reads responses, events, and the array that a stream without `alt=sse` is."""

    def __init__(self) -> None:
        self._searches = 0
        self.usage: Usage | None = None
        self.text = SeenText()
        self.failed = False
        self.started = False

    def event(self, name: str, data: str) -> bool:
        """Read a chunk; the last usage counts."""
        self._read(mapping(parse(data)))
        return False

    def document(self, body: object) -> None:
        """Read a whole response, or every chunk of an array."""
        for chunk in objects(body if isinstance(body, list) else [body]):
            self._read(chunk)

    def _read(self, chunk: dict[str, Any]) -> None:
        if chunk.get("error"):
            self.failed = True
        elif chunk:
            self.started = True
        finished = False
        for candidate in objects(chunk.get("candidates")):
            queries = mapping(candidate.get("groundingMetadata")).get("webSearchQueries")
            self._searches = max(self._searches, len(queries) if isinstance(queries, list) else 0)
            finished = finished or bool(candidate.get("finishReason"))
            for piece in objects(mapping(candidate.get("content")).get("parts")):
                self.text.add(*_texts(piece))
        usage = gemini_usage(chunk)
        if usage is not None:
            self.usage = replace(usage, complete=finished)
        elif finished and self.usage is not None:
            self.usage = replace(self.usage, complete=True)
        if self.usage is not None and self._searches > self.usage.web_searches:
            self.usage = replace(self.usage, web_searches=self._searches)


def _texts(piece: dict[str, Any]) -> Iterator[object]:
    yield piece.get("text")
    yield mapping(piece.get("executableCode")).get("code")
    if call := mapping(piece.get("functionCall")):
        yield call.get("name")
        try:
            yield json.dumps(call.get("args"), ensure_ascii=False)
        except RecursionError:
            return


def gemini_usage(body: dict[str, Any]) -> Usage | None:
    """Read `usageMetadata`; None where it is missing or unreadable.

    The prompt includes cached tokens; thoughts are outside the candidates, the prompts of tools outside the prompt.
    """
    usage = body.get("usageMetadata")
    if not isinstance(usage, dict) or "promptTokenCount" not in usage:
        return None
    given, tools = count(usage["promptTokenCount"]), count(usage.get("toolUsePromptTokenCount", 0))
    made, thoughts = count(usage.get("candidatesTokenCount", 0)), count(usage.get("thoughtsTokenCount", 0))
    if given is None or tools is None or made is None or thoughts is None:
        return None
    return Usage(
        input_tokens=given + tools,
        cache_read_tokens=part(usage.get("cachedContentTokenCount"), given),
        input_audio_tokens=_of_kind(usage.get("promptTokensDetails"), given, ("AUDIO",)),
        output_tokens=made + thoughts,
        reasoning_tokens=thoughts,
        # Pictures and films have a price of their own too, and no model writes two of these.
        output_audio_tokens=_of_kind(usage.get("candidatesTokensDetails"), made, ("AUDIO", "IMAGE", "VIDEO")),
        model=name_or_none(body.get("modelVersion")),
    )


def _of_kind(details: object, whole: int, kinds: tuple[str, ...]) -> int:
    found = (part(detail.get("tokenCount"), whole) for detail in objects(details) if detail.get("modality") in kinds)
    return min(sum(found), whole)
