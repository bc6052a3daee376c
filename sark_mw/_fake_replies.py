"""What the fake provider says: replies and event streams as OpenAI and Anthropic write them, from a plan made in advance."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sark_mw.usage import Usage

_WORDS = ("able", "bird", "coin", "dusk", "east", "fern", "gold", "hill", "iris", "jade", "kite", "lamp", "moss", "note")
_CREATED = 1_700_000_000
Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One call, decided before its first byte: `choices` are the words of each choice, one token a word."""

    call_id: str
    operation: str
    model: str
    usage: Usage
    choices: tuple[tuple[str, ...], ...]
    truncated: bool = False
    include_usage: bool = True
    usage_mode: str = "true"
    pad_chars: int = 0
    body: Body

    @property
    def reported(self) -> Usage | None:
        """What the reply says was used: the truth, zero or nothing, by fault."""
        return {"true": self.usage, "zero": Usage(), "none": None}[self.usage_mode]

    def after(self, words: int) -> Usage:
        """What is billed if the call ends after so many words."""
        visible = self.usage.output_tokens - self.usage.reasoning_tokens
        return replace(self.usage, output_tokens=self.usage.output_tokens - visible + min(words, visible), complete=False)


@dataclass(frozen=True, slots=True)
class Frame:
    """One server-sent event, and how many words were out after it."""

    raw: bytes
    words: int


def make_plan(seed: int, call_id: str, operation: str, body: Body, mean_words: int, model: str | None = None) -> Plan:
    """Decide a reply from what was asked: the same question gives the same tokens, whoever asks and however."""
    asked = {name: body.get(name) for name in ("model", "messages", "system", "input", "prompt")}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
    rng = random.Random(f"{seed}:{digest}")  # noqa: S311 - reproducible, not secret
    model = model or str(body.get("model") or "fake-1")
    given = count_input({name: asked[name] for name in asked if name != "model"})
    wanted = rng.randint(max(1, mean_words // 2), mean_words + mean_words // 2)
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    most = min((limit for limit in limits if isinstance(limit, int) and limit >= 0), default=wanted)
    each = 0 if operation == "embeddings" else min(wanted, most)
    asked_n = body.get("n")
    n = asked_n if isinstance(asked_n, int) and 0 < asked_n <= 128 else 1
    reasoning = each // 4 if model.startswith(("o1", "o3", "o4", "gpt-5")) else 0
    read = given // 2 if rng.random() < 0.3 and operation != "embeddings" else 0
    cached = '"cache_control"' in json.dumps(body)
    hour = given // 3 if cached and '"1h"' in json.dumps(body) else 0
    minutes = given // 3 if cached and not hour else 0
    usage = Usage(
        input_tokens=given,
        cache_read_tokens=read if operation != "messages" or cached else 0,
        cache_write_5m_tokens=minutes if operation == "messages" else 0,
        cache_write_1h_tokens=hour if operation == "messages" else 0,
        output_tokens=each * n,
        reasoning_tokens=reasoning * n,
        model=model,
    )
    choices = tuple(tuple(rng.choice(_WORDS) for _ in range(each - reasoning)) for _ in range(n))
    wants = body.get("stream_options")
    include = operation not in ("chat", "completions") or (isinstance(wants, dict) and wants.get("include_usage") is True)
    return Plan(
        call_id=call_id,
        operation=operation,
        model=model,
        usage=usage,
        choices=choices,
        truncated=each < wanted,
        include_usage=include,
        body=body,
    )


def count_input(value: object) -> int:
    """Count input tokens: a word or four characters each, whichever is fewer, so that a sane estimate is never below it."""
    words = chars = ids = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            words, chars = words + len(item.split()), chars + len(item)
        elif isinstance(item, dict):
            stack += [child for name, child in item.items() if name not in ("role", "type", "cache_control")]
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, int) and not isinstance(item, bool):
            ids += 1
    return max(1, min(words, -(-chars // 4)) + ids)


def text_of(plan: Plan, choice: int) -> str:
    """The text of one choice, padded by fault."""
    return " ".join(plan.choices[choice]) + "x" * plan.pad_chars


def openai_usage(plan: Plan) -> Body | None:
    """OpenAI's usage: chat names or Responses names."""
    usage = plan.reported
    if usage is None:
        return None
    given, made = {"cached_tokens": usage.cache_read_tokens}, {"reasoning_tokens": usage.reasoning_tokens}
    total = usage.input_tokens + usage.output_tokens
    if plan.operation == "embeddings":
        return {"prompt_tokens": usage.input_tokens, "total_tokens": total}
    if plan.operation == "responses":
        return {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": given,
            "output_tokens": usage.output_tokens,
            "output_tokens_details": made,
            "total_tokens": total,
        }
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": total,
        "prompt_tokens_details": given,
        "completion_tokens_details": made,
    }


def anthropic_usage(plan: Plan) -> Body | None:
    """Anthropic's usage: the input excludes what the cache read and wrote."""
    usage = plan.reported
    if usage is None:
        return None
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    return {
        "input_tokens": usage.input_tokens - usage.cache_read_tokens - written,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "cache_creation_input_tokens": written,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens,
        "service_tier": "standard",
    }


def reply(plan: Plan) -> Body:
    """The whole JSON reply."""
    makers = {"messages": _message, "responses": _response, "embeddings": _embeddings}
    body = makers.get(plan.operation, _chat)(plan)
    return {name: value for name, value in body.items() if name != "usage" or value is not None}


def _head(plan: Plan, kind: str) -> Body:
    return {"id": plan.call_id, "object": kind, "created": _CREATED, "model": plan.model}


def _chat(plan: Plan) -> Body:
    stop = "length" if plan.truncated else "stop"
    choices: list[Body] = []
    for index in range(len(plan.choices)):
        text = text_of(plan, index)
        said = {"text": text} if plan.operation == "completions" else {"message": {"role": "assistant", "content": text}}
        choices.append({"index": index, **said, "finish_reason": stop, "logprobs": None})
    kind = "text_completion" if plan.operation == "completions" else "chat.completion"
    return {**_head(plan, kind), "choices": choices, "usage": openai_usage(plan)}


def _embeddings(plan: Plan) -> Body:
    asked = plan.body.get("input")
    many = isinstance(asked, list) and bool(asked) and isinstance(asked[0], (str, list))
    vector = [0.125] * int(plan.body.get("dimensions") or 8)
    coded: object = vector
    if plan.body.get("encoding_format") == "base64":
        coded = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    data = [{"object": "embedding", "index": i, "embedding": coded} for i in range(len(asked) if asked and many else 1)]
    return {"object": "list", "data": data, "model": plan.model, "usage": openai_usage(plan)}


def _message(plan: Plan) -> Body:
    return {
        "id": plan.call_id,
        "type": "message",
        "role": "assistant",
        "model": plan.model,
        "content": [{"type": "text", "text": text_of(plan, 0)}],
        "stop_reason": "max_tokens" if plan.truncated else "end_turn",
        "stop_sequence": None,
        "usage": anthropic_usage(plan),
    }


def _response(plan: Plan, status: str | None = None, with_text: bool = True) -> Body:
    status = status or ("incomplete" if plan.truncated else "completed")
    item = {
        "id": f"msg_{plan.call_id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [{"type": "output_text", "text": text_of(plan, 0), "annotations": []}],
    }
    ended = status != "in_progress"
    return {
        "id": plan.call_id,
        "object": "response",
        "created_at": _CREATED,
        "model": plan.model,
        "status": status,
        "error": {"code": "server_error", "message": "The model failed."} if status == "failed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": [item] if with_text else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": openai_usage(plan) if ended else None,
    }


def frames(plan: Plan, words_per_chunk: int) -> Iterator[Frame]:
    """The event stream, whole."""
    makers = {"messages": _message_frames, "responses": _response_frames}
    yield from makers.get(plan.operation, _chat_frames)(plan, words_per_chunk)


def error_frame(plan: Plan, words: int) -> Frame:
    """The event with which a stream fails midway; the Responses API bills what was produced and says so."""
    if plan.operation == "messages":
        error = {"type": "overloaded_error", "message": "Overloaded"}
        return _frame({"type": "error", "error": error}, words, "error")
    if plan.operation == "responses":
        failed = replace(plan, usage=plan.after(words))
        body = {"type": "response.failed", "sequence_number": 999, "response": _response(failed, "failed", with_text=False)}
        return _frame(body, words, "response.failed")
    return _frame({"error": {"message": "The server had an error.", "type": "server_error", "code": None}}, words)


def _frame(body: Body, words: int, name: str | None = None) -> Frame:
    head = f"event: {name}\n" if name else ""
    return Frame(f"{head}data: {json.dumps(body, separators=(',', ':'))}\n\n".encode(), words)


def _pieces(plan: Plan, choice: int, size: int) -> Iterator[tuple[str, int]]:
    words = plan.choices[choice]
    for start in range(0, len(words), size):
        piece = words[start : start + size]
        pad = "x" * plan.pad_chars if start == 0 else ""
        yield (" " if start else "") + " ".join(piece) + pad, len(piece)


def _chat_frames(plan: Plan, size: int) -> Iterator[Frame]:
    plain = plan.operation == "completions"
    head = _head(plan, "text_completion" if plain else "chat.completion.chunk")
    # OpenAI sends a null usage on every chunk but the last, and only where usage was asked for.
    extra: Body = {"usage": None} if plan.include_usage and plan.reported else {}

    def chunk(index: int, text: str | None, words: int, stop: str | None = None) -> Frame:
        said: Body = {"text": text or ""} if plain else {"delta": {} if text is None else {"content": text}}
        return _frame({**head, "choices": [{"index": index, **said, "finish_reason": stop, "logprobs": None}], **extra}, words)

    words = 0
    for index in range(len(plan.choices)):
        if not plain:
            role = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            yield _frame({**head, "choices": [role], **extra}, words)
        for text, made in _pieces(plan, index, size):
            words += made
            yield chunk(index, text, words)
        yield chunk(index, None, words, "length" if plan.truncated else "stop")
    if plan.include_usage and plan.reported:
        yield _frame({**head, "choices": [], "usage": openai_usage(plan)}, words)
    yield Frame(b"data: [DONE]\n\n", words)


def _message_frames(plan: Plan, size: int) -> Iterator[Frame]:
    usage = anthropic_usage(plan)
    started = {**_message(plan), "content": [], "stop_reason": None}
    started["usage"] = {**usage, "output_tokens": 1} if usage else {}
    yield _frame({"type": "message_start", "message": started}, 0, "message_start")
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield _frame(block, 0, "content_block_start")
    yield _frame({"type": "ping"}, 0, "ping")
    words = 0
    for text, made in _pieces(plan, 0, size):
        words += made
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        yield _frame(delta, words, "content_block_delta")
    yield _frame({"type": "content_block_stop", "index": 0}, words, "content_block_stop")
    stop = {"stop_reason": "max_tokens" if plan.truncated else "end_turn", "stop_sequence": None}
    ended: Body = {"type": "message_delta", "delta": stop}
    yield _frame({**ended, "usage": {"output_tokens": usage["output_tokens"]}} if usage else ended, words, "message_delta")
    yield _frame({"type": "message_stop"}, words, "message_stop")


def _response_frames(plan: Plan, size: int) -> Iterator[Frame]:
    done = _response(plan)
    item = done["output"][0]
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    begun = {**item, "status": "in_progress", "content": []}
    empty = {"type": "output_text", "text": "", "annotations": []}
    script: list[tuple[str, Body, int]] = [
        ("response.created", {"response": _response(plan, "in_progress", with_text=False)}, 0),
        ("response.output_item.added", {"output_index": 0, "item": begun}, 0),
        ("response.content_part.added", {**at, "part": empty}, 0),
    ]
    words = 0
    for text, made in _pieces(plan, 0, size):
        words += made
        script.append(("response.output_text.delta", {**at, "delta": text, "logprobs": []}, words))
    script += [
        ("response.output_text.done", {**at, "text": text_of(plan, 0), "logprobs": []}, words),
        ("response.content_part.done", {**at, "part": item["content"][0]}, words),
        ("response.output_item.done", {"output_index": 0, "item": item}, words),
        (f"response.{done['status']}", {"response": done}, words),
    ]
    for number, (name, body, out) in enumerate(script):
        yield _frame({"type": name, "sequence_number": number, **body}, out, name)
