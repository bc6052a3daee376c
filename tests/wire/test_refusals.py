"""Refusals: the right status, headers and dialect; official clients raise typed, and retry only what may pass."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

from sark_mw.errors import InvalidRequestError
from sark_mw.wire import WIRES
from sark_mw.wire.base import Call, Operation, Refusal, RefusalKind, Response, ToolCall
from sark_mw.wire.refusal import kind_of
from tests.wire.serving import serve

NOW_MS = 1_795_334_400_000
BUDGET = Refusal(
    kind=RefusalKind.BUDGET,
    message="The daily budget of user:alice is spent.",
    request_id="req-1",
    scope="user:alice",
    limit="user:alice/usd/day@Europe/Berlin",
    unit="usd",
    window="day",
    amount=Decimal("5.00"),
    spent=Decimal("4.900000001"),
    held=Decimal("0.05"),
    needed=Decimal("0.2"),
    remaining=Decimal("0.049999999"),
    resets_at_ms=NOW_MS + 3_600_000,
    now_ms=NOW_MS,
    affordable_output_tokens=312,
)
RATE = Refusal(
    kind=RefusalKind.RATE_LIMIT,
    message="Too many requests.",
    request_id="req-2",
    scope="user:alice",
    limit="user:alice/requests/minute",
    unit="requests",
    window="minute",
    amount=100,
    remaining=0,
    resets_at_ms=NOW_MS + 11_001,
    now_ms=NOW_MS,
)
DAY_RATE = Refusal(
    kind=RefusalKind.RATE_LIMIT,
    message="Too many requests today.",
    unit="requests",
    window="day",
    amount=100,
    remaining=0,
    resets_at_ms=NOW_MS + 7_200_000,
    now_ms=NOW_MS,
)
POLICY = Refusal(kind=RefusalKind.POLICY, message="Denied.", plugin="business-hours", reason="It is night.", request_id="req-3")


def plain(kind: RefusalKind, message: str = "No.") -> Refusal:
    return Refusal(kind=kind, message=message, request_id="req-4")


IDEMPOTENCY = (RefusalKind.IDEMPOTENCY, RefusalKind.IN_FLIGHT, RefusalKind.ALREADY_DONE)

#: Refusal, status, openai's exception, its code, anthropic's exception, its type. All are final: one request, no retry.
FINAL = [
    (BUDGET, 402, "APIStatusError", "budget_exceeded", "PaymentRequiredError", "billing_error"),
    (POLICY, 403, "PermissionDeniedError", "policy_denied", "PermissionDeniedError", "permission_error"),
    (DAY_RATE, 429, "RateLimitError", "rate_limit_exceeded", "RateLimitError", "rate_limit_error"),
    (plain(RefusalKind.INVALID), 400, "BadRequestError", "invalid_request", "BadRequestError", "invalid_request_error"),
    (plain(RefusalKind.TOO_LARGE), 413, "APIStatusError", "request_too_large", "ContentTooLargeError", "request_too_large"),
    (plain(RefusalKind.UNSUPPORTED), 415, "APIStatusError", "unsupported_media_type", "APIStatusError", "invalid_request_error"),
    (
        plain(RefusalKind.IDEMPOTENCY),
        422,
        "UnprocessableEntityError",
        "idempotency_key_reused",
        "UnprocessableEntityError",
        "invalid_request_error",
    ),
    (
        plain(RefusalKind.ALREADY_DONE),
        409,
        "ConflictError",
        "request_already_done",
        "ConflictError",
        "invalid_request_error",
    ),
    (
        plain(RefusalKind.UNAUTHENTICATED),
        401,
        "AuthenticationError",
        "unauthenticated",
        "AuthenticationError",
        "authentication_error",
    ),
]
#: These pass by themselves within a minute: typed too, but the clients may and do wait and try again.
TRANSIENT = [
    (RATE, 429, "RateLimitError", "rate_limit_exceeded", "RateLimitError", "rate_limit_error"),
    (plain(RefusalKind.CONCURRENCY), 429, "RateLimitError", "concurrency_limit_exceeded", "RateLimitError", "rate_limit_error"),
    (plain(RefusalKind.IN_FLIGHT), 409, "ConflictError", "request_in_flight", "ConflictError", "invalid_request_error"),
    (
        plain(RefusalKind.UNAVAILABLE),
        503,
        "InternalServerError",
        "enforcement_unavailable",
        "ServiceUnavailableError",
        "api_error",
    ),
    (
        plain(RefusalKind.POLICY_UNAVAILABLE),
        503,
        "InternalServerError",
        "policy_unavailable",
        "ServiceUnavailableError",
        "api_error",
    ),
]


class Refuser:
    """Refuses everything, and counts."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1
        wire = WIRES["anthropic" if scope["path"].endswith("/messages") else "openai"]
        await reply(wire.refuse(self.refusal), send)


async def reply(response: Response, send: Any) -> None:
    await send({"type": "http.response.start", "status": response.status, "headers": list(response.headers)})
    await send({"type": "http.response.body", "body": response.body})


@asynccontextmanager
async def clients(app: Refuser, **options: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    async with (
        serve(app) as url,
        openai.AsyncOpenAI(api_key="test", base_url=f"{url}/v1", **options) as chat,
        anthropic.AsyncAnthropic(api_key="test", base_url=url, **options) as claude,
    ):
        yield chat, claude


async def ask(client: openai.AsyncOpenAI | anthropic.AsyncAnthropic, stream: bool) -> Any:
    messages: Any = [{"role": "user", "content": "hi"}]
    if isinstance(client, openai.AsyncOpenAI):
        return await client.chat.completions.create(model="m", messages=messages, stream=stream)
    return await client.messages.create(model="m", max_tokens=5, messages=messages, stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(("refusal", "status", "openai_error", "code", "anthropic_error", "kind"), FINAL)
async def test_final_refusals_are_typed_on_the_first_try(
    refusal: Refusal, status: int, openai_error: str, code: str, anthropic_error: str, kind: str, stream: bool
) -> None:
    app = Refuser(refusal)
    async with clients(app) as (chat, claude):
        with pytest.raises(openai.APIStatusError) as of_openai:
            await ask(chat, stream)
        with pytest.raises(anthropic.APIStatusError) as of_anthropic:
            await ask(claude, stream)
    assert app.requests == 2
    assert type(of_openai.value).__name__ == openai_error
    assert type(of_anthropic.value).__name__ == anthropic_error
    assert (of_openai.value.status_code, of_openai.value.code) == (status, code)
    assert (of_anthropic.value.status_code, of_anthropic.value.type, of_anthropic.value.error_code) == (status, kind, code)
    assert of_openai.value.request_id == of_anthropic.value.request_id == (refusal.request_id or None)
    assert refusal.message in str(of_openai.value) and of_anthropic.value.api_message == refusal.message


@pytest.mark.parametrize(("refusal", "status", "openai_error", "code", "anthropic_error", "kind"), TRANSIENT)
async def test_transient_refusals_are_typed_where_the_client_does_not_retry(
    refusal: Refusal, status: int, openai_error: str, code: str, anthropic_error: str, kind: str
) -> None:
    app = Refuser(refusal)
    async with clients(app, max_retries=0) as (chat, claude):
        with pytest.raises(openai.APIStatusError) as of_openai:
            await ask(chat, False)
        with pytest.raises(anthropic.APIStatusError) as of_anthropic:
            await ask(claude, False)
    assert app.requests == 2
    assert (type(of_openai.value).__name__, of_openai.value.status_code, of_openai.value.code) == (openai_error, status, code)
    assert (type(of_anthropic.value).__name__, of_anthropic.value.type) == (anthropic_error, kind)


async def test_a_rate_limit_of_seconds_is_waited_for_by_the_client_and_then_passes() -> None:
    class Once(Refuser):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if not self.requests:
                await super().__call__(scope, receive, send)
                return
            self.requests += 1
            head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
            await send(head)
            await send({"type": "http.response.body", "body": b'{"id": "x", "choices": [], "model": "m", "object": "o"}'})

    app = Once(Refusal(kind=RefusalKind.RATE_LIMIT, message="Wait.", retry_after_s=0.2))
    async with clients(app) as (chat, _):
        assert (await ask(chat, False)).id == "x"
    assert app.requests == 2


async def test_a_budget_refused_as_429_by_setting_is_not_retried_either() -> None:
    app = Refuser(Refusal(kind=RefusalKind.BUDGET, message="Spent.", status_override=429))
    async with clients(app) as (chat, claude):
        with pytest.raises(openai.RateLimitError):
            await ask(chat, False)
        with pytest.raises(anthropic.RateLimitError):
            await ask(claude, False)
    assert app.requests == 2


def headers_of(response: Response) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in response.headers}


def test_a_budget_refusal_says_all_that_is_known() -> None:
    response = WIRES["openai"].refuse(BUDGET)
    headers, error = headers_of(response), json.loads(response.body)["error"]
    assert response.status == 402
    assert headers["x-should-retry"] == "false" and "retry-after" not in headers
    assert headers["x-sark-reset"] == "2026-11-22T09:00:00Z"
    assert (headers["x-sark-request-id"], headers["x-sark-budget-remaining"]) == ("req-1", "0.049999999")
    assert headers["content-length"] == str(len(response.body))
    assert (error["type"], error["code"], error["param"]) == ("insufficient_quota", "budget_exceeded", None)
    assert error["details"] == {
        "error_code": "budget_exceeded",
        "request_id": "req-1",
        "scope": "user:alice",
        "limit": "user:alice/usd/day@Europe/Berlin",
        "unit": "usd",
        "window": "day",
        "amount": "5.00",
        "spent": "4.900000001",
        "held": "0.05",
        "needed": "0.2",
        "remaining": "0.049999999",
        "affordable_max_tokens": 312,
        "resets_at": "2026-11-22T09:00:00Z",
    }


def test_a_rate_limit_carries_both_header_families() -> None:
    headers = headers_of(WIRES["openai"].refuse(RATE))
    assert headers["retry-after"] == "12" and "x-should-retry" not in headers
    assert headers["x-ratelimit-limit-requests"] == "100"
    assert (headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-reset-requests"]) == ("0", "12s")
    assert headers["ratelimit-policy"] == '"user:alice/requests/minute";q=100;w=60;qu="requests"'
    assert headers["ratelimit"] == '"user:alice/requests/minute";r=0;t=12'


def test_a_rate_limit_of_hours_says_a_minute_and_forbids_retries() -> None:
    headers = headers_of(WIRES["openai"].refuse(DAY_RATE))
    assert (headers["retry-after"], headers["x-should-retry"]) == ("60", "false")
    assert headers["ratelimit"].endswith(";r=0;t=7200")


def test_what_idempotency_keys_refuse_says_in_every_dialect_whether_to_ask_again() -> None:
    for name, wire in WIRES.items():
        in_flight = wire.refuse(Refusal(kind=RefusalKind.IN_FLIGHT, message="Wait.", retry_after_s=1))
        done, reused = wire.refuse(plain(RefusalKind.ALREADY_DONE)), wire.refuse(plain(RefusalKind.IDEMPOTENCY))
        assert [each.status for each in (in_flight, done, reused)] == [409, 409, 422], name
        assert (headers_of(in_flight)["retry-after"], headers_of(in_flight)["x-should-retry"]) == ("1", "true")
        for final in (done, reused):
            assert headers_of(final)["x-should-retry"] == "false" and "retry-after" not in headers_of(final)
    statuses = [json.loads(WIRES["gemini"].refuse(plain(kind)).body)["error"]["status"] for kind in IDEMPOTENCY]
    assert statuses == ["INVALID_ARGUMENT", "ABORTED", "ALREADY_EXISTS"]


def test_a_policy_denial_names_plugin_and_reason_in_every_dialect() -> None:
    for name, wire in WIRES.items():
        response = wire.refuse(POLICY)
        assert response.status == 403, name
        assert headers_of(response)["x-should-retry"] == "false"
        assert b"business-hours" in response.body and b"It is night." in response.body


def test_plain_callers_get_problem_details() -> None:
    response = WIRES["plain"].refuse(BUDGET)
    problem = json.loads(response.body)
    assert headers_of(response)["content-type"] == "application/problem+json"
    assert problem["type"] == "urn:sark-mw:problem:budget-exceeded"
    assert (problem["status"], problem["title"], problem["detail"]) == (402, "Budget exceeded", BUDGET.message)
    assert (problem["needed"], problem["resets_at"]) == ("0.2", "2026-11-22T09:00:00Z")


def test_gemini_callers_get_a_google_status() -> None:
    response = WIRES["gemini"].refuse(BUDGET)
    error = json.loads(response.body)["error"]
    assert (response.status, error["code"], error["status"]) == (402, 402, "RESOURCE_EXHAUSTED")
    assert error["details"][0]["reason"] == "BUDGET_EXCEEDED"
    assert error["details"][0]["metadata"]["affordable_max_tokens"] == "312"


def tool_call(*ids: Any, batch: bool = False, other: tuple[Any, ...] = ()) -> Call:
    tools = tuple(ToolCall(name="search", rpc_id=rpc_id, arguments={}) for rpc_id in ids)
    return Call(wire="mcp", operation=Operation.TOOL_CALL, tools=tools, rpc_ids=(*ids, *other), rpc_batch=batch)


def test_mcp_tool_calls_are_refused_where_the_model_can_read_it() -> None:
    response = WIRES["mcp"].refuse(BUDGET, call=tool_call(7))
    body = json.loads(response.body)
    assert response.status == 200 and body["id"] == 7
    assert body["result"]["isError"] is True
    assert body["result"]["content"] == [{"type": "text", "text": BUDGET.message}]
    assert body["result"]["_meta"]["sark-mw/refusal"]["needed"] == "0.2"


def test_an_mcp_batch_is_answered_id_by_id() -> None:
    response = WIRES["mcp"].refuse(BUDGET, call=tool_call("1", 1, batch=True, other=("list",)))
    answers = json.loads(response.body)
    assert [answer["id"] for answer in answers] == ["1", 1, "list"]
    assert ["result" in answer for answer in answers] == [True, True, False]


def test_mcp_faults_are_json_rpc_errors_under_their_status() -> None:
    response = WIRES["mcp"].refuse(plain(RefusalKind.UNAVAILABLE), call=tool_call(7))
    assert (response.status, json.loads(response.body)["error"]["code"]) == (503, -32000)
    response = WIRES["mcp"].refuse(plain(RefusalKind.INVALID))
    assert (response.status, json.loads(response.body)["error"]["code"], json.loads(response.body)["id"]) == (400, -32600, None)


def test_hostile_names_break_neither_headers_nor_bodies() -> None:
    evil = 'a"\\\r\nset-cookie: x\ud800é' + "y" * 10_000
    for kind in RefusalKind:
        refusal = Refusal(kind=kind, message=evil, request_id=evil, scope=evil, limit=evil, unit=evil, amount=1, reason=evil)
        for wire in WIRES.values():
            response = wire.refuse(refusal)
            assert not any(byte < 32 or byte > 126 for name, value in response.headers for byte in name + value)
            assert sum(len(value) for _, value in response.headers) < 8192
            json.loads(response.body)


@pytest.mark.parametrize("resets_at_ms", [0, -5, 10**20])
def test_a_limit_that_never_resets_names_no_instant(resets_at_ms: int) -> None:
    response = WIRES["openai"].refuse(Refusal(kind=RefusalKind.BUDGET, message="m", resets_at_ms=resets_at_ms))
    assert "x-sark-reset" not in headers_of(response)


def test_bodies_that_cannot_be_read_at_all_are_415() -> None:
    assert kind_of(InvalidRequestError("m", param="content-encoding")) == RefusalKind.UNSUPPORTED
    assert kind_of(InvalidRequestError("m", param="model")) == RefusalKind.INVALID
