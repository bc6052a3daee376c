from __future__ import annotations

import re

from tests.deploy.queries import ROOT, families


def test_the_table_of_metrics_names_all_of_them_and_no_others() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = text[text.index("| metric |") : text.index("**Labels are bounded.**")]
    named = set(re.findall(r"`(sark_\w+)`", table))
    assert named == families()
