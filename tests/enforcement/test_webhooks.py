"""Webhooks as their receivers see them: signed, at least once, again after a failure, and never after a success."""

from __future__ import annotations

import asyncio
import base64
import builtins
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from sark_mw.enforcement.webhook_sender import message_id_of
from sark_mw.enforcement.webhooks import Webhooks, retry_ms
from sark_mw.errors import ConfigurationError, LedgerError
from sark_mw.instrumentation.base import NullInstrumentation
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import CLAIMED_FOR_MS, EventFilter
from sark_mw.ledger.open import open_ledger
from sark_mw.settings import Settings, WebhookSettings
from tests.ledger.books import NOON_MS, limit_event
from tests.wire.serving import serve

pytestmark = pytest.mark.wall_clock

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, long enough").decode()
NOW = NOON_MS + 60_000


class Told(NullInstrumentation):
    """Counts how attempts ended."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    def webhook_delivered(self, outcome: str) -> None:
        self.outcomes[outcome] += 1


@dataclass
class Receiver:
    """A server that verifies what it is sent and answers what `answer` says, `204` by default."""

    answer: Callable[[Request], Response] = lambda request: Response(status_code=204)
    got: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: Request) -> Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        body = await request.body()
        self.got.append(Webhook(SECRET).verify(body, dict(request.headers)))
        self.ids.append(request.headers["webhook-id"])
        self.headers.append(dict(request.headers))
        self.bodies.append(body)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.gate.wait(), 10)
        self.at_once -= 1
        return self.answer(request)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async with serve(Starlette(routes=[Route("/hooks/{rest:path}", self.take, methods=["POST", "GET"])])) as address:
            yield address

    @property
    def events(self) -> list[str]:
        return [each["data"]["event_id"] for each in self.got]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    made.gate.set()
    yield made
    made.gate.set()


@pytest.fixture
async def address(receiver: Receiver) -> AsyncIterator[str]:
    async with receiver.serving() as url:
        yield url


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    opened = open_ledger(ledger_url)
    await opened.migrate()
    yield opened
    await opened.aclose()


def hook(url: str, **changes: Any) -> WebhookSettings:
    return WebhookSettings(**{"url": url, "secret": SECRET, **changes})


@contextlib.asynccontextmanager
async def webhooks_to(ledger: Ledger, *hooks: WebhookSettings) -> AsyncIterator[tuple[Webhooks, Counter[str]]]:
    told = Told()
    made = Webhooks(ledger, hooks, told)
    try:
        yield made, told.outcomes
    finally:
        await made.aclose()


async def undelivered(ledger: Ledger) -> list[str]:
    return [each.event.event_id for each in await ledger.events(EventFilter()) if not each.delivered]


async def test_an_event_arrives_signed_with_its_amounts_as_people_read_them(
    ledger: Ledger, receiver: Receiver, address: str
) -> None:
    await ledger.record_events(
        [
            limit_event(
                1,
                event_id="threshold 80 acme|用户/usd",
                amount=12_345_678_901,
                until_ms=NOW,
                detail_json='{"percent":80}',
                actor="eve",
            )
        ]
    )
    async with webhooks_to(ledger, hook(f"{address}/hooks/a")) as (webhooks, outcomes):
        assert await webhooks.deliver_once(NOW) == 1
    assert receiver.got == [
        {
            "type": "limit.threshold",
            "timestamp": "2026-11-22T12:00:00.001Z",
            "data": {
                "event_id": "threshold 80 acme|用户/usd",
                "root": "acme",
                "limit_id": "user:alice/usd/day@UTC",
                "scope": "user:alice",
                "counter": "acme|user:alice/usd/day@UTC|2026-11-22|17",
                "unit": "usd",
                "amount": "12.345678901",
                "until": "2026-11-22T12:01:00.000Z",
                "actor": "eve",
                "reason": "",
                "detail": {"percent": 80},
            },
        }
    ]
    (headers,) = receiver.headers
    assert headers["content-type"] == "application/json" and headers["user-agent"] == "sark-mw"
    assert headers["webhook-id"].startswith("evt_") and headers["webhook-id"].isascii() and "." not in headers["webhook-id"]
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(b"another secret, also long enough").decode()).verify(receiver.bodies[0], headers)
    assert outcomes == {"delivered": 1}


async def test_what_was_delivered_is_not_sent_again(ledger: Ledger, ledger_url: str, receiver: Receiver, address: str) -> None:
    await ledger.record_events([limit_event(number) for number in range(1, 4)])
    async with webhooks_to(ledger, hook(f"{address}/hooks/a")) as (webhooks, _):
        assert [await webhooks.deliver_once(NOW + day) for day in (0, 1, 86_400_000)] == [3, 0, 0]
    restarted = open_ledger(ledger_url)
    async with webhooks_to(restarted, hook(f"{address}/hooks/a")) as (webhooks, _):
        assert await webhooks.deliver_once(NOW + 3_600_000) == 0
    await restarted.aclose()
    assert len(receiver.got) == 3 == len(set(receiver.events))
    assert await undelivered(ledger) == []


@pytest.mark.parametrize("status", [500, 503, 404, 410, 429])
async def test_an_event_that_was_not_taken_is_sent_again_later_and_after_a_restart(
    ledger: Ledger, ledger_url: str, receiver: Receiver, address: str, status: int
) -> None:
    await ledger.record_events([limit_event(1)])
    receiver.answer = lambda request: Response(status_code=status)
    async with webhooks_to(ledger, hook(f"{address}/hooks/a")) as (webhooks, outcomes):
        assert await webhooks.deliver_once(NOW) == 0
        assert await webhooks.deliver_once(NOW + retry_ms(1) - 1) == 0  # not due yet
        assert len(receiver.got) == 1
        assert await webhooks.deliver_once(NOW + retry_ms(1)) == 0
        assert outcomes == {"failed": 2}
    receiver.answer = lambda request: Response(b"x" * 200_000)
    restarted = open_ledger(ledger_url)
    async with webhooks_to(restarted, hook(f"{address}/hooks/a")) as (webhooks, outcomes):
        assert await webhooks.deliver_once(NOW + retry_ms(1) + retry_ms(2) - 1) == 0
        assert await webhooks.deliver_once(NOW + retry_ms(1) + retry_ms(2)) == 1
        assert outcomes == {"delivered": 1}
    await restarted.aclose()
    # The receiver can tell that it is the same event.
    assert len(receiver.ids) == 3 and len(set(receiver.ids)) == 1


async def test_an_event_that_a_process_took_with_it_when_it_died_is_sent_by_the_next(
    ledger: Ledger, ledger_url: str, receiver: Receiver, address: str
) -> None:
    await ledger.record_events([limit_event(1)])
    receiver.gate.clear()
    async with webhooks_to(ledger, hook(f"{address}/hooks/a", timeout_s=1)) as (webhooks, _):
        dying = asyncio.create_task(webhooks.deliver_once(NOW))
        while not receiver.got:
            await asyncio.sleep(0.01)
        dying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dying
    receiver.gate.set()
    restarted = open_ledger(ledger_url)
    async with webhooks_to(restarted, hook(f"{address}/hooks/a", timeout_s=1)) as (webhooks, _):
        assert await webhooks.deliver_once(NOW + 1000) == 0  # it might still be under way
        assert await webhooks.deliver_once(NOW + 60_000) == 1
    await restarted.aclose()
    assert len(set(receiver.ids)) == 1


async def test_a_redirect_is_a_failure_and_is_not_followed(ledger: Ledger, receiver: Receiver, address: str) -> None:
    await ledger.record_events([limit_event(1)])
    receiver.answer = lambda request: RedirectResponse(f"{address}/hooks/b", status_code=307)
    async with webhooks_to(ledger, hook(f"{address}/hooks/a")) as (webhooks, outcomes):
        assert await webhooks.deliver_once(NOW) == 0
    assert (len(receiver.got), outcomes) == (1, {"failed": 1})


async def test_a_receiver_that_does_not_answer_in_time_or_is_not_there_is_tried_again(
    ledger: Ledger, receiver: Receiver, address: str
) -> None:
    await ledger.record_events([limit_event(1)])
    receiver.gate.clear()
    async with webhooks_to(ledger, hook(f"{address}/hooks/a", timeout_s=1)) as (webhooks, outcomes):
        assert await webhooks.deliver_once(NOW) == 0
        receiver.gate.set()
        assert await webhooks.deliver_once(NOW + retry_ms(1)) == 1
        assert outcomes == {"failed": 1, "delivered": 1}
    await ledger.record_events([limit_event(2)])
    async with webhooks_to(ledger, hook("http://127.0.0.1:1/hooks/a")) as (webhooks, outcomes):
        assert await webhooks.deliver_once(NOW) == 0
        assert outcomes == {"failed": 1}
    assert await undelivered(ledger) == ["event-000002"]


async def test_each_receiver_hears_the_kinds_it_asked_for_and_only_who_lacks_one_is_asked_again(ledger: Ledger) -> None:
    first, second = Receiver(), Receiver()
    for each in (first, second):
        each.gate.set()
    second.answer = lambda request: Response(status_code=500)
    async with first.serving() as one, second.serving() as two:
        await ledger.record_events([limit_event(1), limit_event(2, kind="top_up"), limit_event(3, kind="set")])
        hooks = hook(f"{one}/hooks/a", events=("threshold", "top_up")), hook(f"{two}/hooks/b", events=("threshold",))
        async with webhooks_to(ledger, *hooks) as (webhooks, _):
            assert await webhooks.deliver_once(NOW) == 1
            assert (sorted(first.events), second.events) == (["event-000001", "event-000002"], ["event-000001"])
            second.answer = lambda request: Response(status_code=200)
            assert await webhooks.deliver_once(NOW + retry_ms(1)) == 1
            assert (len(first.got), second.events) == (2, ["event-000001", "event-000001"])
    assert await undelivered(ledger) == ["event-000003"]


async def test_two_processes_send_each_event_once(ledger: Ledger, ledger_url: str, receiver: Receiver, address: str) -> None:
    await ledger.record_events([limit_event(number) for number in range(1, 31)])
    other = open_ledger(ledger_url)
    async with (
        webhooks_to(ledger, hook(f"{address}/hooks/a")) as (one, _),
        webhooks_to(other, hook(f"{address}/hooks/a")) as (two, _),
    ):
        assert sum(await asyncio.gather(one.deliver_once(NOW), two.deliver_once(NOW))) == 30
    await other.aclose()
    assert len(receiver.got) == 30 == len(set(receiver.events))


async def test_one_receiver_gets_a_few_at_once_and_a_round_goes_on_until_nothing_is_due(
    ledger: Ledger, receiver: Receiver, address: str
) -> None:
    now_ms = limit_event(0).at_ms
    await ledger.record_events([limit_event(number, at_ms=2 * now_ms) for number in range(1, 61)])  # not of long ago at any time
    receiver.gate.clear()
    async with webhooks_to(ledger, hook(f"{address}/hooks/a")) as (webhooks, outcomes):
        round_ = asyncio.create_task(webhooks.round())
        while receiver.at_once < 8:
            await asyncio.sleep(0.01)
        receiver.gate.set()
        await round_
        assert outcomes == {"delivered": 60}
    assert receiver.most_at_once == 8


async def test_a_receiver_that_hangs_keeps_no_other_waiting_and_is_left_alone_for_a_while(ledger: Ledger) -> None:
    healthy, hanging = Receiver(), Receiver()
    healthy.gate.set()
    now_ms = int(time.time() * 1000)
    await ledger.record_events([limit_event(number, at_ms=now_ms) for number in range(1, 201)])
    async with healthy.serving() as one, hanging.serving() as two:
        hooks = hook(f"{one}/hooks/a"), hook(f"{two}/hooks/b", timeout_s=60)
        async with webhooks_to(ledger, *hooks) as (webhooks, outcomes):
            round_ = asyncio.create_task(webhooks.round())
            while len(healthy.got) < 200:
                await asyncio.sleep(0.01)
            assert hanging.most_at_once == len(hanging.got) == 8 and outcomes["failed"] == 0
            round_.cancel()
            with pytest.raises(asyncio.CancelledError):
                await round_
        hanging.gate.set()
    assert len(set(healthy.events)) == 200


async def test_events_wait_for_a_receiver_that_does_not_answer_without_an_attempt(
    ledger: Ledger, receiver: Receiver, address: str
) -> None:
    await ledger.record_events([limit_event(number) for number in range(1, 25)])
    receiver.gate.clear()
    async with webhooks_to(ledger, hook(f"{address}/hooks/a", timeout_s=3)) as (webhooks, outcomes):
        assert await webhooks.deliver_once(NOW) == 0
        assert (len(receiver.got), outcomes) == (8, {"failed": 8})
        await ledger.record_events([limit_event(25)])
        receiver.gate.set()
        assert await webhooks.deliver_once(NOW + 29_999) == 0  # it is left alone
        assert len(receiver.got) == 8
        by_attempts = Counter(each.attempts for each in await ledger.events(EventFilter()))
        assert by_attempts == {1: 8, 0: 17}
        assert [await webhooks.deliver_once(NOW + 30_000) for _ in range(2)] == [24, 1]
    assert await undelivered(ledger) == []


async def test_one_event_that_a_receiver_refuses_does_not_keep_the_others_from_it(
    ledger: Ledger, receiver: Receiver, address: str
) -> None:
    await ledger.record_events([limit_event(number) for number in range(1, 25)])
    refused = message_id_of(limit_event(1))
    receiver.answer = lambda request: Response(status_code=400 if request.headers["webhook-id"] == refused else 204)
    async with webhooks_to(ledger, hook(f"{address}/hooks/a")) as (webhooks, _):
        assert await webhooks.deliver_once(NOW) == 23


async def test_attempts_end_some_days_after_the_event(ledger: Ledger, receiver: Receiver, address: str) -> None:
    await ledger.record_events([limit_event(1)])
    receiver.answer = lambda request: Response(status_code=500)
    now = NOW
    async with webhooks_to(ledger, hook(f"{address}/hooks/a")) as (webhooks, outcomes):
        for attempt in range(1, 60):
            await webhooks.deliver_once(now)
            now += retry_ms(attempt)
        assert outcomes["given_up"] == 1
        assert outcomes["failed"] == len(receiver.got) >= 15
    assert now > NOON_MS + CLAIMED_FOR_MS
    assert await undelivered(ledger) == ["event-000001"]


def test_attempts_come_further_apart_up_to_some_hours() -> None:
    waits = [retry_ms(attempts) for attempts in (1, 2, 3, 10, 11, 1000)]
    assert waits == [30_000, 60_000, 120_000, 15_360_000, 21_600_000, 21_600_000]


async def test_without_webhooks_nothing_is_claimed(ledger: Ledger) -> None:
    await ledger.record_events([limit_event(1)])
    async with webhooks_to(ledger) as (webhooks, outcomes):
        assert await webhooks.deliver_once(NOW) == 0 and outcomes == {}
    assert [each.attempts for each in await ledger.events(EventFilter())] == [0]


async def test_a_ledger_that_is_away_is_said_to_be(ledger_url: str, receiver: Receiver, address: str) -> None:
    closed = open_ledger(ledger_url)
    await closed.aclose()
    async with webhooks_to(closed, hook(f"{address}/hooks/a")) as (webhooks, _):
        with pytest.raises(LedgerError):
            await webhooks.round()


async def test_one_address_twice_and_one_that_is_none_are_refused_at_start(ledger: Ledger) -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        Webhooks(ledger, [hook("https://a/x"), hook("https://a/x", events=("set",))], NullInstrumentation())
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Webhooks(ledger, [hook("https://a:port/x")], NullInstrumentation())


@pytest.mark.parametrize("missing", ["httpx2", "standardwebhooks"])
async def test_a_client_that_is_not_installed_is_named_at_start(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    real = builtins.__import__

    def importing(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ImportError(f"No module named {missing!r}")
        return real(name, *arguments)

    monkeypatch.delitem(__import__("sys").modules, "sark_mw.enforcement.webhook_sender", raising=False)
    monkeypatch.setattr(builtins, "__import__", importing)
    Webhooks(ledger, [], NullInstrumentation())
    with pytest.raises(ConfigurationError, match=r"pip install 'sark-mw\[serve\]'"):
        Webhooks(ledger, [hook("https://a/x")], NullInstrumentation())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"secret": "geheim"}, "whsec_"),
        ({"secret": "whsec_geheim!"}, "whsec_"),
        ({"secret": "whsec_" + base64.b64encode(b"geheim").decode()}, "whsec_"),
        ({"url": "ftp://a/x"}, "url"),
        ({"events": ["paid"]}, "events"),
        ({"events": []}, "events"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_a_webhook_that_cannot_work_is_refused_without_its_secret_being_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as raised:
        Settings.of({"webhooks": [{"url": "https://a/x", "secret": SECRET, **changes}]})
    assert "geheim" not in str(raised.value)


def test_webhooks_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARK_WEBHOOKS", json.dumps([{"url": "https://a/x", "secret": SECRET, "events": ["top_up", "set"]}]))
    (found,) = Settings.load().webhooks
    assert (found.url, found.events, found.secret.get_secret_value()) == ("https://a/x", ("top_up", "set"), SECRET)
    assert SECRET not in repr(found)
