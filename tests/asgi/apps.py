"""Apps that answer one thing, and what a provider's answer looks like."""

from __future__ import annotations

import json
from typing import Any


class Replies:
    """Answers every request with the same JSON document, and counts them."""

    def __init__(self, body: object, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self._body = json.dumps(body).encode()
        self._status = status
        self._headers = headers
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await receive()
        length = (b"content-length", str(len(self._body)).encode())
        headers = [(b"content-type", b"application/json"), length, *self._headers]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


def completion(given: int, made: int) -> dict[str, Any]:
    """A chat completion that used so many tokens."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    return {"id": "x", "model": "gpt-4o", "choices": [choice], "usage": usage}
