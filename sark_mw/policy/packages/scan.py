"""Static checks of a plugin's source by bandit: kept by PyCQA, a process of its own, nothing of the source is run.

A scan says what is unusual for a policy; what holds a plugin is the isolated tier.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sark_mw.errors import ConfigurationError

SEVERITIES = ("low", "medium", "high")
_DEADLINE_S = 120
_MEMORY_BYTES, _REPORT_BYTES = 1 << 30, 16 << 20
#: bandit parses what anyone may have written, and shows lines as long as their author likes. Not every system has each limit.
_BOUNDED = f"""
import contextlib, resource, runpy, sys
for limit, most in ((resource.RLIMIT_AS, {_MEMORY_BYTES}), (resource.RLIMIT_FSIZE, {_REPORT_BYTES}), (resource.RLIMIT_CORE, 0)):
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(limit, (most, most))
sys.argv[0] = "bandit"
runpy.run_module("bandit", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that the scanner names."""

    test: str
    severity: str
    confidence: str
    line: int
    text: str

    def reaches(self, severity: str) -> bool:
        """Tell whether it is at least so severe."""
        return SEVERITIES.index(self.severity) >= SEVERITIES.index(severity)


def scanner_is_installed() -> bool:
    """Tell whether there is a scanner."""
    return importlib.util.find_spec("bandit") is not None


def scan(source: bytes) -> list[Finding]:
    """Scan a source, in the order of its lines; raises `ConfigurationError` where the scanner is missing or fails."""
    if not scanner_is_installed():
        raise ConfigurationError("plugins are scanned by bandit: pip install 'sark-mw[check]', or --no-scan")
    # Of a folder of its own, with what it says of being skipped ignored: neither a `.bandit` file nor `# nosec` is the plugin's to
    # write. Isolated from the environment and the working folder for the same reason.
    with tempfile.TemporaryDirectory(prefix="sark-mw-scan-") as folder:
        path = Path(folder) / "plugin.py"
        path.write_bytes(source)
        words = ["--format", "json", "--quiet", "--exit-zero", "--ignore-nosec", "--number", "1", str(path)]
        shown, told = _run([sys.executable, "-I", "-c", _BOUNDED, *words], Path(folder))
    try:
        said = json.loads(shown)
        errors = [str(each["reason"]) for each in said["errors"]]
        found = [_finding(each) for each in said["results"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"bandit failed: {told.decode(errors='replace').strip()[-500:] or 'it was ended'}") from error
    if errors:
        raise ConfigurationError(f"bandit could not read it: {'; '.join(errors)}")
    return sorted(found, key=lambda finding: finding.line)


def _run(words: list[str], folder: Path) -> tuple[bytes, bytes]:
    """Run a command and return what it wrote: into files, whose size is limited."""
    shown, told = folder / "shown", folder / "told"
    with shown.open("wb") as out, told.open("wb") as err:
        try:
            subprocess.run(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False, cwd=folder, timeout=_DEADLINE_S)  # noqa: S603  # our own words
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(f"bandit did not end within {_DEADLINE_S} s") from error
    return shown.read_bytes(), told.read_bytes()


def _finding(said: dict[str, Any]) -> Finding:
    return Finding(
        test=str(said["test_id"]),
        severity=str(said["issue_severity"]).lower().replace("undefined", "low"),
        confidence=str(said["issue_confidence"]).lower(),
        line=int(said["line_number"]),
        text=" ".join(str(said["issue_text"]).split()),
    )
