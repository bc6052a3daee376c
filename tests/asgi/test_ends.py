"""Every admitted request ends, whatever the app, the client, the response or an own estimator does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from sark_mw.asgi import exchange as exchange_module
from sark_mw.asgi.exchange import REACHED_UPSTREAM
from sark_mw.limit import Unit
from sark_mw.pricing import base as pricing
from sark_mw.pricing.base import CostEstimate, CostEstimator, InvocationRequest, InvocationResult
from tests.asgi.apps import Replies, completion
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, LONG

START = {"type": "http.response.start", "status": 200}
SHORT = [(b"content-type", b"application/json"), (b"content-length", b"10")]


@pytest.mark.parametrize("drain", [True, False])
async def test_a_response_that_never_gets_a_body_for_a_client_that_is_gone_holds_nothing(books: MakeGateway, drain: bool) -> None:
    async def only_starts(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({**START, "headers": SHORT})

    gateway = await books(only_starts, http={"drain_on_disconnect": drain})
    client = gateway.client(LONG)

    async def gone(message: Any) -> None:
        raise OSError("connection lost")

    client._send = gone  # type: ignore[method-assign]
    await client.run()
    await gateway.expected_entry()
    assert gateway.sark.enforcer.live == {}


@pytest.mark.parametrize("fault", ["_spent", "_finish"])
async def test_a_fault_of_ours_while_booking_leaves_no_hold(
    books: MakeGateway, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    class BadTap:
        """Reads, and fails at the end."""

        usage, output_chars, failed, started = None, 0, False, True
        output_byte_counts = ()

        def feed(self, chunk: bytes) -> bytes:
            return chunk

        def finish(self) -> bytes:
            raise RecursionError

    def fails(*_: Any) -> Any:
        raise RecursionError

    app = Replies(completion(10, 10))
    gateway = await books(app)
    if fault == "_spent":
        monkeypatch.setattr(exchange_module.Exchange, "_spent", fails)
    else:
        monkeypatch.setattr("sark_mw.wire.openai.OpenAIWire.tap", lambda *_: BadTap())
    answer = await gateway.post(LONG)
    await gateway.expected_entry()
    assert gateway.sark.enforcer.live == {}
    assert fault == "_spent" or answer.status == 200


@pytest.mark.parametrize("how", ["raises", "answers 504"])
@pytest.mark.parametrize("reached", [True, False])
async def test_what_reached_the_provider_and_was_not_heard_is_booked_as_expected(
    books: MakeGateway, how: str, reached: bool
) -> None:
    async def gateway_app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if reached:
            scope[REACHED_UPSTREAM] = True
        if how == "raises":
            raise TimeoutError
        await send({"type": "http.response.start", "status": 504, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    gateway = await books(gateway_app)
    await gateway.post(LONG)
    if reached:
        await gateway.expected_entry()
    else:
        assert (await gateway.entry()).kind == "release"


class Odd(CostEstimator):
    """An own estimator that does whatever it is made to do."""

    def __init__(self, estimate: Any, actual: Any = None) -> None:
        self._estimate = estimate
        self._actual = actual

    @property
    def provider_name(self) -> str:
        return "odd"

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Mapping[str, object]) -> CostEstimate:
        if self._estimate == "hang":
            await asyncio.Event().wait()
        if isinstance(self._estimate, Exception):
            raise self._estimate
        return self._estimate  # type: ignore[no-any-return]

    async def record_actual_cost(
        self, request: InvocationRequest, result: InvocationResult, resource_metadata: Mapping[str, object]
    ) -> CostEstimate | None:
        return self._actual  # type: ignore[no-any-return]


@pytest.mark.parametrize("estimate", [KeyError("pages"), None, 5, "hang", RecursionError()])
async def test_an_own_estimator_that_fails_refuses_and_is_no_500(
    make: MakeGateway, monkeypatch: pytest.MonkeyPatch, estimate: Any
) -> None:
    monkeypatch.setattr(pricing, "_ESTIMATE_S", 0.02)
    app = Replies(completion(1, 1))
    gateway = await make(app, {"estimators": {"openai": Odd(estimate)}})
    answer = await gateway.post()
    assert (answer.status, answer.error) == (503, None)
    assert gateway.seen.requests[-1].reason == "estimator"
    assert app.asked == 0


async def test_a_cost_in_a_currency_without_a_rate_is_not_charged_as_dollars(books: MakeGateway) -> None:
    dinars = CostEstimate(Decimal("0.5"), currency="KWD")
    gateway = await books(Replies(completion(1, 1)), {"estimators": {"openai": Odd(dinars)}})
    answer = await gateway.post()
    assert answer.status == 400 and "KWD" in answer.json["error"]["message"]
    dollars = CostEstimate(Decimal("0.2"))
    gateway = await books(Replies(completion(1, 1)), {"estimators": {"openai": Odd(dollars, dinars)}})
    assert (await gateway.post()).status == 200
    entry = await gateway.entry()
    assert (entry.cost_nanos, entry.estimated) == (200_000_000, True)


@pytest.mark.parametrize("priced", ["estimator", "price"])
async def test_tokens_count_against_limits_of_tokens_however_they_are_priced(make: MakeGateway, priced: str) -> None:
    dollars = CostEstimate(Decimal("0.001"))
    parts = {"estimators": {"openai": Odd(dollars)}} if priced == "estimator" else {}
    routes = [{"path": "/v1/chat/completions", "wire": "openai", "price_usd": "0.001"}] if priced == "price" else []
    limits = ({"scope": "user:a", "amount": 1000, "unit": "tokens"}, {"scope": "user:a", "amount": "1"})
    gateway = await make(Replies(completion(600, 500)), parts, routes=routes, limits=limits)
    assert (await gateway.post()).status == 200
    entry = await gateway.entry()
    assert (entry.input_tokens, entry.output_tokens, entry.cost_nanos) == (600, 500, 1_000_000)
    assert (await gateway.balance(unit=Unit.TOKENS)).spent == 1100
    assert (await gateway.post()).status == 429


async def test_a_wait_of_hours_and_a_request_that_can_never_fit_are_not_retried(make: MakeGateway) -> None:
    limits = ({"scope": "user:a", "amount": 1, "unit": "requests", "window": "day"},)
    gateway = await make(Replies(completion(1, 1)), limits=limits)
    await gateway.post()
    answer = await gateway.post()
    # In the last minute of a day it may come again.
    reset = int(answer.headers["x-ratelimit-reset-requests"].rstrip("s"))
    assert answer.status == 429 and int(answer.headers["retry-after"]) <= 60
    assert reset <= 60 or answer.headers["x-should-retry"] == "false"
    limits = ({"scope": "user:a", "amount": 100, "unit": "tokens", "window": "minute"},)
    gateway = await make(Replies(completion(1, 1)), limits=limits)
    answer = await gateway.post({**CHAT, "max_tokens": 5000})
    assert (answer.status, answer.headers["x-should-retry"]) == (429, "false")
    limits = ({"scope": "user:a", "amount": 1, "unit": "requests", "window": "total"},)
    gateway = await make(Replies(completion(1, 1)), limits=limits)
    await gateway.post()
    assert (await gateway.post()).headers["x-should-retry"] == "false"
