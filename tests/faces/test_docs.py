"""The example of docs/compatibility.md, run as it stands there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_the_page_s_example_prints_what_the_page_says(tmp_path: Path) -> None:
    _, code, _, printed, _ = PAGE.read_text("utf-8").split("```")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.removeprefix("python\n")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = [line for line in ran.stdout.splitlines() if not line.startswith("{")]  # the audit trail speaks JSON
    assert said == printed.strip().splitlines()
