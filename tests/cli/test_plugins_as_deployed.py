"""`sark-mw plugins test` and `add` take a policy as it is deployed: with the options beside it, and what its settings say."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.cli.running import sark

pytestmark = pytest.mark.wall_clock

GUARD = """
    from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin

    class Guard(PolicyPlugin):
        name = "guard"
        version = "1.0"

        def __init__(self, closed: bool = False, why: str = "shut") -> None:
            self.closed, self.why = closed, why

        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            return PolicyDecision(not self.closed, self.why)
"""
IS_CLOSED = '[[cases]]\nname = "closed"\nexpect = {allowed = false, reason = "shut"}\n'
USES_MINI = """
    [[policy.rules]]
    name = "small"
    when = 'request.model == "gpt-4o"'
    oblige = { use_model = "gpt-4o-mini" }
"""
MINI_IS_USED = """
    [[cases]]
    name = "smaller"
    arguments = {model = "gpt-4o"}
    expect = {allowed = true, obligations = [{kind = "use_model", value = "gpt-4o-mini"}]}
"""


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return sark("plugins", *words, cwd=folder)


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(dedent(text))


def pinned_options(folder: Path) -> Any:
    return tomllib.loads((folder / "plugins" / "guard" / "plugin.toml").read_text()).get("options")


def test_the_options_beside_a_file_are_heeded_by_its_test_and_go_along_when_it_is_added(tmp_path: Path) -> None:
    write(tmp_path, guard_py=GUARD, guard_toml="closed = true", cases_toml=IS_CLOSED)
    done = run(tmp_path, "test", "guard.py")
    assert done.returncode == 0, done.stdout
    assert run(tmp_path, "add", "guard.py").returncode == 0
    assert pinned_options(tmp_path) == {"closed": True}
    assert run(tmp_path, "test", "plugins/guard", "--cases", "cases.toml").returncode == 0


def test_options_that_are_named_win_over_those_beside_and_become_those_of_a_manifest_too(tmp_path: Path) -> None:
    write(tmp_path, guard_py=GUARD, guard_toml='closed = true\nwhy = "beside"', named_toml='why = "named"')
    assert run(tmp_path, "add", "guard.py", "--options", "named.toml").returncode == 0
    assert pinned_options(tmp_path) == {"closed": True, "why": "named"}
    package = (tmp_path / "plugins" / "guard").rename(tmp_path / "package")
    before = (package / "plugin.toml").read_bytes()
    assert run(tmp_path, "add", "package").returncode == 0
    assert (tmp_path / "plugins" / "guard" / "plugin.toml").read_bytes() == before
    write(tmp_path, named_toml='why = "again"')
    assert run(tmp_path, "add", "package", "--options", "named.toml", "--upgrade").returncode == 0
    assert pinned_options(tmp_path) == {"closed": True, "why": "again"}


def test_an_options_file_that_cannot_be_read_keeps_a_plugin_from_being_added(tmp_path: Path) -> None:
    write(tmp_path, guard_py=GUARD, guard_toml="closed = ")
    done = run(tmp_path, "add", "guard.py")
    assert done.returncode == 2 and "guard.toml" in done.stderr and not (tmp_path / "plugins").exists()


def test_cases_that_are_named_as_the_plugin_are_no_options(tmp_path: Path) -> None:
    write(tmp_path, guard_py=GUARD, guard_toml=f"options = {{closed = true}}\n{IS_CLOSED}")
    done = run(tmp_path, "test", "guard.py", "--cases", "guard.toml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_tested_with_the_models_that_their_settings_list(tmp_path: Path) -> None:
    listed = '[policy]\nobligation_models = ["gpt-4o-mini"]\n'
    write(tmp_path, sark_toml=listed + dedent(USES_MINI), cases_toml=MINI_IS_USED)
    done = run(tmp_path, "test", "sark.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    write(tmp_path, sark_toml=USES_MINI)
    done = run(tmp_path, "test", "sark.toml")
    assert done.returncode == 2 and "is not among policy.obligation_models" in done.stderr


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_rules_that_are_all_switched_off_are_told_of_in_one_line(tmp_path: Path, as_json: tuple[str, ...]) -> None:
    off = "[[policy.rules]]\nwhen = 'true'\ndeny = 'no'\nenabled = false\n"
    write(tmp_path, sark_toml=off, cases_toml=IS_CLOSED)
    done = run(tmp_path, "test", "sark.toml", *as_json)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "sark.toml has no [[policy.rules]] that is enabled" in line
    write(tmp_path, sark_toml=off + "[[policy.rules]]\nwhen = 'true'\ndeny = 'shut'\n")
    assert run(tmp_path, "test", "sark.toml", *as_json).returncode == 0
