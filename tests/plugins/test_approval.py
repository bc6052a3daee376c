from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from plugins.approval import ApprovalPlugin
from sark_mw import ConfigurationError, PolicyContext, PolicyDecision, PolicyPluginManager
from sark_mw._fake_provider import FakeProvider
from sark_mw.errors import LedgerUnavailableError, RefusedError
from tests.asgi.driving import CHAT, LONG, Answer, Gateway, gateway_for, settings_for
from tests.cli.running import printed, sark
from tests.policy.samples import Sample, a_context

TOKEN = "a token of the tests, long enough"
BEARER = {"authorization": f"Bearer {TOKEN}"}
#: May cost several cents.
DEAR = LONG


class Office:
    """A gateway's process, its callers and its administrators."""

    def __init__(self, gateway: Gateway, provider: FakeProvider) -> None:
        self.gateway = gateway
        self.provider = provider

    async def post(self, body: Any = DEAR, *, token: str | None = None, user: str | None = None) -> Answer:
        headers = {"x-sark-approval": token} if token else {}
        headers |= {"x-sark-principal": user} if user else {}
        answer = await self.gateway.post(body, headers=headers)
        await self.gateway.quiet()
        return answer

    async def admin(self, method: str, path: str, body: Any = None, *, status: int = 200, query: bytes = b"") -> Any:
        raw = b"" if body is None else body
        answer = await self.gateway.post(raw, f"/sark/admin{path}", method=method, headers=BEARER, query_string=query)
        assert answer.status == status, answer.body
        return answer.json

    async def denied(self, **more: Any) -> str:
        """Send a dear request, and return the id that it may be approved by."""
        answer = await self.post(**more)
        assert answer.status == 403, answer.body
        message: str = answer.json["error"]["message"]
        return message.rpartition(" ")[2]

    async def approved(self, approval_id: str, **body: Any) -> str:
        token: str = (await self.admin("POST", f"/approvals/{approval_id}", body))["token"]
        return token

    async def waiting(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.admin("GET", "/approvals"))["approvals"]
        return found


MakeOffice = Callable[..., Awaitable[Office]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[MakeOffice]:
    """Make processes on one store, all with the same settings."""
    url = f"memory://{uuid4().hex}"
    async with AsyncExitStack() as stack:

        async def one(*plugins: Sample, **sections: Any) -> Office:
            manager = PolicyPluginManager()
            for plugin in (ApprovalPlugin(above_usd="0.02"), *plugins):
                await manager.register_plugin(plugin)
            sections = {
                "admin": {"enabled": True, "token": TOKEN},
                "principal": {"anonymous": "user:a", "sources": ("header",), "trusted_proxies": ("203.0.113.0/24",)},
                "store": {"url": url, "journal": tmp_path / f"{uuid4().hex}.jsonl", "deadline_ms": 20_000},
                **sections,
            }
            settings = settings_for(tmp_path, **sections)
            provider = FakeProvider()
            gateway = await stack.enter_async_context(gateway_for(provider, settings, on_fakeredis=True, policies=manager))
            return Office(gateway, provider)

        yield one


@pytest.fixture
async def office(make: MakeOffice) -> Office:
    return await make()


async def test_a_dear_request_waits_and_goes_on_once_with_the_administrators_token(office: Office) -> None:
    assert (await office.post(CHAT)).status == 200
    approval_id = await office.denied()
    (waits,) = await office.waiting()
    assert (waits["id"], waits["principal"], waits["capability"], waits["model"]) == (approval_id, "user:a", "chat", "gpt-4o")
    assert 0.04 <= float(waits["amount"]) < 0.1 and "hello" not in json.dumps(waits)
    token = await office.approved(approval_id, reason="quarterly report")
    assert await office.waiting() == []
    assert (await office.post(token=token)).status == 200
    again = await office.post(token=token)
    assert again.status == 403 and "the approval has been used" in again.json["error"]["message"]
    assert len(office.provider.calls) == 2
    (event,) = (await office.admin("GET", "/events", query=b"kind=approval"))["events"]
    assert (event["scope"], event["reason"], event["actor"]) == ("user:a", "quarterly report", "admin")
    assert token not in json.dumps(event)


async def test_a_call_without_http_brings_its_token_along_too(office: Office) -> None:
    sark = office.gateway.sark
    call: dict[str, Any] = {"principal": "user:job", "estimate": "0.5"}
    with pytest.raises(RefusedError, match="needs an approval"):
        async with sark.reserve(**call):
            pass
    (waits,) = await office.waiting()
    token = await office.approved(waits["id"])
    async with sark.reserve(**call, approval=token) as reservation:
        reservation.settle("0.4")
    with pytest.raises(RefusedError, match="the approval has been used"):
        async with sark.reserve(**call, approval=token):
            pass


async def test_a_token_is_used_once_by_all_processes_together(make: MakeOffice) -> None:
    offices = [await make(), await make()]
    token = await offices[1].approved(await offices[0].denied())
    answers = await asyncio.gather(*(offices[n % 2].post(token=token) for n in range(8)))
    assert sorted(answer.status or 0 for answer in answers) == [200] + [403] * 7


async def test_a_token_is_for_its_principal_and_its_amount(office: Office) -> None:
    token = await office.approved(await office.denied())
    other = await office.post(token=token, user="user:b")
    assert other.status == 403 and "for another request" in other.json["error"]["message"]
    dearer = await office.post({**LONG, "max_tokens": 16_000}, token=token)
    assert dearer.status == 403 and "for at most $0.0" in dearer.json["error"]["message"]
    assert {each["principal"] for each in await office.waiting()} == {"user:a", "user:b"}
    assert (await office.post(token=token)).status == 200


async def test_an_administrator_may_allow_another_amount(office: Office) -> None:
    token = await office.approved(await office.denied(), amount="1")
    assert (await office.post({**LONG, "max_tokens": 16_000}, token=token)).status == 200


@pytest.mark.parametrize("change", [lambda t: "x" + t, lambda t: t[:-2] + "!!", lambda t: t.partition(".")[0], lambda t: "."])
async def test_a_token_that_was_tampered_with_is_none(office: Office, change: Callable[[str], str]) -> None:
    token = await office.approved(await office.denied())
    answer = await office.post(token=change(token))
    assert answer.status == 403 and "not genuine" in answer.json["error"]["message"]
    assert (await office.post(token=token)).status == 200


async def test_another_admin_token_makes_all_of_them_void(make: MakeOffice) -> None:
    before, after = await make(), await make(admin={"enabled": True, "token": "another token of the tests"})
    token = await before.approved(await before.denied())
    assert "not genuine" in (await after.post(token=token)).json["error"]["message"]


async def test_a_loss_of_the_store_makes_used_and_unused_tokens_void(make: MakeOffice) -> None:
    office, other = await make(), await make()
    used, unused = [await office.approved(await office.denied(user=f"user:{name}")) for name in ("a", "b")]
    assert (await office.post(token=used, user="user:a")).status == 200
    await office.gateway.sark.store._commands.client.flushall()
    await other.gateway.sark.recovery.rebuild()
    for each in (office, other):
        for token, user in ((used, "user:a"), (unused, "user:b")):
            answer = await each.post(token=token, user=user)
            assert answer.status == 403 and "has lost its data" in answer.json["error"]["message"], answer.body
    assert len(office.provider.calls) == 1
    (waits,) = [each for each in await office.waiting() if each["principal"] == "user:a"]
    assert (await office.post(token=await office.approved(waits["id"]), user="user:a")).status == 200


async def test_a_token_and_a_waiting_request_have_an_end(office: Office) -> None:
    approval_id = await office.denied()
    token = await office.approved(approval_id, valid_s=1)
    await office.denied()
    office.gateway.sark.clock.heard(office.gateway.sark.clock.now_ms() + 2000)
    # The store's own answers bring the true time back, so it is read at once.
    assert office.gateway.sark.approvals.read(token) is None
    office.gateway.sark.clock.heard(office.gateway.sark.clock.now_ms() + 2 * 86_400_000)
    assert await office.gateway.sark.approvals.waiting("default") == []


async def test_one_of_several_administrators_answers_and_a_refused_request_is_listed_no_more(office: Office) -> None:
    approval_id = await office.denied()
    assert await office.denied() == approval_id, "the same request waits once"
    path = f"/approvals/{approval_id}"

    async def approve() -> int:
        answer = await office.gateway.post({}, f"/sark/admin{path}", headers=BEARER)
        return answer.status or 0

    assert sorted(await asyncio.gather(*(approve() for _ in range(4)))) == [200, 404, 404, 404]
    again = await office.denied()
    assert (await office.admin("DELETE", path, query=b"reason=too+dear"))["turned_down"]["id"] == again
    newest = (await office.admin("GET", "/events", query=b"kind=approval"))["events"][0]
    assert (newest["reason"], newest["actor"], newest["detail"]["refused"]) == ("too dear", "admin", True)
    await office.admin("DELETE", path, status=404)
    await office.admin("POST", path, {}, status=404)


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_an_answer_that_cannot_be_recorded_is_none_and_can_be_given_again(
    office: Office, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    approval_id = await office.denied()
    before, body = await office.waiting(), {} if method == "POST" else None

    async def away(*_: Any) -> Any:
        raise LedgerUnavailableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(office.gateway.sark.ledger, "record_new", away)
        await office.admin(method, f"/approvals/{approval_id}", body, status=503)
    assert await office.waiting() == before
    await office.admin(method, f"/approvals/{approval_id}", body)
    assert await office.waiting() == []
    events = (await office.admin("GET", "/events", query=b"kind=approval"))["events"]
    assert [each["detail"]["approval_id"] for each in events] == [approval_id]


async def test_what_the_budget_or_a_later_plugin_refuses_does_not_use_the_token_up(make: MakeOffice) -> None:
    async def later(context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(context.arguments.get("user") != "no", "not now")

    office = await make(Sample("later", later, priority=200))
    token = await office.approved(await office.denied())

    async def once_given_back(body: dict[str, Any]) -> Answer:
        while b"has been used" in (answer := await office.post(body, token=token)).body:
            await asyncio.sleep(0)
        return answer

    for _ in range(3):
        assert "not now" in (await once_given_back({**DEAR, "user": "no"})).json["error"]["message"]
    assert (await once_given_back(DEAR)).status == 200
    assert b"has been used" in (await office.post(token=token)).body


MCP = {"path": "/mcp", "wire": "mcp", "price_usd": "0.015"}


def batch(*tools: str) -> list[dict[str, Any]]:
    calls = [{"name": tool, "arguments": {"q": tool}} for tool in tools]
    return [{"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": call} for n, call in enumerate(calls)]


@pytest.mark.parametrize("tools", [("search", "search"), ("search", "delete"), ("search", "delete", "search")])
async def test_an_mcp_batch_waits_as_one_request_and_goes_on_as_one(make: MakeOffice, tools: tuple[str, ...]) -> None:
    office = await make(routes=(MCP,))

    async def send(*called: str, token: str | None = None) -> str:
        headers = {"x-sark-approval": token} if token else {}
        answer = await office.gateway.post(batch(*called), path="/mcp", headers=headers)
        await office.gateway.quiet()
        return answer.body.decode()

    assert "needs an approval" in await send(*tools)
    (waits,) = await office.waiting()
    assert all(tool in waits["capability"] for tool in tools), waits
    token = await office.approved(waits["id"])
    assert "for another request" in await send(*tools, "drop", token=token)
    assert "Denied" not in await send(*tools, token=token)
    assert "has been used" in await send(*tools, token=token)
    assert "Denied" not in await send("search"), "one call is cheap enough"


async def test_a_batch_on_a_route_with_a_name_is_of_that_name_and_one_with_endless_names_cannot_be_approved(
    make: MakeOffice,
) -> None:
    office = await make(routes=({**MCP, "capability": "crm"},))
    await office.gateway.post(batch("read", "write"), path="/mcp")
    assert [each["capability"] for each in await office.waiting()] == ["crm"]
    office = await make(routes=(MCP,))
    answer = await office.gateway.post(batch("a" * 200, "b" * 200), path="/mcp")
    assert b"cannot be given" in answer.body


async def test_eight_requests_of_a_principal_wait_and_a_ninth_takes_the_place_of_the_one_asked_longest_ago(
    office: Office,
) -> None:
    def dear(n: int) -> dict[str, Any]:
        return {**LONG, "max_tokens": 4000 * n}

    async def listed() -> set[str]:
        return {each["id"] for each in await office.waiting()}

    ids = []
    for n in range(1, 9):
        ids.append(await office.denied(body=dear(n)))
        office.gateway.sark.clock.heard(office.gateway.sark.clock.now_ms() + 5)
    assert len({*ids}) == 8 and await listed() == {*ids}
    assert await office.denied(body=dear(1)) == ids[0], "asked again it is the newest, and still there once"
    assert await listed() == {*ids} and len(await office.waiting()) == 8
    ninth = await office.denied(body=dear(9))
    assert await listed() == {*ids, ninth} - {ids[1]}
    token = await office.approved(ids[7])
    assert (await office.post(dear(8), token=token)).status == 200
    assert await office.denied(body=dear(2)) == ids[1], "there is a free place"
    assert await listed() == {*ids, ninth} - {ids[7]}


async def test_of_requests_that_meet_in_one_place_each_is_listed_once_it_is_asked_again(make: MakeOffice) -> None:
    offices = [await make(), await make()]
    bodies = [{**LONG, "max_tokens": 4000 * n} for n in (*range(1, 9), 1, 2)]
    asked = [await asyncio.gather(*(offices[n % 2].denied(body=each) for n, each in enumerate(bodies))) for _ in range(2)]
    for each in bodies[:8]:  # one after the other: who was pushed off finds a place
        await offices[0].denied(body=each)
    waiting = [each["id"] for each in await offices[1].waiting()]
    assert sorted(waiting) == sorted({*asked[0]}) and len(waiting) == 8
    await offices[0].approved(waiting[0])
    await offices[1].admin("POST", f"/approvals/{waiting[0]}", {}, status=404)


async def test_one_principal_cannot_push_anothers_request_off_the_list(office: Office) -> None:
    mine = await office.denied(user="user:b")
    for n in range(40):
        await office.post({**LONG, "max_tokens": 4000 + 1000 * n if n < 12 else 4000 + n})
    waiting = await office.waiting()
    assert mine in [each["id"] for each in waiting] and len(waiting) <= 9


async def test_what_nobody_can_approve_is_denied_all_the_same(make: MakeOffice) -> None:
    office = await make(admin={})
    answer = await office.post()
    assert answer.status in (403, 503) and office.provider.calls == []
    bare = PolicyPluginManager()
    await bare.register_plugin(ApprovalPlugin())
    for environment in ({}, {"estimated_nanos": 5_000_000_000}):
        assert not (await bare.evaluate_all(a_context(environment=environment)))[0].allowed
    assert (await bare.evaluate_all(a_context(environment={"estimated_nanos": 1_000_000_000})))[0].allowed


@pytest.mark.parametrize("amount", [-1, "much", float("nan"), True])
def test_amounts_that_make_no_sense_are_refused(amount: Any) -> None:
    with pytest.raises(ConfigurationError, match="above_usd"):
        ApprovalPlugin(above_usd=amount)


def test_the_command_line_does_it_too(tmp_path: Path, valkey_server: Any) -> None:
    asyncio.run(_by_command(tmp_path, valkey_server.url))


async def _by_command(tmp_path: Path, url: str) -> None:
    config = tmp_path / "sark.toml"
    prefix = uuid4().hex
    config.write_text(
        f'[store]\nurl = "{url}"\nprefix = "{prefix}"\njournal = "{tmp_path}/j"\ndeadline_ms = 20_000\n'
        f'[ledger]\nurl = "sqlite:///{tmp_path}/l.db"\n[admin]\ntoken = "{TOKEN}"\n',
        "utf-8",
    )
    manager, provider = PolicyPluginManager(), FakeProvider()
    await manager.register_plugin(ApprovalPlugin(above_usd=Decimal("0.02")))
    store = {"url": url, "prefix": prefix, "journal": tmp_path / "journal", "deadline_ms": 20_000}
    settings = settings_for(tmp_path, store=store, ledger={"url": f"sqlite:///{tmp_path}/l.db"}, admin={"token": TOKEN})
    async with gateway_for(provider, settings, on_fakeredis=True, policies=manager) as gateway:
        refused = await gateway.post(DEAR)
        (waits,) = await asyncio.to_thread(printed, "approvals", "list", "--json", "-c", config)
        assert refused.json["error"]["message"].endswith(waits["id"])
        done = await asyncio.to_thread(sark, "approvals", "approve", waits["id"], "--reason", "why", "-c", config)
        answer = await gateway.post(DEAR, headers={"x-sark-approval": done.stdout.strip()})
        assert answer.status == 200
        (event,) = await asyncio.to_thread(printed, "limits", "history", "--kind", "approval", "--json", "-c", config)
        assert event["reason"] == "why"
        await gateway.post(DEAR)
        said = await asyncio.to_thread(sark, "approvals", "refuse", waits["id"], "--reason", "no", "-c", config)
        assert "waits no more" in said.stdout
        assert await asyncio.to_thread(printed, "approvals", "list", "--json", "-c", config) == []
