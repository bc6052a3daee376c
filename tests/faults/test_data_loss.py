"""A real Valkey killed and started again empty, in the middle of traffic from two gateways: the books balance afterwards."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from sark_mw import Limit, Sark, Settings
from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.enforcer import Invocation
from sark_mw.errors import SarkError
from sark_mw.ledger.base import CostFilter
from sark_mw.pricing.base import InvocationRequest
from sark_mw.pricing.fixed import FixedCostEstimator
from sark_mw.wire.base import Refusal
from tests.servers.fixtures import FreshValkey
from tests.servers.postgres import PostgresServer
from tests.servers.redis_server import RedisServer

ROOT = "acme"
USERS = ("user:al", "user:bo", "user:cy")
CALL = Decimal("0.000001")  # 1,000 nanos
LEDGERS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
LIMITS = (
    Limit(scope="org:acme", unit="usd", amount=Decimal(1), window="month", root=ROOT),
    Limit(scope="user:*", unit="usd", amount=Decimal(1), window="day", root=ROOT),
    Limit(scope="user:al", unit="usd", amount=Decimal(1), window="day", root=ROOT),
    Limit(scope="user:*", unit="requests", amount=Decimal(100_000), window="week", root=ROOT),
)


@dataclass
class Gateways:
    """Two gateways on one store and one ledger, and what their callers know to have been booked."""

    server: RedisServer
    both: tuple[Sark, Sark]
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    answered: int = 0
    sent: int = 0
    stop: bool = False

    async def admit(self, sark: Sark, user: str) -> Admission | Refusal:
        """Ask for one call of 1,000 nanos."""
        number = next(self.numbers)
        return await sark.enforcer.admit(
            Invocation(
                request=InvocationRequest("chat", user, {"number": number}),
                estimator=FixedCostEstimator(CALL),
                root=ROOT,
                scopes=(user, "org:acme"),
                request_id=f"q{number}",
            )
        )

    async def call(self, sark: Sark, user: str) -> None:
        """Make one call and settle it, whatever happens to the store meanwhile."""
        admission = await self.admit(sark, user)
        if isinstance(admission, Refusal):
            await asyncio.sleep(0)
            return
        self.sent += 1000
        if await admission.settle(Spent(cost_nanos=1000)) is not None:
            self.answered += 1000

    async def traffic(self, sark: Sark, user: str) -> None:
        """Call again and again until told to stop."""
        while not self.stop:
            await self.call(sark, user)

    async def settle_all(self) -> None:
        """Wait until every settle is answered and everything is in the ledger."""
        for sark in self.both:
            while sark.settler.pending:
                await asyncio.sleep(0.01)
        while await self.both[0].store.backlog():
            await asyncio.sleep(0.01)
        for sark in self.both:  # what a flusher has in hand of the data that were lost is booked again
            await _until_flushed(sark)
        while await self.both[0].store.backlog():
            await asyncio.sleep(0.01)

    async def booked(self) -> int:
        """Sum the ledger."""
        return (await self.both[0].ledger.total(CostFilter(root=ROOT))).cost_nanos

    async def differences(self) -> list[tuple[str, int, int]]:
        """Compare every counter with the ledger."""
        sark = self.both[0]
        table = await sark.tables.reload(ROOT)
        compared = await sark.drift.compare(ROOT, table.limits, (*USERS, "org:acme"))
        assert len(compared) == 8  # one of them counts only, in whose place an exact limit decides
        assert all(one.settled for one in compared)
        return [(one.balance.line.counter, one.balance.spent, one.ledger) for one in compared if one.drift]

    async def held(self, by: int) -> int:
        """Sum what is held on the organisation's budget, as one of the gateways reads it."""
        sark = self.both[by]
        await sark.tables.reload(ROOT)
        layout = await sark.tables.layout(ROOT, ("org:acme",))
        return sum(balance.held for balance in (await sark.store.balance(ROOT, layout.lines)).balances)


async def _until_flushed(sark: Sark) -> None:
    while sark.flusher.report.lag_ms or sark.flusher.report.failures:
        await asyncio.sleep(0.01)


@pytest.fixture(params=LEDGERS)
async def gateways(request: pytest.FixtureRequest, tmp_path: Path, fresh_valkey: FreshValkey) -> AsyncIterator[Gateways]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else f"sqlite:///{tmp_path / 'ledger.db'}"
    server = fresh_valkey(appendonly=False)
    settings = Settings.model_validate(
        {
            "store": {
                "url": server.url,
                "shards": 2,
                "deadline_ms": 5000,
                "breaker_cooldown_ms": 20,
                "journal": str(tmp_path / "journal.jsonl"),
            },
            "ledger": {"url": url, "flush_interval_ms": 20, "batch": 20},
            "observe": {"metrics": False, "audit_log": False},
        }
    )
    first, second = Sark(settings), Sark(settings)
    await first.start()
    await second.start()
    await first.limits.set(*LIMITS)
    yield Gateways(server, (first, second))
    await first.aclose()
    await second.aclose()


async def test_after_losing_everything_twice_in_traffic_ledger_and_counters_are_one(gateways: Gateways) -> None:
    running = [asyncio.ensure_future(gateways.traffic(sark, user)) for sark in gateways.both for user in USERS]
    for _ in range(2):
        aim = gateways.answered + 100_000
        while gateways.answered < aim:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(gateways.server.restart, empty=True)
    aim = gateways.answered + 100_000
    while gateways.answered < aim:
        await asyncio.sleep(0.01)
    gateways.stop = True
    await asyncio.gather(*running)
    await gateways.settle_all()
    assert await gateways.differences() == []
    # Lost is at most what was in the outbox when the data went; nothing is booked twice.
    assert 0 < await gateways.booked() <= gateways.sent


async def test_what_was_in_the_ledger_binds_the_rebuilt_budget_at_once(gateways: Gateways) -> None:
    first, _ = gateways.both
    await first.limits.set(Limit(scope="user:al", unit="usd", amount=CALL * 10, window="day", root=ROOT))
    for _ in range(7):
        await gateways.call(first, "user:al")
    await gateways.settle_all()
    await asyncio.to_thread(gateways.server.restart, empty=True)
    answers = await asyncio.gather(*(gateways.admit(sark, "user:al") for sark in gateways.both for _ in range(10)))
    admitted = [answer for answer in answers if isinstance(answer, Admission)]
    assert len(admitted) == 3
    for admission in admitted:
        await admission.settle(Spent(cost_nanos=1000))
    await gateways.settle_all()
    assert await gateways.differences() == []
    assert await gateways.booked() == 10_000


@pytest.mark.parametrize("noticed", ["reading the limits", "renewing the leases"])
async def test_what_is_in_flight_is_held_again_by_its_process(gateways: Gateways, noticed: str) -> None:
    first, second = gateways.both
    live = [answer for answer in [await gateways.admit(first, "user:al") for _ in range(5)] if isinstance(answer, Admission)]
    part = live[0]
    part.report(Spent(cost_nanos=400))
    booking = part.book_progress()
    assert booking is not None
    await booking
    await gateways.settle_all()
    assert await gateways.held(1) == 4600
    await asyncio.to_thread(gateways.server.restart, empty=True)
    await gateways.call(second, "user:bo")  # the other one notices and rebuilds
    if noticed == "reading the limits":
        await first.tables.reload(ROOT)
    else:
        await first.upkeep._renew()
    async with asyncio.timeout(30):
        while await gateways.held(1) != 4600:
            await asyncio.sleep(0.01)
    for admission in live:
        await admission.settle(Spent(cost_nanos=900))
    assert await gateways.held(1) == 0
    await gateways.settle_all()
    assert await gateways.booked() == 5 * 900 + 1000
    assert await gateways.differences() == []


async def test_a_settle_that_comes_while_the_store_is_empty_waits_for_the_rebuild(gateways: Gateways) -> None:
    first, _ = gateways.both
    admission = await gateways.admit(first, "user:al")
    assert isinstance(admission, Admission)
    await asyncio.to_thread(gateways.server.kill)
    ended = admission.settle(Spent(cost_nanos=800))
    await asyncio.to_thread(gateways.server.start, empty=True)
    reply = await ended
    assert reply is not None
    assert reply.late
    await gateways.settle_all()
    assert await gateways.booked() == 800
    assert await gateways.differences() == []


@pytest.mark.parametrize("gateways", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
async def test_entries_that_a_flusher_held_while_the_database_was_away_are_not_lost_with_redis(
    gateways: Gateways, postgres_server: PostgresServer
) -> None:
    first, second = gateways.both
    await asyncio.to_thread(postgres_server.stop)
    await gateways.call(first, "user:al")
    while not (first.flusher.report.lag_ms or second.flusher.report.lag_ms):
        await asyncio.sleep(0.01)
    await asyncio.to_thread(gateways.server.restart, empty=True)
    assert isinstance(await gateways.admit(first, "user:al"), Refusal)  # nothing is admitted on nobody's word
    await asyncio.to_thread(postgres_server.start)
    while await first.store.lost_shards():
        try:
            await first.recovery.rebuild()
        except SarkError:
            await asyncio.sleep(0.01)
    await gateways.settle_all()
    assert await gateways.booked() == 1000
    assert await gateways.differences() == []
