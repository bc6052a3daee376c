"""Tasks end, also those below which a library swallows a cancellation."""

from __future__ import annotations

import asyncio

from sark_mw.enforcement.ending import end_tasks


async def test_a_task_whose_cancellation_is_swallowed_is_cancelled_again() -> None:
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed == 2:
                    raise
                swallowed += 1

    tasks = [asyncio.ensure_future(deaf()), asyncio.ensure_future(asyncio.sleep(0))]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await end_tasks(tasks)
    assert swallowed == 2
    assert all(task.done() for task in tasks)


async def test_nothing_to_end_is_ended_at_once() -> None:
    await end_tasks([])
