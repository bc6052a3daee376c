"""A how-to page as a reader goes through it: its fenced blocks make one shell session, in a directory of its own.

The word behind a fence says what the block is:

- ```` ```toml sark.toml ````: a language and a file name. That file is written.
- ```` ```bash ````: typed into the shell. Variables, functions and background jobs live on from block to block, as they do there.
- ```` ```python ````: run by `python`.
- ```` ```text output ````: what the block before it printed. Ids and times may be others; `…` stands for anything within a line.

A block with any other word is only shown. The ports 8080, 9090 and 9099 become free ones, so that pages can run side by side.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(?P<word>[a-z]+)(?: (?P<file>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_PORTS = ("8080", "9090", "9099")
_NEXT = "@@ the next block @@"
#: How long what was asked to go may take; the gateway drains first.
PATIENCE_S = 15.0
_MARK = "SARK_HOWTO_SESSION"  # in the environment of all that a page starts, and read by none of it
_VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?"), "<time>"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "<day>"),
    (re.compile(r"(req_|evt_)?[0-9a-f]{16,64}"), "<id>"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block; `line` is where it stands in its page."""

    word: str
    file: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    """Take the fenced blocks out of a page."""
    return [
        Block(word=found["word"], file=found["file"] or "", text=found["text"], line=page.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(page)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is done at once, and what the page says that it prints; None where it says nothing."""

    block: Block
    script: str
    printed: str | None


def steps_of(page: str) -> list[Step]:
    """Turn a page into what a reader does."""
    steps: list[Step] = []
    for block in blocks_of(page):
        if (block.word, block.file) == ("text", "output"):
            before = steps.pop()
            assert before.printed is None, f"line {block.line}: the output of a block that has one already"
            steps.append(Step(block=before.block, script=before.script, printed=block.text))
        elif script := _script(block):
            steps.append(Step(block=block, script=script, printed=None))
    return steps


def _script(block: Block) -> str:
    if block.file:
        name = shlex.quote(block.file)
        return f'mkdir -p "$(dirname {name})"\ncat > {name} {_document(block.text)}'
    if block.word == "python":
        return f"python -W error - {_document(block.text)}"
    return block.text if block.word == "bash" else ""


def _document(text: str) -> str:
    return f"<<'@@ END @@'\n{text}@@ END @@\n"


def go_through(page: str, directory: Path, free_port: Callable[[], int]) -> None:
    """Do what a page says and compare what it prints; nothing that it started lives on."""
    ports = {port: str(free_port()) for port in _PORTS}
    steps = steps_of(_replaced(page, ports))
    # One group, so that bash reads it to its end before it runs any of it: what a step runs cannot read the rest as its input.
    said = f"printf '%s\\n' '{_NEXT}'\n"
    script = "{\nset -e\n" + said.join(step.script for step in steps) + "\nexit 0\n}\n"
    with _shell(script, directory) as (status, printed):
        parts = printed.split(_NEXT + "\n")
        assert status == 0, f"line {steps[len(parts) - 1].block.line}: exit {status}:\n{parts[-1]}\n{_logs(directory)}"
        for step, part in zip(steps, parts, strict=True):
            _compare(step, part)


def _replaced(text: str, ports: dict[str, str]) -> str:
    return re.sub(r"\b(8080|9090|9099)\b", lambda found: ports[found[0]], text)


def _compare(step: Step, got: str) -> None:
    if step.printed is None:
        return
    wanted, found = _lines(step.printed), _lines(got)
    same = len(wanted) == len(found) and all(_pattern(w).fullmatch(f) for w, f in zip(wanted, found, strict=True))
    assert same, f"line {step.block.line}: the page says\n{step.printed}\nand what was printed is\n{got}"


def _lines(text: str) -> list[str]:
    for varies, name in _VARIES:
        text = varies.sub(name, text)
    return [line.rstrip() for line in text.strip().splitlines()]


def _pattern(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in line.split("…")))


def _logs(directory: Path) -> str:
    return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in directory.glob("*.log"))


@contextlib.contextmanager
def _shell(script: str, directory: Path) -> Iterator[tuple[int, str]]:
    """Run a script to its end; all that it leaves in the background is ended after the block."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SARK_", "PYTEST_", "COV_"))}
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", _MARK: str(directory), "PYTHONUNBUFFERED": "1"}
    printed = directory / "printed.txt"
    with printed.open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=directory,
            env={**clean, **here},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        shell.wait()
        yield shell.returncode, printed.read_text("utf-8", "replace")
    finally:
        _end(shell, str(directory))
        shell.wait()


def _end(shell: subprocess.Popen[bytes], mark: str) -> None:
    """Ask all processes of a session to go, and make those go that do not."""
    for number, patience_s in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, number)
        # A server that put itself into a session of its own ends with its last user; if not, it is in the second round.
        for pid in _marked(mark) if number == signal.SIGKILL else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while _marked(mark) or shell.poll() is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return


def _marked(mark: str) -> list[int]:
    """Find the processes that carry a session's mark (on Linux; elsewhere the process group has to do)."""
    wanted = f"{_MARK}={mark}\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (process / "environ").read_bytes() + b"\0":
                found.append(int(process.name))
    return found


def left_of(directory: Path) -> list[int]:
    """Tell which processes of a page still run."""
    return _marked(str(directory))
