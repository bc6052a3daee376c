"""A settle that the store does not take: it waits in the journal, not in a task, and is booked once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sark_mw.enforcement import settler
from sark_mw.enforcement.admission import Spent
from sark_mw.sark import Sark
from tests.enforcement.test_outage import CENT, outage
from tests.enforcement.whole import admitted, assert_balanced
from tests.servers.redis_server import RedisHandle
from tests.servers.tcp_proxy import TcpProxy

Proxy = Callable[[str], Awaitable[TcpProxy]]


async def test_settles_that_keep_failing_go_to_the_journal_and_are_booked_once_by_whoever_finds_it(
    valkey_server: RedisHandle, tcp_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settler, "_FIRST_PAUSE_S", 0.001)
    proxy = await tcp_proxy(valkey_server.url)
    async with Sark.open(outage(proxy.url, tmp_path, "deny")) as sark:
        admissions = [await admitted(sark, "0.04") for _ in range(20)]
        proxy.refuse()
        tasks = [admission.settle(Spent(cost_nanos=3 * CENT)) for admission in admissions[:15]]
        tasks += [admission.release() for admission in admissions[15:]]
        assert await asyncio.gather(*tasks) == [None] * 20
        assert sark.settler.pending == 0
        written = "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))
        assert all(admission.reservation_id in written for admission in admissions), "it must survive the process"
        proxy.resume()
        await sark.upkeep.book_journal()
        await assert_balanced(sark, 45 * CENT)
        await sark.upkeep.book_journal()
        await assert_balanced(sark, 45 * CENT)
        assert len(sark.journal) == 0
