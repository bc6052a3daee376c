"""Recorded streams in the shapes that providers send, with the usage that they mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sark_mw.usage import Usage
from sark_mw.wire import WIRES
from sark_mw.wire.base import Call, Operation, UsageTap

SSE = ((b"content-type", b"text/event-stream; charset=utf-8"),)
JSON = ((b"content-type", b"application/json"),)


def sse(*events: object, end: str = "\n", names: bool = False) -> bytes:
    """Write events; strings are taken as they are, objects as JSON."""
    out = []
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
        name = f"event: {event['type']}{end}" if names and isinstance(event, dict) else ""
        out.append(f"{name}data: {data}{end}{end}")
    return "".join(out).encode()


def call(wire: str, operation: Operation, *, stream: bool = True, injected: bool = False) -> Call:
    return Call(wire=wire, operation=operation, model="m", stream=stream, body={}, usage_injected=injected)


def tap_of(asked: Call, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = SSE) -> UsageTap:
    return WIRES[asked.wire].tap(asked, status, headers)


@dataclass(frozen=True)
class Recorded:
    """A stream, who asked for it, what it means and what the client gets (None: all of it)."""

    name: str
    asked: Call
    stream: bytes
    usage: Usage | None
    chars: int
    client: bytes | None = None
    failed: bool = False


def _chunk(**fields: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o-2024-08-06", "usage": None, **fields}


def _delta(text: str) -> dict[str, Any]:
    return _chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


CHAT_CHUNKS = [_delta("Grüße "), _delta("和平\u2028"), _chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])]
CHAT_USAGE = _chunk(
    choices=[],
    service_tier="default",
    usage={
        "prompt_tokens": 100,
        "completion_tokens": 40,
        "total_tokens": 140,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": 0, "rejected_prediction_tokens": 5},
    },
)
CHAT_MEANS = Usage(
    input_tokens=100,
    cache_read_tokens=64,
    input_audio_tokens=3,
    output_tokens=40,
    reasoning_tokens=30,
    model="gpt-4o-2024-08-06",
    service_tier="default",
)
RESPONSES_USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 8, "cache_write_tokens_details": {"ttl_12h_tokens": 5}},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 12},
}
RESPONSES_MEANS = Usage(
    input_tokens=50,
    cache_read_tokens=10,
    cache_write_5m_tokens=3,
    cache_write_1h_tokens=5,
    output_tokens=20,
    reasoning_tokens=12,
    model="o3",
)
MESSAGE_START = {
    "type": "message_start",
    "message": {
        "model": "claude-x",
        "usage": {
            "input_tokens": 7,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            "output_tokens": 4,
            "service_tier": "standard",
        },
    },
}
MESSAGE_MEANS = Usage(
    input_tokens=137,
    cache_read_tokens=100,
    cache_write_5m_tokens=10,
    cache_write_1h_tokens=20,
    output_tokens=25,
    reasoning_tokens=6,
    model="claude-x",
    service_tier="standard",
)


def _text(text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


MESSAGE_EVENTS = [
    MESSAGE_START,
    {"type": "ping"},
    _text("Ça va? "),
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 9}},
    _text("😀"),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 25, "input_tokens": None, "output_tokens_details": {"thinking_tokens": 6}},
    },
    {"type": "message_stop"},
]


def _responses(kind: str) -> bytes:
    return sse(
        {"type": "response.created", "response": {"model": "o3", "usage": None}},
        {"type": "response.output_text.delta", "delta": "abc"},
        {"type": f"response.{kind}", "response": {"model": "o3", "status": kind, "usage": RESPONSES_USAGE}},
        names=True,
    )


def _gemini(text: str, **usage: int) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": text}]}}], "modelVersion": "gemini-x", "usageMetadata": usage}


GEMINI_LAST = {
    **_gemini("cd", promptTokenCount=10, cachedContentTokenCount=4, candidatesTokenCount=5, thoughtsTokenCount=7),
    "candidates": [{"content": {"parts": [{"text": "cd"}]}, "finishReason": "STOP"}],
}
GEMINI_MEANS = Usage(input_tokens=10, cache_read_tokens=4, output_tokens=12, reasoning_tokens=7, model="gemini-x")
_PLAIN_CHAT = sse(*CHAT_CHUNKS) + b"data: [DONE]\n\n"

RECORDED = [
    Recorded(
        "chat that asked for usage",
        call("openai", Operation.CHAT),
        sse(*CHAT_CHUNKS, CHAT_USAGE, "[DONE]"),
        CHAT_MEANS,
        9,
    ),
    Recorded(
        "chat whose usage was injected",
        call("openai", Operation.CHAT, injected=True),
        sse(*CHAT_CHUNKS, CHAT_USAGE, "[DONE]"),
        CHAT_MEANS,
        9,
        client=_PLAIN_CHAT,
    ),
    Recorded(
        "chat with CRLF, comments, several data lines and no last blank line",
        call("openai", Operation.CHAT, injected=True),
        b"\xef\xbb\xbf: hello\r\n\r\n" + sse(_delta("ab"), end="\r\n") + b'data: {"choices": [],\r\ndata: "usage": '
        b'{"prompt_tokens": 3, "completion_tokens": 0}}\r\n\r\n: bye\r\n\r\nid: 7\r\ndata: [DONE]',
        Usage(input_tokens=3, output_tokens=0),
        2,
        client=b"\xef\xbb\xbf: hello\r\n\r\n" + sse(_delta("ab"), end="\r\n") + b": bye\r\n\r\nid: 7\r\ndata: [DONE]",
    ),
    Recorded(
        "chat with bare carriage returns",
        call("openai", Operation.CHAT, injected=True),
        sse(_delta("ab"), CHAT_USAGE, "[DONE]", end="\r"),
        CHAT_MEANS,
        2,
        client=sse(_delta("ab"), "[DONE]", end="\r"),
    ),
    Recorded(
        "chat that ends in half a usage chunk",
        call("openai", Operation.CHAT, injected=True),
        sse(*CHAT_CHUNKS) + sse(CHAT_USAGE)[:60],
        None,
        9,
    ),
    Recorded(
        "chat whose usage rides on its last choice",
        call("openai", Operation.CHAT, injected=True),
        sse(_chunk(choices=[{"delta": {"content": "x"}, "finish_reason": "stop"}], usage=CHAT_USAGE["usage"])),
        Usage(
            input_tokens=100,
            cache_read_tokens=64,
            input_audio_tokens=3,
            output_tokens=40,
            reasoning_tokens=30,
            model="gpt-4o-2024-08-06",
        ),
        1,
    ),
    Recorded(
        "chat that fails midway",
        call("openai", Operation.CHAT, injected=True),
        sse(_delta("abc"), {"error": {"message": "no"}}),
        None,
        3,
        failed=True,
    ),
    Recorded("responses completed", call("openai", Operation.RESPONSES), _responses("completed"), RESPONSES_MEANS, 3),
    Recorded("responses incomplete", call("openai", Operation.RESPONSES), _responses("incomplete"), RESPONSES_MEANS, 3),
    Recorded("responses failed", call("openai", Operation.RESPONSES), _responses("failed"), RESPONSES_MEANS, 3, failed=True),
    Recorded("messages", call("anthropic", Operation.MESSAGES), sse(*MESSAGE_EVENTS, names=True), MESSAGE_MEANS, 8),
    Recorded("gemini", call("gemini", Operation.GENERATE), sse(_gemini("ab", promptTokenCount=10), GEMINI_LAST), GEMINI_MEANS, 4),
]
