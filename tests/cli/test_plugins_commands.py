"""`sark-mw plugins`: what it shows, checks, tests, adds and pins, and how it refuses."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.cli.running import printed, sark

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "plugins-packages.md"

PLUGIN = """
    import json
    from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin

    class Judge(PolicyPlugin):
        name = "judge"
        version = "1.0"
        description = "Judges."
        needs = frozenset({"model", "principal_id"})
        options_model = {"type": "object", "properties": {"model": {"type": "string"}}, "additionalProperties": False}

        def __init__(self, model: str = "small") -> None:
            self.model = model

        async def evaluate(self, context: PolicyContext) -> PolicyDecision:
            asked = context.arguments.get("model")
            if asked == "bad":
                raise ValueError("bad")
            return PolicyDecision(asked == self.model, f"{asked} was asked for")
"""


def plugin(folder: Path, extra: str = "", file: str = "judge.py") -> Path:
    path = folder / file
    path.write_text(dedent(PLUGIN) + extra)
    return path


def settings(folder: Path, more: str = "") -> Path:
    path = folder / "sark.toml"
    path.write_text(f'[policy]\nlock = "sark-plugins.lock"\n{more}')
    return path


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return sark("plugins", *words, cwd=folder)


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_tells_what_a_plugin_imports_asks_for_and_takes_and_how_it_is_held(tmp_path: Path) -> None:
    (found,) = printed("plugins", "check", plugin(tmp_path), "--json")
    assert found["ok"] and found["findings"] == []
    assert found["inspection"]["imports"] == ["json", "sark_mw"] and found["inspection"]["needs"] == ["model", "principal_id"]
    assert found["inspection"]["options"] == ["model: str = 'small'"]
    assert found["options_schema"]["properties"] == {"model": {"type": "string"}}
    loaded = found["loaded"]
    assert (loaded["name"], loaded["version"], loaded["needs"]) == ("judge", "1.0", ["model", "principal_id"])
    assert loaded["hardening"]["seccomp"] is True


def test_check_fails_on_a_finding_however_the_source_asks_to_be_spared(tmp_path: Path) -> None:
    path = plugin(tmp_path, "\nimport os\ndef run(x):\n    os.system('ls ' + x)  # nosec\n")
    (tmp_path / ".bandit").write_text("[bandit]\nskips = B605\n")
    done = run(tmp_path, "check", path)
    assert done.returncode == 1
    assert re.search(r"high +line \d+: Starting a process with a shell", done.stdout) and "FAULT" in done.stdout
    mild = plugin(tmp_path, "\nimport subprocess\n", "mild.py")
    assert run(tmp_path, "check", mild).returncode == 0
    assert run(tmp_path, "check", mild, "--severity", "low").returncode == 1


def test_check_never_runs_the_source_outside_the_isolated_tier(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    path = plugin(tmp_path, f"\nopen({str(ran)!r}, 'w').write('x')\n")
    done = run(tmp_path, "check", path)
    assert done.returncode == 1 and "FAULT" in done.stdout and not ran.exists()


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ("\ndef (", "not valid Python"),
        ("\nimport requests\n", "not there in isolation: requests"),
        ("\n1 / 0\n", "division by zero"),
    ],
)
def test_check_fails_on_what_does_not_load_and_says_why(tmp_path: Path, extra: str, complaint: str) -> None:
    done = run(tmp_path, "check", plugin(tmp_path, extra))
    assert done.returncode == 1 and complaint in done.stdout


def test_check_takes_a_folder_and_options(tmp_path: Path) -> None:
    plugin(tmp_path)
    plugin(tmp_path, file="other.py")
    (tmp_path / "options").mkdir()
    options = tmp_path / "options" / "given.toml"
    options.write_text('model = "big"')
    assert len(printed("plugins", "check", tmp_path, "--json", "--options", options)) == 2
    options.write_text('colour = "red"')
    done = run(tmp_path, "check", tmp_path, "--options", options)
    assert done.returncode == 1 and "colour" in done.stdout


# --- test ------------------------------------------------------------------------------------------------------------

CASES = """
[[cases]]
name = "small passes"
arguments = {model = "small", messages = ["secret"]}
expect = {allowed = true, obligations = []}
[[cases]]
name = "big does not"
arguments = {model = "big"}
expect = {allowed = false, reason = "big was"}
"""


def test_cases_that_are_as_expected_are_a_table_and_success(tmp_path: Path) -> None:
    plugin(tmp_path)
    (tmp_path / "cases.toml").write_text(CASES)
    done = run(tmp_path, "test", "judge.py")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 cases passed" in done.stdout and re.search(r"ok +big does not +denied +big was asked for", done.stdout)


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        ('arguments = {model = "big"}\nexpect = {allowed = true}', "it is denied, not allowed"),
        ('arguments = {model = "big"}\nexpect = {allowed = false, reason = "large"}', "does not contain 'large'"),
        (
            'arguments = {model = "small"}\nexpect = {allowed = true, obligations = [{kind = "add_tag", value = "x"}]}',
            "it obliges to nothing",
        ),
        ('arguments = {model = "small"}\nexpect = {allowed = true, metadata = {a = 1}}', "metadata a is None"),
        ('arguments = {model = "bad"}\nexpect = {allowed = false}', "it is failed, not denied"),
    ],
)
def test_a_case_that_differs_fails_and_says_in_what(tmp_path: Path, case: str, complaint: str) -> None:
    plugin(tmp_path)
    (tmp_path / "mine.toml").write_text(f'[[cases]]\nname = "mine"\n{case}')
    done = run(tmp_path, "test", "judge.py", "--cases", "mine.toml")
    assert done.returncode == 1 and complaint in done.stdout and "0 of 1" in done.stdout
    (told,) = json.loads(run(tmp_path, "test", "judge.py", "--cases", "mine.toml", "--json").stdout)
    assert not told["passed"] and complaint in told["complaints"][0]


def test_a_case_may_expect_the_plugin_to_fail(tmp_path: Path) -> None:
    plugin(tmp_path)
    text = '[[cases]]\nname = "x"\narguments = {model = "bad"}\nexpect = {allowed = false, outcome = "failed"}'
    (tmp_path / "cases.toml").write_text(text)
    assert run(tmp_path, "test", "judge.py").returncode == 0


def test_policies_in_rego_are_tested_by_their_cases(tmp_path: Path) -> None:
    done = run(ROOT, "test", "plugins/rego/cost.rego")
    assert done.returncode == 0 and "5 of 5 cases passed" in done.stdout, done.stdout + done.stderr
    (tmp_path / "cost.rego").write_text((ROOT / "plugins/rego/cost.rego").read_text().replace("0.8", "0.95"))
    changed = run(tmp_path, "test", "cost.rego", "--cases", ROOT / "plugins/rego/cases.toml")
    assert changed.returncode == 1 and "beyond 80 percent only small models are left: it is allowed, not denied" in changed.stdout


def test_rules_of_a_settings_file_are_tested_by_cases(tmp_path: Path) -> None:
    (tmp_path / "sark.toml").write_text(
        """
        [[policy.rules]]
        when = 'request.model.startsWith("gpt-4") && budget("team").used > 0.8'
        deny = "use the small model"
        on_error = "skip"
        [[policy.rules]]
        when = 'request.output_limit > 100'
        oblige = {cap_output_tokens = 100, add_tag = "long"}
        """
    )
    (tmp_path / "cases.toml").write_text(
        """
        [[cases]]
        name = "dear"
        arguments = {model = "gpt-4o"}
        limits = [{scope = "team:ml", amount = 10, spent = 9}]
        expect = {allowed = false, reason = "use the small model"}
        [[cases]]
        name = "long"
        arguments = {model = "gpt-4o", max_tokens = 500}
        limits = [{scope = "team:ml", amount = 10, spent = "1.5"}]
        expect = {allowed = true, obligations = [{kind = "cap_output_tokens", value = 100}, {kind = "add_tag", value = "long"}]}
        [[cases]]
        name = "wrong"
        arguments = {model = "gpt-4o"}
        expect = {allowed = false}
        """
    )
    done = run(tmp_path, "test", "sark.toml")
    assert done.returncode == 1 and "2 of 3 cases passed" in done.stdout and "wrong: it is allowed, not denied" in done.stdout
    assert run(tmp_path, "test", ROOT / "deploy" / "sark.toml", "--cases", "cases.toml").returncode == 2


def test_a_guest_in_webassembly_is_tested_by_cases(tmp_path: Path) -> None:
    cases = [("gpt-4o", "false"), ("claude-haiku", "true")]
    text = "".join(f'[[cases]]\nname = "{m}"\narguments = {{model = "{m}"}}\nexpect = {{allowed = {a}}}\n' for m, a in cases)
    (tmp_path / "cases.toml").write_text(text)
    done = run(ROOT, "test", "plugins/wasm/small_model.wat", "--cases", tmp_path / "cases.toml")
    assert done.returncode == 0 and "2 of 2 cases passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "plugins" / "cases").glob("*.toml")))
def test_the_cases_that_come_along_pass(name: str) -> None:
    done = sark("plugins", "test", f"plugins/{name}.py", "--cases", f"plugins/cases/{name}.toml", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


# --- add, lock, list -------------------------------------------------------------------------------------------------


def listed(folder: Path) -> list[tuple[Any, ...]]:
    done = run(folder, "list", "--json", "-c", "sark.toml")
    return [(each["name"], each["tier"], each["lock"]) for each in json.loads(done.stdout)]


def test_a_file_that_is_added_gets_a_manifest_a_pin_and_is_loaded_from_the_folder(tmp_path: Path) -> None:
    settings(tmp_path, 'folder = "plugins"\n[[policy.plugins]]\nname = "allow_list"\n')
    done = run(tmp_path, "add", plugin(tmp_path), "-c", "sark.toml")
    assert done.returncode == 0, done.stderr
    assert 'version = "1.0"' in (tmp_path / "plugins" / "judge" / "plugin.toml").read_text()
    assert listed(tmp_path) == [("allow_list", "in process", ""), ("judge", "isolated", "locked")]
    assert run(tmp_path, "lock", "--check", "-c", "sark.toml").returncode == 0
    again = run(tmp_path, "add", "judge.py", "-c", "sark.toml")
    assert again.returncode == 2 and "--upgrade" in again.stderr
    plugin(tmp_path, "# newer\n")
    assert run(tmp_path, "add", "judge.py", "--upgrade", "-c", "sark.toml").returncode == 0
    assert listed(tmp_path)[1] == ("judge", "isolated", "locked")


def test_what_check_refuses_is_added_only_by_force(tmp_path: Path) -> None:
    path = plugin(tmp_path, "\neval('1')\n")
    refused = run(tmp_path, "add", path)
    assert refused.returncode == 1 and "is not added" in refused.stderr and not (tmp_path / "plugins").exists()
    assert run(tmp_path, "add", path, "--force").returncode == 0
    assert (tmp_path / "plugins" / "judge" / "judge.py").exists() and (tmp_path / "sark-plugins.lock").exists()


def test_the_lock_tells_what_changed_and_list_shows_it_and_fails(tmp_path: Path) -> None:
    settings(tmp_path, '[[policy.plugins]]\npath = "judge.py"\n')
    path = plugin(tmp_path)
    assert run(tmp_path, "list", "-c", "sark.toml").returncode == 1
    assert "+ judge.py judge 1.0" in run(tmp_path, "lock", "-c", "sark.toml").stdout
    assert listed(tmp_path) == [("judge", "isolated", "locked")]
    path.write_text(path.read_text().replace('version = "1.0"', 'version = "1.1"'))
    checked = run(tmp_path, "lock", "--check", "-c", "sark.toml")
    assert checked.returncode == 1 and "~ judge.py judge 1.0 -> 1.1 (source)" in checked.stdout
    shown = run(tmp_path, "list", "-c", "sark.toml")
    assert shown.returncode == 1 and "is refused" in shown.stderr and " changed " in shown.stdout
    started = sark("serve", "-c", "sark.toml", "--upstream", "http://127.0.0.1:9", cwd=tmp_path)
    assert started.returncode != 0 and "judge.py is refused" in started.stderr + started.stdout
    assert run(tmp_path, "lock", "-c", "sark.toml").returncode == 0
    assert listed(tmp_path) == [("judge", "isolated", "locked")]


def test_a_plugin_without_a_version_and_a_policy_in_rego_can_be_pinned_and_pinned_again(tmp_path: Path) -> None:
    nameless = plugin(tmp_path)
    nameless.write_text(nameless.read_text().replace('version = "1.0"', "").replace('"""', ""))
    rego = ROOT / "plugins" / "rego" / "cost.rego"
    (tmp_path / "cost.rego").write_text(rego.read_text())
    parts = ['[[policy.plugins]]\npath = "judge.py"', '[[policy.plugins]]\nname = "rego"']
    config = settings(tmp_path, "\n".join([*parts, 'options = {path = "cost.rego", query = "data.sark.cost.decision"}\n']))
    for _ in range(2):
        assert run(tmp_path, "lock", "-c", config).returncode == 0
        done = run(tmp_path, "list", "-c", config)
        assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "cost.rego").write_text(rego.read_text() + "# changed\n")
    assert run(tmp_path, "list", "-c", config).returncode != 0


def test_a_lock_keeps_what_was_pinned_by_hand_and_drops_what_is_gone(tmp_path: Path) -> None:
    settings(tmp_path)
    path = plugin(tmp_path)
    run(tmp_path, "lock", "judge.py", "-c", "sark.toml")
    assert "1 pinned, 0 changed" in run(tmp_path, "lock", "-c", "sark.toml").stdout
    path.unlink()
    done = run(tmp_path, "lock", "-c", "sark.toml")
    assert "- judge.py" in done.stdout and "0 pinned, 1 changed" in done.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("check", "absent"), "no such file or folder, and no installed plugin"),
        (("check", "judge.py", "--severity", "grave"), "--severity is one of"),
        (("test", "judge.py"), "cases.toml"),
        (("test", "judge.py", "--cases", "bad.toml"), "cases.0.expect: Field required"),
        (("lock", "--check"), "cannot read the plugin lock"),
        (("add", "empty"), "has no plugin in it"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_and_exit_code_2(tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    plugin(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.toml").write_text('[[cases]]\nname = "x"')
    done = run(tmp_path, *words)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert complaint in line


# --- the guide -------------------------------------------------------------------------------------------------------


def test_the_guide_is_run_as_it_is_written(tmp_path: Path) -> None:
    text = GUIDE.read_text("utf-8")
    for path, content in re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", text, re.S):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    (console,) = re.findall(r"```console\n(.*?)```", text, re.S)
    for block in re.split(r"(?m)^\$ ", console)[1:]:
        command, *expected = block.splitlines()
        done = sark(*shlex.split(command)[1:], cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        for line in expected:
            assert any(shown.startswith(line) for shown in done.stdout.splitlines()), f"{command}: {line!r} in {done.stdout}"
