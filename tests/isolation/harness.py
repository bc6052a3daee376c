"""Run attacks against a tier, and print what was seen of them as JSON: `python -m tests.isolation.harness isolated [name …]`.

A process of its own, so that it can be any user, be shot at, and hold secrets which nobody else has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin
from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.deadline import DeadlineExceededError, finish_within
from sark_mw.policy.isolated import IsolationOptions, isolate
from tests.isolation.abuse import Abuse, attack, whole
from tests.isolation.cases_power import KERNEL, PROCESSES, SIGNALS
from tests.isolation.cases_reach import FILES, MEMORY, NETWORK
from tests.isolation.cases_replies import ANSWERS, RAW, TYPED
from tests.isolation.cases_waste import INTERPRETER, WASTE
from tests.isolation.targets import STALL_S, TOKEN, Targets

#: The harness is to see nothing of this one, and of the next that it allows.
HONEST = attack("honest", "def attack(t): return 'nothing'")
WILLING = whole(
    "willing",
    """
    class Abuse(PolicyPlugin):
        name = "abuse"
        async def evaluate(self, context): return PolicyDecision(True)
""",
)
CONTROLS = (HONEST, WILLING, TYPED)
CASES: tuple[Abuse, ...] = (
    *FILES, *MEMORY, *NETWORK, *PROCESSES, *SIGNALS, *KERNEL, *WASTE, *INTERPRETER, *ANSWERS, *RAW,
)  # fmt: skip
#: What attackers would like to have at hand, so that they fail for want of power and not of a module.
_TOOLS = (
    *("concurrent.futures.thread", "fcntl", "http.client", "mmap", "multiprocessing.popen_fork", "multiprocessing.queues"),
    *("pathlib", "pickle", "resource", "select", "shutil", "subprocess", "tempfile", "urllib.request"),
)
ISOLATION = IsolationOptions(start_timeout_s=3.0, cpu_s=0.3, timeout_s=0.4, preload=_TOOLS)
#: Whatever a plugin does, an answer is there by then; many times what it takes.
LATEST_S = 8.0
#: How often an attack must have stopped the event loop before it is believed to be the attack's doing.
_TRIES = 4
_NEIGHBOUR = """
from sark_mw import PolicyPlugin, PolicyContext, PolicyDecision
class Neighbour(PolicyPlugin):
    name = "neighbour"
    async def evaluate(self, context):
        return PolicyDecision(context.principal_id == "friend", "as ever")
"""


class Neighbour(PolicyPlugin):
    """An honest plugin in the gateway's own process."""

    name = "neighbour"

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        return PolicyDecision(context.principal_id == "friend", "as ever")


def _context(principal: str, arguments: dict[str, Any]) -> PolicyContext:
    return PolicyContext(principal, "gpt-4o", "chat", "invoke", arguments)


async def _beat(targets: Targets) -> None:
    last = time.monotonic()
    while True:
        await asyncio.sleep(0.02)
        now = time.monotonic()
        if now - last > STALL_S:
            targets.evidence.add("stall")
        last = now


async def _neighbour_is_well(neighbour: PolicyPlugin) -> bool:
    answers = [await neighbour.evaluate(_context(principal, {})) for principal in ("friend", "stranger")]
    return [answer.allowed for answer in answers] == [True, False]


async def _ask(targets: Targets, plugin: PolicyPlugin, seconds: float | None) -> str:
    try:
        asked = plugin.evaluate(_context("stranger", targets.described()))
        answer: Any = await asyncio.wait_for(asked if seconds is None else finish_within(asked, seconds), LATEST_S)
    except TimeoutError:
        targets.evidence.add("late")
        return "late"
    except DeadlineExceededError:
        return "timed out"
    except (PolicyEvaluationError, SystemExit) as error:
        targets.see(repr(error))
        return repr(error)
    if isinstance(answer, PolicyDecision) and answer.allowed is True:
        targets.evidence.add("allowed")
    if isinstance(answer, PolicyDecision) and len(repr(answer)) > 70_000:
        targets.evidence.add("memory")
    targets.see(repr(answer)[:100_000])
    return repr(answer)[:300]


async def _isolated(case: Abuse, targets: Targets, neighbour: PolicyPlugin, isolation: IsolationOptions) -> dict[str, Any]:
    words = []
    try:
        plugin = await isolate(case.source.encode(), "abuse.py", "Abuse", {}, isolation)
        await plugin.on_load()
    except ConfigurationError as error:
        targets.see(str(error))
        words.append(str(error))
    else:
        words += [await _ask(targets, plugin, None) for _ in range(2)]
        words.append(str(plugin.figures()))
        await plugin.on_unload()
    if not await _neighbour_is_well(neighbour):
        targets.evidence.add("neighbour")
    await asyncio.sleep(0.03)
    return {"evidence": sorted(targets.collect()), "words": words}


async def run_isolated(cases: list[Abuse], isolation: IsolationOptions) -> dict[str, Any]:
    """Run the cases one after the other beside a neighbour in a worker of its own."""
    targets = Targets(isolated=True)
    neighbour = await isolate(_NEIGHBOUR.encode(), "neighbour.py", isolation=replace(ISOLATION, timeout_s=10.0, cpu_s=10.0))
    await neighbour.on_load()
    beat = asyncio.create_task(_beat(targets))
    report: dict[str, Any] = {}
    try:
        for case in cases:
            for number in range(1, _TRIES + 1):
                report[case.name] = {**await _isolated(case, targets, neighbour, isolation), "tries": number}
                if report[case.name]["evidence"] != ["stall"]:  # a busy machine does that as well
                    break
        return report
    finally:
        beat.cancel()
        await neighbour.on_unload()
        targets.close()


async def _in_process(case: Abuse, targets: Targets) -> dict[str, Any]:
    beat = asyncio.create_task(_beat(targets))
    await asyncio.sleep(0)
    neighbour = Neighbour()
    module = ModuleType("abuse")
    sys.modules["abuse"] = module
    try:
        exec(case.source, module.__dict__)
        words = await _ask(targets, module.Abuse(), 0.4)
    except (Exception, SystemExit) as error:
        words = repr(error)
    if not await _neighbour_is_well(neighbour):
        targets.evidence.add("neighbour")
    await asyncio.sleep(0.05)
    beat.cancel()
    return {"evidence": sorted(targets.collect()), "words": [words]}


def _child(case: Abuse, out: int) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for handle in (1, 2):
        os.dup2(nothing, handle)
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    targets = Targets(isolated=False)
    encode, write = json.dumps, os.write  # before the attack can change them
    write(out, encode(asyncio.run(_in_process(case, targets))).encode())


def run_in_process(cases: list[Abuse]) -> dict[str, Any]:
    """Run each case in a gateway of its own, forked off, which it may ruin; the control of all this."""
    report: dict[str, Any] = {}
    for case in cases:
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(ours)
                _child(case, theirs)
            finally:
                os._exit(0)
        os.close(theirs)
        report[case.name] = _verdict(child, ours)
    return report


def _verdict(child: int, ours: int) -> dict[str, Any]:
    try:
        os.set_blocking(ours, False)
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            gone, _ = os.waitpid(child, os.WNOHANG)
            try:
                text = os.read(ours, 1 << 20)
            except BlockingIOError:
                text = b""
            if text:
                found: dict[str, Any] = json.loads(text)
                return found
            if gone:
                return {"evidence": ["died"], "words": []}
            time.sleep(0.01)
        return {"evidence": ["stall"], "words": []}
    finally:
        os.close(ours)
        for stop in (lambda: os.killpg(child, signal.SIGKILL), lambda: os.waitpid(child, 0)):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                stop()


def main() -> None:
    """Run all cases, or those named, of one tier."""
    if "SARK_SECRET_TOKEN" not in os.environ:
        # From the very start, as a secret is: what is set later is not in /proc/<pid>/environ.
        os.environ["SARK_SECRET_TOKEN"] = TOKEN
        os.execv(sys.executable, [sys.executable, "-m", "tests.isolation.harness", *sys.argv[1:]])
    tier, *names = sys.argv[1:]
    chosen = [case for case in (*CONTROLS, *CASES) if not names or case.name in names]
    with tempfile.TemporaryDirectory(prefix="abuse_") as folder:
        Path(folder).chmod(0o755)
        tempfile.tempdir = folder  # whoever is killed leaves its own in there
        if tier in ("isolated", "stateless"):
            report = asyncio.run(run_isolated(chosen, replace(ISOLATION, stateless=tier == "stateless")))
        else:
            report = run_in_process([case for case in chosen if not case.wire and not case.only_isolated])
    print(json.dumps({"uid": os.getuid(), "cases": report}))


if __name__ == "__main__":
    main()
