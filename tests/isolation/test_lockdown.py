"""What holds a worker: each layer on its own, what a system without one is told, and the list of system calls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sark_mw.errors import ConfigurationError
from sark_mw.policy.isolated import Hardening, IsolationOptions, isolate, probe
from sark_mw.policy.isolated.inside import seccomp
from sark_mw.policy.isolated.options import LAYERS, NEEDED_LAYERS
from tests.isolation import lesser
from tests.isolation.plugins import DOER, asked, loaded
from tests.isolation.processes import descendants

_ROOT = Path(__file__).parent.parent.parent


def _run(*command: str) -> str:
    ended = subprocess.run([sys.executable, *command], cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_this_system_has_every_layer_that_is_needed() -> None:
    found = probe()
    assert found.complete, found.missing
    assert set(found.layers) == set(LAYERS)
    assert probe() is found


_ISOLATE = """
import asyncio, json, logging, sys
from sark_mw.policy.isolated import IsolationOptions, isolate, probe
from tests.isolation.plugins import DOER, asked
from tests.isolation.processes import runs, until
logging.basicConfig(stream=sys.stderr)
async def main():
    found = {"missing": dict(probe().missing)}
    for mode in ("require", "best-effort"):
        try:
            plugin = await isolate(DOER, "doer.py", isolation=IsolationOptions(mode=mode))
            await plugin.on_load()
            found[mode] = (await plugin.evaluate(asked("allow"))).allowed
            pid = plugin.pids[0]
            found["spun"] = type((await asyncio.gather(plugin.evaluate(asked("spin")), return_exceptions=True))[0]).__name__
            await until(lambda: not runs(pid))
            found["hardening"] = dict(plugin.hardening.missing)
            await plugin.on_unload()
        except Exception as error:
            found[mode] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("lacks", "layer"),
    [
        (lesser.NO_LANDLOCK, "landlock_fs"),
        (lesser.NO_SECCOMP, "seccomp"),
        (lesser.NO_PIDFD, "pidfd"),
        (lesser.NO_RLIMITS, "rlimits"),
    ],
)
def test_a_system_that_lacks_a_layer_is_refused_by_name_and_best_effort_goes_on(lacks: str, layer: str) -> None:
    found = json.loads(_run("-m", "tests.isolation.lesser", lacks, sys.executable, "-c", _ISOLATE))
    assert layer in found["missing"]
    assert found["require"].startswith("ConfigurationError") and layer in found["require"]
    assert found["best-effort"] is True
    assert found["spun"] == "DeadlineExceededError"
    assert layer in found["hardening"]


def test_a_container_without_namespaces_has_all_that_is_needed() -> None:
    found = json.loads(_run("-m", "tests.isolation.lesser", lesser.NO_NAMESPACES, sys.executable, "-c", _ISOLATE))
    assert set(found["missing"]) == {"namespaces"}
    assert found["require"] is True


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_another_system_is_refused(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    found = probe.__wrapped__()
    assert set(found.lacking) == set(NEEDED_LAYERS)
    with pytest.raises(ConfigurationError, match=r"seccomp .needs Linux"):
        found.require()


async def test_another_system_is_refused_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descendants()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigurationError, match=r"plugin doer.py: .* missing .*seccomp .needs Linux, this is darwin"):
        await isolate(DOER, "doer.py")
    assert descendants() <= before


def test_best_effort_runs_where_a_received_descriptor_cannot_be_closed_on_exec_at_once() -> None:
    # As on macOS: the flag is missing before anything of ours is imported.
    script = "import socket; del socket.MSG_CMSG_CLOEXEC\n" + _ISOLATE
    assert json.loads(_run("-c", script))["best-effort"] is True


async def test_best_effort_warns_loudly(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hardening, "lacking", property(lambda _: {"seccomp": "for this test"}))
    with pytest.raises(ConfigurationError, match=r"missing seccomp \(for this test\)"):
        await isolate(DOER, "doer.py")
    await isolate(DOER, "doer.py", isolation=IsolationOptions(mode="best-effort"))
    assert "LESS ISOLATION" in caplog.text and "seccomp" in caplog.text


async def test_a_worker_has_what_it_is_said_to_have() -> None:
    plugin = await loaded()
    try:
        (pid,) = plugin.pids
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
        assert {status[name].strip("0") for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {""}
        assert "0" not in status["Uid"].split()
        limits = Path(f"/proc/{pid}/limits").read_text()
        for name, most in (("Max file size", 0), ("Max open files", 1), ("Max processes", 0), ("Max core file size", 0)):
            (line,) = (line for line in limits.splitlines() if line.startswith(name))
            assert line[len(name) :].split()[:2] == [str(most)] * 2
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
        if os.geteuid() == 0:
            assert [each.name for each in Path(f"/proc/{pid}/fd").iterdir()] == ["0"]
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert environment == b"" or (environment.startswith(b"LD_LIBRARY_PATH=") and environment.count(b"\0") == 1)
    finally:
        await plugin.on_unload()


#: Hangs, spins, and asks once more.
_KILLED = """
import asyncio
from sark_mw.policy.deadline import DeadlineExceededError
from tests.isolation.plugins import asked, loaded
from tests.isolation.processes import descendants, runs, until

async def main():
    plugin = await loaded(mode="best-effort")
    print(*plugin.hardening.lacking)
    for crime in ("hang", "spin"):
        await until(lambda: bool(plugin.pids))
        (pid,) = plugin.pids
        try:
            await plugin.evaluate(asked(crime))
        except DeadlineExceededError:
            await until(lambda: not runs(pid), 2)
    await until(lambda: bool(plugin.pids))
    print((await plugin.evaluate(asked("allow"))).allowed)
    await plugin.on_unload()
    print(descendants())
asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_root_without_the_power_to_kill_has_workers_killed_by_their_zygote() -> None:
    lesser = ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill", sys.executable, "-c", _KILLED]
    done = subprocess.run(lesser, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "pidfd\nTrue\nset()\n", done.stderr


_ALONE = """
import os, socket, sys
from sark_mw.policy.isolated.inside import kernel, landlock, seccomp, lockdown
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
{layer}
def fails(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return 0
print({attempts})
"""
_LANDLOCK = "landlock.restrict(landlock.version())"
_LIMITS = "lockdown.WorkerLockdown({}, (1 << 40, 1 << 40))._limits(0, 10)"


@pytest.mark.parametrize(
    ("layer", "attempts", "said"),
    [
        (_LANDLOCK, "fails(lambda: open('/etc/passwd')), fails(lambda: os.mkdir('/tmp/abuse_x'))", "13 13"),
        (_LANDLOCK, "fails(lambda: socket.create_connection(('127.0.0.1', 9)))", "13"),
        (_LANDLOCK, "fails(lambda: os.kill(os.getppid(), 0))", "1"),
        (_LIMITS, "fails(lambda: open('/etc/passwd'))", "24"),
    ],
    ids=["landlock: files", "landlock: network", "landlock: signals", "limits: descriptors"],
)  # fmt: skip
def test_a_layer_holds_without_the_others(layer: str, attempts: str, said: str) -> None:
    assert _run("-c", _ALONE.format(layer=layer, attempts=attempts)).strip() == said


def _verdict(machine: str, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Run the filter as the kernel would."""
    lines = seccomp.program(machine)
    words = {0: number, 4: architecture} | {16 + 8 * n: value for n, value in enumerate(arguments)}
    at, held = 0, 0
    while True:
        code, true, false, operand = lines[at]
        at += 1
        if code == 0x20:
            held = words.get(operand, 0)
        elif code == 0x54:
            held &= operand
        elif code == 0x15:
            at += true if held == operand else false
        elif code == 0x35:
            at += true if held >= operand else false
        else:
            assert code == 0x06
            return operand


_X86, _ARM = 0xC000003E, 0xC00000B7
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001


@pytest.mark.parametrize(
    ("machine", "architecture", "number", "arguments", "verdict"),
    [
        ("x86_64", _X86, 0, (), _ALLOW),
        ("x86_64", _X86, 231, (), _ALLOW),
        ("x86_64", _X86, 257, (), _EPERM),
        ("x86_64", _X86, 41, (), _EPERM),
        ("x86_64", _X86, 56, (), _EPERM),
        ("x86_64", _X86, 59, (), _KILL),
        ("x86_64", _X86, 101, (), _KILL),
        ("x86_64", _X86, 425, (), _KILL),
        ("x86_64", _X86, 9, (0, 4096, 3), _ALLOW),
        ("x86_64", _X86, 9, (0, 4096, 7), _EPERM),
        ("x86_64", _X86, 10, (0, 4096, 4), _EPERM),
        ("x86_64", _X86, 202, (0, 0x80), _ALLOW),
        ("x86_64", _X86, 202, (0, 6), _EPERM),
        ("x86_64", _X86, 0x40000000, (), _KILL),
        ("x86_64", 0x40000003, 0, (), _KILL),
        ("x86_64", _ARM, 63, (), _KILL),
        ("aarch64", _ARM, 63, (), _ALLOW),
        ("aarch64", _ARM, 64, (), _ALLOW),
        ("aarch64", _ARM, 56, (), _EPERM),
        ("aarch64", _ARM, 221, (), _KILL),
        ("aarch64", _ARM, 222, (0, 4096, 7), _EPERM),
        ("aarch64", _ARM, 222, (0, 4096, 3), _ALLOW),
        ("aarch64", _X86, 0, (), _KILL),
    ],
)
def test_the_filter_judges_a_system_call(
    machine: str, architecture: int, number: int, arguments: tuple[int, ...], verdict: int
) -> None:
    assert _verdict(machine, architecture, number, arguments) == verdict


async def test_memory_and_processor_time_are_bounded_for_each_worker() -> None:
    # On a busy machine a shorter time may be up before it had so much of the processor.
    plugin = await loaded(DOER.replace(b"timeout = 0.5", b"timeout = 30"), memory_bytes=32 << 20, cpu_s=0.2)
    try:
        (pid,) = plugin.pids
        with pytest.raises(Exception, match="memory"):
            await plugin.evaluate(asked("hoard"))
        with pytest.raises(Exception):  # noqa: B017  # its deadline has no text
            await plugin.evaluate(asked("spin"))
        assert "processor time" in plugin.figures()[0]["last_death"]
        assert pid not in plugin.pids
    finally:
        await plugin.on_unload()
