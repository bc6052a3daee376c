"""What a caller may try in order to pay less, or to have another one pay."""

from __future__ import annotations

from typing import Any

import pytest

from sark_mw.asgi.routes import Router
from sark_mw.limit import Unit
from sark_mw.pricing.registry import builtin_estimators
from tests.asgi.apps import Replies, completion
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import CHAT, MESSAGES

NOTHING_LEFT = ({"scope": "user:a", "amount": "0"},)
SECRET = {"key_secret": "s" * 32}
GEMINI = "/v1beta/models/gemini-2.5-flash:generateContent"
CONTENTS = {"contents": [{"parts": [{"text": "hello"}]}], "generationConfig": {"maxOutputTokens": 10}}


async def test_a_method_in_lower_case_is_metered(make: MakeGateway) -> None:
    app = Replies(completion(1, 1))
    gateway = await make(app, limits=NOTHING_LEFT)
    assert [(await gateway.post(method=method)).status for method in ("POST", "post", "Post")] == [402] * 3
    assert app.asked == 0


@pytest.mark.parametrize("path", ["/tools/a\n/run", "/tools/a\r\n/run", "/tools/\x85/run"])
async def test_a_line_end_in_the_path_evades_no_rule(make: MakeGateway, path: str) -> None:
    gateway = await make(Replies({}), routes=[{"path": "/tools/**", "price_usd": "0.5"}])
    assert (await gateway.post({}, path)).status == 200
    assert (await gateway.entry()).cost_nanos == 500_000_000


@pytest.mark.parametrize(
    ("path", "root_path"), [("/api/tools/x", "/api"), ("/tools/x", "/api"), ("/tools/x", ""), ("/api/tools/x", "/api/")]
)
async def test_a_rule_holds_below_a_mounts_prefix_and_without_it(make: MakeGateway, path: str, root_path: str) -> None:
    gateway = await make(Replies({}), routes=[{"path": "/tools/*", "price_usd": "0.5"}])
    assert (await gateway.post({}, path, root_path=root_path)).status == 200
    assert (await gateway.entry()).cost_nanos == 500_000_000


async def test_a_rule_may_name_the_whole_path_where_the_server_leaves_the_prefix_out(make: MakeGateway) -> None:
    gateway = await make(Replies({}), routes=[{"path": "/api/tools/*", "price_usd": "0.5"}])
    assert (await gateway.post({}, "/tools/x", root_path="/api")).status == 200
    assert (await gateway.entry()).cost_nanos == 500_000_000


async def test_a_long_path_is_refused_where_it_is_metered_and_remembered_nowhere(make: MakeGateway) -> None:
    app = Replies({})
    gateway = await make(app)
    assert (await gateway.post(path="/" + "a" * 3000 + "/chat/completions")).status == 414
    assert (await gateway.post(path="/" + "a" * 3000)).status == 200
    assert app.asked == 1
    router = Router((), builtin_estimators())
    router.match("GET", "/" + "a" * 3000)
    router.match("X" * 3000, "/")
    assert router._cached.cache_info().currsize == 0


@pytest.mark.parametrize(
    ("path", "body", "real", "junk"),
    [
        ("/v1/chat/completions", CHAT, {"authorization": "Bearer sk-real"}, {"x-api-key": "junk"}),
        ("/v1/chat/completions", CHAT, {"authorization": "bearer\tsk-real"}, {"x-goog-api-key": "junk"}),
        ("/v1/chat/completions", CHAT, {"api-key": "sk-real"}, {"x-api-key": "junk"}),
        ("/v1/messages", MESSAGES, {"x-api-key": "sk-real"}, {"authorization": "Bearer junk"}),
        ("/v1/messages", MESSAGES, {"authorization": "Bearer sk-real"}, {"api-key": "junk"}),
        (GEMINI, CONTENTS, {"x-goog-api-key": "sk-real"}, {"x-api-key": "junk"}),
    ],
)
async def test_a_second_credential_cannot_make_somebody_else_pay(
    make: MakeGateway, path: str, body: object, real: dict[str, str], junk: dict[str, str]
) -> None:
    app = Replies(completion(10, 10))
    gateway = await make(app, principal=SECRET)
    assert (await gateway.post(body, path, headers=real)).status == 200
    payer = (await gateway.entry()).principal_id
    assert payer.startswith("key:")
    spent = await make(app, principal=SECRET, limits=({"scope": payer, "amount": "0"},))
    assert (await spent.post(body, path, headers=real)).status in (402, 429)
    assert (await spent.post(body, path, headers=real | junk)).status == 400
    assert app.asked == 1


async def test_a_key_in_geminis_query_is_a_credential_like_any_other(make: MakeGateway) -> None:
    gateway = await make(Replies({}), principal=SECRET)
    assert (await gateway.post(CONTENTS, GEMINI, query_string=b"key=sk-real")).status == 200
    both = await gateway.post(CONTENTS, GEMINI, query_string=b"key=sk-real", headers={"x-goog-api-key": "junk"})
    assert both.status == 400
    same = await gateway.post(CONTENTS, GEMINI, query_string=b"alt=sse&key=sk-real", headers={"x-goog-api-key": "sk-real"})
    assert same.status == 200
    assert len({entry.principal_id for entry in await gateway.entries()}) == 1


async def test_the_same_key_in_two_headers_is_no_conflict(make: MakeGateway) -> None:
    gateway = await make(Replies(completion(1, 1)), principal=SECRET)
    headers = {"authorization": "Bearer sk-real", "api-key": "sk-real"}
    assert (await gateway.post(headers=headers)).status == 200


async def test_of_two_known_keys_of_one_principal_that_one_counts_which_the_provider_reads(make: MakeGateway) -> None:
    from sark_mw.instrumentation.keys import hash_key

    def known(key: str, team: str) -> dict[str, Any]:
        return {"key_hash": hash_key(b"s" * 32, key), "principal": "user:a", "scopes": (team,)}

    principal = {**SECRET, "keys": (known("sk-1", "team:one"), known("sk-2", "team:two"))}
    gateway = await make(Replies(completion(1, 1)), principal=principal)
    headers = {"x-api-key": "sk-1", "authorization": "Bearer sk-2"}
    await gateway.post(headers=headers)
    await gateway.post(MESSAGES, "/v1/messages", headers=headers)
    by_openai, by_anthropic = await gateway.entries()
    assert "team:two" in by_openai.scopes and "team:one" not in by_openai.scopes
    assert "team:one" in by_anthropic.scopes and "team:two" not in by_anthropic.scopes


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key"])
async def test_a_repeated_credential_is_refused(make: MakeGateway, name: str) -> None:
    gateway = await make(Replies(completion(1, 1)), principal=SECRET)
    client = gateway.client()
    client.scope["headers"] += [(name.encode(), b"Bearer sk-1"), (name.encode(), b"Bearer sk-2")]
    answer = await client.run()
    assert answer.status == 400 and name in answer.json["error"]["message"]


@pytest.mark.parametrize("model", ["gpt-4o", "GPT-4o", " gpt-4o", "openai/gpt-4o", "gpt-4o-2024-08-06"])
async def test_a_limit_on_a_model_holds_for_every_spelling_of_it(make: MakeGateway, model: str) -> None:
    app = Replies(completion(1, 1))
    gateway = await make(app, limits=({"scope": "model:gpt-4o", "amount": "0"},))
    assert (await gateway.post({**CHAT, "model": model})).status == 402
    assert app.asked == 0


def batch(*names: str) -> list[dict[str, Any]]:
    """JSON-RPC calls of these tools."""
    call = {"jsonrpc": "2.0", "method": "tools/call"}
    return [{**call, "id": n, "params": {"name": name, "arguments": {"n": n}}} for n, name in enumerate(names)]


async def test_every_call_of_a_batch_counts_as_a_request(books: MakeGateway) -> None:
    gateway = await books(Replies([]))
    assert (await gateway.post(batch(*["search"] * 30), "/mcp")).status == 200
    assert (await gateway.balance(unit=Unit.REQUESTS)).spent == 30
    assert (await gateway.post(batch("search"), "/mcp")).status == 200
    assert (await gateway.balance(unit=Unit.REQUESTS)).spent == 31


async def test_a_batch_over_the_rate_limit_is_refused_whole(make: MakeGateway) -> None:
    app = Replies([])
    gateway = await make(app, limits=({"scope": "user:a", "amount": 10, "unit": "requests"},))
    answer = await gateway.post(batch(*["search"] * 11), "/mcp")
    assert all(each["result"]["isError"] for each in answer.json)
    assert app.asked == 0 and (await gateway.balance(unit=Unit.REQUESTS)).spent == 0


async def test_policies_are_asked_about_every_tool_of_a_batch(make: MakeGateway) -> None:
    from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin, PolicyPluginManager

    class NoDelete(PolicyPlugin):
        name = "no-delete"

        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            return PolicyDecision(context.capability_id != "delete" and context.arguments != {"n": 7}, "not that")

    policies = PolicyPluginManager()
    await policies.register_plugin(NoDelete())
    app = Replies([])
    gateway = await make(app, {"policies": policies})
    for names in (("search", "delete"), ["search"] * 8):
        answer = await gateway.post(batch(*names), "/mcp")
        assert all(each["result"]["isError"] for each in answer.json)
    assert (await gateway.post(batch("search", "read"), "/mcp")).status == 200
    assert app.asked == 1


SPENDING = [
    "/v1/images/generations", "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/batches", "/v1/messages/batches",
    "/v1/responses/compact", "/v1/videos", "/v1/fine_tuning/jobs", "/v1/threads/t_1/runs", "/v1/realtime/sessions",
    "/openai/deployments/dall-e/images/generations", "/openai//v1/Images/generations/", "/v1beta/models/imagen-4:predict",
    "/v1beta/models/veo-3:predictLongRunning", "/v1beta/models/gemini-2.5-pro:batchGenerateContent", "/v1/complete",
]  # fmt: skip


@pytest.mark.parametrize("path", SPENDING)
async def test_what_a_known_provider_charges_for_and_nobody_prices_is_refused(make: MakeGateway, path: str) -> None:
    app = Replies({})
    gateway = await make(app)
    assert (await gateway.post(b"--x\r\n", path, headers={"content-type": "multipart/form-data"})).status == 400
    assert gateway.seen.requests[-1].reason == "no_estimator"
    assert app.asked == 0
    assert (await gateway.client(b"", path=path, method="GET").run()).status == 200
    assert app.asked == 1


@pytest.mark.parametrize(
    "path",
    ["/v1/files", "/v1/moderations", "/v1/batches/b_1/cancel", "/v1/messages/batches/b_1/cancel", "/batches", "/v1/models"],
)
async def test_what_costs_nothing_and_what_only_sounds_alike_passes(make: MakeGateway, path: str) -> None:
    app = Replies({})
    gateway = await make(app)
    assert (await gateway.post({}, path)).status == 200
    assert app.asked == 1 and await gateway.entries() == []


async def test_a_rule_prices_or_frees_what_is_refused_otherwise(make: MakeGateway) -> None:
    rules = [{"path": "/v1/images/**", "price_usd": "0.04"}, {"path": "/v1/audio/**", "ignore": True}]
    gateway = await make(Replies({}), routes=rules)
    assert (await gateway.post({}, "/v1/images/generations")).status == 200
    assert (await gateway.post({}, "/v1/audio/speech")).status == 200
    assert (await gateway.entry()).cost_nanos == 40_000_000


async def test_a_rule_that_ignores_and_a_count_of_tokens_pass_where_only_metered_requests_do(make: MakeGateway) -> None:
    rules = [{"path": "/v1/**", "methods": ["GET"], "ignore": True}]
    gateway = await make(Replies({}), routes=rules, http={"metered_only": True})
    assert (await gateway.client(b"", path="/v1/models", method="GET").run()).status == 200
    assert (await gateway.post(MESSAGES, "/v1/messages/count_tokens")).status == 200
    assert (await gateway.post({}, "/v1/files")).status == 404


async def test_an_upstream_cannot_speak_for_us_in_our_headers(make: MakeGateway) -> None:
    forged = ((b"x-sark-cost", b"0.00"), (b"X-Sark-Budget-Remaining", b"999"), (b"x-sark-request-id", b"evil"), (b"x-own", b"1"))
    gateway = await make(Replies(completion(10, 10), headers=forged))
    answer = await gateway.post()
    said = [name for name, _ in answer.messages[0]["headers"] if name.startswith(b"x-sark-")]
    assert sorted(said) == [b"x-sark-budget-remaining", b"x-sark-cost", b"x-sark-request-id"]
    assert answer.headers["x-sark-request-id"].startswith("req_") and answer.headers["x-own"] == "1"
