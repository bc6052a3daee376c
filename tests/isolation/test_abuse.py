"""No attack on the isolated tier gets anything, as root, an ordinary user or in a container; in process the same ones do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.isolation.harness import CASES
from tests.isolation.lesser import NO_NAMESPACES
from tests.isolation.users import as_nobody

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]
_ROOT = Path(__file__).parent.parent.parent
_HARNESS = [sys.executable, "-B", "-m", "tests.isolation.harness"]
#: Attacks that need no more than a Python to succeed: whoever holds these in process has a broken judge.
_SURE = {
    "open", "libc open", "subclasses walk", "write a file", "shell", "kill", "busy loop", "blocking sleep", "connect",
    "objects of the collector", "own environ file", "gateway's memory file", "inherited descriptors", "fork bomb", "list bomb",
    "patched decision", "neighbours patched by the collector", "exit", "segmentation fault", "machine code", "unix socket",
    "abstract socket", "unpickled shell", "process_vm_readv",
}  # fmt: skip

#: Not to be found is what these are about.
_NOT_THERE = {"import path injection", "internals of the gateway", "internals by reloading"}
#: Those that never come to be asked.
_REFUSED = {
    "busy at import", "asleep at import", "memory bomb at import", "busy in its constructor", "busy in a property",
    "busy in on_load", "busy in its metaclass", "exit at import", "system exit in its constructor", "boundless description",
    "on_error that is none", "reply before the request",
}  # fmt: skip
#: Refused where its second word comes before the first was read.
_EARLY = {"ready before it is"}

Report = dict[str, Any]


def _run(tier: str, wrap: Any = list) -> Report:
    ended = subprocess.run(wrap([*_HARNESS, tier]), cwd=_ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: Report = json.loads(ended.stdout)
    return found


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """Run the harness once for each way of running it."""
    who = request.param
    wrap = {
        "isolated, this user": list,
        "isolated, an ordinary user": as_nobody,
        "stateless, this user": list,
        "isolated, no namespaces": lambda command: [sys.executable, "-m", "tests.isolation.lesser", NO_NAMESPACES, *command],
        "in process": list,
    }[who]
    return _run(who.split(",")[0].replace(" ", "-"), wrap)


_GROUPS = [
    pytest.param(who, id=who, marks=pytest.mark.xdist_group(who))
    for who in ("isolated, this user", "isolated, an ordinary user", "isolated, no namespaces", "stateless, this user")
]


@pytest.mark.parametrize("report", _GROUPS, indirect=True)
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_an_isolated_attack_leaves_no_trace_outside(report: Report, name: str) -> None:
    assert report["cases"][name]["evidence"] == [], report["cases"][name]


@pytest.mark.parametrize("report", _GROUPS, indirect=True)
def test_attacks_fail_for_want_of_power_and_not_of_a_module_or_of_time(report: Report) -> None:
    words = {name: case["words"] for name, case in report["cases"].items()}
    assert {name for name, said in words.items() if "ModuleNotFoundError" in said[0]} == _NOT_THERE
    assert {name for name, said in words.items() if len(said) == 1} - _EARLY == _REFUSED
    assert not {name for name, said in words.items() if "NameError" in said[0] or "SyntaxError(" in said[0]}


@pytest.mark.parametrize("report", _GROUPS, indirect=True)
def test_the_judge_sees_what_an_isolated_plugin_may_do(report: Report) -> None:
    assert report["cases"]["honest"]["evidence"] == []
    assert report["cases"]["willing"]["evidence"] == ["allowed"]
    assert report["cases"]["typed by hand"]["evidence"] == ["allowed"]


@pytest.mark.xdist_group("isolated, an ordinary user")
@pytest.mark.parametrize("report", ["isolated, an ordinary user"], indirect=True)
def test_the_ordinary_user_is_one(report: Report) -> None:
    assert report["uid"] != 0


@pytest.mark.xdist_group("in process")
@pytest.mark.parametrize("report", ["in process"], indirect=True)
def test_the_same_attacks_succeed_in_process(report: Report) -> None:
    cases = report["cases"]
    assert cases["honest"]["evidence"] == []
    succeeded = {name for name, case in cases.items() if case["evidence"]}
    assert succeeded >= _SURE
    # Everything that an attack may do is detected somewhere, so that none of the judges is asleep.
    seen = {each for case in cases.values() for each in case["evidence"]}
    assert seen >= {"token", "file", "socket", "signal", "process", "memory", "stall", "died", "neighbour", "claimed", "allowed"}
    assert len(succeeded) >= len(cases) // 2


def test_there_are_attacks_of_every_kind_and_no_name_twice() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
