"""One process of the soak: calls of a fake provider, each tallied in a file before it is settled; or the administrator.

`python -m benchmarks.soak_worker <work|administer> <name> <folder> <number of calls> <settings as JSON>`. A worker that was
killed is started again with the same words and makes the calls that have no end in its file, under the idempotency keys they had.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from decimal import Decimal
from pathlib import Path

from sark_mw.enforcement.admission import Admission, Spent
from sark_mw.enforcer import Idempotency, Invocation
from sark_mw.errors import ConfigurationError
from sark_mw.limit import Limit, Mode, Unit
from sark_mw.money import from_nanos
from sark_mw.pricing.base import CostEstimate, CostEstimator, Estimate, InvocationRequest, Json
from sark_mw.reservation import new_reservation_id
from sark_mw.sark import Sark
from sark_mw.settings import Settings
from sark_mw.usage import Usage

ROOT = "acme"
IN_FLIGHT = 8
#: Scopes of each kind, and so how many share what a pattern's limit is sized for.
MEMBERS = {
    "org": 1,
    "team": 3,
    "project": 4,
    "user": 12,
    "key": 24,
    "model": 3,
    "provider": 2,
    "tool": 5,
    "tag": 4,
    "end_user": 9,
}
_MEAN_NANOS, _MEAN_TOKENS, _CALLS_A_MINUTE = 10_000, 220, 25_000


def draw_limits(calls: int, seed: int) -> list[Limit]:
    """Draw limits of every kind: sizes around what so many calls use, so that some refuse now and then and others never."""
    dice = random.Random(seed)
    limits: dict[str, Limit] = {}
    for kind, members in MEMBERS.items():
        for _ in range(4):
            unit = dice.choice(["usd", "usd", "usd", "requests", "tokens", "input_tokens", "output_tokens", "concurrency"])
            window = dice.choice(
                ["minute", "minute", "hour", "day", "week", "month", "quarter", "year", "total", "rolling:60", "idle:600"]
            )
            mean = {"usd": _MEAN_NANOS, "requests": 1}.get(unit, _MEAN_TOKENS)
            # A minute sees as many calls as it can, or all of them.
            seen = min(calls, _CALLS_A_MINUTE) if window in ("minute", "rolling:60") else calls
            amount = max(int(seen / members * mean * dice.uniform(0.4, 3)), 3 * mean)
            amount = dice.randint(15, 60) if unit == "concurrency" else amount
            rolls = window in ("minute", "hour", "day") and unit != "concurrency" and dice.random() < 0.6
            limit = Limit(
                root=ROOT,
                scope=f"{kind}:{dice.choice(['*', '*', '0'])}",
                unit=unit,
                window=window,
                timezone=dice.choice(["UTC", "Europe/Berlin", "Asia/Kathmandu"]),
                mode=dice.choice([Mode.ENFORCE, Mode.ENFORCE, Mode.ENFORCE, Mode.SHADOW, Mode.SOFT]),
                amount=_written(unit, amount),
                rollover=_written(unit, amount // 2 if rolls else 0),
                thresholds=dice.choice([(10, 30), (50, 80, 95)]) if unit != "concurrency" else (),
            )
            limits[limit.limit_id] = limit
    return [*limits.values()]


def _written(unit: str, amount: int) -> Decimal:
    return from_nanos(amount) if unit == Unit.USD else Decimal(amount)


class Drawn(CostEstimator):
    """The estimate of one call, drawn beforehand."""

    provider_name = "fake"

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate

    async def estimate_cost(self, request: InvocationRequest, resource_metadata: Json) -> CostEstimate:
        """Return the ceiling in dollars."""
        return CostEstimate(from_nanos(self._estimate.ceiling_nanos))

    def estimate(self, request: InvocationRequest, resource_metadata: Json) -> Estimate:
        """Return what was drawn."""
        return self._estimate

    def actual(self, usage: Usage, estimate: Estimate) -> int:
        """Nobody asks: the fake provider says what a call cost."""
        return estimate.expected_nanos

    def observe(self, usage: Usage, estimate: Estimate) -> None:
        """Learn nothing."""


class Worker:
    """Makes the calls of one process, eight at a time, and writes each step of each into its file at once."""

    def __init__(self, sark: Sark, name: str, folder: Path, calls: int) -> None:
        self.sark, self.name, self.calls = sark, name, calls
        self.path = folder / f"{name}.tally"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, *words: object) -> None:
        """Append a line in one write: it is in the file whatever becomes of this process."""
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    async def work(self) -> None:
        """Make every call that has no end yet."""
        ended = {int(line.split()[1]) for line in self.path.read_text().splitlines() if line[0] in "SFR"}
        waiting = iter([number for number in range(self.calls) if number not in ended])

        async def one() -> None:
            for number in waiting:
                await self.call(number)

        await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))

    async def call(self, number: int) -> None:
        """Make one call; one in five under an idempotency key, one in ten twice at once."""
        dice = random.Random(f"{self.name} {number}")
        asked = self.invocation(number, dice)
        twice = number % 10 == 0
        answers = await asyncio.gather(*(self.sark.enforcer.admit(asked) for _ in range(1 + twice)))
        admitted = [answer for answer in answers if isinstance(answer, Admission)]
        if len(admitted) > 1:
            self.note("X", number, *(admission.reservation_id for admission in admitted))
        for admission in admitted:
            await self.end(number, admission, dice)
        if not admitted:
            self.note("R", number, getattr(answers[0], "kind", ""))

    def invocation(self, number: int, dice: random.Random) -> Invocation:
        """Draw what a call asks for."""
        scopes = {kind: f"{kind}:{dice.randrange(members)}" for kind, members in MEMBERS.items()}
        asserted = tuple(scopes.pop(kind) for kind in ("tag", "end_user"))
        ceiling = dice.randrange(4_000, 36_000)
        tokens_in, tokens_out = dice.randrange(20, 200), dice.randrange(20, 300)
        estimate = Estimate(
            ceiling_nanos=ceiling,
            expected_nanos=dice.randrange(ceiling // 4, ceiling),
            input_tokens=tokens_in,
            max_output_tokens=tokens_out,
            expected_output_tokens=tokens_out // 2,
            provider="fake",
        )
        key = f"{self.name}{number}".encode().hex().ljust(8, "0")
        return Invocation(
            request=InvocationRequest("chat", scopes["user"], {}),
            estimator=Drawn(estimate),
            root=ROOT,
            scopes=tuple(scopes.values()),
            asserted=asserted,
            request_id=f"{self.name}-{number}",
            idempotency=Idempotency(key=key, fingerprint="0" * 8) if number % 5 == 0 else None,
        )

    async def end(self, number: int, admission: Admission, dice: random.Random) -> None:
        """Call the fake provider, note what it took, and settle; or release what never reached it."""
        name, estimate = admission.reservation_id, admission.estimate
        scopes = ",".join(admission.entry.scopes)
        self.note("H", number, name, estimate.ceiling_nanos, estimate.expected_nanos, admission.made_ms, scopes)
        await asyncio.sleep(dice.choice([0, 0, 0.001, 0.005]))
        if dice.random() < 0.03:
            await admission.release()
            self.note("F", number, name)
            return
        # Mostly within the ceiling; sometimes for nothing, sometimes dearer than anybody could know.
        cost = dice.choice([0, estimate.ceiling_nanos, estimate.ceiling_nanos + 7_777, *([None] * 27)])
        cost = dice.randrange(estimate.ceiling_nanos // 8, estimate.ceiling_nanos) if cost is None else cost
        tokens_in, tokens_out = estimate.input_tokens, dice.randrange(estimate.max_output_tokens)
        if dice.random() < 0.1:
            admission.report(Spent(cost_nanos=cost // 3, input_tokens=tokens_in, output_tokens=tokens_out // 3))
            admission.book_progress()
            await asyncio.sleep(0.001)
        self.note("T", number, name, cost, tokens_in, tokens_out)
        reply = await admission.settle(Spent(cost_nanos=cost, input_tokens=tokens_in, output_tokens=tokens_out))
        assert reply is not None, f"{name} went into the journal"
        self.note("S", number, name, int(reply.late), dict(reply.overrun).get("usd", 0))


async def administer(sark: Sark, folder: Path) -> None:
    """Top up, override and set again until told to stop: some of it twice, as an administrator's script that is retried."""
    dice = random.Random(1)
    limits = [limit for limit in await sark.limits.list(ROOT) if limit.unit != Unit.CONCURRENCY]
    changes = 0
    while not (folder / "stop").exists():
        limit = dice.choice(limits)
        kind = limit.scope.partition(":")[0]
        scope = f"{kind}:{dice.randrange(MEMBERS[kind])}" if limit.is_pattern else limit.scope
        with contextlib.suppress(ConfigurationError):
            # Another limit may stand in this one's place on that scope, or its window have no balance.
            changes += await _change(sark, limit, scope, dice)
        await asyncio.sleep(0.1)
    (folder / "administrator.json").write_text(json.dumps({"changes": changes}))


async def _change(sark: Sark, limit: Limit, scope: str, dice: random.Random) -> int:
    event_id = new_reservation_id()
    more = limit.amount / 4 if limit.unit == Unit.USD else Decimal(int(limit.amount) // 4 + 1)
    what = dice.choice(["top_up", "top_up", "override", "set"])
    for _ in range(dice.choice([1, 1, 2])):
        if what == "top_up":
            await sark.limits.top_up(scope, more, limit_id=limit.limit_id, root=ROOT, actor="soak", event_id=event_id)
        elif what == "override":
            until_ms = sark.clock.now_ms() + 2_000
            amount = limit.amount + more
            await sark.limits.override(
                scope, amount, until_ms, limit_id=limit.limit_id, root=ROOT, actor="soak", event_id=event_id
            )
        else:
            await sark.limits.set(limit, actor="soak")  # as it is: whoever decides meanwhile reads the limits anew
    return 1


async def main(mode: str, name: str, folder: str, calls: str, settings: str) -> None:
    """Run one process to its end."""
    sark = Sark(Settings(**json.loads(settings, parse_float=Decimal)))
    await sark.start()
    if mode == "administer":
        await administer(sark, Path(folder))
    else:
        worker = Worker(sark, name, Path(folder), int(calls))
        await worker.work()
        worker.note("E", 0)
    await sark.aclose(60.0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
