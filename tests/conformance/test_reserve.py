"""Reserve: all or nothing on every limit that a request touches, never over, once per id."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sark_mw.errors import MoneyError
from sark_mw.money import MAX_HOLD, MAX_LIMIT_NANOS
from sark_mw.reservation import UNLIMITED, Line, Need, Outcome, Resolution, Settle
from tests.conformance.books import ROOT, Books, anew, budget, cap


async def test_a_reserve_holds_on_every_scope_unit_and_window(books: Books) -> None:
    limits = [
        limit
        for scope in ("org:a", "team:ml", "user:al")
        for limit in (budget(scope, 1000, "day"), budget(scope, 5000, "month"), cap(scope, "tokens", 70, "rolling:3600"))
    ]
    await books.limit(*limits)
    reply = await books.reserve("r1", "org:a", "team:ml", "user:al", usd=100, tokens=7)
    assert reply.outcome is Outcome.HELD
    assert len(reply.balances) == 9
    assert {(b.line.unit, b.spent, b.held) for b in reply.balances} == {("usd", 0, 100), ("tokens", 0, 7)}
    assert (await books.snapshot("org:a", "team:ml", "user:al")).balances == reply.balances


@pytest.mark.parametrize("tight", range(4))
async def test_one_exhausted_limit_refuses_and_nothing_is_held_on_the_others(books: Books, tight: int) -> None:
    amounts = [100 if tight == n else 10_000 for n in range(4)]
    await books.limit(
        budget("org:a", amounts[0], "month"),
        budget("user:al", amounts[1], "day"),
        cap("user:al", "requests", amounts[2], "rolling:60"),
        cap("user:al", "concurrency", amounts[3]),
    )
    reply = await books.reserve("r1", "org:a", "user:al", usd=101, requests=101, concurrency=101)
    assert reply.outcome is Outcome.EXCEEDS_LIMIT
    assert [reply.balances[n].line.amount for n in reply.exceeded] == [100]
    assert all((b.spent, b.held) == (0, 0) for b in (await books.snapshot("org:a", "user:al")).balances)
    assert await books.ledger() == []


async def test_every_refusing_limit_is_named(books: Books) -> None:
    await books.limit(budget("org:a", 10), budget("user:al", 1000), cap("user:al", "requests", 0))
    reply = await books.reserve("r1", "org:a", "user:al", usd=11, requests=1)
    named = {(reply.balances[n].line.scope, reply.balances[n].line.unit) for n in reply.exceeded}
    assert named == {("org:a", "usd"), ("user:al", "requests")}


async def test_a_need_equal_to_what_is_left_is_held_and_one_more_is_not(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    assert (await books.reserve("r1", "user:al", usd=60)).outcome is Outcome.HELD
    assert (await books.reserve("r2", "user:al", usd=41)).outcome is Outcome.EXCEEDS_LIMIT
    equal = await books.reserve("r3", "user:al", usd=40)
    assert equal.outcome is Outcome.HELD
    assert equal.balances[0].remaining == 0


async def test_a_need_of_nothing_passes_an_exhausted_limit(books: Books) -> None:
    await books.limit(budget("user:al", 0), cap("user:al", "requests", 5))
    assert (await books.reserve("r1", "user:al", usd=0, requests=1)).outcome is Outcome.HELD
    assert (await books.reserve("r2", "user:al", requests=1)).outcome is Outcome.HELD
    assert (await books.reserve("r3", "user:al", usd=1, requests=1)).outcome is Outcome.EXCEEDS_LIMIT


async def test_a_refused_call_burns_no_rate_limit(books: Books) -> None:
    await books.limit(budget("user:al", 10), cap("user:al", "requests", 1, "minute"))
    for n in range(5):
        assert (await books.reserve(f"no{n}", "user:al", usd=11, requests=1)).outcome is Outcome.EXCEEDS_LIMIT
    assert (await books.reserve("yes", "user:al", usd=10, requests=1)).outcome is Outcome.HELD


async def test_a_refused_id_is_decided_anew_when_it_is_asked_again(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    await books.reserve("first", "user:al", usd=60)
    assert (await books.reserve("r", "user:al", usd=50)).outcome is Outcome.EXCEEDS_LIMIT
    await books.release("first")
    again = await books.reserve("r", "user:al", usd=50)
    assert (again.outcome, again.repeated) == (Outcome.HELD, False)


@pytest.mark.parametrize("stores", [1, 2])
async def test_of_200_at_once_on_a_budget_for_50_exactly_50_pass(books: Books, stores: int) -> None:
    await books.limit(budget("org:a", 50_000), budget("user:al", 10_000_000))
    opened = [books.store, *[await books.open() for _ in range(stores - 1)]]
    question = await books.request("r", "org:a", "user:al", usd=1000)
    replies = await asyncio.gather(*(opened[n % stores].reserve(anew(question, f"r{n}")) for n in range(200)))
    held = [reply for reply in replies if reply.outcome is Outcome.HELD]
    assert len(held) == 50
    assert {reply.outcome for reply in replies} == {Outcome.HELD, Outcome.EXCEEDS_LIMIT}
    settles = [
        Settle(
            reservation_id=reply.reservation_id, root=ROOT, lines=question.lines, amounts=(("usd", 1000),), made_ms=reply.at_ms
        )
        for reply in held
    ]
    await asyncio.gather(*(opened[n % stores].settle(settle) for n, settle in enumerate(settles)))
    assert await books.count("org:a") == (50_000, 0)
    assert await books.booked() == 50_000


async def test_calls_of_one_turn_are_decided_in_order_each_with_its_own_balance(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    question = await books.request("r", "user:al")
    needs = [60, 50, 40, 1, 0]
    asked = [replace(anew(question, f"r{n}"), needs=(Need(unit="usd", held=need),)) for n, need in enumerate(needs)]
    replies = await asyncio.gather(*(books.store.reserve(each) for each in asked))
    assert [reply.admitted for reply in replies] == [True, False, True, False, True]
    assert [reply.balances[0].held for reply in replies] == [60, 60, 100, 100, 100]


async def test_the_same_id_twice_in_one_turn_is_held_once(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    question = await books.request("r", "user:al", usd=60)
    first, second = await asyncio.gather(books.store.reserve(question), books.store.reserve(question))
    assert [(reply.outcome, reply.repeated) for reply in (first, second)] == [(Outcome.HELD, False), (Outcome.HELD, True)]
    assert await books.count("user:al") == (0, 60)


async def test_calls_of_one_turn_that_disagree_about_a_limit_still_share_its_counter(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    question = await books.request("r", "user:al", usd=60)
    (line,) = question.lines
    wider = replace(question, reservation_id="wider", lines=(replace(line, amount=110),))
    replies = await asyncio.gather(books.store.reserve(question), books.store.reserve(wider))
    assert [reply.outcome for reply in replies] == [Outcome.HELD, Outcome.EXCEEDS_LIMIT]
    assert await books.count("user:al") == (0, 60)


async def test_a_repeated_reserve_answers_as_before_and_holds_nothing_more(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    question = await books.request("r", "user:al", usd=100)
    await books.send(question)
    for _ in range(3):
        again = await books.send(question)
        assert (again.outcome, again.repeated, again.admitted) == (Outcome.HELD, True, True)
    assert await books.count("user:al") == (0, 100)


@pytest.mark.parametrize(("resolve", "outcome"), [(Resolution.SETTLE, Outcome.SETTLED), (Resolution.RELEASE, Outcome.RELEASED)])
async def test_a_reserve_repeated_after_its_resolution_is_told_so(books: Books, resolve: Resolution, outcome: Outcome) -> None:
    await books.limit(budget("user:al", 100))
    question = await books.request("r", "user:al", usd=100)
    await books.send(question)
    await books.store.settle(books.settlement("r", resolve, usd=70))
    before = await books.count("user:al")
    again = await books.send(question)
    assert (again.outcome, again.repeated, again.admitted) == (outcome, True, False)
    assert await books.count("user:al") == before


async def test_a_lease_of_nothing_books_at_once_and_once(books: Books) -> None:
    await books.limit(budget("user:al", 100), cap("user:al", "requests", 3))
    question = await books.request("r", "user:al", lease_ms=0, entry='{"fixed":1}', usd=40, requests=1)
    assert (await books.send(question)).outcome is Outcome.BOOKED
    again = await books.send(question)
    assert (again.outcome, again.repeated, again.admitted) == (Outcome.BOOKED, True, True)
    assert await books.count("user:al") == (40, 0)
    (entry,) = await books.ledger()
    assert dict(entry.booked) == {"usd": 40, "requests": 1}
    assert (entry.kind, entry.part, entry.entry_json, entry.estimated, entry.late) == ("settle", 1, '{"fixed":1}', False, False)
    assert (await books.reserve("r2", "user:al", lease_ms=0, usd=61)).outcome is Outcome.EXCEEDS_LIMIT


async def test_a_lease_of_nothing_without_an_entry_only_counts(books: Books) -> None:
    await books.limit(cap("user:al", "requests", 3, "rolling:60"))
    assert (await books.reserve("r", "user:al", lease_ms=0, entry="{}", requests=1)).outcome is Outcome.BOOKED
    assert await books.count("user:al", "requests") == (1, 0)
    assert await books.ledger() == []


async def test_a_shadow_limit_counts_and_reports_and_never_refuses(books: Books) -> None:
    await books.limit(budget("user:al", 10, mode="shadow"), budget("org:a", 1000))
    reply = await books.reserve("r1", "user:al", "org:a", usd=11)
    assert reply.outcome is Outcome.HELD
    assert [reply.balances[n].line.scope for n in reply.shadowed] == ["user:al"]
    refused = await books.reserve("r2", "user:al", "org:a", usd=1000)
    assert [refused.balances[n].line.scope for n in refused.exceeded] == ["org:a"]
    assert [refused.balances[n].line.scope for n in refused.shadowed] == ["user:al"]
    assert await books.count("user:al") == (0, 11)


async def test_an_unlimited_line_counts_without_refusing(books: Books) -> None:
    question = await books.request("r", usd=MAX_HOLD)
    line = Line(counter=f"{ROOT}|org:a/usd/total|total", unit="usd", amount=UNLIMITED)
    reply = await books.send(replace(question, lines=(line,)))
    assert reply.outcome is Outcome.HELD
    assert (reply.balances[0].held, reply.balances[0].remaining, reply.shadowed) == (MAX_HOLD, None, ())


async def test_a_request_that_touches_no_limit_is_held_and_goes_into_the_ledger(books: Books) -> None:
    assert (await books.reserve("r", "user:nobody", usd=5)).outcome is Outcome.HELD
    await books.settle("r", usd=3)
    (entry,) = await books.ledger()
    assert (entry.root, dict(entry.booked)) == (ROOT, {"usd": 3})


async def test_limits_that_changed_since_the_lines_were_made_send_the_reserve_back(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    question = await books.request("r", "user:al", usd=100)
    await books.limit(budget("user:al", 10))
    stale = await books.send(question)
    assert (stale.outcome, stale.admitted) == (Outcome.STALE_LIMITS, False)
    assert await books.count("user:al") == (0, 0)
    assert (await books.reserve("r", "user:al", usd=100)).outcome is Outcome.EXCEEDS_LIMIT


async def test_a_reserve_that_names_another_epoch_is_sent_back(books: Books) -> None:
    await books.limit(budget("user:al", 100))
    question = await books.request("r", "user:al", usd=1)
    assert (await books.send(replace(question, epoch="another"))).outcome is Outcome.STALE_LIMITS


@pytest.mark.parametrize("wrong", ["yesterday", "tomorrow"])
async def test_a_period_that_the_servers_clock_contradicts_is_refused_whatever_the_caller_thinks(
    books: Books, wrong: str
) -> None:
    await books.limit(budget("user:al", 100, "day"), budget("org:a", 100))
    day = 86_400_000 * (1 if wrong == "tomorrow" else -1)
    question = await books.request("r", "user:al", "org:a", usd=1)
    moved = [
        replace(line, starts_ms=line.starts_ms + day, ends_ms=line.ends_ms + day) if line.ends_ms else line
        for line in question.lines
    ]
    reply = await books.send(replace(question, lines=tuple(moved)))
    assert (reply.outcome, reply.admitted) == (Outcome.WRONG_PERIOD, False)
    assert abs(reply.at_ms - await books.now()) < 60_000
    assert await books.count("org:a") == (0, 0)


async def test_the_largest_amounts_are_counted_to_the_last_nano(books: Books) -> None:
    await books.limit(budget("user:al", MAX_HOLD))
    assert (await books.reserve("r1", "user:al", usd=MAX_HOLD - 1)).outcome is Outcome.HELD
    assert (await books.reserve("r2", "user:al", usd=2)).outcome is Outcome.EXCEEDS_LIMIT
    assert (await books.reserve("r3", "user:al", usd=1)).outcome is Outcome.HELD
    assert await books.count("user:al") == (0, MAX_HOLD)
    await books.settle("r1", usd=MAX_HOLD - 1)
    await books.settle("r3", usd=1)
    assert await books.count("user:al") == (MAX_HOLD, 0)
    assert await books.booked() == MAX_HOLD


async def test_a_group_of_largest_amounts_adds_up_exactly(books: Books) -> None:
    await books.limit(budget("user:al", MAX_LIMIT_NANOS))
    question = await books.request("r", "user:al", usd=MAX_HOLD)
    replies = await asyncio.gather(*(books.store.reserve(anew(question, f"r{n}")) for n in range(60)))
    assert all(reply.admitted for reply in replies)
    assert [reply.balances[0].held for reply in replies] == [MAX_HOLD * (n + 1) for n in range(60)]
    assert await books.count("user:al") == (0, 60 * MAX_HOLD)


async def test_no_counter_goes_past_the_largest_total_even_where_nothing_limits_it(books: Books) -> None:
    question = await books.request("r", usd=MAX_HOLD)
    line = Line(counter=f"{ROOT}|org:a/usd/total|total", unit="usd", amount=UNLIMITED)
    question = replace(question, lines=(line,))
    replies = await asyncio.gather(*(books.store.reserve(anew(question, f"r{n}")) for n in range(1030)))
    fit = MAX_LIMIT_NANOS // MAX_HOLD
    assert sum(reply.admitted for reply in replies) == fit
    (balance,) = (await books.store.balance(ROOT, (line,))).balances
    assert balance.held == fit * MAX_HOLD


@pytest.mark.parametrize("amount", [-1, MAX_HOLD + 1])
def test_a_need_or_a_booking_out_of_range_is_no_amount(amount: int) -> None:
    with pytest.raises(MoneyError):
        Need(unit="usd", held=amount)
    with pytest.raises(MoneyError):
        Need(unit="usd", held=1, expected=amount)
    with pytest.raises(MoneyError):
        Settle(reservation_id="r", root=ROOT, lines=(), amounts=(("usd", amount),))


async def test_concurrency_slots_are_taken_and_given_back(books: Books) -> None:
    await books.limit(cap("user:al", "concurrency", 2), budget("user:al", 1000))
    for name in ("r1", "r2"):
        assert (await books.reserve(name, "user:al", concurrency=(1, 0), usd=10)).outcome is Outcome.HELD
    assert (await books.reserve("r3", "user:al", concurrency=(1, 0), usd=10)).outcome is Outcome.EXCEEDS_LIMIT
    await books.partial("r1", 1, usd=3)
    assert await books.count("user:al", "concurrency") == (0, 2)
    await books.settle("r1", part=2, usd=3)
    assert await books.count("user:al", "concurrency") == (0, 1)
    assert (await books.reserve("r3", "user:al", concurrency=(1, 0), usd=10)).outcome is Outcome.HELD
    await books.release("r3")
    await books.release("r2")
    assert await books.count("user:al", "concurrency") == (0, 0)
