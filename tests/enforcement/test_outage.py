"""The store out of reach: who is let pass, what is written down, and that all of it is booked once when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sark_mw.enforcement.admission import Spent
from sark_mw.enforcement.journal import Journal
from sark_mw.reservation import Line, Resolution, Settle
from sark_mw.sark import Sark
from sark_mw.settings import Settings
from sark_mw.wire.base import RefusalKind
from tests.enforcement.whole import (
    TEAM,
    admitted,
    assert_balanced,
    counted,
    invocation,
    refused,
    settings_for,
    until,
)
from tests.servers.redis_server import RedisHandle
from tests.servers.tcp_proxy import TcpProxy
from tests.servers.tls import USER, TlsRedisServer

CENT = 10_000_000
Proxy = Callable[[str], Awaitable[TcpProxy]]


def outage(url: str, folder: Path, mode: str = "allow", **changes: object) -> Settings:
    """Make settings of a gateway that gives its store little time; the breaker stays out of it."""
    store = {"deadline_ms": 300, "on_store_failure": mode, "breaker_failures": 1_000_000}
    return settings_for(url, folder, store=store, **changes)


async def test_a_gateway_that_denies_says_when_to_come_again_and_holds_nothing_afterwards(
    valkey_server: RedisHandle, tcp_proxy: Proxy, tmp_path: Path
) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with Sark.open(outage(proxy.url, tmp_path, "deny")) as sark:
        await (await admitted(sark, "0.1")).release()
        proxy.stall()
        refusals = await asyncio.gather(*(refused(sark, "0.1") for _ in range(5)))
        assert {(refusal.kind, refusal.retry_after_s) for refusal in refusals} == {(RefusalKind.UNAVAILABLE, 1)}
        proxy.resume()
        await until(lambda: _settled(sark))
        await assert_balanced(sark, 0)


async def test_a_password_that_changes_under_a_gateway_costs_no_booking(tls_redis: TlsRedisServer, tmp_path: Path) -> None:
    async with Sark.open(outage(f"{tls_redis.url}?ssl_ca_certs={tls_redis.ca_file}", tmp_path, "deny")) as sark:
        admission = await admitted(sark, "0.5")
        tls_redis.command("ACL", "SETUSER", "sark", "resetpass", ">another")
        tls_redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert (await refused(sark, "0.1")).kind is RefusalKind.UNAVAILABLE
        settling = admission.settle(Spent(cost_nanos=20 * CENT))
        assert (await refused(sark, "0.1")).kind is RefusalKind.UNAVAILABLE
        tls_redis.command("ACL", "SETUSER", "sark", "resetpass", f">{USER}")
        await settling
        await until(lambda: _settled(sark))
        await assert_balanced(sark, 20 * CENT)


async def test_a_hold_whose_answer_was_lost_and_that_expired_meanwhile_is_no_spend_of_anybody(
    valkey_server: RedisHandle, tcp_proxy: Proxy, tmp_path: Path
) -> None:
    """The ledger must take it back from the same scopes that the expiry booked it on."""
    proxy = await tcp_proxy(valkey_server.url)
    other = settings_for(valkey_server.url, tmp_path, reservation={"sweep_interval_ms": 10})
    async with (
        Sark.open(other) as witness,
        Sark.open(outage(proxy.url, tmp_path, "deny", reservation={"lease_s": 0.05}, ledger={"flush": False})) as sark,
    ):
        await (await admitted(sark, "0.1")).release()
        proxy.lose_answers(1_000_000, containing=b"EVAL")
        await refused(sark, "0.3", expected="0.2")
        proxy.refuse()

        async def expired() -> bool:
            return await counted(witness) == (20 * CENT, 0)

        await until(expired)
        proxy.lose_answers(0)
        proxy.resume()
        await until(lambda: _settled(sark))
        await assert_balanced(witness, 0)


async def test_what_was_let_pass_is_in_the_journal_at_once_and_booked_once_when_the_store_is_back(
    valkey_server: RedisHandle, tcp_proxy: Proxy, tmp_path: Path
) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with Sark.open(outage(proxy.url, tmp_path)) as sark:
        await (await admitted(sark, "0.1")).release()
        proxy.refuse()
        let_pass = await asyncio.gather(*(admitted(sark, "0.4", expected="0.3") for _ in range(5)))
        assert all(admission.unreserved for admission in let_pass)
        assert _on_disk(tmp_path) == {(admission.reservation_id, 30 * CENT) for admission in let_pass}
        tasks = [admission.settle(Spent(cost_nanos=7 * CENT)) for admission in let_pass[:3]]
        tasks.append(let_pass[3].release())

        async def written() -> bool:
            return sorted(amount for _, amount in _on_disk(tmp_path)) == [0, *[7 * CENT] * 3, 30 * CENT]

        await until(written)
        proxy.resume()
        await asyncio.gather(*tasks)
        await sark.upkeep.book_journal()
        # The one that still runs is not booked at what was expected of it, but at what it comes to.
        assert await counted(sark) == (21 * CENT, 0)
        await let_pass[4].settle(Spent(cost_nanos=9 * CENT))
        await assert_balanced(sark, 30 * CENT)
        assert _on_disk(tmp_path) == set()


async def test_requests_of_a_root_whose_limits_were_never_read_count_against_them_later(
    valkey_server: RedisHandle, tcp_proxy: Proxy, tmp_path: Path
) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with Sark.open(outage(proxy.url, tmp_path)) as sark:
        for root in [*sark.tables._tables]:
            sark.tables.forget(root)
        proxy.refuse()
        admission = await admitted(sark, "0.4")
        assert admission.lines == ()
        task = admission.settle(Spent(cost_nanos=7 * CENT))
        proxy.resume()
        assert await task is None
        await until(lambda: _booked_from_the_journal(sark))
        await assert_balanced(sark, 7 * CENT)


async def test_a_gateway_that_cannot_write_its_journal_lets_nothing_pass(
    valkey_server: RedisHandle, tcp_proxy: Proxy, tmp_path: Path
) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    settings = outage(proxy.url, tmp_path)
    store = settings.store.model_copy(update={"journal": tmp_path / "file" / "journal.jsonl"})
    async with Sark.open(settings.model_copy(update={"store": store})) as sark:
        (tmp_path / "file").write_text("in the way of a directory")
        await (await admitted(sark, "0.1")).release()
        proxy.refuse()
        assert (await refused(sark, "0.1")).kind is RefusalKind.UNAVAILABLE
        proxy.resume()
        await until(lambda: _settled(sark))
        await assert_balanced(sark, 0)


async def test_a_settle_during_the_outage_is_booked_after_it(
    valkey_server: RedisHandle, tcp_proxy: Proxy, tmp_path: Path
) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with Sark.open(outage(proxy.url, tmp_path, "deny")) as sark:
        admissions = [await admitted(sark, "0.1") for _ in range(5)]
        proxy.stall()
        tasks = [admission.settle(Spent(cost_nanos=3 * CENT)) for admission in admissions]
        await refused(sark, "0.1")
        assert not any(task.done() for task in tasks)
        proxy.resume()
        await asyncio.gather(*tasks)
        await until(lambda: _settled(sark))
        await assert_balanced(sark, 15 * CENT)


async def test_what_a_shutdown_cannot_settle_is_booked_by_the_next_process(
    valkey_server: RedisHandle, tcp_proxy: Proxy, tmp_path: Path
) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    folder = tmp_path / "not" / "there" / "yet"
    store = {"deadline_ms": 300, "breaker_failures": 1_000_000, "journal": folder / "journal.jsonl"}
    sark = Sark(settings_for(proxy.url, tmp_path, store=store, ledger={"flush": False}))
    await sark.start()
    admissions = [await admitted(sark, "0.1") for _ in range(5)]
    proxy.refuse()
    for admission in admissions:
        admission.settle(Spent(cost_nanos=3 * CENT))
    await sark.aclose(0.1)
    assert {amount for _, amount in _on_disk(folder)} == {3 * CENT}
    async with Sark.open(settings_for(valkey_server.url, tmp_path, store=store)) as heir:
        assert await counted(heir) == (0, 50 * CENT)
        await heir.upkeep.book_journal()
        await assert_balanced(heir, 15 * CENT)
    assert _on_disk(folder) == set()


async def test_a_client_that_goes_while_it_is_let_pass_leaves_nothing_behind(
    valkey_server: RedisHandle, tcp_proxy: Proxy, tmp_path: Path
) -> None:
    proxy = await tcp_proxy(valkey_server.url)
    async with Sark.open(outage(proxy.url, tmp_path)) as sark:
        await (await admitted(sark, "0.1")).release()
        proxy.refuse()
        task = asyncio.ensure_future(sark.enforcer.admit(invocation("0.1")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proxy.resume()
        await until(lambda: _settled(sark))
        await assert_balanced(sark, 0)
        assert _on_disk(tmp_path) == set()


def settle_of(name: str, nanos: int = 5) -> Settle:
    line = Line(counter="default|a", unit="usd", amount=100, scope=TEAM)
    return Settle(reservation_id=name, root="default", lines=(line,), amounts=(("usd", nanos),), made_ms=1)


async def test_a_dead_process_leaves_its_journal_to_the_next_even_if_it_died_while_taking_over_another(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    await journal.open(settle_of("in-flight"))
    await journal.add(settle_of("done"), "unavailable")
    (own,) = tmp_path.iterdir()
    own.rename(tmp_path / f"journal.{_dead_pid()}.jsonl.taken-by-{_dead_pid()}")
    heir = Journal(tmp_path / "journal.jsonl")
    assert await heir.take_over() == 2
    assert {settle.reservation_id for settle in heir.entries()} == {"in-flight", "done"}
    assert await heir.take_over() == 0
    for settle in heir.entries():
        await heir.remove(settle)
    assert [*tmp_path.iterdir()] == []


async def test_of_two_lines_about_one_settle_the_last_counts_and_half_a_line_spoils_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    await journal.add(settle_of("a", 5), "x")
    await journal.add(settle_of("a", 6), "x")
    (own,) = tmp_path.iterdir()
    with own.open("a") as file:
        file.write('{"reservation_id":"cut off in the mid\xff')
    await journal.add(settle_of("b", 7), "x")
    own.rename(tmp_path / f"journal.{_dead_pid()}.jsonl")
    heir = Journal(tmp_path / "journal.jsonl")
    await heir.take_over()
    assert [(settle.reservation_id, settle.amounts) for settle in heir.entries()] == [("a", (("usd", 6),)), ("b", (("usd", 7),))]


async def test_hundreds_of_entries_come_and_go_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    settles = [settle_of(f"r{n}") for n in range(300)]
    await asyncio.gather(*(journal.open(settle) for settle in settles))
    assert journal.entries() == []
    assert len(_on_disk(tmp_path)) == 300
    await asyncio.gather(*(journal.add(settle, "ended") for settle in settles[:200]))
    await asyncio.gather(*(journal.remove(settle) for settle in settles[50:]))
    assert [settle.reservation_id for settle in journal.entries()] == [f"r{n}" for n in range(50)]
    assert {name for name, _ in _on_disk(tmp_path)} == {f"r{n}" for n in range(50)}


def _dead_pid() -> int:
    return 2**22 + 1  # beyond the largest id that Linux gives


def _on_disk(folder: Path) -> set[tuple[str, int]]:
    """Read the journal as the next process would: the last line about each settle, and its dollars in nanos."""
    from sark_mw.enforcement.journal import _read_whole

    lines = [line for path in folder.glob("journal.*jsonl") for line in path.read_text().splitlines()]
    settles = {settle.reservation_id: settle for line in lines if (settle := _read_whole(line)) is not None}
    return {(name, 0 if settle.kind is Resolution.RELEASE else dict(settle.amounts)["usd"]) for name, settle in settles.items()}


async def _settled(sark: Sark) -> bool:
    return sark.settler.pending == 0 and (await counted(sark))[1] == 0


async def _booked_from_the_journal(sark: Sark) -> bool:
    await sark.upkeep.book_journal()
    return len(sark.journal) == 0
