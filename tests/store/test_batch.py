"""Calls of one turn of the event loop travel together, and none of them pays for another's end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sark_mw.store.batch import Batch


class Line:
    """A way to the server that is opened by hand; answers ten times what it was sent."""

    def __init__(self, *, open_from_the_start: bool = True) -> None:
        self.groups: list[list[int]] = []
        self.way = asyncio.Event()
        if open_from_the_start:
            self.way.set()

    async def send(self, group: Sequence[int]) -> list[int]:
        self.groups.append(list(group))
        await self.way.wait()
        if 13 in group:
            raise ConnectionError("unlucky")
        return [number * 10 for number in group]


async def test_what_is_asked_in_one_turn_goes_together_in_order() -> None:
    line = Line()
    batch = Batch(line.send)
    assert await asyncio.gather(*(batch.submit(n) for n in range(5))) == [0, 10, 20, 30, 40]
    assert line.groups == [[0, 1, 2, 3, 4]]


async def test_the_next_turn_is_a_group_of_its_own_even_while_the_first_is_under_way() -> None:
    line = Line(open_from_the_start=False)
    batch = Batch(line.send)
    first = batch.submit(1)
    while not line.groups:
        await asyncio.sleep(0)
    second = batch.submit(2)
    while len(line.groups) < 2:
        await asyncio.sleep(0)
    assert line.groups == [[1], [2]]
    line.way.set()
    assert [await first, await second] == [10, 20]


async def test_a_group_is_bounded() -> None:
    line = Line()
    batch = Batch(line.send, most=4)
    assert await asyncio.gather(*(batch.submit(n) for n in range(10))) == [n * 10 for n in range(10)]
    assert line.groups == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_one_caller_that_leaves_takes_nobody_with_it() -> None:
    line = Line(open_from_the_start=False)
    batch = Batch(line.send)
    futures = [batch.submit(n) for n in range(3)]
    await asyncio.sleep(0)
    futures[1].cancel()
    line.way.set()
    assert [await futures[0], await futures[2]] == [0, 20]
    assert futures[1].cancelled()


async def test_a_failure_reaches_every_caller_of_the_group_and_no_other() -> None:
    line = Line()
    batch = Batch(line.send, most=2)
    answers = await asyncio.gather(*(batch.submit(n) for n in (12, 13, 14)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionError, ConnectionError, int]


async def test_a_failure_that_nobody_waits_for_disturbs_nobody() -> None:
    line = Line(open_from_the_start=False)
    batch = Batch(line.send)
    future = batch.submit(13)
    await asyncio.sleep(0)
    future.cancel()
    line.way.set()
    await batch.drain()
    assert await batch.submit(1) == 10


async def test_draining_waits_for_what_is_under_way_and_for_what_was_asked_in_this_turn() -> None:
    line = Line(open_from_the_start=False)
    batch = Batch(line.send)
    futures = [batch.submit(n) for n in range(3)]
    draining = asyncio.ensure_future(batch.drain())
    for _ in range(10):
        await asyncio.sleep(0)
    assert line.groups == [[0, 1, 2]]
    assert not draining.done()
    line.way.set()
    await draining
    await asyncio.sleep(0)
    assert [future.result() for future in futures] == [0, 10, 20]


async def test_a_sender_that_is_cancelled_cancels_its_callers() -> None:
    async def send(group: Sequence[int]) -> list[int]:
        raise asyncio.CancelledError

    future = Batch(send).submit(1)
    with pytest.raises(asyncio.CancelledError):
        await future
