"""Instead of a refusal: a cheaper model or less output, whichever the settings allow, held and booked as what it is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from sark_mw import builtin_plugin_path
from sark_mw._fake_provider import FakeProvider
from sark_mw.asgi.types import Receive, Scope, Send
from sark_mw.money import from_nanos
from sark_mw.policy.base import PolicyContext, PolicyDecision, PolicyPlugin
from sark_mw.policy.manager import PolicyPluginManager
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, LONG, MESSAGES, Gateway, gateway_for, settings_for
from tests.asgi.test_clients import proxy_to
from tests.asgi.test_gemini import ASK, USAGE, chunk
from tests.wire.serving import serve

CHEAPER = {"models": ({"from": "gpt-4o*", "to": ("gpt-4o-mini",)},)}
CLAMP = {"clamp": True}
#: gpt-4o costs $10 per million tokens of output, gpt-4o-mini $0.60, and neither's input is worth mentioning here.
PER_TOKEN = 10_000


def budget(amount: str, *more: dict[str, Any]) -> dict[str, Any]:
    """Settings with a budget for everybody and more limits; the tier is known, so that a hold is at the usual price."""
    slots = {"scope": "user:a", "amount": 100, "unit": "concurrency"}
    return {
        "limits": ({"scope": "user:a", "amount": amount}, slots, *more),
        "pricing": {"default_service_tier": "default"},
    }


def models_of(provider: FakeProvider) -> list[str]:
    return [call.body["model"] for call in provider.calls]


async def test_a_cheaper_model_is_held_sent_and_booked_where_the_budget_refuses_the_one_asked_for(books: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await books(provider, **budget("0.001"), instead=CHEAPER)
    answer = await gateway.post()
    assert answer.status == 200 and models_of(provider) == ["gpt-4o-mini"]
    assert answer.headers["x-sark-model"] == "gpt-4o-mini" and answer.headers["x-sark-requested-model"] == "gpt-4o"
    assert "x-sark-max-output-tokens" not in answer.headers
    entry = await gateway.entry()
    assert entry.model == "gpt-4o-mini" and "model:gpt-4o-mini" in entry.scopes and "model:gpt-4o" not in entry.scopes
    usage = provider.calls[0].usage
    assert entry.cost_nanos == usage.input_tokens * 150 + usage.output_tokens * 600
    assert entry.held_nanos < 200 * 600 + 10_000
    assert (gateway.seen.requests[0].model, gateway.seen.adapted) == ("gpt-4o-mini", ["downgraded"])


async def test_what_the_budget_admits_is_left_as_it_is(books: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await books(provider, instead={**CHEAPER, **CLAMP})
    answer = await gateway.post()
    assert models_of(provider) == ["gpt-4o"] and provider.calls[0].body == CHAT
    assert not {name for name in answer.headers if name.startswith(("x-sark-model", "x-sark-requested", "x-sark-max"))}
    assert gateway.seen.adapted == []


async def test_a_smaller_output_is_asked_for_where_the_budget_refuses_a_large_one(books: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await books(provider, **budget("0.01"), instead=CLAMP)
    answer = await gateway.post(LONG)
    assert answer.status == 200 and "x-sark-model" not in answer.headers
    (call,) = provider.calls
    assert call.body == {**LONG, "max_tokens": int(answer.headers["x-sark-max-output-tokens"])}
    assert int(call.headers.get("content-length", 0)) in (0, len(json.dumps(call.body)))
    entry = await gateway.entry()
    assert 10_000_000 - PER_TOKEN < entry.held_nanos <= 10_000_000
    assert gateway.seen.adapted == ["clamped"]


async def test_every_choice_gets_its_part_of_what_is_affordable(books: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await books(provider, **budget("0.01"), instead=CLAMP)
    assert (await gateway.post({**LONG, "n": 4})).status == 200
    assert 200 < provider.calls[0].body["max_tokens"] <= 250


@pytest.mark.parametrize(("least", "status"), [(90, 200), (120, 402)])
async def test_an_answer_of_too_few_tokens_is_refused(make: MakeGateway, least: int, status: int) -> None:
    provider = FakeProvider()
    gateway = await make(provider, **budget("0.001"), instead={"clamp": True, "clamp_min_output_tokens": least})
    answer = await gateway.post()
    assert answer.status == status and provider.requests == (status == 200)
    if status == 402:
        details = answer.json["error"]["details"]
        assert details["scope"] == "user:a" and 90 < details["affordable_max_tokens"] < 100
        assert details["needed"] > "0.002"


async def test_a_budget_for_thinking_is_not_undercut(make: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await make(provider, **budget("0.01"), instead=CLAMP)
    asked = {**MESSAGES, "max_tokens": 8_000, "thinking": {"type": "enabled", "budget_tokens": 2_000}}
    assert (await gateway.post(asked, "/v1/messages")).status == 402 and provider.requests == 0
    less = await gateway.post({**asked, "thinking": {"type": "enabled", "budget_tokens": 1_024}}, "/v1/messages")
    assert less.status == 200 and 1_024 < int(less.headers["x-sark-max-output-tokens"]) < 2_000


@pytest.mark.parametrize(
    ("amount", "model", "least", "most"),
    [("0.001", "gpt-4o", 16, 100), ("0.0001", "gpt-4o-mini", 16, 170)],
    ids=["the model asked for", "then the cheaper one"],
)
async def test_where_no_model_fits_as_it_is_the_one_asked_for_is_clamped_first(
    books: MakeGateway, amount: str, model: str, least: int, most: int
) -> None:
    provider = FakeProvider()
    gateway = await books(provider, **budget(amount), instead={**CHEAPER, **CLAMP})
    answer = await gateway.post({**CHAT, "max_tokens": 20_000})
    (call,) = provider.calls
    assert answer.status == 200 and call.body["model"] == model and least <= call.body["max_tokens"] <= most
    assert answer.headers["x-sark-max-output-tokens"] == str(call.body["max_tokens"])
    assert answer.headers.get("x-sark-model", "gpt-4o") == model
    assert (await gateway.entry()).held_nanos <= round(float(amount) * 1e9)


async def test_cheaper_models_are_tried_in_order_and_their_own_limits_hold(books: MakeGateway) -> None:
    provider = FakeProvider()
    none = {"scope": "model:gpt-4o-mini", "amount": 0, "unit": "requests"}
    rules = {"models": ({"from": "gpt-4o", "to": ("gpt-4o", "gpt-4o-mini", "gpt-4.1-nano")},)}
    gateway = await books(provider, **budget("0.001", none), instead=rules)
    assert (await gateway.post()).headers["x-sark-model"] == "gpt-4.1-nano"
    assert models_of(provider) == ["gpt-4.1-nano"]


async def test_of_several_rules_the_first_that_matches_counts(make: MakeGateway) -> None:
    provider = FakeProvider()
    rules = ({"from": "gpt-5*", "to": ("gpt-5-nano",)}, {"from": "gpt-4*", "to": ("gpt-4.1-nano",)}, *CHEAPER["models"])
    gateway = await make(provider, **budget("0.001"), instead={"models": rules})
    await gateway.post({**CHAT, "model": "GPT-4o"})
    assert models_of(provider) == ["gpt-4.1-nano"]


class Denies(PolicyPlugin):
    """Denies one model, and remembers what it was asked about."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.asked: list[object] = []
        self.attempts: list[object] = []

    @property
    def name(self) -> str:
        return "denies"

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        self.asked.append(context.environment["model"])
        self.attempts.append(context.environment["attempt"])
        return PolicyDecision(context.environment["model"] != self.model, "not this one")


async def test_policies_are_asked_about_the_cheaper_model_too(make: MakeGateway) -> None:
    provider, plugin, policies = FakeProvider(), Denies("gpt-4o-mini"), PolicyPluginManager()
    await policies.register_plugin(plugin)
    gateway = await make(provider, {"policies": policies}, **budget("0.001"), instead=CHEAPER)
    answer = await gateway.post()
    assert (answer.status, answer.json["error"]["code"], provider.requests) == (402, "budget_exceeded", 0)
    assert plugin.asked == ["gpt-4o", "gpt-4o-mini"]


STEP_DOWN = {"models": ({"from": "gpt-4o", "to": ("gpt-4o-mini",), "at_percent": 1},)}


async def limited_to(requests: int) -> PolicyPluginManager:
    """Make policies of the built-in rate limit alone."""
    policies = PolicyPluginManager()
    await policies.load_from_file(builtin_plugin_path("rate_limit"), max_requests=requests)
    return policies


async def test_a_rate_limit_counts_a_request_once_however_many_ways_are_tried(make: MakeGateway) -> None:
    for instead, amount in ((STEP_DOWN, "0.1"), ({**CHEAPER, **CLAMP}, "0.001"), (CLAMP, "0.005")):
        gateway = await make(FakeProvider(), {"policies": await limited_to(2)}, **budget(amount), instead=instead)
        answers = []
        for _ in range(3):
            answers.append(await gateway.post({**CHAT, "max_tokens": 1000}))
            await gateway.quiet()
        assert [answer.status for answer in answers] == [200, 200, 403], instead
        assert all(answer.headers.keys() & {"x-sark-model", "x-sark-max-output-tokens"} for answer in answers[:2])


async def test_policies_are_asked_once_about_each_model_and_told_which_attempt_it_is(make: MakeGateway) -> None:
    plugin, policies = Denies("none"), PolicyPluginManager()
    await policies.register_plugin(plugin)
    gateway = await make(FakeProvider(), {"policies": policies}, **budget("0.0001"), instead={**CHEAPER, **CLAMP})
    answer = await gateway.post({**CHAT, "max_tokens": 20_000})
    assert answer.status == 200 and {"x-sark-model", "x-sark-max-output-tokens"} <= answer.headers.keys()
    assert list(zip(plugin.asked, plugin.attempts, strict=True)) == [("gpt-4o", 0), ("gpt-4o-mini", 1)]


async def test_where_a_policy_denies_the_cheaper_model_the_one_asked_for_is_used_and_not_asked_about_again(
    books: MakeGateway,
) -> None:
    provider, plugin, policies = FakeProvider(), Denies("gpt-4o-mini"), PolicyPluginManager()
    await policies.register_plugin(plugin)
    gateway = await books(provider, {"policies": policies}, **budget("0.1"), instead=STEP_DOWN)
    answer = await gateway.post()
    assert answer.status == 200 and "x-sark-model" not in answer.headers and models_of(provider) == ["gpt-4o"]
    assert plugin.asked == ["gpt-4o", "gpt-4o-mini"]


async def test_a_refusal_for_anything_but_lack_of_budget_stands(make: MakeGateway) -> None:
    provider = FakeProvider()
    none = {"scope": "user:a", "amount": 0, "unit": "requests"}
    gateway = await make(provider, **budget("1", none), instead={**CHEAPER, **CLAMP})
    assert (await gateway.post()).status == 429 and provider.requests == 0


async def test_from_a_share_of_the_budget_on_the_cheaper_model_is_used_before_anything_is_refused(books: MakeGateway) -> None:
    provider = FakeProvider()
    rules = {"models": ({"from": "gpt-4o", "to": ("gpt-4o-mini",), "at_percent": 50},)}
    gateway = await books(provider, **budget("0.0045"), instead=rules)
    models = []
    for _ in range(3):
        models.append((await gateway.post()).headers.get("x-sark-model", "gpt-4o"))
        await gateway.quiet()
    assert models == models_of(provider) and models[0] == "gpt-4o" and models[-1] == "gpt-4o-mini"
    entries = await gateway.entries()
    given_back = [entry for entry in entries if entry.kind == "release"]
    assert given_back and all(entry.cost_nanos == 0 and entry.model == "gpt-4o" for entry in given_back)
    assert gateway.seen.adapted == ["downgraded"] * models.count("gpt-4o-mini")
    assert [event.outcome for event in gateway.seen.requests] == ["admitted"] * 3


async def test_where_no_cheaper_model_is_admitted_the_one_asked_for_is_used_to_the_end(books: MakeGateway) -> None:
    provider = FakeProvider()
    none = {"scope": "model:gpt-4o-mini", "amount": 0, "unit": "requests"}
    rules = {"models": ({"from": "gpt-4o", "to": ("gpt-4o-mini",), "at_percent": 1},)}
    gateway = await books(provider, **budget("0.1", none), instead=rules)
    answer = await gateway.post()
    assert answer.status == 200 and models_of(provider) == ["gpt-4o"] and "x-sark-model" not in answer.headers
    assert [entry.kind for entry in await gateway.entries()] == ["release", "settle"]


async def test_an_output_limit_that_the_cheaper_model_does_not_have_is_lowered_to_its_own(make: MakeGateway) -> None:
    provider = FakeProvider()
    price = {"provider": "openai", "model": "tiny", "input_usd_per_million": "0.1", "output_usd_per_million": "0.1"}
    prices = {"models": ({**price, "max_output_tokens": 300},)}
    rules = {"models": ({"from": "gpt-4o", "to": ("tiny",)},)}
    gateway = await make(provider, **{**budget("0.001"), "instead": rules, "pricing": prices})
    answer = await gateway.post(LONG)
    assert provider.calls[0].body == {**LONG, "model": "tiny", "max_tokens": 300}
    assert answer.headers["x-sark-max-output-tokens"] == "300"


class Gemini:
    """Answers as Gemini does, and remembers where the request went."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append((scope["path"], scope["raw_path"], json.loads((await receive())["body"])))
        body = json.dumps({**chunk("!", finishReason="STOP"), "usageMetadata": USAGE}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})


async def test_a_model_in_the_path_is_replaced_there_and_the_path_is_itself_again_afterwards(books: MakeGateway) -> None:
    app = Gemini()
    rules = {"clamp": True, "models": ({"from": "gemini-2.5-pro", "to": ("gemini-2.5-flash",)},)}
    gateway = await books(app, **budget("0.02"), instead=rules)
    path = "/v1beta/models/gemini-2.5-pro:generateContent"
    client = gateway.client(ASK, path=path, raw_path=b"/v1beta/models/gemini%2D2.5-pro:generateContent")
    answer = await client.run()
    assert answer.headers["x-sark-model"] == "gemini-2.5-flash"
    new = "/v1beta/models/gemini-2.5-flash:generateContent"
    assert app.asked == [(new, new.encode(), ASK)]
    assert (client.scope["path"], client.scope["raw_path"]) == (path, b"/v1beta/models/gemini%2D2.5-pro:generateContent")
    assert (await gateway.entry()).model == "gemini-2.5-flash"


async def test_a_path_whose_raw_spelling_cannot_be_followed_keeps_its_model(make: MakeGateway) -> None:
    app = Gemini()
    rules = {"models": ({"from": "gemini-2.5-pro", "to": ("gemini-2.5-flash",)},)}
    gateway = await make(app, **budget("0.02"), instead=rules)
    path = "/v1beta/models/gemini-2.5-pro:generateContent"
    for raw in (b"/v1beta%2Fmodels/gemini-2.5-pro:generateContent", b"/v1beta/models/other:generateContent"):
        assert (await gateway.client(ASK, path=path, raw_path=raw).run()).status == 402
    assert app.asked == []


async def test_clamped_requests_at_once_hold_no_more_than_there_is(books: MakeGateway) -> None:
    provider = FakeProvider(chunk_s=0.001)
    gateway = await books(provider, **budget("0.02"), instead={"clamp": True, "clamp_min_output_tokens": 50})
    answers = await asyncio.gather(*(gateway.post({**LONG, "stream": True}) for _ in range(12)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) <= {200, 402} and statuses.count(200) >= 1
    assert (await gateway.balance()).spent <= 20_000_000


async def test_official_clients_are_served_by_the_cheaper_model_and_clamped(tmp_path: Path) -> None:
    provider = FakeProvider(chunk_s=0.001)
    rules = {"clamp": True, "models": ({"from": "gpt-4o", "to": ("gpt-4o-mini",)},)}
    payer = {"sources": ("scope",), "anonymous": "user:a"}
    settings = settings_for(tmp_path, **budget("0.0008"), principal=payer, instead=rules)
    async with (
        serve(provider) as upstream,
        httpx2.AsyncClient(base_url=upstream) as relay,
        gateway_for(proxy_to(relay), settings, on_fakeredis=True) as gateway,
        serve(gateway.app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-x") as chat,
        anthropic.AsyncAnthropic(base_url=url, api_key="sk-x") as claude,
    ):
        stream = await chat.chat.completions.create(**CHAT, stream=True)
        assert {piece.model async for piece in stream} == {"gpt-4o-mini"}
        assert stream.response.headers["x-sark-requested-model"] == "gpt-4o"
        await gateway.quiet()
        message = await claude.messages.with_raw_response.create(**MESSAGES)
        assert (await message.parse()).usage.output_tokens <= int(message.headers["x-sark-max-output-tokens"]) < 200
        await check_books(gateway, provider)


async def check_books(gateway: Gateway, provider: FakeProvider) -> None:
    entries = await gateway.entries()
    assert [call.usage.output_tokens for call in provider.calls] == [entry.output_tokens for entry in entries]
    assert from_nanos((await gateway.balance()).spent) == from_nanos(sum(entry.cost_nanos for entry in entries))
    await gateway.assert_balanced()
