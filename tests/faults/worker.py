"""One worker process of the fault tests: `worker.py <mode> <name> <folder> <settings as JSON>`.

`burst` makes 200 calls at once when `go` appears, `steady` keeps calls in flight until `stop` appears, `hang` takes 50 calls and
never ends. What it knows to have been booked goes into `<name>.json`, when all of it is settled.
"""

from __future__ import annotations

import asyncio
import json
import sys
from decimal import Decimal
from pathlib import Path

from sark_mw.errors import RefusedError
from sark_mw.pricing.base import CostEstimate
from sark_mw.sark import Sark
from sark_mw.settings import Settings

CENT = Decimal("0.01")


class Worker:
    """Its calls, and its own count of them."""

    def __init__(self, sark: Sark, name: str, folder: Path) -> None:
        self.sark, self.name, self.folder = sark, name, folder
        self.tally = {"booked": 0, "refused": 0, "unavailable": 0}

    async def call(self) -> None:
        """Hold two cents, spend one."""
        try:
            async with self.sark.reserve(principal="user:alice", scopes=["team:ml"], estimate=2 * CENT) as reservation:
                await asyncio.sleep(0.002)
                reservation.settle(CENT)
        except RefusedError as error:
            self.tally["unavailable" if error.kind == "unavailable" else "refused"] += 1
            await asyncio.sleep(0.002)
        else:
            self.tally["booked"] += 1

    async def burst(self) -> None:
        """Hold a cent each, all at once, and keep it until everybody was answered."""
        await self.appearance("go")
        answered = asyncio.Barrier(200)

        async def one() -> None:
            try:
                async with self.sark.reserve(principal="user:alice", scopes=["team:ml"], estimate=CENT) as reservation:
                    await answered.wait()
                    reservation.settle(CENT)
            except RefusedError as error:
                self.tally[error.kind if error.kind == "unavailable" else "refused"] += 1
                await answered.wait()
            else:
                self.tally["booked"] += 1

        await asyncio.gather(*(one() for _ in range(200)))

    async def steady(self) -> None:
        """Call and call again, eight at a time."""
        stop = asyncio.ensure_future(self.appearance("stop"))

        async def one() -> None:
            while not stop.done():
                await self.call()
                self.mark("progress", str(self.tally["booked"]))

        await asyncio.gather(*(one() for _ in range(8)))

    async def hang(self) -> None:
        """Hold two cents and expect one, fifty times, and never come back."""
        cost = CostEstimate(2 * CENT, expected_cost=CENT)

        async def one() -> None:
            async with self.sark.reserve(principal="user:alice", scopes=["team:ml"], estimate=cost):
                self.tally["booked"] += 1
                await asyncio.Event().wait()

        tasks = [asyncio.ensure_future(one()) for _ in range(50)]
        while self.tally["booked"] < 50:
            await asyncio.sleep(0.001)
        self.mark("holding")
        await asyncio.gather(*tasks)

    async def appearance(self, name: str) -> None:
        """Wait for a file."""
        while not (self.folder / name).exists():
            await asyncio.sleep(0.002)

    def mark(self, what: str, text: str = "") -> None:
        """Say something by a file of our own."""
        fresh = self.folder / f"{self.name}.{what}.tmp"
        fresh.write_text(text)
        fresh.replace(self.folder / f"{self.name}.{what}")


async def main(mode: str, name: str, folder: str, settings: str) -> None:
    sark = Sark(Settings(**json.loads(settings, parse_float=Decimal)))
    await sark.start()
    worker = Worker(sark, name, Path(folder))
    worker.mark("ready")
    if mode == "hang":
        await worker.appearance("go")
    await getattr(worker, mode)()
    await sark.aclose(30.0)
    worker.mark("json", json.dumps(worker.tally))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
