"""What policies do to a request on the wire: what they oblige to, what a denial is, and what one that cannot be asked is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest

from sark_mw import Obligation, PolicyContext, PolicyDecision, PolicyPlugin
from sark_mw._fake_provider import FakeProvider
from sark_mw.instrumentation.base import PolicyDecided
from sark_mw.policy.context import read_bytes
from tests.asgi.apps import Replies
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, EMBED, LONG, MESSAGES, Gateway
from tests.asgi.test_gemini import ASK
from tests.wire.serving import serve

MINI = {"obligation_models": ("gpt-4o-mini", "claude-3-haiku-20240307", "gemini-2.0-flash")}


class Obliging(PolicyPlugin):
    """Allows, and obliges to something; or does something else."""

    name = "obliging"  # type: ignore[assignment]
    version = "1.5"  # type: ignore[assignment]
    timeout = 0.05  # type: ignore[assignment]
    on_error = "deny"  # type: ignore[assignment]
    needs = None  # type: ignore[assignment]

    def __init__(self, *obligations: Obligation, does: str = "allow", on_error: str = "deny") -> None:
        self._obligations = obligations
        self._does = does
        self.on_error = on_error  # type: ignore[method-assign,assignment]
        self.asked: list[PolicyContext] = []

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        self.asked.append(context)
        if self._does == "crash":
            raise ValueError("secret detail")
        if self._does == "hang":
            await asyncio.Event().wait()
        return PolicyDecision(self._does == "allow", "because", obligations=self._obligations)


async def with_plugin(books: MakeGateway, plugin: PolicyPlugin, provider: Any = None, **sections: Any) -> tuple[Gateway, Any]:
    provider = provider or FakeProvider()
    gateway = await books(provider, **sections)
    await gateway.sark.policies.register_plugin(plugin)
    return gateway, provider


def cap(tokens: int) -> Obligation:
    return Obligation("cap_output_tokens", tokens)


def use(model: str) -> Obligation:
    return Obligation("use_model", model)


async def test_how_long_the_body_was_is_the_gateways_word_and_no_callers(books: MakeGateway) -> None:
    plugin = Obliging()
    gateway, _ = await with_plugin(books, plugin)
    assert (await gateway.post({**CHAT, "body_bytes": 1, "_read_bytes": 1})).status == 200
    (context,) = plugin.asked
    size = len(json.dumps({**CHAT, "body_bytes": 1, "_read_bytes": 1}).encode())
    assert read_bytes(context) == read_bytes(context.view()) == context.environment["body_bytes"] == size


async def test_a_tag_becomes_a_scope_of_the_ledger_entry_and_of_limits(books: MakeGateway) -> None:
    limits = (
        {"scope": "user:a", "amount": "1"},
        {"scope": "user:a", "amount": 100, "unit": "concurrency"},
        {"scope": "tag:*", "amount": 1, "unit": "requests"},
    )
    gateway, _ = await with_plugin(books, Obliging(Obligation("add_tag", "night")), limits=limits)
    assert (await gateway.post()).status == 200
    entry = await gateway.entry()
    assert "tag:night" in entry.scopes
    refused = await gateway.post()
    assert refused.status == 429 and refused.json["error"]["details"]["scope"] == "tag:night"


async def test_a_cap_is_sent_held_and_told(books: MakeGateway) -> None:
    gateway, provider = await with_plugin(books, Obliging(cap(50), cap(70)), pricing={"default_service_tier": "default"})
    answer = await gateway.post()
    assert answer.status == 200 and provider.calls[0].body == {**CHAT, "max_tokens": 50}
    assert answer.headers["x-sark-max-output-tokens"] == "50"
    entry = await gateway.entry()
    assert entry.held_nanos < 60 * 10_000 + 100 * 2_500


async def test_a_request_within_the_cap_is_sent_as_it_came(books: MakeGateway) -> None:
    gateway, provider = await with_plugin(books, Obliging(cap(200)))
    raw = json.dumps(CHAT, indent=3).encode()
    answer = await gateway.post(raw)
    assert answer.status == 200 and provider.calls[0].body == CHAT
    assert "x-sark-max-output-tokens" not in answer.headers


async def test_a_request_without_a_limit_gets_the_cap(books: MakeGateway) -> None:
    gateway, provider = await with_plugin(books, Obliging(cap(64)))
    body = {name: value for name, value in CHAT.items() if name != "max_tokens"}
    assert (await gateway.post(body)).headers["x-sark-max-output-tokens"] == "64"
    assert {**provider.calls[0].body} == {**body, "max_completion_tokens": 64}


async def test_what_puts_out_no_tokens_is_within_every_cap(books: MakeGateway) -> None:
    gateway, provider = await with_plugin(books, Obliging(cap(10)))
    assert (await gateway.post(EMBED, "/v1/embeddings")).status == 200
    assert provider.calls[0].body == EMBED


async def test_a_tool_call_puts_out_no_tokens_and_is_within_every_cap_but_has_no_model_to_choose(make: MakeGateway) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search", "arguments": {"q": "x"}}}
    routes = {"routes": ({"path": "/mcp", "wire": "mcp", "price_usd": "0.01"},)}
    for obligation, done in ((cap(10), True), (use("gpt-4o-mini"), False)):
        app = Replies({"jsonrpc": "2.0", "id": 1, "result": {}})
        gateway, _ = await with_plugin(make, Obliging(obligation), app, policy=MINI, **routes)
        answer = await gateway.post(call, "/mcp")
        assert ("cannot be changed to" not in answer.body.decode()) is done


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [("/v1/chat/completions", CHAT, "gpt-4o-mini"), ("/v1/messages", MESSAGES, "claude-3-haiku-20240307")],
)
async def test_a_model_that_the_administrator_lists_is_used_instead(
    books: MakeGateway, path: str, body: dict[str, Any], model: str
) -> None:
    plugin = Obliging(use(model))
    gateway, provider = await with_plugin(books, plugin, policy=MINI)
    answer = await gateway.post(body, path)
    assert answer.status == 200 and provider.calls[0].body["model"] == model
    assert (answer.headers["x-sark-model"], answer.headers["x-sark-requested-model"]) == (model, body["model"])
    entry = await gateway.entry()
    assert entry.model == model and f"model:{model}" in entry.scopes and f"model:{body['model']}" not in entry.scopes
    assert len(plugin.asked) == 1


async def test_a_model_in_the_path_is_changed_there(make: MakeGateway) -> None:
    class Upstream:
        paths: list[str] = []  # noqa: RUF012

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            self.paths.append(scope["path"])
            await receive()
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    gateway, upstream = await with_plugin(make, Obliging(use("gemini-2.0-flash")), Upstream(), policy=MINI)
    await gateway.post(ASK, "/v1beta/models/gemini-2.5-pro:generateContent")
    assert upstream.paths == ["/v1beta/models/gemini-2.0-flash:generateContent"]


async def test_a_model_that_nobody_listed_is_a_failure_of_the_plugin_by_its_on_error(books: MakeGateway) -> None:
    gateway, provider = await with_plugin(books, Obliging(use("gpt-4-turbo")), policy=MINI)
    assert (await gateway.post()).json["error"]["code"] == "policy_unavailable"
    gateway, provider = await with_plugin(books, Obliging(use("gpt-4-turbo"), cap(5), on_error="skip"), policy=MINI)
    assert (await gateway.post()).status == 200 and provider.calls[0].body == CHAT


async def test_a_model_and_a_cap_together_hold_both(books: MakeGateway) -> None:
    gateway, provider = await with_plugin(books, Obliging(use("gpt-4o-mini"), cap(30)), policy=MINI)
    answer = await gateway.post()
    assert provider.calls[0].body == {**CHAT, "model": "gpt-4o-mini", "max_tokens": 30}
    assert (answer.headers["x-sark-model"], answer.headers["x-sark-max-output-tokens"]) == ("gpt-4o-mini", "30")


async def test_an_output_limit_that_the_chosen_model_does_not_have_is_lowered(books: MakeGateway) -> None:
    gateway, provider = await with_plugin(books, Obliging(use("gpt-4o-mini")), policy=MINI)
    await gateway.post({**CHAT, "model": "gpt-5", "max_tokens": 60_000})
    assert provider.calls[0].body["max_tokens"] == 16_384


async def test_a_request_that_does_not_touch_the_scope_is_denied_with_the_scope(books: MakeGateway) -> None:
    gateway, provider = await with_plugin(books, Obliging(Obligation("require_scope", "team:ml")))
    answer = await gateway.post()
    assert answer.status == 403 and provider.calls == []
    assert "team:ml" in answer.json["error"]["message"] and answer.json["error"]["details"]["plugin"] == "obliging"
    gateway, provider = await with_plugin(books, Obliging(Obligation("require_scope", "user:a")))
    assert (await gateway.post()).status == 200


async def test_a_tag_that_the_caller_asserts_does_not_fulfil_what_a_policy_requires(books: MakeGateway) -> None:
    gateway, _ = await with_plugin(books, Obliging(Obligation("require_scope", "tag:approved")))
    assert (await gateway.post(headers={"x-sark-tags": "approved"})).status == 403


async def test_a_capped_request_that_the_budget_refuses_is_clamped_further(books: MakeGateway) -> None:
    limits = ({"scope": "user:a", "amount": "0.0004"}, {"scope": "user:a", "amount": 100, "unit": "concurrency"})
    sections = {"limits": limits, "instead": {"clamp": True, "clamp_min_output_tokens": 1}}
    gateway, provider = await with_plugin(books, Obliging(cap(100)), pricing={"default_service_tier": "default"}, **sections)
    answer = await gateway.post()
    assert answer.status == 200 and 0 < provider.calls[0].body["max_tokens"] < 50
    assert answer.headers["x-sark-max-output-tokens"] == str(provider.calls[0].body["max_tokens"])


# --- a policy that cannot be asked -----------------------------------------------------------------------------------


@pytest.mark.parametrize("does", ["crash", "hang"])
async def test_a_policy_that_cannot_be_asked_is_503_and_a_denial_is_403(books: MakeGateway, does: str) -> None:
    gateway, provider = await with_plugin(books, Obliging(does=does))
    answer = await gateway.post()
    error = answer.json["error"]
    assert (answer.status, error["code"], error["details"]["plugin"]) == (503, "policy_unavailable", "obliging")
    assert answer.headers["retry-after"] == "1" and "x-should-retry" not in answer.headers
    assert "secret" not in answer.body.decode() and provider.calls == []
    assert [(event.outcome, event.reason) for event in gateway.seen.requests] == [("unavailable", "obliging")]
    gateway, _ = await with_plugin(books, Obliging(does="deny"))
    denied = await gateway.post()
    assert (denied.status, denied.json["error"]["code"]) == (403, "policy_denied")
    assert denied.headers["x-should-retry"] == "false"


async def test_the_official_clients_raise_their_own_errors_after_trying_again(make: MakeGateway) -> None:
    plugin = Obliging(does="crash")
    gateway, _ = await with_plugin(make, plugin)
    async with (
        serve(gateway.app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-x", max_retries=1) as asked,
        anthropic.AsyncAnthropic(base_url=url, api_key="sk-x", max_retries=0) as other,
    ):
        with pytest.raises(openai.InternalServerError) as raised:
            await asked.chat.completions.create(**CHAT)
        assert raised.value.code == "policy_unavailable" and len(plugin.asked) == 2
        with pytest.raises(anthropic.APIStatusError) as refused:
            await other.messages.create(**MESSAGES)
    assert refused.value.status_code == 503 and type(refused.value) is not anthropic.APIStatusError


async def test_every_decision_is_told_with_plugin_version_and_request(books: MakeGateway) -> None:
    gateway, _ = await with_plugin(books, Obliging(Obligation("add_tag", "x")))
    told: list[PolicyDecided] = []
    gateway.seen.policy_decided = told.append  # type: ignore[method-assign]
    answer = await gateway.post()
    (decided,) = told
    assert (decided.plugin, decided.version, decided.outcome, decided.allowed) == ("obliging", "1.5", "allowed", True)
    assert (decided.reason, decided.obligations, decided.principal_id) == ("because", ("add_tag=x",), "user:a")
    assert decided.request_id == answer.headers["x-sark-request-id"] and decided.seconds > 0


async def test_what_a_plugin_says_besides_and_what_it_raised_are_told(books: MakeGateway) -> None:
    class Telling(Obliging):
        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            return PolicyDecision(True, "fine", {"usual": 2.5, "odd": object})

    for plugin, expected in ((Telling(), '"usual":2.5'), (Obliging(does="crash"), '"error_type":"ValueError"')):
        gateway, _ = await with_plugin(books, plugin)
        told: list[PolicyDecided] = []
        gateway.seen.policy_decided = told.append  # type: ignore[method-assign]
        answer = await gateway.post()
        assert expected in told[0].metadata
        assert b"secret detail" not in answer.body and ("secret detail" in told[0].metadata) == (not told[0].allowed)


async def test_the_chain_of_policies_has_a_deadline_of_its_own(books: MakeGateway) -> None:
    plugin = Obliging(does="hang")
    plugin.timeout = None  # type: ignore[method-assign,assignment]
    gateway, _ = await with_plugin(books, plugin, policy={"timeout_s": 60, "chain_timeout_s": 0.02})
    assert (await gateway.post()).json["error"]["code"] == "policy_unavailable"


async def test_a_plugin_that_needs_the_limits_is_told_where_they_stand(books: MakeGateway) -> None:
    plugin = Obliging()
    plugin.needs = frozenset({"environment.limits"})  # type: ignore[method-assign,assignment]
    gateway, _ = await with_plugin(books, plugin)
    await gateway.post()
    limits = plugin.asked[0].environment["limits"]
    assert {(each["scope"], each["unit"], each["window"]) for each in limits} >= {("user:a", "usd", "day")}
    budget = next(each for each in limits if each["unit"] == "usd")
    assert budget["amount"] == 1_000_000_000 and budget["used"] == (budget["spent"] + budget["held"]) / budget["amount"]


class _Router(PolicyPlugin):
    """Oblige requests for the dear model to the cheap one, and tag them."""

    name = "router"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        model = context.environment["model"]
        self.asked.append(model)
        owed = (Obligation("use_model", "gpt-4o-mini"), Obligation("add_tag", "routed")) if model == "gpt-4o" else ()
        return PolicyDecision(True, "routed", obligations=owed)


class _Night(PolicyPlugin):
    """Tag every request."""

    name = "night"

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(True, "tagged", obligations=(Obligation("add_tag", "night"),))


async def test_what_a_decision_obliges_to_stands_when_the_output_is_clamped(make: MakeGateway) -> None:
    limits = (
        {"scope": "user:a", "amount": "10"},
        {"scope": "user:a", "amount": 100, "unit": "concurrency"},
        {"scope": "tag:routed", "amount": "0.001"},
    )
    provider, router = FakeProvider(), _Router()
    gateway = await make(
        provider,
        policy={"obligation_models": ("gpt-4o-mini",)},
        instead={"clamp": True},
        limits=limits,
        pricing={"default_service_tier": "default"},
    )
    await gateway.sark.policies.register_plugin(router)
    answer = await gateway.post(LONG)
    assert (answer.status, router.asked) == (200, ["gpt-4o"])
    assert provider.calls[0].body["model"] == "gpt-4o-mini"
    assert "tag:routed" in (await gateway.entry()).scopes


async def test_a_tag_that_a_policy_adds_belongs_to_what_the_members_say(make: MakeGateway) -> None:
    gateway = await make(
        FakeProvider(),
        principal={"anonymous": "user:a", "members": {"tag:night": ("team:x",)}},
        limits=({"scope": "team:x", "amount": 1, "unit": "requests"},),
    )
    await gateway.sark.policies.register_plugin(_Night())
    assert [(await gateway.post()).status for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("waits", [float("inf"), float("nan"), 10**400, -5, True, "soon", None])
async def test_a_denial_says_what_it_likes_of_waiting_and_the_requests_end_is_told(books: MakeGateway, waits: Any) -> None:
    class Impatient(PolicyPlugin):
        name = "impatient"  # type: ignore[assignment]

        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            return PolicyDecision(False, "no", {"retry_after": waits})

    gateway, _ = await with_plugin(books, Impatient())
    answer = await gateway.post()
    assert answer.status == 403 and answer.error is None
    assert [each.outcome for each in gateway.seen.requests] == ["refused_policy"]


@pytest.mark.parametrize(
    ("scope", "headers", "body"),
    [
        ("end_user:bob", {"x-sark-end-user": "bob"}, CHAT),
        ("tag:x", {"x-sark-tags": "x"}, CHAT),
        ("model:gpt-4o", {}, {**CHAT, "model": "gpt-4o-2024-08-06"}),
        ("run:user:a/r1", {"x-sark-run": "r1", "x-sark-run-budget": "0.02"}, CHAT),
    ],
)
async def test_policies_see_every_limit_that_a_request_touches(
    books: MakeGateway, scope: str, headers: dict[str, str], body: dict[str, Any]
) -> None:
    from sark_mw.policy.cel import CelPlugin

    shown: list[set[str]] = []

    class Looks(Obliging):
        needs = frozenset({"environment.limits"})  # type: ignore[assignment]

        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            shown.append({each["scope"] for each in context.environment["limits"]})
            return PolicyDecision(True, "fine")

    limits: list[dict[str, Any]] = [{"scope": "user:a", "amount": 1, "unit": unit} for unit in ("usd", "concurrency")]
    limits += [] if scope.startswith("run:") else [{"scope": scope, "amount": "0.02"}]
    gateway, _ = await with_plugin(books, Looks(), limits=tuple(limits))
    kind = scope.partition(":")[0]
    rule = CelPlugin([{"when": f'budget("{kind}").amount == 0.02', "deny": "seen"}], "rule")
    await gateway.sark.policies.register_plugin(rule)
    answer = await gateway.post(body, headers=headers)
    assert shown == [{"user:a", scope}]
    assert answer.status == 403 and "seen" in answer.json["error"]["message"]
    # Another request of the same caller, who says nothing of it.
    if headers:
        assert (await gateway.post(body)).status == 503  # the rule asks for a budget that is none of this request's
        assert shown[-1] == {"user:a"}


@pytest.mark.parametrize("plugin", ["rate_limit", "anomaly", "cost_aware", "cost_aware of scopes", "cel"])
async def test_a_store_that_lost_its_data_is_rebuilt_before_policies_that_count_there_are_answered(
    make: MakeGateway, plugin: str
) -> None:
    from sark_mw.policy.builtin import builtin_plugin_path
    from sark_mw.policy.cel import CelPlugin

    gateway = await make(FakeProvider())
    policies = gateway.sark.policies
    if plugin == "cel":
        await policies.register_plugin(CelPlugin([{"when": 'budget("user").used > 0.9', "deny": "no"}], "rule"))
    else:
        name, _, scopes = plugin.partition(" of ")
        options: dict[str, Any] = {"scopes": ["user"]} if scopes else {"on_error": "deny"} if name == "anomaly" else {}
        await policies.load_from_file(builtin_plugin_path(name), **options)
    assert (await gateway.post()).status == 200
    for _ in range(2):
        await gateway.quiet()
        store = gateway.sark.store
        for shard in range(store.shards):
            await store.abandon(shard, (await store.position(shard)).epoch)
        await asyncio.sleep(0.3)  # figures are kept for a quarter of a second
        assert (await gateway.post()).status == 200
