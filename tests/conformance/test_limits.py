"""Limits: set, replaced and dropped in one step, under the eyes of reservations in flight."""

from __future__ import annotations

from decimal import Decimal

import pytest

from sark_mw.limit import Limit
from sark_mw.reservation import Outcome, lines_for
from tests.conformance.books import ROOT, Books, budget, cap


async def test_limits_come_back_as_they_were_set_with_the_time_they_count_from(books: Books) -> None:
    put = [
        budget("org:a", 123_456_789, "month", timezone="Europe/Berlin"),
        cap("user:*", "requests", 7, "rolling:60"),
        cap("key:ab|c d", "tokens", 9, "hour", mode="shadow"),
        Limit(scope="team:ml", unit="usd", amount=Decimal("9200000000"), window="total", root=ROOT),
    ]
    before = await books.now()
    table = await books.store.set_limits(ROOT, put=put)
    found = {limit.limit_id: limit for limit in table.limits}
    assert found.keys() == {limit.limit_id for limit in put}
    for limit in put:
        got = found[limit.limit_id]
        assert (got.scope, got.unit, got.amount, got.window, got.timezone, got.mode, got.root) == (
            (limit.scope, limit.unit, limit.amount, limit.window, limit.timezone, limit.mode, limit.root)
        )
        assert before < got.since_ms <= table.at_ms + 1
    assert (await books.store.limits(ROOT)).limits == table.limits


async def test_every_change_has_a_new_version(books: Books) -> None:
    first = await books.store.set_limits(ROOT, put=[budget("org:a", 1)])
    second = await books.store.set_limits(ROOT, put=[budget("org:a", 2)])
    third = await books.store.set_limits(ROOT, drop=["org:a/usd/total"])
    assert first.version < second.version < third.version
    assert (third.limits, third.epoch) == ((), first.epoch)


async def test_a_replaced_limit_keeps_its_counter_and_the_time_it_counts_from(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    (before,) = (await books.store.limits(ROOT)).limits
    await books.reserve("r", "user:al", usd=600)
    await books.limit(budget("user:al", 500))
    (after,) = (await books.store.limits(ROOT)).limits
    assert (after.since_ms, after.amount_units) == (before.since_ms, 500)
    assert await books.count("user:al") == (0, 600)
    assert (await books.reserve("r2", "user:al", usd=1)).outcome is Outcome.EXCEEDS_LIMIT
    await books.limit(budget("user:al", 700))
    assert (await books.reserve("r2", "user:al", usd=100)).outcome is Outcome.HELD


async def test_a_new_limit_counts_from_the_next_millisecond_on(still_books: Books) -> None:
    books = still_books
    table = await books.store.set_limits(ROOT, put=[budget("user:al", 1000)])
    (limit,) = table.limits
    assert limit.since_ms == table.at_ms + 1
    reply = await books.send(await books.request("r", "user:al", usd=1))
    assert reply.outcome is Outcome.WRONG_PERIOD
    await books.clock.advance(1)
    assert (await books.reserve("r", "user:al", usd=1)).outcome is Outcome.HELD


async def test_a_limit_set_while_something_is_held_does_not_count_it(books: Books) -> None:
    await books.limit(budget("org:a", 1000))
    await books.reserve("r", "org:a", "user:al", usd=600)
    await books.limit(budget("user:al", 100))
    await books.settle("r", usd=600)
    assert await books.count("user:al") == (0, 0)
    assert await books.count("org:a") == (600, 0)


async def test_a_limit_dropped_while_something_is_held_drains_and_comes_back_from_zero(books: Books) -> None:
    await books.limit(budget("user:al", 1000))
    await books.reserve("r", "user:al", usd=600)
    await books.store.set_limits(ROOT, drop=["user:al/usd/total"])
    assert await books.lines("user:al") == ()
    assert (await books.settle("r", usd=500)).outcome is Outcome.SETTLED
    assert [(b.spent, b.held) for b in (await books.store.balance(ROOT, books.asked["r"].lines)).balances] == [(500, 0)]
    await books.limit(budget("user:al", 1000))
    assert await books.count("user:al") == (0, 0)


async def test_dropping_what_is_not_there_is_no_error(books: Books) -> None:
    assert (await books.store.set_limits(ROOT, drop=["user:nobody/usd/day@UTC"])).limits == ()


async def test_limits_of_other_roots_are_not_touched(books: Books) -> None:
    roots = [ROOT, f"{ROOT}2", "acm", "a", "*", "acme/x"]
    for n, root in enumerate(roots):
        await books.store.set_limits(root, put=[budget("org:a", n + 1)])
    for n, root in enumerate(roots):
        (limit,) = (await books.store.limits(root)).limits
        assert (limit.root, limit.amount_units) == (root, n + 1)


async def test_a_pattern_counts_each_member_alone_and_an_exact_limit_overrides_it(books: Books) -> None:
    await books.limit(budget("user:*", 100), budget("user:boss", 1000))
    assert (await books.reserve("r1", "user:al", usd=100)).outcome is Outcome.HELD
    assert (await books.reserve("r2", "user:bo", usd=100)).outcome is Outcome.HELD
    assert (await books.reserve("r3", "user:al", usd=1)).outcome is Outcome.EXCEEDS_LIMIT
    assert (await books.reserve("r4", "user:boss", usd=1000)).outcome is Outcome.HELD


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "a\tb",
        "a\nb",
        "a\r\nb",
        "a|b",
        "a:b:c",
        "*",
        "a*",
        "{x}",
        "%20",
        "%",
        "a\\nb",
        "é",
        "日本",
        "\u2028",
        "\x00",
        "'; DROP",
        "x" * 5000,
    ],
)
async def test_a_hostile_name_is_a_name_like_any_other(books: Books, name: str) -> None:
    scope = f"user:{name}"
    await books.limit(budget("user:*", 100), budget("user:other", 1000))
    assert (await books.reserve("r1", scope, usd=60)).outcome is Outcome.HELD
    assert (await books.reserve("r2", scope, usd=60)).outcome is Outcome.EXCEEDS_LIMIT
    await books.settle("r1", usd=50)
    assert await books.count(scope) == (50, 0)
    assert await books.count("user:innocent") == (0, 0)
    assert await books.booked() == 50


async def test_no_two_hostile_names_share_a_counter(books: Books) -> None:
    names = ["a b", "a%20b", "a\tb", "a%09b", "a|b", "a%7Cb", "a%b", "a%25b", " 28", "\u2028", "x" * 300, "x" * 299 + "y", "A B"]
    await books.limit(budget("user:*", 100))
    for n, name in enumerate(names):
        reply = await books.reserve(f"r{n}", f"user:{name}", usd=100)
        assert (reply.outcome, len(reply.balances)) == (Outcome.HELD, 1), name


async def test_a_root_full_of_limits_is_laid_out_in_one_call(books: Books) -> None:
    await books.limit(*[budget(f"user:u{n}", 100 + n) for n in range(300)])
    table = await books.store.limits(ROOT)
    assert len(table.limits) == 300
    lines = lines_for(table.limits, [f"user:u{n}" for n in range(300)], table.at_ms)
    assert len((await books.store.balance(ROOT, lines)).balances) == 300
    reply = await books.reserve("r", *[f"user:u{n}" for n in range(300)], usd=101)
    assert (reply.outcome, len(reply.exceeded)) == (Outcome.EXCEEDS_LIMIT, 1)
