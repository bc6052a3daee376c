"""The app that is wrapped in benchmarks, bare: a chat completion with usage, answered at once; and how it is called."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import MutableMapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from sark_mw.settings import (
    LedgerSettings,
    LimitSettings,
    ObserveSettings,
    PrincipalSettings,
    ReservationSettings,
    Settings,
    StoreSettings,
)

PATH = "/v1/chat/completions"
KEY = "benchmark-key"
CHAT = {
    "model": "gpt-4o",
    "max_tokens": 200,
    "messages": [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Why is the sky blue in the morning and red in the evening? " * 4},
    ],
}
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Light is scattered. " * 20}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 70, "completion_tokens": 80, "total_tokens": 150},
    }
).encode()
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(_ANSWER)).encode())]


async def chat_app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Read the request, answer at once."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
    await send({"type": "http.response.body", "body": _ANSWER})


def make_settings(url: str, directory: Path) -> Settings:
    """Make settings with three budgets on each request, never spent; one shard, so that nothing waits for another."""
    limits = tuple(
        LimitSettings(scope=scope, amount=Decimal(1_000_000), window=window)
        for scope, window in (("org:acme", "month"), ("team:ml", "day"), ("key:*", "day"))
    )
    return Settings(
        store=StoreSettings(url=url, shards=1, deadline_ms=30_000, journal=directory / "journal.jsonl"),
        ledger=LedgerSettings(url=SecretStr(f"sqlite:///{directory / 'ledger.db'}")),
        principal=PrincipalSettings(key_secret=SecretStr("0123456789abcdef0123"), default_scopes=("org:acme", "team:ml")),
        reservation=ReservationSettings(lease_s=600),
        observe=ObserveSettings(audit_log=False),
        limits=limits,
    )


def http_scope() -> dict[str, Any]:
    """Make the scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"authorization", f"Bearer {KEY}".encode()),
            (b"content-type", b"application/json"),
        ],
        "client": ("127.0.0.1", 1234),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


async def in_process(app: Any, body: bytes) -> tuple[float, int]:
    """Call an ASGI app once; returns the seconds until the response's last byte, and the status."""
    last = 0.0
    status = 0
    asked = False
    over = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await over.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal last, status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif not message.get("more_body"):
            last = time.perf_counter()
            over.set()

    started = time.perf_counter()
    await app(http_scope(), receive, send)
    return last - started, status
