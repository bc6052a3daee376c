"""A settle that the store does not take: it waits in the journal, not in a task, and is booked once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sark_mw.enforcement import settler
from sark_mw.enforcement.admission import Spent
from sark_mw.instrumentation.base import NullInstrumentation, Settled
from sark_mw.sark import Sark
from tests.enforcement.test_outage import CENT, outage
from tests.enforcement.whole import admitted, assert_balanced, refused, until
from tests.servers.redis_server import RedisHandle
from tests.servers.tcp_proxy import TcpProxy

Proxy = Callable[[str], Awaitable[TcpProxy]]


async def test_settles_that_keep_failing_go_to_the_journal_and_are_booked_once_by_whoever_finds_it(
    valkey_server: RedisHandle, tcp_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settler, "_FIRST_PAUSE_S", 0.001)
    proxy = await tcp_proxy(valkey_server.url)
    told = Told()
    async with Sark.open(outage(proxy.url, tmp_path, "deny"), instrumentation=told) as sark:
        admissions = [await admitted(sark, "0.04") for _ in range(20)]
        proxy.refuse()
        tasks = [admission.settle(Spent(cost_nanos=3 * CENT)) for admission in admissions[:15]]
        tasks += [admission.release() for admission in admissions[15:]]
        for _ in range(3):
            await refused(sark, "0.04")  # whose holds, should the store have made them, are given back later
        await until(lambda: _all_answered(sark))
        assert await asyncio.gather(*tasks) == [None] * 20
        assert sark.settler.pending == 0
        written = "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))
        assert all(admission.reservation_id in written for admission in admissions), "it must survive the process"
        proxy.resume()
        await sark.upkeep.book_journal()
        await assert_balanced(sark, 45 * CENT)
        assert told.spent == 45 * CENT, "what is booked late is counted too"
        await sark.upkeep.book_journal()
        await assert_balanced(sark, 45 * CENT)
        assert len(sark.journal) == 0


async def _all_answered(sark: Sark) -> bool:
    return sark.settler.pending == 0


class Told(NullInstrumentation):
    """Adds up what was told of money that is booked."""

    spent = 0

    def settled(self, event: Settled) -> None:
        self.spent += 0 if event.repeated else sum(amount for unit, amount in event.booked if unit == "usd")
